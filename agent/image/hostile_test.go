package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// prepareLayers unpacks an image of raw archives, through a registry.
func prepareLayers(t *testing.T, s *Store, archives ...[]byte) (*Image, error) {
	t.Helper()
	var layers []v1.Layer
	for _, a := range archives {
		layers = append(layers, layerOf(t, a))
	}
	ref := newRegistry(t).push(t, "team/hostile:v1", imageOf(t, layers...))
	return s.Prepare(t.Context(), Request{Image: ref, Hold: "1"})
}

// small limits, so that a test need not be large.
func smallLimits(c *Config) {
	c.Limits = Limits{Layers: 4, Entries: 100, Unpacked: 4 << 20, Download: 4 << 20}
}

// gnuSparse is the header of a sparse file of the old GNU form.
func gnuSparse(name string, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], "00000000000\x00")
	copy(b[136:], "00000000000\x00")
	b[156] = 'S'
	copy(b[257:], "ustar  \x00")
	big := func(at int, n int64) { // base 256
		b[at] = 0x80
		for i := range 8 {
			b[at+11-i] = byte(n >> (8 * i))
		}
	}
	big(386, size) // one piece of no bytes, at the end
	big(398, 0)
	big(483, size)
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, make([]byte, 1024)...)
}

var hostileLayers = []struct {
	name, reason string
	entries      []entryOf
}{
	{"Traversal", "leads out of", []entryOf{file("../../etc/cron.d/x", "x")}},
	{"TraversalInside", "leads out of", []entryOf{dir("a"), file("a/../../x", "x")}},
	{"TraversalAlone", "leads out of", []entryOf{dir("..")}},
	{"WhiteoutOfParent", "whiteout of its own directory", []entryOf{file("a/.wh...", "")}},
	{"WhiteoutOfRootsParent", "whiteout of its own directory", []entryOf{file(".wh...", "")}},
	{"WhiteoutOfItself", "whiteout of its own directory", []entryOf{file("a/.wh..", "")}},
	{"WhiteoutOfNothing", "whiteout of its own directory", []entryOf{file("a/.wh.", "")}},
	{"WhiteoutAsDirectory", "whiteout for a directory", []entryOf{file("a/.wh.b/c", "")}},
	{"HardLinkOut", "not in the image", []entryOf{link(tar.TypeLink, "shadow", "../../../../etc/shadow")}},
	{"HardLinkAbsolute", "cannot be unpacked", []entryOf{link(tar.TypeLink, "shadow", "/etc/shadow")}},
	{"HardLinkThroughSymlink", "cannot be unpacked", []entryOf{link(tar.TypeSymlink, "out", "/etc"), link(tar.TypeLink, "shadow", "out/shadow")}},
	{"HardLinkToNothing", "not in the image", []entryOf{link(tar.TypeLink, "x", "")}},
	{"RootAsSymlink", "root of the image", []entryOf{link(tar.TypeSymlink, ".", "/etc")}},
	{"RootAsSymlinkWithSlash", "root of the image", []entryOf{link(tar.TypeSymlink, "./", "/etc")}},
	{"RootAsSymlinkAbsolute", "root of the image", []entryOf{link(tar.TypeSymlink, "/", "/etc")}},
	{"RootAsFile", "root of the image", []entryOf{file(".", "x")}},
	{"RootAsHardLink", "root of the image", []entryOf{link(tar.TypeLink, ".", "a/kept")}},
	{"CharacterDevice", "device node (1:1)", []entryOf{{Header: tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}}}},
	{"BlockDevice", "device node (8:0)", []entryOf{{Header: tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}}}},
	{"TooLarge", "may unpack to", []entryOf{file("zero", strings.Repeat("\x00", 5<<20))}},
	{"TooDeep", "directories deep", []entryOf{file(strings.Repeat("d/", 300)+"x", "")}},
	{"LongName", "name of more than", []entryOf{file(strings.Repeat("x", 5000), "")}},
	{"ManyAttributes", "of attributes", []entryOf{{Header: tar.Header{
		Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 70<<10)}}}}},
}

