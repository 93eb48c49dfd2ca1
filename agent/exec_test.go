package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
)

// execPipe is a client of a command in this process: it has said what it says,
// and stays until the test has ended.
type execPipe struct {
	input [][]byte
	ctx   context.Context

	mu  sync.Mutex // guards below
	out [3]bytes.Buffer
}

var _ ExecConn = (*execPipe)(nil)

func (p *execPipe) Recv(ctx context.Context) (*gpuai.ExecControl, gpuai.ExecStream, []byte, error) {
	if len(p.input) > 0 {
		data := p.input[0]
		p.input = p.input[1:]
		return nil, gpuai.ExecStdin, data, nil
	}
	select {
	case <-p.ctx.Done():
	case <-ctx.Done():
	}
	return nil, 0, nil, io.EOF
}

func (p *execPipe) Send(_ context.Context, s gpuai.ExecStream, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out[s].Write(data)
	return nil
}

func (p *execPipe) Control(context.Context, *gpuai.ExecControl) error { return nil }
func (p *execPipe) Close() error                                      { return nil }

// runBeside runs a command beside a lease's task, with input.
func (a *runningAgent) runBeside(t *testing.T, lease gpuai.Token, s gpuai.ExecStart, input string) (p *execPipe, code int32, err error) {
	t.Helper()
	found := make(chan *worker, 1)
	a.post(func() { found <- a.workers[lease] })
	p = &execPipe{ctx: t.Context(), input: [][]byte{[]byte(input), nil}}
	if input == "" {
		p.input = p.input[1:]
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code, err = a.execute(ctx, <-found, p, &gpuai.ExecRequest{Lease: lease, Start: s})
	return p, code, err
}

func TestExecBesideAProcess(t *testing.T) {
	f := newFixture(t)
	a := f.run(nil)
	lease := f.grant(testNode, script("sleep 60"))
	f.running(lease)
	big := strings.Repeat("\x00\xff\r\n", 1<<18)
	if p, code, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"sh", "-c", `cat; echo $GPUAI_LEASE_ID >&2; exit 9`}}, big); code != 9 || err != nil ||
		p.out[gpuai.ExecStdout].String() != big || p.out[gpuai.ExecStderr].String() != lease.String()+"\n" {
		t.Errorf("exit code %d, %v, %d bytes, stderr %q", code, err, p.out[gpuai.ExecStdout].Len(), p.out[gpuai.ExecStderr].String())
	}
	// What it leaves behind keeps its output open: its end counts.
	if p, code, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"sh", "-c", `sleep 30 & echo started`}}, ""); code != 0 || err != nil || p.out[gpuai.ExecStdout].String() != "started\n" {
		t.Errorf("exit code %d, %v, stdout %q", code, err, p.out[gpuai.ExecStdout].String())
	}
	tty := gpuai.ExecStart{Command: []string{"sh", "-c", `stty size; echo $TERM; read x; echo "got $x"`}, TTY: true, Term: "vt100", Size: gpuai.ExecSize{Rows: 33, Cols: 99}}
	if p, code, err := a.runBeside(t, lease, tty, "keys\n"); code != 0 || err != nil || !strings.HasPrefix(strings.TrimPrefix(p.out[gpuai.ExecStdout].String(), "keys\r\n"), "33 99\r\nvt100\r\n") ||
		!strings.Contains(p.out[gpuai.ExecStdout].String(), "got keys") {
		t.Errorf("with a terminal: exit code %d, %v, %q", code, err, p.out[gpuai.ExecStdout].String())
	}
	a.cfg.DenyExec = true
	if _, _, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"true"}}, ""); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("denied: %v", err)
	}
}

// In a sandbox the command has what its task has: user, directory, environment,
// and no more.
func TestExecInASandbox(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	a := f.run(boxed(t, dir))
	lease := f.grant(testNode, func(as *gpuai.Assignment) {
		inImage(image)(as)
		as.Task.Command = []string{"/bin/gpuai-probe", "sleep"}
	})
	f.running(lease)
	p, code, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"/bin/gpuai-probe", "say", "x"}}, "")
	out := p.out[gpuai.ExecStdout].String()
	if code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, p.out[gpuai.ExecStderr].String())
	}
	for _, want := range []string{`args ["x"]`, "dir /etc", "user 7:8", "env IMAGE=yes", "env GPUAI_TASK_DIR=/work"} {
		if !strings.Contains(out, want) {
			t.Errorf("it says not %q but\n%s", want, out)
		}
	}
	if _, code, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"none"}}, ""); code == 0 && err == nil {
		t.Error("a program that is missing ran")
	}
	if p, code, err := a.runBeside(t, lease, gpuai.ExecStart{Command: []string{"/bin/gpuai-probe", "say", "x"}, TTY: true}, ""); code != 0 || !errors.Is(err, nil) || !strings.Contains(p.out[gpuai.ExecStdout].String(), "user 7:8") {
		t.Errorf("with a terminal: exit code %d, %v, %q", code, err, p.out[gpuai.ExecStdout].String())
	}
}
