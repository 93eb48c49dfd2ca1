package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is an entry of a layer with content.
func file(name, content string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content: content}
}

func dir(name string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func link(typ byte, name, to string) entryOf {
	return entryOf{Header: tar.Header{Name: name, Typeflag: typ, Linkname: to, Mode: 0o644}}
}

type entryOf struct {
	tar.Header
	content string
}

// archiveOf is the archive of a layer.
func archiveOf(t *testing.T, entries ...entryOf) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is a gzipped layer with the archive b; its configuration says diff
// of it, or what is true.
func layerOf(t *testing.T, b []byte) v1.Layer {
	t.Helper()
	return packedLayer{v1.Layer(static.NewLayer(zip(t, b), types.OCILayer)), b}
}

// packedLayer knows its archive, which static layers do not.
type packedLayer struct {
	v1.Layer
	plain []byte
}

func (l packedLayer) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}

func (l packedLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

func zip(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// imageOf is an image for this machine.
func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config = v1.Config{Entrypoint: []string{"/bin/app"}, Cmd: []string{"serve"}, Env: []string{"MODE=test"}, WorkingDir: "/srv", User: "7"}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// A registryServer is an in-process registry that counts what it is asked for.
type registryServer struct {
	host    string
	handler http.Handler

	mu   sync.Mutex // guards below
	gets map[string]int
	user string // with a password, "" lets everybody in
	deny string // a part of a path that is answered by 500
}

func newRegistry(t *testing.T) *registryServer {
	r := &registryServer{gets: map[string]int{}, handler: registry.New(registry.Logger(discard))}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *registryServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	user, deny := r.user, r.deny
	if req.Method == http.MethodGet {
		for _, what := range []string{"manifests", "blobs"} {
			if strings.Contains(req.URL.Path, "/"+what+"/") {
				r.gets[what]++
			}
		}
	}
	r.mu.Unlock()
	if deny != "" && strings.Contains(req.URL.Path, deny) {
		http.Error(w, "{}", http.StatusInternalServerError)
		return
	}
	if name, password, _ := req.BasicAuth(); user != "" && (name != user || password != "secret") {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "{}", http.StatusUnauthorized)
		return
	}
	r.handler.ServeHTTP(w, req)
}

func (r *registryServer) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gets[what]
}

func (r *registryServer) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// push stores an image and returns its name.
func (r *registryServer) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// openStore opens a store in a directory of its own.
func openStore(t *testing.T, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{Dir: filepath.Join(t.TempDir(), "images"), LocalRegistry: true}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func prepare(t *testing.T, s *Store, ref, hold string) *Image {
	t.Helper()
	img, err := s.Prepare(t.Context(), Request{Image: ref, Hold: hold})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func read(t *testing.T, img *Image, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(img.Root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
