package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWipeKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	old := Identity{Cluster: "c1", Server: "a", Region: "local", Formed: true, Applied: 9, AppliedTerm: 2}
	if err := d.SetIdentity(old); err != nil {
		t.Fatal(err)
	}
	write(t, d.Path(logFile), "log")
	write(t, d.Path(snapshotDir, "1", "state.bin"), "state")
	if _, _, err := OpenDirToWipe(path); !errors.Is(err, ErrInUse) {
		t.Errorf("the directory of a running server: %v", err)
	}
	d.Close()
	d, damaged, err := OpenDirToWipe(path)
	if err != nil || damaged != nil {
		t.Fatal(err, damaged)
	}
	if id, _ := d.Identity(); id.Server != "a" {
		t.Errorf("it is of %+v", id)
	}
	next := Identity{Cluster: "c1", Server: "a-2", Region: "local"}
	aside, err := d.Wipe(next)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{identityFile, logFile, filepath.Join(snapshotDir, "1", "state.bin")} {
		if _, err := os.Stat(filepath.Join(aside, name)); err != nil {
			t.Error(err)
		}
	}
	d.Close()
	if d, err = OpenDir(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if id, _ := d.Identity(); id.Server != "a-2" || id.Cluster != "c1" || id.Formed || id.Applied != 0 {
		t.Errorf("it is of %+v", id)
	}
	if _, err := os.Stat(d.Path(logFile)); !os.IsNotExist(err) {
		t.Errorf("the log is there still: %v", err)
	}
	gone, err := d.DiscardAside()
	if err != nil || len(gone) != 1 || gone[0] != aside {
		t.Errorf("discarded %v, %v", gone, err)
	}
	if _, err := os.Stat(aside); !os.IsNotExist(err) {
		t.Errorf("it is there still: %v", err)
	}
}

func TestWipeTakesDamagedIdentities(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	if _, _, err := OpenDirToWipe(path); err == nil || !strings.Contains(err.Error(), "holds no server's data") {
		t.Errorf("an empty directory: %v", err)
	}
	if _, _, err := OpenDirToWipe(filepath.Join(path, "none")); err == nil || !strings.Contains(err.Error(), "holds no server's data") {
		t.Errorf("no directory: %v", err)
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	write(t, filepath.Join(path, identityFile), "garbage")
	d, damaged, err := OpenDirToWipe(path)
	if err != nil || !errors.Is(damaged, ErrIdentity) {
		t.Fatalf("%v, %v", damaged, err)
	}
	defer d.Close()
	if _, known := d.Identity(); known {
		t.Error("garbage is known as an identity")
	}
	if _, err := d.Wipe(Identity{Cluster: "c1", Server: "b-2", Region: "local"}); err != nil {
		t.Error(err)
	}
}
