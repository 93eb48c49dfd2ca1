package blobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"
)

// Limits of a tree.
const (
	// chunkBytes is the size of a file's chunks, but for its last.
	chunkBytes = 8 << 20
	// MaxFiles is how many files and directories a tree may have.
	MaxFiles = 100_000
	// maxManifest bounds a manifest: it has about 80 bytes a chunk.
	maxManifest = 64 << 20
	maxPath     = 1_024
)

// A Digest is a SHA-256.
type Digest = [sha256.Size]byte

// Keys of a tree below its prefix.
const (
	manifestDir = "manifests/"
	chunkDir    = "chunks/"
)

// A manifest lists a tree, each directory before what is in it.
type manifest struct {
	Format int    `json:"format"`
	Files  []file `json:"files"`
}

const manifestFormat = 1

// A file is a file or a directory of a tree.
type file struct {
	Path   string  `json:"path"` // with slashes
	Dir    bool    `json:"dir,omitzero"`
	Exec   bool    `json:"exec,omitzero"`
	Chunks []chunk `json:"chunks,omitempty"`
}

type chunk struct {
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"size_bytes"`
}

// bytes is the size of all files; the largest number when that is more.
func (m *manifest) bytes() (n int64) {
	for i := range m.Files {
		for _, c := range m.Files[i].Chunks {
			if n += c.Bytes; n < 0 {
				return math.MaxInt64
			}
		}
	}
	return n
}

// check refuses a manifest that this package would not write.
func (m *manifest) check() error {
	if m.Format != manifestFormat {
		return fmt.Errorf("it has format %d, and this version reads %d", m.Format, manifestFormat)
	}
	if len(m.Files) > MaxFiles {
		return fmt.Errorf("it lists %d files, of at most %d", len(m.Files), MaxFiles)
	}
	seen := make(map[string]bool, len(m.Files))
	for i := range m.Files {
		f := &m.Files[i]
		if !filepath.IsLocal(f.Path) || f.Path == "." || path.Clean(f.Path) != f.Path || len(f.Path) > maxPath || seen[f.Path] || strings.ContainsRune(f.Path, 0) {
			return fmt.Errorf("the path %q is out of place", f.Path)
		}
		seen[f.Path] = true
		for _, c := range f.Chunks {
			if d, err := hex.DecodeString(c.SHA256); err != nil || len(d) != sha256.Size || c.Bytes <= 0 || c.Bytes > chunkBytes || f.Dir {
				return fmt.Errorf("a chunk of %q is not one", f.Path)
			}
		}
	}
	return nil
}

// readManifest reads and verifies the manifest at a key.
func (s *Trees) readManifest(ctx context.Context, key string, d Digest) (*manifest, error) {
	data, err := s.objects.Get(ctx, key, maxManifest)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != d {
		return nil, fmt.Errorf("%w: the manifest %s does not have its digest", ErrCorrupt, key)
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%w: the manifest %s: %w", ErrCorrupt, key, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: the manifest %s: %w", ErrCorrupt, key, err)
	}
	return m, nil
}

// split returns the prefix of a manifest's tree, and the digest that its key ends
// in.
func split(key string) (prefix string, d Digest, err error) {
	prefix, name, ok := strings.Cut(key, manifestDir)
	sum, decode := hex.DecodeString(name)
	if !ok || decode != nil || len(sum) != len(d) {
		return "", d, fmt.Errorf("%q is no key of a manifest", key)
	}
	return prefix, Digest(sum), nil
}
