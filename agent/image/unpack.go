package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	continuity "github.com/containerd/continuity/fs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd layer makes its reader use.
const maxWindow = 128 << 20

// An unpacker applies an image's layers to a directory, in order.
type unpacker struct {
	filter filter
	root   string
	// stream is how many bytes of archive may still come, over all layers. It
	// is what a bomb runs into: the filter sees a file only once its header
	// was unpacked.
	stream int64
	// room asks for n more bytes of disk before they are written.
	room     func(n int64) error
	reserved int64
}

// chunk is how much room an unpacker asks for at a time.
const chunk = 16 << 20

func newUnpacker(root string, l Limits, room func(int64) error) *unpacker {
	return &unpacker{filter: filter{limits: l}, root: root, stream: l.Unpacked + chunk, room: room}
}

// apply unpacks one layer, whose archive must have the digest want.
func (u *unpacker) apply(ctx context.Context, packed io.Reader, want v1.Hash) error {
	u.filter.layer++
	plain, done, err := decompress(packed)
	if err != nil {
		return u.wrong(err)
	}
	defer done()
	in := &layerReader{from: plain, u: u, sum: sha256.New()}
	opts := []archive.ApplyOpt{archive.WithFilter(u.judge)}
	if os.Geteuid() != 0 {
		opts = append(opts, archive.WithNoSameOwner())
	}
	if _, err := archive.Apply(ctx, u.root, in, opts...); err != nil {
		return u.wrong(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what is behind the archive's end is hashed too
		return u.wrong(err)
	}
	if got := hex.EncodeToString(in.sum.Sum(nil)); want.Algorithm != "sha256" || got != want.Hex {
		return &RefusedError{Layer: u.filter.layer, Reason: fmt.Sprintf("is not what the image's configuration names: it unpacks to sha256:%s, not %s", got, want)}
	}
	return nil
}

// judge filters an entry, and asks for the room that it takes.
func (u *unpacker) judge(h *tar.Header) (bool, error) {
	take, err := u.filter.judge(h)
	if err != nil || !take {
		return take, err
	}
	if err := u.filter.parents(h, missingParents(u.root, h.Name)); err != nil {
		return false, err
	}
	if u.filter.bytes <= u.reserved {
		return true, nil
	}
	n := max(chunk, u.filter.bytes-u.reserved)
	if u.room(n) != nil {
		n = u.filter.bytes - u.reserved // no more than it must be
		if err := u.room(n); err != nil {
			return false, err
		}
	}
	u.reserved += n
	return true, nil
}

// missingParents counts the directories that the archive package makes for an
// entry. It looks at the disk: what the name says is not what is made, where a
// symbolic link of the image leads to directories that are not there.
func missingParents(root, name string) (n int64) {
	dir, err := continuity.RootPath(root, filepath.Dir(name))
	if err != nil {
		return 0 // nothing is made: the archive package fails alike
	}
	for ; len(dir) > len(root); dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		n++
	}
	return n
}

// wrong sorts an error of the archive package: whose fault is it?
func (u *unpacker) wrong(err error) error {
	var refused *RefusedError
	var path *fs.PathError
	var link *os.LinkError
	var no syscall.Errno
	switch {
	case errors.As(err, &refused), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errFull):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("unpack layer %d: %w", u.filter.layer, noSpace(u.root))
	case errors.As(err, &link), errors.As(err, &path):
		if errors.As(err, &no) && (no == syscall.EIO || no == syscall.EROFS || no == syscall.EMFILE || no == syscall.ENFILE || no == syscall.ENOMEM) {
			return fmt.Errorf("unpack layer %d: %w", u.filter.layer, err)
		}
		return u.damaged(hide(u.root, err))
	}
	return u.damaged(hide(u.root, err))
}

// hide takes the node's own paths out of what a tenant reads.
func hide(root string, err error) error {
	return errors.New(string(bytes.ReplaceAll([]byte(err.Error()), []byte(root), nil)))
}

func (u *unpacker) damaged(err error) error {
	return &RefusedError{Layer: u.filter.layer, Reason: "cannot be unpacked: " + err.Error()}
}

// A layerReader reads a layer's archive, counts it and hashes it.
type layerReader struct {
	from io.Reader
	u    *unpacker
	sum  hash.Hash
}

func (r *layerReader) Read(p []byte) (int, error) {
	if r.u.stream <= 0 {
		return 0, &RefusedError{Layer: r.u.filter.layer, Reason: fmt.Sprintf("unpacks to more than %d bytes", r.u.filter.limits.Unpacked)}
	}
	n, err := r.from.Read(p[:min(int64(len(p)), r.u.stream)])
	r.u.stream -= int64(n)
	r.sum.Write(p[:n])
	return n, err
}

// decompress looks at a layer's first bytes: what its manifest says of its
// compression is wrong often enough.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// noSpace says that the disk of dir is full, without its name: a tenant reads it.
func noSpace(dir string) error {
	return fmt.Errorf("%w: no space is left on the disk of the node's image cache, %d bytes are free: its operator has to free some, or to give the agent another directory", errFull, freeBytes(dir))
}

// freeBytes is what is free on the disk of dir; -1 when that is not known.
func freeBytes(dir string) int64 {
	var fs syscall.Statfs_t
	if syscall.Statfs(dir, &fs) != nil {
		return -1
	}
	return int64(fs.Bavail) * fs.Bsize
}
