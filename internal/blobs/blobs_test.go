package blobs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// testChunk is the size of chunks in tests: what is large costs CI its time.
const testChunk = 16 << 10

func open(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	s.chunk = testChunk
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// eachStore runs f on every kind of store: files, S3, and the way to Google's.
func eachStore(t *testing.T, f func(t *testing.T, s *Store)) {
	t.Run("file", func(t *testing.T) { f(t, open(t, "file://"+t.TempDir()+"/store")) })
	for _, scheme := range []string{"s3", "gs"} {
		t.Run(scheme, func(t *testing.T) { f(t, open(t, startS3(t).store(scheme))) })
	}
}

// sample is a directory with files of many sizes around that of a chunk.
func sample(t *testing.T, seed uint64) *os.Root {
	t.Helper()
	dir := t.TempDir()
	r := rand.NewChaCha8([32]byte{byte(seed)})
	for name, size := range map[string]int{
		"ckpt/empty": 0, "ckpt/one": 1, "ckpt/deep/er/exact": testChunk, "ckpt/deep/more": testChunk + 1,
		"ckpt/deep.txt": 10, "ckpt/large": 2*testChunk + 77,
	} {
		data := make([]byte, size)
		_, _ = r.Read(data)
		write(t, filepath.Join(dir, name), data)
	}
	if err := os.MkdirAll(filepath.Join(dir, "ckpt/nothing"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "ckpt/one"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func write(t *testing.T, at string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func upload(root *os.Root, prefix string) Upload {
	return Upload{Root: root, Dir: "ckpt", Prefix: prefix, MaxBytes: 1 << 30}
}

// listing is every file below a directory with its mode and content.
func listing(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			out = append(out, p)
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, p))
		fi, _ := d.Info()
		out = append(out, fmt.Sprintf("%s %o %d %x", p, fi.Mode()&0o100, len(data), data[:min(len(data), 8)]))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTreeComesBackAsItWas(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		root := sample(t, 1)
		sent, err := s.PutTree(t.Context(), upload(root, "a/b/"))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "to")
		got, err := s.GetTree(t.Context(), sent.Key, sent.Digest, to, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if want := listing(t, filepath.Join(root.Name(), "ckpt")); !slices.Equal(listing(t, to), want) {
			t.Errorf("%v\nwant %v", listing(t, to), want)
		}
		if got.Bytes != sent.Bytes || got.Files != sent.Files || sent.Bytes != 4*testChunk+89 || sent.Sent != sent.Bytes {
			t.Errorf("sent %+v, got %+v", sent, got)
		}
		again, err := s.PutTree(t.Context(), upload(root, "a/b/"))
		if err != nil || again.Digest != sent.Digest || again.Sent != 0 {
			t.Errorf("stored again: %+v, %v", again, err)
		}
	})
}

// An upload that is cut off goes on where it was.
func TestUploadResumes(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		root := sample(t, 2)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		u := upload(root, "p/")
		var done atomic.Int64
		u.Progress = func(n int64) {
			if done.Add(n) > testChunk {
				cancel()
			}
		}
		if _, err := s.PutTree(ctx, u); !errors.Is(err, context.Canceled) {
			t.Fatalf("the upload was not cut off: %v", err)
		}
		there := int64(0)
		for e, err := range s.List(t.Context(), "p/chunks/") {
			if err != nil {
				t.Fatal(err)
			}
			there += e.Bytes
		}
		rest, err := s.PutTree(t.Context(), upload(root, "p/"))
		// A request that was given up may still have been carried out.
		if err != nil || there == 0 || rest.Sent > rest.Bytes-there {
			t.Errorf("%d bytes were there, and %d of %d were sent: %v", there, rest.Sent, rest.Bytes, err)
		}
		if _, err := s.GetTree(t.Context(), rest.Key, rest.Digest, filepath.Join(t.TempDir(), "to"), 1<<30); err != nil {
			t.Error(err)
		}
	})
}