func TestCase36HostileLayerIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range hostileLayers {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, smallLimits)
			witness := filepath.Join(filepath.Dir(s.cfg.Dir), "witness") // beside the store
			if err := os.WriteFile(witness, []byte("here"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := prepareLayers(t, s, archiveOf(t, dir("a"), file("a/kept", "kept")), archiveOf(t, c.entries...))
			checkRefused(t, s, err, c.reason)
			var refused *RefusedError
			if errors.As(err, &refused) && refused.Layer != 2 {
				t.Errorf("layer %d is blamed: %v", refused.Layer, err)
			}
			if b, err := os.ReadFile(witness); err != nil || string(b) != "here" {
				t.Errorf("what is beside the store was touched: %q, %v", b, err)
			}
		})
	}
}

// checkRefused checks that an image was refused for a reason, and left nothing.
func checkRefused(t *testing.T, s *Store, err error, reason string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("not refused because it %s: %v", reason, err)
	}
	if strings.Contains(err.Error(), s.cfg.Dir) {
		t.Errorf("the tenant is told a path of the node: %v", err)
	}
	if u := s.Usage(); u.Images != 0 || u.Held != 0 {
		t.Errorf("something of it is kept: %+v", u)
	}
	for _, d := range []string{tmpDir, imagesDir, holdsDir} {
		if left, err := os.ReadDir(s.path(d)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", d, left, err)
		}
	}
	if s.reserved != 0 {
		t.Errorf("%d bytes stay reserved", s.reserved)
	}
}

func TestCase36SparseTerabyteIsRefused(t *testing.T) {
	s := openStore(t, nil) // under the default limits
	_, err := prepareLayers(t, s, gnuSparse("huge", 1<<40))
	checkRefused(t, s, err, "sparse file of 1099511627776 bytes")
}

func TestCase36HeaderThatPromisesATerabyteIsRefused(t *testing.T) {
	s := openStore(t, nil)
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 1 << 40}); err != nil {
		t.Fatal(err)
	}
	_, err := prepareLayers(t, s, b.Bytes())
	checkRefused(t, s, err, "has 1099511627776 bytes")
}

// A bomb has its bytes where no entry's size says so: behind the archive's end.
func TestCase36DecompressionBombIsRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t, smallLimits)
	_, err := prepareLayers(t, s, append(archiveOf(t, file("x", "x")), make([]byte, 40<<20)...))
	checkRefused(t, s, err, "unpacks to more than")
}

func TestCase36TooManyEntriesAreRefused(t *testing.T) {
	s := openStore(t, smallLimits)
	var many []entryOf
	for i := range 101 {
		many = append(many, file(fmt.Sprint("f", i), ""))
	}
	_, err := prepareLayers(t, s, archiveOf(t, many[:60]...), archiveOf(t, many[60:]...))
	checkRefused(t, s, err, "one too many")
}

// Directories that no entry names are made all the same: they count, by what is
// made and not by what the name says.
func TestCase36ImpliedDirectoriesCount(t *testing.T) {
	t.Parallel()
	deep := func(i int) string { return fmt.Sprint(i) + strings.Repeat("/a", 254) }
	through := deep(0)
	for name, entries := range map[string][]entryOf{
		"Deep":           {file(deep(1)+"/f", ""), file(deep(2)+"/f", ""), file(deep(3)+"/f", ""), file(deep(4)+"/f", "")},
		"BehindALink":    {link(tar.TypeSymlink, "l", through+through[1:]+through[1:]+through[1:]), file("l/f", "")},
		"OfDirectories":  {dir(deep(1)), dir(deep(2)), dir(deep(3)), dir(deep(4))},
		"OfHonestImages": {file(deep(1)+"/f", ""), file(deep(1)+"/g", ""), dir(deep(1)), file(deep(2)+"/f", ""), file(deep(2)+"/g", "")},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(c *Config) { c.Limits = Limits{Entries: 1000, Unpacked: 1 << 30} })
			img, err := prepareLayers(t, s, archiveOf(t, entries[:len(entries)/2]...), archiveOf(t, entries[len(entries)/2:]...))
			if name != "OfHonestImages" {
				checkRefused(t, s, err, "one too many")
			} else if err != nil || img.Bytes < 510*block {
				t.Errorf("%+v, %v", img, err)
			}
		})
	}
}

