package loopfs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCutLosesWhatWasNotSynced writes one file with fsync and one without, and
// cuts the power: only the first one's bytes are there after a remount. Without
// this the runs with power cuts would show nothing.
func TestCutLosesWhatWasNotSynced(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	v, err := New(filepath.Join(dir, "image"), filepath.Join(dir, "volume"), 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	data := bytes.Repeat([]byte("acknowledged"), 1000)
	write := func(name string, sync bool) {
		f, err := os.Create(filepath.Join(v.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if !sync {
			return
		}
		d, err := os.Open(v.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if f.Sync() != nil || d.Sync() != nil {
			t.Fatal("sync")
		}
	}
	write("synced", true)
	write("lost", false)
	if err := v.Cut(); err != nil {
		t.Fatal(err)
	}
	if os.WriteFile(filepath.Join(v.Dir, "late"), data, 0o600) == nil {
		t.Error("a volume without power took a write")
	}
	if err := v.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := v.Mount(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(v.Dir, "synced")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("what was synced: %d of %d bytes, %v", len(got), len(data), err)
	}
	if got, err := os.ReadFile(filepath.Join(v.Dir, "lost")); err == nil && bytes.Equal(got, data) {
		t.Error("what was not synced is there")
	}
}
