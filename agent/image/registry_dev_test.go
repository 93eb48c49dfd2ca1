package image

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// devRegistry serves a registry for development.
func devRegistry(t *testing.T, dir string, maxBytes int64) string {
	t.Helper()
	h, err := NewRegistry(dir, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// tree writes a program and a link.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"bin/app": 0o755, "data": 0o644} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("app", filepath.Join(dir, "bin/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whatever an image is read from, it comes back out of the registry as it was.
func TestPushedImageComesBack(t *testing.T) {
	host := devRegistry(t, t.TempDir(), 1<<20)
	dir := tree(t)
	built, err := Build(dir, Run{Entrypoint: []string{"/bin/app"}})
	if err != nil {
		t.Fatal(err)
	}
	laid := filepath.Join(t.TempDir(), "layout")
	want, err := built.WriteLayout(laid)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, file, entry string }{
		"directory": {dir, "bin/app", ""}, "layout": {laid, "bin/app", "/bin/app"}, "program": {filepath.Join(dir, "bin/app"), "app", "/app"},
	} {
		l, err := OpenLocal(c.path)
		if err != nil {
			t.Fatal(name, err)
		}
		sent := int64(0)
		tag, digest, err := l.Push(t.Context(), Destination{Name: "team/" + name + ":v1", Registry: host, Progress: func(done, _ int64) { sent = done }})
		if err != nil || tag != host+"/team/"+name+":v1" || !strings.HasPrefix(digest, host+"/team/"+name+"@sha256:") || sent == 0 {
			t.Fatalf("%s: %q, %q, %v, %d bytes", name, tag, digest, err, sent)
		}
		if name == "layout" && !strings.HasSuffix(digest, want) {
			t.Errorf("pushed as %s, written as %s", digest, want)
		}
		img := prepare(t, openStore(t, nil), tag, "a")
		if got := read(t, img, c.file); got != "bin/app" || strings.Join(img.Run.Entrypoint, " ") != c.entry || img.Resolved != digest {
			t.Errorf("%s: %q, %+v", name, got, img)
		}
	}
}

func TestBuildIsReproducible(t *testing.T) {
	var digests []string
	for range 2 {
		l, err := Build(tree(t), Run{Cmd: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
}

func TestRegistryIsBounded(t *testing.T) {
	dir := t.TempDir()
	host := devRegistry(t, dir, 1000)
	big := t.TempDir()
	noise := make([]byte, 4000)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	if err := os.WriteFile(filepath.Join(big, "noise"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := Build(big, Run{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Push(t.Context(), Destination{Name: "big:v1", Registry: host}); err == nil {
		t.Error("it takes more than it may")
	}
	small, err := Build(tree(t), Run{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := small.Push(t.Context(), Destination{Name: "small:v1", Registry: host}); err != nil {
		t.Errorf("what was refused takes room: %v", err)
	}
	left, _ := filepath.Glob(dir + "/upload-*")
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLocalImagesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, filepath.Join(dir, "none"), filepath.Join(dir, "none:v1")} {
		if _, err := OpenLocal(path); err == nil {
			t.Errorf("%s is an image", path)
		}
	}
	l, err := Build(dir, Run{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"UPPER case", "a@sha256:" + strings.Repeat("a", 64)} {
		if _, _, err := l.Push(t.Context(), Destination{Name: name, Registry: "127.0.0.1:1"}); err == nil {
			t.Errorf("pushed to %q", name)
		}
	}
}
