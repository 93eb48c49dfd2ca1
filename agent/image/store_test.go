package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

var discard = log.New(io.Discard, "", 0)

func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

func attributes(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(path, b)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	return string(b[:max(n, 0)])
}

// plain is an image with one file of n bytes.
func plain(t *testing.T, name string, n int) v1.Image {
	return imageOf(t, layerOf(t, archiveOf(t, file(name, strings.Repeat("x", n)))))
}

func TestPrepareFromRegistry(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	shared := layerOf(t, archiveOf(t, dir("etc"), file("etc/os", "base")))
	ref := r.push(t, "team/app:v1", imageOf(t, shared, layerOf(t, archiveOf(t, file("app", "one")))))
	img := prepare(t, s, ref, "1")
	if read(t, img, "etc/os") != "base" || read(t, img, "app") != "one" {
		t.Error("it has other files")
	}
	if img.Run.Entrypoint[0] != "/bin/app" || img.Run.Cmd[0] != "serve" || img.Run.WorkingDir != "/srv" || img.Run.User != "7" || img.Run.Env[0] != "MODE=test" {
		t.Errorf("its configuration is %+v", img.Run)
	}
	if !strings.HasPrefix(img.Resolved, r.host+"/team/app@sha256:") {
		t.Errorf("it is resolved to %q", img.Resolved)
	}
	blobs := r.count("blobs")
	prepare(t, s, r.push(t, "team/app:v2", imageOf(t, shared, layerOf(t, archiveOf(t, file("app", "two"))))), "2")
	if got := r.count("blobs") - blobs; got != 2 { // a configuration and a layer
		t.Errorf("a second image took %d blobs, and shares a layer", got)
	}
}

// A digest that was seen needs no registry, neither does one after a restart.
func TestPinnedImageNeedsNoRegistryTwice(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	img := prepare(t, s, r.push(t, "team/app:v1", plain(t, "x", 10)), "1")
	s, err := Open(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	asked := r.count("manifests")
	again := prepare(t, s, img.Resolved, "2")
	if again.Key != img.Key || r.count("manifests") != asked {
		t.Errorf("the registry was asked %d times", r.count("manifests")-asked)
	}
	// Another repository's word for the same digest is not enough.
	_, digest, _ := strings.Cut(img.Resolved, "@")
	if _, err := s.Prepare(t.Context(), Request{Image: r.host + "/other/app@" + digest}); err == nil {
		t.Error("an image was served to who may not read it")
	}
}

// A tag may move: it is resolved at each request, and the digest says to what.
func TestTagIsResolvedEachTime(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	one := prepare(t, s, r.push(t, "team/app:v1", plain(t, "one", 10)), "1")
	two := prepare(t, s, r.push(t, "team/app:v1", plain(t, "two", 10)), "2")
	if one.Resolved == two.Resolved || one.Key == two.Key {
		t.Error("the tag did not move")
	}
	if read(t, two, "two") == "" || read(t, one, "one") == "" {
		t.Error("an image is gone")
	}
}

func TestIndexGivesTheImageOfThisMachine(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	mine := plain(t, "mine", 10)
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: plain(t, "other", 10), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &platform}})
	ref, err := name.ParseReference(r.host + "/team/multi:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		t.Fatal(err)
	}
	img := prepare(t, s, ref.Name(), "1")
	digest, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if read(t, img, "mine") == "" || !strings.HasSuffix(img.Resolved, digest.String()) {
		t.Errorf("resolved to %s", img.Resolved)
	}
}

