package nursery

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func nurseryFor(t *testing.T) (*Nursery, chan error) {
	t.Helper()
	died := make(chan error, 8)
	n, err := New(t.TempDir(), func(err error) { died <- err })
	if err != nil {
		t.Fatal(err)
	}
	n.Grace = 300 * time.Millisecond
	t.Cleanup(func() {
		if err := n.Clear(); err != nil {
			t.Error(err)
		}
		close(n.jobs)
	})
	return n, died
}

// A tree of processes in sessions of their own, of which one ignores SIGTERM,
// and whose first one dies before the rest: nothing is left.
func TestClearEndsOrphans(t *testing.T) {
	n, _ := nurseryFor(t)
	ready := filepath.Join(t.TempDir(), "ready")
	p, err := n.Start("tree", nil, "/bin/sh", "-c",
		`setsid sh -c 'trap "" TERM; sleep 1000 & sleep 1001 & : > "$0"; wait; wait' "$0" & wait`, ready)
	if err != nil {
		t.Fatal(err)
	}
	err = Poll(t.Context(), "the tree", time.Millisecond, func() (bool, error) {
		_, err := os.Stat(ready)
		return err == nil && len(Descendants()) >= 4, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done
	if left := Descendants(); len(left) < 3 || slices.Contains(left, p.cmd.Process.Pid) {
		t.Fatalf("descendants after the first one's death: %v", left)
	}
	if err := n.Clear(); err != nil {
		t.Fatal(err)
	}
	if left := Descendants(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestUnexpectedEnd(t *testing.T) {
	n, died := nurseryFor(t)
	if _, err := n.Start("failing", nil, "/bin/sh", "-c", "echo first; echo the reason >&2; exit 3"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-died:
		if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "exit status 3") || !strings.HasSuffix(err.Error(), "the reason") {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	p, err := n.Start("told", nil, "/bin/sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done
	select {
	case err := <-died:
		t.Errorf("told of an end that was asked for: %v", err)
	default:
	}
	if _, err := n.Start("absent", nil, "/nonexistent/program"); err == nil {
		t.Error("a missing program was started")
	}
}

func TestPoll(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	broken := errors.New("broken")
	cancel(broken)
	if err := Poll(ctx, "nothing", time.Millisecond, func() (bool, error) { return false, nil }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := Poll(t.Context(), "failure", time.Millisecond, func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestFreePorts(t *testing.T) {
	first, err := FreePorts(8)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", ":"+strconv.Itoa(first+3))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if free(first, 8) {
		t.Error("ports of which one is taken are free")
	}
}
