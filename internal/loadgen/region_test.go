package loadgen

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai/client"
)

// startRegion starts three servers that are gone when the test ends.
func startRegion(t *testing.T) []string {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	r, err := StartRegion(t.Context(), func(dir string) *exec.Cmd { return self("keeper", dir, "3", "server") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r.Addrs
}

func TestRegionLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	r, err := StartRegion(t.Context(), func(dir string) *exec.Cmd { return self("keeper", dir, "3", "server") })
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Addrs) != 3 || len(leftovers(dir)) == 0 {
		t.Errorf("the servers are %v", r.Addrs)
	}
	for _, a := range r.Addrs {
		c, err := client.New(client.Config{Addrs: []string{a}})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ready(t.Context()); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
	if left := leftovers(dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// The one that measures is killed with -9: its region goes as well.
func TestRegionOfAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := self("measurer")
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || len(strings.Fields(line)) != 3 {
		t.Fatalf("it says %q, %v", line, err)
	}
	if len(leftovers(dir)) < 4 {
		t.Errorf("what runs is %q", leftovers(dir))
	}
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "clean directory", func() bool { return len(leftovers(dir)) == 0 })
}

// A keeper that is killed takes its servers along.
func TestKilledKeeper(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	r, err := StartRegion(t.Context(), func(dir string) *exec.Cmd { return self("keeper", dir, "1", "server") })
	if err != nil {
		t.Fatal(err)
	}
	if err := r.keeper.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.keeper.done
	if err := r.Stop(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the error is %v", err)
	}
	eventually(t, "clean directory", func() bool { return len(leftovers(dir)) == 0 })
}

func TestRegionThatDoesNotStart(t *testing.T) {
	for _, role := range []string{"fail", "babbler"} {
		t.Run(role, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var said bytes.Buffer
			_, err := StartRegion(ctx, func(dir string) *exec.Cmd {
				c := self("keeper", dir, "2", role)
				if c.Stderr = &said; role == "babbler" { // it runs, and never becomes ready
					c.Stderr = os.Stderr
					cancel()
				}
				return c
			})
			if err == nil {
				t.Fatal("it started")
			}
			if role == "fail" && !strings.Contains(said.String(), "I was told to fail") {
				t.Errorf("it says %q", said.String())
			}
			eventually(t, "clean directory", func() bool { return len(leftovers(dir)) == 0 })
		})
	}
}
