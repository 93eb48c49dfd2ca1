package doctor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// These are set in the process that TestKilledProbesAreCleared kills: its data
// directory, and where the binaries are.
const (
	killedIn   = "GPUAI_TEST_KILLED_IN"
	binariesIn = "GPUAI_TEST_BINARIES_IN"
)

// probeUntilKilled runs the probes in dir, and kills itself when the sandbox's
// program has printed something.
func probeUntilKilled(t *testing.T, dir string) {
	c, _ := probeConfig(t, func(*sandbox.Task) {})
	c.DataDir = dir
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			said, _, _, err := watchdog.ReadLog(filepath.Join(dir, owner), "stdout", 0, 1)
			if err == nil && len(said) > 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
	}()
	_, err := Probe(t.Context(), c)
	t.Fatal("it was not killed: ", err)
}

// lentTo are the ranges of doctor's.
func lentTo(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir(rangesDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(rangesDir, e.Name())); err == nil && string(b) == fmt.Sprintf("%s %s", owner, probeLease) {
			n++
		}
	}
	return n
}

// A run that is killed while its sandbox runs is cleared by an agent's start or the
// next run, whatever their data directories are.
func TestKilledProbesAreCleared(t *testing.T) {
	if dir := os.Getenv(killedIn); dir != "" {
		probeUntilKilled(t, dir)
	}
	c, lent := probeConfig(t, func(*sandbox.Task) {})
	for name, clear := range map[string]func() error{
		"an agent's start": func() error { return Clear(t.TempDir()) },
		"the next doctor":  func() error { _, err := Probe(t.Context(), c); return err },
	} {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProbesAreCleared$")
		cmd.Env = append(os.Environ(), killedIn+"="+dir, binariesIn+"="+binaries)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%v\n%s", err, out)
		}
		wd, err := watchdog.Dial(filepath.Join(dir, owner))
		if err != nil || lentTo(t) != 1 {
			t.Fatalf("%s: nothing is left to clear: %d ranges, %v", name, lentTo(t), err)
		}
		if err := clear(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		<-wd.Done()
		if _, err := os.Stat(filepath.Join(dir, owner)); !errors.Is(err, os.ErrNotExist) || lentTo(t) != 0 {
			t.Errorf("%s leaves %d ranges, and %v", name, lentTo(t), err)
		}
	}
	checkGone(t, c, lent)
}

// A run that goes on is left alone, and what a boot left in the data directory
// is not.
func TestClearLeavesALivingDoctorAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a sandbox is made by root")
	}
	data := t.TempDir()
	p, err := openPlace(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.make(); err != nil {
		t.Fatal(err)
	}
	if err := Clear(data); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.dir); err != nil {
		t.Error(err)
	}
	if err := p.note(""); err != nil { // as a boot does
		t.Fatal(err)
	}
	p.lock.Close()
	if err := Clear(data); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
