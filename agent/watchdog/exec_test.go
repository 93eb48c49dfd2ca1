package watchdog_test

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// exec runs a command beside a task; its output is read to its end.
func (b *bench) exec(lease gpuai.Token, script string) (*watchdog.Execution, func() string, error) {
	b.t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		b.t.Fatal(err)
	}
	defer in.Close()
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { r.Close() })
	e, err := watchdog.Exec(b.dir, &watchdog.ExecSpec{Lease: lease, Argv: []string{"sh", "-c", script}, Env: []string{"EXTRA=yes"}}, [3]*os.File{in, w, w})
	w.Close()
	if err == nil {
		b.t.Cleanup(func() { e.Close() })
	}
	return e, func() string {
		out, _ := io.ReadAll(r)
		return string(out)
	}, err
}

func (b *bench) ended(e *watchdog.Execution, want int32) {
	b.t.Helper()
	select {
	case <-e.Done():
	case <-time.After(20 * time.Second):
		b.t.Fatal("the command does not end")
	}
	if code, err := e.Code(); code != want || err != nil {
		b.t.Errorf("exit code %d, %v; want %d", code, err, want)
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, "sleep 60")
	b.start(s)
	e, out, err := b.exec(1, `echo $EXTRA; pwd; exit 3`)
	if err != nil {
		t.Fatal(err)
	}
	if got := out(); got != "yes\n"+s.Cwd+"\n" {
		t.Errorf("it wrote %q", got)
	}
	b.ended(e, 3)
	if e, out, err = b.exec(1, `trap 'echo told; exit 5' INT; echo ready; while :; do sleep 0.02; done`); err != nil {
		t.Fatal(err)
	}
	if err := e.Signal(gpuai.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-e.Done() // by the trap, or before it was set by the signal
	out()
	if _, _, err := b.exec(2, "true"); !refused(err) {
		t.Errorf("beside no task: %v", err)
	}
}

func refused(err error) bool {
	var r *watchdog.RefusedError
	return errors.As(err, &r)
}

// Whoever ends the task ends what runs beside it, whatever that does about it.
func TestExecEndsWithItsTask(t *testing.T) {
	for name, end := range map[string]func(b *bench) error{
		"kill": func(b *bench) error { return b.c.Kill(1, 5*gpuai.Second) },
		"stop": func(b *bench) error { return b.c.Stop(1, 0, gpuai.Checkpoint{}) },
		"deadline without an agent": func(b *bench) error {
			return b.c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := b.spec(1, "sleep 60")
			if name == "deadline without an agent" {
				s.Deadline = in(500 * time.Millisecond)
			}
			b.start(s)
			e, out, err := b.exec(1, `trap '' HUP INT TERM; env -i sleep 61 & echo $$; while :; do sleep 1; done`)
			if err != nil {
				t.Fatal(err)
			}
			if err := end(b); err != nil {
				t.Fatal(err)
			}
			b.ended(e, 137)
			out() // ends only when nothing of it is left
			if _, _, err := b.exec(1, "true"); !refused(err) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}
