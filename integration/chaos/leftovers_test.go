package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestLeftovers has one run that is alive and one that was killed, of which a
// process and files are left: only the latter is cleared away.
func TestLeftovers(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	alive, err := newRunDir()
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(os.TempDir(), runPrefix+"dead")
	if err := os.MkdirAll(filepath.Join(dead, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	left := exec.Command("sleep", "1000")
	left.Dir = filepath.Join(dead, "data")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()

	said := 0
	if err := clearLeftovers(func(string, string, ...any) { said++ }); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a process of the dead run is left")
		_ = left.Process.Kill()
	}
	if _, err := os.Stat(dead); err == nil || said != 1 {
		t.Errorf("the dead run's directory is there: %v; told of %d runs", err == nil, said)
	}
	if _, err := os.Stat(alive); err != nil {
		t.Errorf("the run that is alive was cleared away: %v", err)
	}
	for _, f := range held {
		f.Close()
	}
	held = nil
}
