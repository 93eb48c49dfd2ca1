package image

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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// A Request asks for an image.
type Request struct {
	// Image is the reference.
	Image string
	// Digest, if set, is the image that is wanted whatever its name stands for
	// now: another one is not taken.
	Digest string
	// Hold names who needs the image until Release: a file name. With "" it
	// may be taken away at once.
	Hold string
	// Progress, if set, is called as the work goes on, by one goroutine at a
	// time; it must not block.
	Progress func(Progress)
}

// A Phase is what is being done.
type Phase string

// The phases, in order.
const (
	Resolve  Phase = "resolve"
	Download Phase = "download"
	Unpack   Phase = "unpack"
	Ready    Phase = "ready"
)

// A Progress says how far a request is.
type Progress struct {
	Image string
	Phase Phase
	// Done and Total are bytes of the layers as they are sent; Total is 0 while
	// it is not known.
	Done, Total int64
	Layers      int
}

// Prepare returns the image, unpacked, and holds it. What is missing is
// fetched; two requests for one image share the work. Its errors are a
// RefusedError, an UnavailableError, or of this node (a full disk), and each
// is one sentence for who submitted the task.
func (s *Store) Prepare(ctx context.Context, r Request) (*Image, error) {
	ref, err := ParseReference(r.Image)
	if err != nil {
		return nil, &UnavailableError{Image: r.Image, Reason: err.Error(), Permanent: true}
	}
	if strings.ContainsRune(r.Hold, '/') || strings.HasPrefix(r.Hold, ".") {
		return nil, fmt.Errorf("%q cannot hold an image", r.Hold)
	}
	if r.Digest != "" {
		if ref, err = ref.at(r.Digest); err != nil {
			return nil, &UnavailableError{Image: r.Image, Reason: err.Error(), Permanent: true}
		}
	}
	p := &progress{to: r.Progress, at: Progress{Image: r.Image, Phase: Resolve}}
	p.tell()
	if name, ok := ref.pinned(); ok {
		if img := s.have(name, r.Hold); img != nil {
			return p.ready(img, name), nil
		}
	}
	src, err := s.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if r.Digest != "" && src.digest() != r.Digest {
		return nil, &UnavailableError{Image: r.Image, Permanent: true, Reason: fmt.Sprintf(
			"on this node it is %s, and the job's other tasks run %s: put the same file on every node, or push it to a registry", src.digest(), r.Digest)}
	}
	// By its repository: one that sends slowly must not hold up another with
	// the same content.
	release, err := s.claim(ctx, src.origin+"@"+src.key.Hex)
	if err != nil {
		return nil, err
	}
	defer release()
	img, err := s.adopt(src, r.Hold)
	if errors.Is(err, fs.ErrNotExist) {
		img, err = s.fetch(ctx, src, r.Hold, p)
	}
	if err != nil {
		return nil, err
	}
	return p.ready(img, src.resolved), nil
}

// have returns the image of a digest that this repository was seen to have.
// Another repository's name for the same content is not enough: its registry
// decides who may read it.
func (s *Store) have(name, who string) *Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, ok := s.aliases[name]
	if !ok {
		return nil
	}
	img, err := s.hold(who, key)
	if err != nil {
		return nil // fetched anew
	}
	return img
}

// maxNames bounds the names that are remembered of one image.
const maxNames = 64

// adopt holds an image that the cache has, and remembers its new name.
func (s *Store) adopt(src *source, who string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(src, who)
}

// take is adopt for a caller that holds mu.
func (s *Store) take(src *source, who string) (*Image, error) {
	img, err := s.hold(who, src.key.Hex)
	if err != nil || !src.remote || slices.Contains(img.Names, src.resolved) || len(img.Names) >= maxNames {
		return img, err
	}
	img.Names = append(img.Names, src.resolved)
	if err := img.write(s.path(imagesDir, img.Key, metaFile)); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	s.aliases[src.resolved] = img.Key
	return img, nil
}