func TestDamageIsFound(t *testing.T) {
	s := open(t, "file://"+t.TempDir())
	tree, err := s.PutTree(t.Context(), upload(sample(t, 3), "p/"))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	for e, err := range s.List(t.Context(), "p/") {
		if err != nil {
			t.Fatal(err)
		}
		data, err := s.Get(t.Context(), e.Key, e.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for how, bad := range map[string][]byte{"flipped": flip(data), "cut": data[:len(data)-1]} {
			if err := s.Put(t.Context(), e.Key, bad); err != nil {
				t.Fatal(err)
			}
			if _, err := s.GetTree(t.Context(), tree.Key, tree.Digest, to, 1<<30); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %s: %v", e.Key, how, err)
			}
		}
		if err := s.Delete(t.Context(), e.Key); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetTree(t.Context(), tree.Key, tree.Digest, to, 1<<30); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), e.Key) {
			t.Errorf("%s deleted: %v", e.Key, err)
		}
		if _, err := os.Stat(to); err == nil {
			t.Errorf("%s: something is left", e.Key)
		}
		if err := s.Put(t.Context(), e.Key, data); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GetTree(t.Context(), tree.Key, tree.Digest, to, 1<<30); err != nil {
		t.Error(err)
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// A manifest that leads out of its directory is refused, though its digest is
// right: whoever may write to the store is not to write to the node.
func TestHostileManifest(t *testing.T) {
	s := open(t, "file://"+t.TempDir())
	for _, at := range []string{"../x", "/x", "a/../../x", ".", "", "a//b", "a\x00"} {
		text := fmt.Appendf(nil, `{"format":1,"files":[{"path":%q}]}`, at)
		key, d := storeManifest(t, s, text)
		if _, err := s.GetTree(t.Context(), key, d, filepath.Join(t.TempDir(), "to"), 1<<30); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", at, err)
		}
	}
}

// What the directory's owner may have put there is refused, and never read: links
// to the host's files, pipes that nobody writes to.
func TestUnfitDirectories(t *testing.T) {
	s := open(t, "file://"+t.TempDir())
	for name, spoil := range map[string]func(dir string) error{
		"link":    func(dir string) error { return os.Symlink("/etc/passwd", dir+"/x") },
		"link in": func(dir string) error { return os.Symlink("one", dir+"/x") },
		"pipe":    func(dir string) error { return syscall.Mkfifo(dir+"/x", 0o600) },
		"pipe instead of a directory": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), syscall.Mkfifo(dir, 0o600))
		},
		"sparse":    func(dir string) error { return os.Truncate(dir+"/one", 1<<40) },
		"long path": func(dir string) error { return os.MkdirAll(dir+strings.Repeat("/"+strings.Repeat("x", 200), 6), 0o755) },
	} {
		root := sample(t, 4)
		if err := spoil(filepath.Join(root.Name(), "ckpt")); err != nil {
			t.Fatal(err)
		}
		var unfit *UnfitError
		if _, err := s.PutTree(t.Context(), upload(root, "p/")); !errors.As(err, &unfit) {
			t.Errorf("%s: %v", name, err)
		}
		for e := range s.List(t.Context(), "p/") {
			t.Fatalf("%s: %s was sent", name, e.Key)
		}
	}
	u := upload(sample(t, 4), "p/")
	u.MaxBytes = 100
	var unfit *UnfitError
	if _, err := s.PutTree(t.Context(), u); !errors.As(err, &unfit) {
		t.Errorf("too large: %v", err)
	}
}

