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
// of memory. Of an upload's two more wait, or are read.
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
	s    *Trees
	have map[string]int64 // size of each chunk that is there
	m    manifest
	// listed and planned are how many entries and bytes the plan has.
	listed  int
	planned int64
	size    int64 // read so far
	batch   []unsent
	batched int64 // bytes of batch
	sent    atomic.Int64
	work    *errgroup.Group
	ctx     context.Context
}

// An unsent chunk is one that is to be put.
type unsent struct {
	key  string
	data []byte
}

// PutTree stores a directory. When it returns nil all of it is durable. After
// an error it may be made again: what was sent is not sent again. The error wraps
// an *UnfitError where another attempt would not help.
func (s *Trees) PutTree(ctx context.Context, u Upload) (Tree, error) {
	up := &uploading{Upload: u, s: s, have: map[string]int64{}, m: manifest{Format: manifestFormat}, ctx: ctx}
	if err := up.plan("."); err != nil {
		return Tree{}, err
	}
	for e, err := range s.objects.List(ctx, u.Prefix+chunkDir) {
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
	return t, s.objects.Put(ctx, t.Key, data)
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
	return u.flush()
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
		if err := u.send(c, buf[:n]); err != nil {
			return err
		}
		if int64(n) < u.s.chunk {
			return nil
		}
	}
}

// send stores a chunk that is not there yet, with others. A part of one, of a store
// that keeps such, has another size.
func (u *uploading) send(c chunk, data []byte) error {
	key := u.Prefix + chunkDir + c.SHA256
	if size, ok := u.have[key]; ok && size == c.Bytes {
		u.progress(c.Bytes)
		return nil
	}
	u.have[key] = c.Bytes
	u.batch = append(u.batch, unsent{key, data})
	if u.batched += c.Bytes; len(u.batch) < MaxOps && u.batched < u.s.chunk {
		return nil
	}
	return u.flush()
}

// flush stores what has gathered. It waits while enough are on their way.
func (u *uploading) flush() error {
	batch := u.batch
	u.batch, u.batched = nil, 0
	if len(batch) == 0 {
		return nil
	}
	ops := make([]Op, len(batch))
	for i := range batch {
		ops[i] = Op{Put: true, Key: batch[i].key, Bytes: int64(len(batch[i].data))}
	}
	if err := u.s.objects.Prepare(u.ctx, ops); err != nil {
		return err
	}
	for _, x := range batch {
		u.work.Go(func() error {
			if err := u.s.objects.Put(u.ctx, x.key, x.data); err != nil {
				return err
			}
			u.sent.Add(int64(len(x.data)))
			u.progress(int64(len(x.data)))
			return nil
		})
	}
	return nil
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
func (s *Trees) GetTree(ctx context.Context, key string, d Digest, dir string, maxBytes int64) (Tree, error) {
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

func (s *Trees) fill(ctx context.Context, m *manifest, prefix, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f := filling{s: s, m: m, prefix: prefix, root: root}
	f.work, f.ctx = errgroup.WithContext(ctx)
	f.work.SetLimit(parallel)
	for i := range m.Files {
		if err = f.file(i); err != nil {
			break
		}
	}
	return errors.Join(f.work.Wait(), err)
}

// A filling is a tree on its way into a directory.
type filling struct {
	s      *Trees
	m      *manifest
	prefix string
	root   *os.Root
	ready  int // chunks that are prepared and not begun
	work   *errgroup.Group
	ctx    context.Context
}

// file makes a file and has its chunks fetched.
func (f *filling) file(i int) error {
	x := &f.m.Files[i]
	if x.Dir {
		return f.root.Mkdir(x.Path, 0o755)
	}
	mode := fs.FileMode(0o644)
	if x.Exec {
		mode = 0o755
	}
	out, err := f.root.OpenFile(x.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	var left atomic.Int32
	left.Store(int32(len(x.Chunks)) + 1)
	done := func(n int) error {
		if left.Add(int32(-n)) == 0 {
			return out.Close()
		}
		return nil
	}
	at := int64(0)
	for _, c := range x.Chunks {
		at += c.Bytes
	}
	if err := out.Truncate(at); err != nil { // what is zero stays a hole
		return errors.Join(err, out.Close())
	}
	at = 0
	for j, c := range x.Chunks {
		if err := f.ahead(i, j); err != nil {
			return errors.Join(err, done(len(x.Chunks)-j+1))
		}
		off := at
		f.work.Go(func() error {
			return errors.Join(f.s.fetch(f.ctx, f.prefix, c, out, off), done(1))
		})
		at += c.Bytes
	}
	return done(1)
}

// ahead prepares for the chunks from the j-th of the i-th file on, some at a time.
func (f *filling) ahead(i, j int) error {
	if f.ready--; f.ready >= 0 {
		return nil
	}
	var ops []Op
	bytes := int64(0)
	for ; i < len(f.m.Files) && len(ops) < MaxOps && bytes < maxAhead; i, j = i+1, 0 {
		for _, c := range f.m.Files[i].Chunks[j:] {
			if len(ops) < MaxOps && bytes < maxAhead {
				ops = append(ops, Op{Key: f.prefix + chunkDir + c.SHA256, Bytes: c.Bytes})
				bytes += c.Bytes
			}
		}
	}
	f.ready = len(ops) - 1
	return f.s.objects.Prepare(f.ctx, ops)
}

// fetch writes a chunk to its place.
func (s *Trees) fetch(ctx context.Context, prefix string, c chunk, out *os.File, at int64) error {
	key := prefix + chunkDir + c.SHA256
	data, err := s.objects.Get(ctx, key, c.Bytes)
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

// Prune deletes the blobs below prefix, but for the manifests of keep and their
// chunks. What belongs to a manifest of keep that
// cannot be read is left alone. It says how many blobs it deleted.
func (s *Trees) Prune(ctx context.Context, prefix string, keep []string) (int, error) {
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
		return !wanted[key] && !below(key, shut)
	})
}

func (s *Trees) deleteIf(ctx context.Context, prefix string, unwanted func(key string) bool) (n int, err error) {
	var gone []string // listed whole, since a listing may skip what moves under it
	for e, err := range s.objects.List(ctx, prefix) {
		if err != nil {
			return 0, err
		}
		if unwanted(e.Key) {
			gone = append(gone, e.Key)
		}
	}
	for some := range slices.Chunk(gone, MaxOps) {
		if err := s.objects.Delete(ctx, some...); err != nil {
			return n, err
		}
		n += len(some)
	}
	return n, nil
}

func below(key string, prefixes []string) bool {
	for _, p := range prefixes {
		if len(key) >= len(p) && key[:len(p)] == p {
			return true
		}
	}
	return false
}