// A layer is unpacked by what it is, not by what its manifest calls it.
func TestCompressionsOfLayers(t *testing.T) {
	plain := archiveOf(t, file("x", strings.Repeat("content", 1000)))
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, packed := range map[string][]byte{"none": plain, "gzip": zip(t, plain), "zstd": z.EncodeAll(plain, nil)} {
		s := openStore(t, nil)
		ref := newRegistry(t).push(t, "team/app:v1", imageOf(t, packedLayer{static.NewLayer(packed, types.OCILayer), plain}))
		img, err := s.Prepare(t.Context(), Request{Image: ref})
		if err != nil || len(read(t, img, "x")) != 7000 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImageOfAnotherMachineIsRefused(t *testing.T) {
	img := plain(t, "x", 1)
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "s390x"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, nil)
	_, err = s.Prepare(t.Context(), Request{Image: newRegistry(t).push(t, "team/app:v1", img)})
	checkRefused(t, s, err, "it is for linux/s390x")
}

func TestPrepareFromFiles(t *testing.T) {
	dir := t.TempDir()
	img := plain(t, "x", 10)
	p, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err == nil {
		err = p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(dir, "app.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, func(c *Config) { c.Files = []string{dir} })
	for _, ref := range []string{"oci:" + dir + "/layout", "oci:" + dir + "/layout:v1", "docker-archive:" + dir + "/app.tar", "docker-archive:" + dir + "/app.tar:team/app:v1"} {
		if got := prepare(t, s, ref, "1"); read(t, got, "x") != "xxxxxxxxxx" || !strings.HasPrefix(got.Resolved, "sha256:") {
			t.Errorf("%s: resolved to %s", ref, got.Resolved)
		}
	}
	if _, err := s.Prepare(t.Context(), Request{Image: "oci:" + dir + "/layout:v2"}); err == nil || !strings.Contains(err.Error(), `no image "v2"`) {
		t.Errorf("a tag that is not there: %v", err)
	}
	// Nothing else of the node's files can be named, or be told to be there.
	if err := os.Symlink("/etc", filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"oci:/etc", "docker-archive:/etc/passwd", "docker-archive:/etc/none", "docker-archive:" + dir + "/etc/passwd", "oci:" + dir + "/../.."} {
		var not *UnavailableError
		if _, err := s.Prepare(t.Context(), Request{Image: ref}); !errors.As(err, &not) || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestUnavailableImages(t *testing.T) {
	t.Parallel() // it waits for what is tried again
	r := newRegistry(t)
	ref := r.push(t, "team/app:v1", plain(t, "x", 10))
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNKNOWN","message":"secret"}]}`)
	}))
	defer service.Close()
	talks := strings.TrimPrefix(service.URL, "http://") + "/team/app:v1"
	cases := []struct {
		name, image, reason string
		permanent           bool
		before              func()
	}{
		{"NoSuchTag", r.host + "/team/app:v9", "no such image or tag: check its name, and that it was pushed", true, nil},
		{"NoSuchRepository", r.host + "/team/none:v1", "no such image or tag", true, nil},
		{"BadName", "Team/App", "is not a name such as", true, nil},
		{"NoRegistry", "127.0.0.1:1/team/app:v1", "registry 127.0.0.1:1", false, nil},
		{"RegistryFails", ref, "registry " + r.host, false, func() { r.deny = "/blobs/" }},
		{"WrongCredentials", ref, "credentials are missing or wrong; this node has no file of registry credentials: its operator names one with --registry-credentials FILE", true, func() { r.user, r.deny = "alice", "" }},
		{"ServiceThatTalks", talks, "answers 503: it is tried again", false, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.before != nil {
				r.set(c.before)
			}
			s := openStore(t, nil)
			_, err := s.Prepare(t.Context(), Request{Image: c.image})
			var not *UnavailableError
			if !errors.As(err, &not) || not.Permanent != c.permanent || !strings.Contains(err.Error(), c.reason) {
				t.Fatalf("%#v: %v", not, err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the tenant reads what another service says: %v", err)
			}
		})
	}
}

func TestCredentialsOfTheNode(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, "team/app:v1", plain(t, "x", 10))
	r.set(func() { r.user = "alice" })
	path := filepath.Join(t.TempDir(), "registries.json")
	write := func(content string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(fmt.Sprintf(`{"auths":{"http://%s/v2/":{"username":"alice","password":"wrong"}}}`, r.host), 0o600)
	s := openStore(t, func(c *Config) { c.Credentials = path })
	if _, err := s.Prepare(t.Context(), Request{Image: ref}); err == nil || strings.Contains(err.Error(), "wrong\"") || !strings.Contains(err.Error(), "what the node's file of credentials, "+path+", has for "+r.host) {
		t.Fatalf("a wrong password: %v", err)
	}
	// A new password is taken without a restart; alice:secret in base64.
	write(fmt.Sprintf(`{"auths":{"%s/team":{"auth":"YWxpY2U6c2VjcmV0"}}}`, r.host), 0o600)
	prepare(t, s, ref, "1")
	for content, reason := range map[string]string{`{"auths":`: "is not JSON", `{"auths":{"x":{"auth":"c2VjcmV0"}}}`: "not the base64"} {
		write(content, 0o600)
		if _, err := Open(Config{Dir: t.TempDir(), Credentials: path}); err == nil || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v", content, err)
		}
	}
	write(`{}`, 0o644)
	if _, err := Open(Config{Dir: t.TempDir(), Credentials: path}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
}

// The name of an image must not make the node call its own services.
func TestRegistryAtTheHostIsRefused(t *testing.T) {
	r := newRegistry(t)
	ref := r.push(t, "team/app:v1", plain(t, "x", 10))
	for image, local := range map[string]bool{ref: false, "169.254.169.254/latest/meta-data:v1": true} {
		s := openStore(t, func(c *Config) { c.LocalRegistry = local })
		if _, err := s.Prepare(t.Context(), Request{Image: image}); err == nil || !strings.Contains(err.Error(), "loopback or link-local") {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestTwoRequestsShareTheWork(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	ref := r.push(t, "team/app:v1", plain(t, "x", 1<<20))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Prepare(context.Background(), Request{Image: ref, Hold: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := r.count("blobs"); got != 2 {
		t.Errorf("%d blobs were fetched", got)
	}
	if u := s.Usage(); u.Images != 1 || len(s.holds) != 8 {
		t.Errorf("%+v, %d holds", u, len(s.holds))
	}
}

func TestProgressIsTold(t *testing.T) {
	s, r := openStore(t, nil), newRegistry(t)
	var phases []Phase
	var last Progress
	_, err := s.Prepare(t.Context(), Request{Image: r.push(t, "team/app:v1", plain(t, "x", 1<<20)), Progress: func(p Progress) {
		if p.Done > p.Total && p.Total > 0 || p.Phase == last.Phase && p.Done < last.Done {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	}})
	if err != nil || !slices.Equal(phases, []Phase{Resolve, Download, Unpack, Ready}) || last.Total == 0 || last.Layers != 1 {
		t.Errorf("%v, at last %+v: %v", phases, last, err)
	}
}

// The bound holds, the oldest goes first, and what is held stays.
func TestEvictionNeverTakesWhatRuns(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, func(c *Config) { c.MaxBytes = 64 << 17 })
	var refs []string
	for i := range 6 {
		refs = append(refs, r.push(t, fmt.Sprintf("team/app%d:v1", i), plain(t, fmt.Sprint("f", i), 1<<20)))
	}
	running := prepare(t, s, refs[0], "1")
	for _, ref := range refs[1:] {
		prepare(t, s, ref, "")
		if u := s.Usage(); u.Bytes > u.MaxBytes || u.Held < 1<<20 {
			t.Fatalf("%+v", u)
		}
	}
	if len(read(t, running, "f0")) != 1<<20 {
		t.Error("the image that runs is gone")
	}
	if s.entries[filepath.Join(imagesDir, running.Key)] == nil || s.Usage().Images >= 6 {
		t.Errorf("%+v", s.Usage())
	}
	// All that fits runs: one more is refused, in words, and nothing is harmed.
	for i, ref := range refs[1:] {
		if _, err := s.Prepare(t.Context(), Request{Image: ref, Hold: fmt.Sprint(i + 2)}); err != nil {
			if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "running tasks and fetches leave") {
				t.Errorf("no room: %v", err)
			}
			break
		}
	}
	if u := s.Usage(); u.Bytes > u.MaxBytes || s.reserved != 0 {
		t.Errorf("%+v, %d reserved", u, s.reserved)
	}
	// What ends makes room.
	if err := s.Retain(func(who string) bool { return who == "1" }); err != nil {
		t.Fatal(err)
	}
	prepare(t, s, refs[5], "9")
	if len(read(t, running, "f0")) != 1<<20 {
		t.Error("the image that runs is gone")
	}
}

func TestHoldsOutliveTheStore(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, nil)
	img := prepare(t, s, r.push(t, "team/app:v1", plain(t, "x", 1<<20)), "77")
	prepare(t, s, r.push(t, "team/other:v1", plain(t, "y", 1<<20)), "")
	cfg := s.cfg
	cfg.MaxBytes = 1 << 20 // lower than what there is
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Images != 1 || u.Blobs != 0 || len(read(t, img, "x")) != 1<<20 {
		t.Errorf("%+v", u)
	}
	if err := s.Release("77"); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(cfg); err != nil || s.Usage().Images != 0 {
		t.Errorf("%+v, %v", s.Usage(), err)
	}
}

// What a crash leaves is no image.
func TestUnfinishedImageIsFetchedAgain(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, nil)
	ref := r.push(t, "team/app:v1", plain(t, "x", 10))
	img := prepare(t, s, ref, "")
	if err := os.WriteFile(s.path(imagesDir, img.Key, metaFile), []byte(`{"key":`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s.Usage().Images != 0 {
		t.Errorf("%+v", s.Usage())
	}
	if img = prepare(t, s, ref, "1"); read(t, img, "x") != "xxxxxxxxxx" {
		t.Error("it is another")
	}
}

// What an earlier store left is out of the way at once, and deleted later, also
// what the one before could not delete in time.
func TestLeftoversAreDeletedBesideTheStore(t *testing.T) {
	s := openStore(t, nil)
	<-s.cleared
	for _, dir := range []string{s.path(tmpDir, "image-1", "root", "a"), s.path(leftPrefix+"1", tmpDir), s.path(imagesDir, "damaged", "root")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	again := openStore(t, func(c *Config) { c.Dir = s.cfg.Dir })
	if left, err := os.ReadDir(again.path(tmpDir, "image-1")); err == nil {
		t.Errorf("still in the way: %v", left)
	}
	<-again.cleared
	all, err := os.ReadDir(again.cfg.Dir)
	if err != nil || len(all) != 4 {
		t.Errorf("the store has %v, %v", all, err)
	}
	for _, d := range []string{tmpDir, imagesDir} {
		if left, err := os.ReadDir(again.path(d)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", d, left, err)
		}
	}
}

func TestDiskFullWhileUnpacking(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("no tmpfs can be mounted: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	r := newRegistry(t)
	ref := r.push(t, "team/app:v1", plain(t, "x", 16<<20))
	s := openStore(t, func(c *Config) { c.Dir, c.KeepFree = filepath.Join(dir, "images"), 1<<20 })
	_, err := s.Prepare(t.Context(), Request{Image: ref})
	if !errors.Is(err, errFull) || !strings.Contains(err.Error(), "free") || strings.Contains(err.Error(), dir) {
		t.Fatalf("a full disk: %v", err)
	}
	if u := s.Usage(); u.Images != 0 || s.reserved != 0 {
		t.Errorf("%+v", u)
	}
	prepare(t, s, r.push(t, "team/small:v1", plain(t, "x", 10)), "1")
}

func TestCanceledRequestLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Prepare(ctx, Request{Image: r.push(t, "team/app:v1", plain(t, "x", 8<<20)), Hold: "1", Progress: func(p Progress) {
		if p.Phase == Unpack {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if u := s.Usage(); u.Images != 0 || s.reserved != 0 || len(s.making) != 0 {
		t.Errorf("%+v", u)
	}
}

// A digest that is asked for is what comes, whatever the tag stands for now.
func TestDigestOutranksTheTag(t *testing.T) {
	r := newRegistry(t)
	one, two := imageOf(t, layerOf(t, archiveOf(t, file("which", "one")))), imageOf(t, layerOf(t, archiveOf(t, file("which", "two"))))
	ref := r.push(t, "team/app:v1", one)
	s := openStore(t, nil)
	first := prepare(t, s, ref, "a")
	r.push(t, "team/app:v1", two)
	if moved := prepare(t, s, ref, "b"); moved.Digest() == first.Digest() {
		t.Fatal("the tag has not moved")
	}
	img, err := openStore(t, nil).Prepare(t.Context(), Request{Image: ref, Digest: first.Digest(), Hold: "c"})
	if err != nil || img.Digest() != first.Digest() || read(t, img, "which") != "one" {
		t.Errorf("%+v, %v", img, err)
	}
	if _, err := s.Prepare(t.Context(), Request{Image: ref, Digest: "latest"}); err == nil {
		t.Error("what is no digest is taken for one")
	}
	if !Pinned(r.host+"/team/app@"+first.Digest()) || Pinned(ref) || Pinned("oci:/images/app:v1") {
		t.Error("which names say a digest")
	}
}