func TestCase36TooManyLayersAreRefused(t *testing.T) {
	s := openStore(t, smallLimits)
	a := archiveOf(t, file("x", "x"))
	_, err := prepareLayers(t, s, a, a, a, a, a)
	checkRefused(t, s, err, "5 layers")
}

func TestCase36DamagedLayerIsRefused(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	good := archiveOf(t, dir("a"), file("a/b", strings.Repeat("content ", 200)), file("c", "x"))
	for i := range 20 {
		bad := bytes.Clone(good)
		bad[rnd.IntN(512)] ^= byte(1 + rnd.IntN(255)) // in a header, which has a checksum
		s := openStore(t, smallLimits)
		_, err := prepareLayers(t, s, bad)
		if err == nil {
			t.Fatalf("damage %d was not seen", i)
		}
		checkRefused(t, s, err, "layer 1")
	}
}

// A layer that is not what the configuration names is refused, although its
// digest is the one in the manifest.
func TestLayerOfAnotherContentIsRefused(t *testing.T) {
	other := packedLayer{static.NewLayer(zip(t, archiveOf(t, file("evil", "x"))), types.OCILayer), archiveOf(t, file("good", "x"))}
	s := openStore(t, smallLimits)
	ref := newRegistry(t).push(t, "team/app:v1", imageOf(t, other))
	_, err := s.Prepare(t.Context(), Request{Image: ref, Hold: "1"})
	checkRefused(t, s, err, "not what the image's configuration names")
}

// What is taken away from an entry: set-ID bits, capabilities, foreign owners.
func TestUnpackTakesPrivilegesAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners need root")
	}
	s := openStore(t, smallLimits)
	suid := file("su", "x")
	suid.Mode = 0o6755
	suid.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"}
	alien := file("alien", "x")
	alien.Uid, alien.Gid = 1<<28+5, 70_000
	sticky := dir("tmp")
	sticky.Mode = 0o1777
	img, err := prepareLayers(t, s, archiveOf(t, suid, alien, sticky))
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{"su": 0o755, "alien": 0o644, "tmp": fs.ModeDir | fs.ModeSticky | 0o777}
	for name, want := range modes {
		fi, err := os.Lstat(filepath.Join(img.Root, name))
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	if uid, gid := owner(t, filepath.Join(img.Root, "alien")); uid != nobody || gid != nobody {
		t.Errorf("alien belongs to %d:%d", uid, gid)
	}
	if has := attributes(t, filepath.Join(img.Root, "su")); strings.Contains(has, "capability") {
		t.Errorf("su has attributes %q", has)
	}
}

// A symbolic link that leads out, and a file written through it: it stays in.
func TestCase36WriteThroughSymlinkStaysInTheRoot(t *testing.T) {
	s := openStore(t, smallLimits)
	outside := t.TempDir()
	img, err := prepareLayers(t, s, archiveOf(t, link(tar.TypeSymlink, "out", outside)), archiveOf(t, file("out/x", "written")))
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside has %v, %v", left, err)
	}
	if got := read(t, img, filepath.Join(outside, "x")); got != "written" {
		t.Errorf("inside has %q", got)
	}
}

func TestHonestWhiteoutsRemove(t *testing.T) {
	s := openStore(t, smallLimits)
	img, err := prepareLayers(t, s,
		archiveOf(t, dir("a"), file("a/old", "1"), file("a/kept", "2"), dir("b"), file("b/old", "3")),
		archiveOf(t, file("a/.wh.old", ""), file("b/.wh..wh..opq", ""), file("b/new", "4"), file("b/.wh..wh.plnk", "")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a/old": false, "a/kept": true, "b/old": false, "b/new": true, "b/.wh..wh.plnk": false} {
		if _, err := os.Lstat(filepath.Join(img.Root, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A layout's blobs are files that anyone may have changed.
func TestChangedLayoutIsRefused(t *testing.T) {
	dir := t.TempDir()
	img := imageOf(t, layerOf(t, archiveOf(t, file("x", "original"))))
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", digest.Hex), zip(t, archiveOf(t, file("x", "changed!"))), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, func(c *Config) { c.Files = []string{dir} })
	_, err = s.Prepare(t.Context(), Request{Image: "oci:" + dir})
	checkRefused(t, s, err, "not what the image's configuration names")
}
