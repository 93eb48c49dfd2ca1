package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
)

// parallel is how many chunks are on their way at a time; each takes chunkBytes
// of memory.
const parallel = 4

// A Tree says what was stored, or read.
type Tree struct {
	Key    string // of its manifest
	Digest Digest // of its manifest
	Bytes  int64  // of its files
	Files  int
	// Sent is how many bytes of chunks were sent; the others were there.
	Sent int64
}

// An UnfitError is of a directory that cannot be stored, whatever the store.
type UnfitError struct{ Path, Why string }

// Error says what is unfit and why.
func (e *UnfitError) Error() string { return fmt.Sprintf("%q cannot be stored: %s", e.Path, e.Why) }

// A TooLargeError is of a tree that does not fit where it was to be written.
type TooLargeError struct{ Bytes, Max int64 }

// Error names both sizes.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("it has %d bytes, of at most %d", e.Bytes, e.Max)
}

// An Upload is a directory that is to be stored.
type Upload struct {
	// Root holds the directory Dir. It may be somebody's who is not trusted:
	// nothing outside of it is read, and of it only plain files and directories.
	Root *os.Root
	Dir  string
	// Prefix is that of the tree's keys; it ends in a slash. One Upload or Prune
	// at a time may be below it.
	Prefix string
	// MaxBytes bounds the files together.
	MaxBytes int64
	// Progress is told of bytes that are in the store, if it is not nil: from
	// several goroutines.
	Progress func(bytes int64)
}

// An uploading is an Upload on its way.
type uploading struct {
	Upload
	s    *Store
	have map[string]int64 // size of each chunk that is there
	m    manifest
	// listed and planned are how many entries and bytes the plan has.
	listed  int
	planned int64
	size    int64 // read so far
	sent    atomic.Int64
	work    *errgroup.Group
	ctx     context.Context
}

// PutTree stores a directory. When it returns nil all of it is durable. After
// an error it may be made again: what was sent is not sent again. The error wraps
// an *UnfitError where another attempt would not help.
func (s *Store) PutTree(ctx context.Context, u Upload) (Tree, error) {
	up := &uploading{Upload: u, s: s, have: map[string]int64{}, m: manifest{Format: manifestFormat}, ctx: ctx}
	if err := up.plan("."); err != nil {
		return Tree{}, err
	}
	for e, err := range s.List(ctx, u.Prefix+chunkDir) {
		if err != nil {
			return Tree{}, err
		}
		up.have[e.Key] = e.Bytes
	}
	up.work, up.ctx = errgroup.WithContext(ctx)
	up.work.SetLimit(parallel)
	read := up.files()
	if err := up.work.Wait(); err != nil {
		return Tree{}, err
	}
	if read != nil {
		return Tree{}, read
	}
	data, err := json.Marshal(&up.m, json.Deterministic(true))
	if err != nil {
		return Tree{}, fmt.Errorf("write a manifest: %w", err)
	}
	if len(data) > maxManifest {
		return Tree{}, &UnfitError{u.Dir, "it has too many files and chunks"}
	}
	t := Tree{Digest: sha256.Sum256(data), Bytes: up.size, Files: len(up.m.Files), Sent: up.sent.Load()}
	t.Key = u.Prefix + manifestDir + hex.EncodeToString(t.Digest[:])
	return t, s.Put(ctx, t.Key, data)
}

// plan lists what is below a directory of the tree, in the order of names, and
// judges all of it: nothing is sent of a tree that cannot be stored.
func (u *uploading) plan(dir string) error {
	names, err := u.list(path.Join(u.Dir, dir))
	if err != nil {
		return err
	}
	for _, name := range names {
		rel := path.Join(dir, name)
		if len(rel) > maxPath {
			return &UnfitError{rel, "its path is too long"}
		}
		fi, err := u.Root.Lstat(path.Join(u.Dir, rel))
		switch {
		case err != nil:
			return &UnfitError{path.Join(u.Dir, rel), "it cannot be looked at: " + err.Error()}
		case fi.IsDir():
			u.m.Files = append(u.m.Files, file{Path: rel, Dir: true})
			if err := u.plan(rel); err != nil {
				return err
			}
		case fi.Mode().IsRegular():
			u.m.Files = append(u.m.Files, file{Path: rel})
			if fi.Size() > u.MaxBytes-u.planned {
				return u.tooLarge()
			}
			u.planned += fi.Size()
		default:
			return &UnfitError{path.Join(u.Dir, rel), "it is no plain file and no directory: write what a link points to"}
		}
	}
	return nil
}

