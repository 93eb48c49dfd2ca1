package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// FuzzUnpack feeds any bytes as a layer over another: it is unpacked or refused,
// and nothing beside the root is touched.
func FuzzUnpack(f *testing.F) {
	t := &testing.T{}
	f.Add(archiveOf(t, dir("a"), file("a/b", "content")))
	f.Add(archiveOf(t, file("a/.wh.kept", ""), file("a/.wh..wh..opq", "")))
	f.Add(archiveOf(t, link('2', "out", "/"), file("out/x", "y"), link('1', "hard", "out/x")))
	f.Add(gnuSparse("huge", 1<<40))
	for _, c := range hostileLayers[:12] {
		f.Add(archiveOf(t, c.entries...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		at := t.TempDir()
		root := filepath.Join(at, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "witness"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		u := newUnpacker(root, Limits{Layers: 2, Entries: 50, Unpacked: 1 << 20, Download: 1 << 20}, func(int64) error { return nil })
		var none v1.Hash
		for _, layer := range [][]byte{archiveOf(t, dir("a"), file("a/kept", "kept"), link('2', "up", "..")), b} {
			err := u.apply(context.Background(), bytes.NewReader(layer), none)
			var refused *RefusedError
			if !errors.As(err, &refused) { // the digest at least is not right
				t.Fatalf("neither unpacked nor refused: %v", err)
			}
		}
		if u.filter.bytes > 1<<20 || u.filter.entries > 50 {
			t.Errorf("%d bytes in %d entries", u.filter.bytes, u.filter.entries)
		}
		beside, err := os.ReadDir(at)
		if err != nil || len(beside) != 2 {
			t.Errorf("beside the root there is %v, %v", beside, err)
		}
	})
}