// What was listed as a directory may be a pipe when it is listed itself.
func TestPipeInTheWayOfTheListing(t *testing.T) {
	root := sample(t, 5)
	if err := syscall.Mkfifo(filepath.Join(root.Name(), "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	u := &uploading{Upload: upload(root, "p/"), ctx: t.Context()}
	var unfit *UnfitError
	if _, err := u.list("pipe"); !errors.As(err, &unfit) {
		t.Error(err)
	}
}

func TestTreeIsWrittenAsLargeAsItMayBe(t *testing.T) {
	s, root := open(t, "file://"+t.TempDir()), sample(t, 6)
	const size = 64 << 20
	if err := os.Truncate(filepath.Join(root.Name(), "ckpt/large"), size); err != nil {
		t.Fatal(err)
	}
	tree, err := s.PutTree(t.Context(), upload(root, "p/"))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	var large *TooLargeError
	if _, err := s.GetTree(t.Context(), tree.Key, tree.Digest, to, tree.Bytes-1); !errors.As(err, &large) || large.Bytes != tree.Bytes {
		t.Errorf("%v", err)
	}
	if _, err := s.GetTree(t.Context(), tree.Key, tree.Digest, to, tree.Bytes); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, to), listing(t, filepath.Join(root.Name(), "ckpt")); !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
	fi, err := os.Stat(filepath.Join(to, "large"))
	if err != nil || fi.Size() != size || fi.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("the file's holes take room: %+v, %v", fi, err)
	}
}

func TestPrune(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		var trees []Tree
		for i := range uint64(3) {
			root := sample(t, i)
			write(t, filepath.Join(root.Name(), "ckpt/same"), []byte("of all three"))
			tree, err := s.PutTree(t.Context(), upload(root, "task/1/"))
			if err != nil {
				t.Fatal(err)
			}
			trees = append(trees, tree)
		}
		other, err := s.PutTree(t.Context(), upload(sample(t, 9), "task/2/"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Prune(t.Context(), "task/1/", []string{trees[1].Key, trees[2].Key})
		if err != nil || n == 0 {
			t.Fatalf("%d blobs deleted, %v", n, err)
		}
		for i, want := range []error{ErrNotFound, nil, nil} {
			if _, err := s.GetTree(t.Context(), trees[i].Key, trees[i].Digest, filepath.Join(t.TempDir(), "to"), 1<<30); !errors.Is(err, want) {
				t.Errorf("tree %d: %v, want %v", i, err, want)
			}
		}
		if _, err := s.GetTree(t.Context(), other.Key, other.Digest, filepath.Join(t.TempDir(), "to"), 1<<30); err != nil {
			t.Errorf("what is not mine: %v", err)
		}
		if n, err := s.Prune(t.Context(), "task/1/", []string{trees[1].Key, trees[2].Key}); n != 0 || err != nil {
			t.Errorf("pruned again: %d, %v", n, err)
		}
		if _, err := s.DeletePrefix(t.Context(), "task/"); err != nil {
			t.Fatal(err)
		}
		for e := range s.List(t.Context(), "") {
			t.Errorf("%+v is left", e)
		}
	})
}

func TestStoreURLs(t *testing.T) {
	for _, url := range []string{"file:///a/b", "s3://bucket", "s3://bucket/p?region=x", "gs://bucket/p"} {
		if err := Check(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	for _, url := range []string{
		"", "/a/b", "file://a/b", "file://./a", "file:///a?create_dir=1", "s3://", "s3:///x", "ftp://a", "s3://id:secret@bucket", "s3://b#x", "gs://", "://",
	} {
		if err := Check(url); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", url, err)
		}
	}
	s := open(t, "file://"+t.TempDir())
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a b", ".a"} {
		if err := s.Put(t.Context(), key, nil); err == nil {
			t.Errorf("%q is a key", key)
		}
	}
}

func storeManifest(t *testing.T, s *Store, text []byte) (string, Digest) {
	t.Helper()
	d := sha256.Sum256(text)
	key := "p/" + manifestDir + hex.EncodeToString(d[:])
	if err := s.Put(t.Context(), key, text); err != nil {
		t.Fatal(err)
	}
	return key, d
}