// A pull is one image on its way into the cache.
type pull struct {
	s      *Store
	src    *source
	p      *progress
	layers []v1.Layer
	sums   []v1.Hash // of the layers' archives
	blobs  []*entry  // by layer; nil where the layer is read from its file
	run    Run
}

// fetch downloads and unpacks an image, and holds it.
func (s *Store) fetch(ctx context.Context, src *source, who string, p *progress) (*Image, error) {
	l := &pull{s: s, src: src, p: p}
	defer l.unpin()
	if err := l.describe(); err != nil {
		return nil, err
	}
	if src.remote {
		if err := l.download(ctx); err != nil {
			return nil, err
		}
	}
	return l.unpack(ctx, who)
}

// describe reads the configuration and counts the layers.
func (l *pull) describe() error {
	raw, err := l.src.image.RawConfigFile()
	if err != nil {
		return l.explain(err)
	}
	m, err := l.src.image.Manifest()
	if err != nil {
		return l.explain(err)
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != m.Config.Digest.Hex {
		return &RefusedError{Reason: "its configuration is not what its manifest names"}
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return &RefusedError{Reason: fmt.Sprintf("its configuration cannot be read: %v", err)}
	}
	if l.run, err = newRun(c); err != nil {
		return err
	}
	if l.layers, err = l.src.image.Layers(); err != nil {
		return l.explain(err)
	}
	l.sums, l.blobs = c.RootFS.DiffIDs, make([]*entry, len(l.layers))
	limits := &l.s.cfg.Limits
	switch {
	case len(l.layers) > limits.Layers:
		return &RefusedError{Reason: fmt.Sprintf("it has %d layers, more than %d", len(l.layers), limits.Layers)}
	case len(l.layers) != len(l.sums):
		return &RefusedError{Reason: fmt.Sprintf("its manifest has %d layers and its configuration %d", len(l.layers), len(l.sums))}
	}
	for _, d := range m.Layers {
		if d.Size > limits.Download-l.p.at.Total {
			return &RefusedError{Reason: fmt.Sprintf("its layers have more than %d bytes", limits.Download)}
		}
		l.p.at.Total += d.Size
	}
	l.p.at.Layers = len(l.layers)
	if !l.src.remote {
		l.p.at.Total = 0 // they are read as they unpack, and that is not known
	}
	return nil
}

// parallel is how many layers are downloaded at once.
const parallel = 3

func (l *pull) download(ctx context.Context) error {
	l.p.enter(Download)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range l.layers {
		g.Go(func() error { return l.blob(ctx, i) })
	}
	return g.Wait()
}

// blob gets layer i into the cache, and pins it there.
func (l *pull) blob(ctx context.Context, i int) error {
	digest, err := l.layers[i].Digest()
	if err != nil {
		return l.explain(err)
	}
	size, err := l.layers[i].Size()
	if err != nil {
		return l.explain(err)
	}
	if digest.Algorithm != "sha256" {
		return &RefusedError{Layer: i + 1, Reason: "is named by " + clip(digest.Algorithm) + ", and only sha256 is known"}
	}
	release, err := l.s.claim(ctx, l.src.origin+"@"+blobsDir+digest.Hex)
	if err != nil {
		return err
	}
	defer release()
	path := filepath.Join(blobsDir, digest.Hex)
	if l.pin(i, path) {
		l.p.add(size)
		return nil
	}
	if err := l.s.reserve(size); err != nil {
		return err
	}
	defer l.s.unreserve(size)
	if err := l.save(ctx, i, path, size); err != nil {
		return err
	}
	l.s.mu.Lock()
	if l.s.entries[path] == nil { // else another repository's, perhaps pinned
		l.s.add(path, size, time.Now())
	}
	l.s.mu.Unlock()
	l.pin(i, path)
	return nil
}

// pin keeps a blob that the cache has until it was unpacked.
func (l *pull) pin(i int, path string) bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	e := l.s.entries[path]
	if e == nil {
		return false
	}
	e.pins++
	l.blobs[i] = e
	l.s.use(e, l.s.path(path))
	return true
}

