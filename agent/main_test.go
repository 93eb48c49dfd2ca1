package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// watchdogPath is the real gpuai-watchdog.
var watchdogPath string

// With helperEnv set, the test binary is an agent: "<data dir> <server>".
const helperEnv = "GPUAI_TEST_AGENT"

func TestMain(m *testing.M) {
	if args := os.Getenv(helperEnv); args != "" {
		os.Exit(helper(strings.Fields(args)))
	}
	dir, err := os.MkdirTemp("", "agent")
	if err == nil {
		watchdogPath = filepath.Join(dir, "gpuai-watchdog")
		build := exec.Command("go", "build", "-o", watchdogPath, "github.com/gpuai/gpuai/cmd/gpuai-watchdog")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released: it is in sandboxes, too
		var out []byte
		if out, err = build.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func helper(args []string) int {
	watchdogPath = args[2]
	a, err := Open(testConfig(args[0], args[1], slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err == nil {
		err = a.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

const testNode gpuai.NodeID = "gpu-a1"

func testConfig(dir, server string, log *slog.Logger) Config {
	return Config{
		Node: testNode, Servers: []string{server}, DataDir: dir, Watchdog: watchdogPath,
		AllowProcess: true, Logger: log, Dialer: tcpDialer{}, Store: StoreDirect,
	}
}

// A fixture is a region and one agent's data directory.
type fixture struct {
	t *testing.T
	*region
	dir string
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, region: newRegion(t), dir: t.TempDir()}
	t.Cleanup(f.endWatchdog)
	return f
}

// endWatchdog kills what is left, and waits until the watchdog is gone.
func (f *fixture) endWatchdog() {
	c, err := watchdog.Dial(f.dir)
	if err != nil {
		return
	}
	defer c.Close()
	eventually(f.t, "the watchdog to quit", func() bool {
		tasks, err := c.List()
		for _, t := range tasks {
			c.Kill(t.Lease, gpuai.Second)
		}
		c.Quit()
		return err != nil
	})
}

// A runningAgent is an agent in this process.
type runningAgent struct {
	*Agent
	cancel context.CancelFunc
	done   chan error
}

// run starts an agent and waits until it is registered.
func (f *fixture) run(change func(*Config)) *runningAgent {
	f.t.Helper()
	cfg := testConfig(f.dir, f.addr(), slog.New(slog.NewTextHandler(f.t.Output(), nil)))
	if change != nil {
		change(&cfg)
	}
	before := len(f.hellos(cfg.Node))
	a, err := Open(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runningAgent{Agent: a, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- a.Run(ctx) }()
	f.t.Cleanup(func() { r.stop(f.t) })
	eventually(f.t, "the agent's hello", func() bool { return len(f.hellos(cfg.Node)) > before })
	f.registered(cfg.Node)
	return r
}

// stop ends the agent; its tasks stay.
func (r *runningAgent) stop(t *testing.T) {
	t.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	if err := <-r.done; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A process is an agent in a process of its own.
type process struct{ cmd *exec.Cmd }

func (f *fixture) runProcess() *process {
	f.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+f.dir+" "+f.addr()+" "+watchdogPath)
	cmd.Stderr = f.t.Output()
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	p := &process{cmd}
	f.t.Cleanup(p.kill)
	f.registered(testNode)
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// pidOf waits for the PID that a task wrote into the file pid of its directory.
func (f *fixture) pidOf(t gpuai.Token) int {
	f.t.Helper()
	pid := 0
	eventually(f.t, "the task's PID", func() bool {
		raw, _ := os.ReadFile(filepath.Join(f.dir, "tasks", t.String(), "work", "pid"))
		pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		return pid > 0
	})
	return pid
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
