package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// NewRegistry returns a registry for development: whoever reaches it may push and
// pull. It keeps layers in dir, which it empties first, at most maxBytes of
// them, and the names in memory: what was pushed goes with the process.
func NewRegistry(dir string, maxBytes int64) (http.Handler, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("empty the registry's directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the registry's directory: %w", err)
	}
	blobs := &registryBlobs{dir: dir, left: maxBytes}
	inner := registry.New(registry.WithBlobHandler(blobs), registry.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Body != nil { // the library holds manifests and pieces of uploads in memory
			req.Body = http.MaxBytesReader(w, req.Body, maxBytes)
		}
		inner.ServeHTTP(w, req)
	}), nil
}

// registryBlobs keeps what was pushed in files named by their digests.
type registryBlobs struct {
	dir string

	mu   sync.Mutex // guards below
	left int64      // bytes
}

var (
	_ registry.BlobHandler     = (*registryBlobs)(nil)
	_ registry.BlobStatHandler = (*registryBlobs)(nil)
	_ registry.BlobPutHandler  = (*registryBlobs)(nil)
)

func (b *registryBlobs) path(h v1.Hash) string { return filepath.Join(b.dir, h.Algorithm+"-"+h.Hex) }

// Get opens a blob.
func (b *registryBlobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(b.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

// Stat returns a blob's size.
func (b *registryBlobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	fi, err := os.Stat(b.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// errRegistryFull ends an upload beyond the registry's bound.
var errRegistryFull = errors.New("the registry is full: restart it to empty it")

// Put stores a blob whose content the caller verifies as it is read.
func (b *registryBlobs) Put(_ context.Context, _ string, h v1.Hash, from io.ReadCloser) error {
	f, err := os.CreateTemp(b.dir, "upload-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(&takingWriter{b: b, to: f}, from)
	if err == nil {
		err = f.Close()
	}
	if _, there := os.Stat(b.path(h)); err == nil && there != nil {
		if err = os.Rename(f.Name(), b.path(h)); err == nil {
			return nil
		}
	}
	b.take(-n)
	return err
}

// take counts bytes, or refuses them.
func (b *registryBlobs) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.left {
		return errRegistryFull
	}
	b.left -= n
	return nil
}

// A takingWriter counts what it writes against a registry's bound.
type takingWriter struct {
	b  *registryBlobs
	to io.Writer
}

func (w *takingWriter) Write(p []byte) (int, error) {
	if err := w.b.take(int64(len(p))); err != nil {
		return 0, err
	}
	return w.to.Write(p)
}