func (l *pull) unpin() {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for i, e := range l.blobs {
		if e != nil {
			e.pins--
			l.blobs[i] = nil
		}
	}
}

// save downloads a layer to a file and gives it its name once all of it has
// the digest that it should.
func (l *pull) save(ctx context.Context, i int, path string, size int64) error {
	in, err := l.layers[i].Compressed()
	if err != nil {
		return l.explain(err)
	}
	defer in.Close()
	f, err := os.CreateTemp(l.s.path(tmpDir), "blob-")
	if err != nil {
		return fmt.Errorf("image cache: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(f, &progressReader{ctx: ctx, from: io.LimitReader(in, size+1), p: l.p})
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("download layer %d: %w", i+1, noSpace(l.s.cfg.Dir))
	case err != nil:
		return l.explain(err)
	case n != size:
		return &UnavailableError{Image: l.p.at.Image, Reason: fmt.Sprintf("layer %d has %d bytes, and its registry sent another number", i+1, size)}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("image cache: %w", err)
	}
	if err := os.Rename(f.Name(), l.s.path(path)); err != nil {
		return fmt.Errorf("image cache: %w", err)
	}
	return nil
}

func (l *pull) explain(err error) error {
	ref, parseErr := ParseReference(l.p.at.Image)
	if parseErr == nil && ref.registry != nil {
		return l.s.explain(ref, err)
	}
	return &RefusedError{Reason: fmt.Sprintf("it cannot be read: %v", err)}
}

// unpack applies the layers in a directory of their own, and gives it the
// image's name when all is well.
func (l *pull) unpack(ctx context.Context, who string) (img *Image, err error) {
	l.p.enter(Unpack)
	dir, err := os.MkdirTemp(l.s.path(tmpDir), "image-")
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, rootDir)
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	u := newUnpacker(root, l.s.cfg.Limits, l.s.reserve)
	defer func() { l.s.unreserve(u.reserved) }()
	for i := range l.layers {
		if err := l.apply(ctx, u, i); err != nil {
			return nil, err
		}
	}
	img = &Image{Key: l.src.key.Hex, Bytes: u.filter.bytes + block, Run: l.run}
	if l.src.remote {
		img.Names = []string{l.src.resolved}
	}
	if err := img.write(filepath.Join(dir, metaFile)); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	if err := syncFS(dir); err != nil { // a name must not outlive its content
		return nil, fmt.Errorf("image cache: %w", err)
	}
	return l.publish(dir, img, who)
}

// apply unpacks layer i; then its blob may go.
func (l *pull) apply(ctx context.Context, u *unpacker, i int) error {
	in, err := l.open(i)
	if err != nil {
		return l.explain(err)
	}
	defer in.Close()
	if err := u.apply(ctx, &progressReader{ctx: ctx, from: in, p: l.p}, l.sums[i]); err != nil {
		return err
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if e := l.blobs[i]; e != nil {
		e.pins--
		l.blobs[i] = nil
	}
	return nil
}

func (l *pull) open(i int) (io.ReadCloser, error) {
	if e := l.blobs[i]; e != nil {
		return os.Open(l.s.path(e.path))
	}
	return l.layers[i].Uncompressed()
}

// publish moves a finished image into place and holds it.
func (l *pull) publish(dir string, img *Image, who string) (*Image, error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	place := filepath.Join(imagesDir, img.Key)
	if s.entries[place] != nil { // from another repository, at the same time
		return s.take(l.src, who)
	}
	if err := os.Rename(dir, s.path(place)); err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	s.add(place, img.Bytes, time.Now())
	for _, name := range img.Names {
		s.aliases[name] = img.Key
	}
	return s.hold(who, img.Key)
}

// syncFS makes everything on dir's disk last.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