func (u *uploading) tooLarge() error {
	return &UnfitError{u.Dir, fmt.Sprintf("its files have more than %d bytes together, holes counted as zeros", u.MaxBytes)}
}

// listBatch is how many entries of a directory are read at a time.
const listBatch = 1_000

// list returns the names in a directory, sorted. It is opened so that no pipe in
// its place is waited for. All listings of a tree share its bound.
func (u *uploading) list(at string) (names []string, err error) {
	d, err := u.Root.OpenFile(at, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, &UnfitError{at, "it cannot be listed: " + err.Error()}
	}
	defer d.Close()
	for {
		some, err := d.Readdirnames(listBatch)
		names = append(names, some...)
		switch u.listed += len(some); {
		case u.listed > MaxFiles:
			return nil, &UnfitError{u.Dir, fmt.Sprintf("it has more than %d files", MaxFiles)}
		case errors.Is(err, io.EOF):
			slices.Sort(names)
			return names, nil
		case err != nil:
			return nil, &UnfitError{at, "it cannot be listed: " + err.Error()}
		case u.ctx.Err() != nil:
			return nil, u.ctx.Err()
		}
	}
}

// files stores the files of the plan.
func (u *uploading) files() error {
	for i := range u.m.Files {
		if x := &u.m.Files[i]; !x.Dir {
			if err := u.file(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// file stores a file. It is opened so that no link is followed and no pipe waited
// for, and looked at again: its owner may have put another in its place.
func (u *uploading) file(x *file) error {
	at := path.Join(u.Dir, x.Path)
	f, err := u.Root.OpenFile(at, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return &UnfitError{at, "it cannot be opened: " + err.Error()}
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return &UnfitError{at, "it is no plain file any more"}
	}
	x.Exec = fi.Mode()&0o100 != 0
	for {
		buf := make([]byte, min(u.s.chunk, max(fi.Size()-int64(len(x.Chunks))*u.s.chunk, 1)))
		n, err := io.ReadFull(f, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read %q: %w", at, err)
		}
		if n == 0 {
			return nil
		}
		if u.size += int64(n); u.size > u.MaxBytes {
			return u.tooLarge()
		}
		if err := u.ctx.Err(); err != nil {
			return err
		}
		sum := sha256.Sum256(buf[:n])
		c := chunk{SHA256: hex.EncodeToString(sum[:]), Bytes: int64(n)}
		x.Chunks = append(x.Chunks, c)
		u.send(c, buf[:n])
		if int64(n) < u.s.chunk {
			return nil
		}
	}
}

// send stores a chunk that is not there yet. A part of one, of a store that keeps
// such, has another size.
func (u *uploading) send(c chunk, data []byte) {
	key := u.Prefix + chunkDir + c.SHA256
	if size, ok := u.have[key]; ok && size == c.Bytes {
		u.progress(c.Bytes)
		return
	}
	u.have[key] = c.Bytes
	u.work.Go(func() error {
		if err := u.s.Put(u.ctx, key, data); err != nil {
			return err
		}
		u.sent.Add(c.Bytes)
		u.progress(c.Bytes)
		return nil
	})
}

func (u *uploading) progress(n int64) {
	if u.Progress != nil {
		u.Progress(n)
	}
}

// GetTree writes the tree of a manifest's key into dir, which it makes and which
// must not be there, and verifies all of it. After an error nothing is left. The
// error wraps ErrNotFound or ErrCorrupt when the store does not have the tree, or
// not whole, and a *TooLargeError when its files have more than maxBytes together;
// else another attempt may help.
func (s *Store) GetTree(ctx context.Context, key string, d Digest, dir string, maxBytes int64) (Tree, error) {
	prefix, _, err := split(key)
	if err != nil {
		return Tree{}, err
	}
	m, err := s.readManifest(ctx, key, d)
	if err != nil {
		return Tree{}, err
	}
	if n := m.bytes(); n > maxBytes {
		return Tree{}, &TooLargeError{Bytes: n, Max: maxBytes}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return Tree{}, err
	}
	if err := s.fill(ctx, m, prefix, dir); err != nil {
		return Tree{}, errors.Join(err, os.RemoveAll(dir))
	}
	return Tree{Key: key, Digest: d, Bytes: m.bytes(), Files: len(m.Files)}, nil
}

func (s *Store) fill(ctx context.Context, m *manifest, prefix, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(parallel)
	for i := range m.Files {
		if err = s.fillFile(ctx, root, prefix, &m.Files[i], work); err != nil {
			break
		}
	}
	return errors.Join(work.Wait(), err)
}

// fillFile makes a file and has its chunks fetched.
func (s *Store) fillFile(ctx context.Context, root *os.Root, prefix string, f *file, work *errgroup.Group) error {
	if f.Dir {
		return root.Mkdir(f.Path, 0o755)
	}
	mode := fs.FileMode(0o644)
	if f.Exec {
		mode = 0o755
	}
	out, err := root.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	var left atomic.Int32
	left.Store(int32(len(f.Chunks)) + 1)
	done := func() error {
		if left.Add(-1) == 0 {
			return out.Close()
		}
		return nil
	}
	at := int64(0)
	for _, c := range f.Chunks {
		at += c.Bytes
	}
	if err := out.Truncate(at); err != nil { // what is zero stays a hole
		return errors.Join(err, out.Close())
	}
	at = 0
	for _, c := range f.Chunks {
		off := at
		work.Go(func() error {
			return errors.Join(s.fetch(ctx, prefix, c, out, off), done())
		})
		at += c.Bytes
	}
	return done()
}

// fetch writes a chunk to its place.
func (s *Store) fetch(ctx context.Context, prefix string, c chunk, out *os.File, at int64) error {
	key := prefix + chunkDir + c.SHA256
	data, err := s.Get(ctx, key, c.Bytes)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != c.SHA256 || int64(len(data)) != c.Bytes {
		return fmt.Errorf("%w: %s does not have its digest", ErrCorrupt, key)
	}
	if len(bytes.TrimLeft(data, "\x00")) == 0 {
		return nil
	}
	_, err = out.WriteAt(data, at)
	return err
}

// Prune deletes the blobs below prefix of which mine says so, but for the
// manifests of keep and their chunks. What belongs to a manifest of keep that
// cannot be read is left alone. It says how many blobs it deleted.
func (s *Store) Prune(ctx context.Context, prefix string, keep []string, mine func(key string) bool) (int, error) {
	wanted, shut := map[string]bool{}, []string{}
	for _, key := range keep {
		tree, d, err := split(key)
		if err != nil {
			return 0, err
		}
		wanted[key] = true
		m, err := s.readManifest(ctx, key, d)
		switch {
		case errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound):
			shut = append(shut, tree)
			continue
		case err != nil:
			return 0, err
		}
		for i := range m.Files {
			for _, c := range m.Files[i].Chunks {
				wanted[tree+chunkDir+c.SHA256] = true
			}
		}
	}
	return s.deleteIf(ctx, prefix, func(key string) bool {
		return !wanted[key] && mine(key) && !below(key, shut)
	})
}

func below(key string, prefixes []string) bool {
	for _, p := range prefixes {
		if len(key) >= len(p) && key[:len(p)] == p {
			return true
		}
	}
	return false
}
