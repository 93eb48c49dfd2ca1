package watchdog_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// binary is the real gpuai-watchdog.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "watchdog")
	if err == nil {
		binary = filepath.Join(dir, "gpuai-watchdog")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", binary, "github.com/gpuai/gpuai/cmd/gpuai-watchdog").CombinedOutput(); err != nil {
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

const incarnation gpuai.Incarnation = 7

// A bench is a data directory with a watchdog.
type bench struct {
	t   *testing.T
	dir string
	c   *watchdog.Client
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir()}
	var err error
	if b.c, err = watchdog.Launch(t.Context(), binary, b.dir); err != nil {
		t.Fatal(err)
	}
	b.hello()
	t.Cleanup(b.end)
	return b
}

func (b *bench) hello() []watchdog.Task {
	b.t.Helper()
	tasks, _, err := b.c.Hello(incarnation)
	if err != nil {
		b.t.Fatal(err)
	}
	return tasks
}

// end kills what is left and waits until the watchdog is gone.
func (b *bench) end() {
	c, err := watchdog.Dial(b.dir)
	if err != nil {
		return
	}
	defer c.Close()
	tasks, err := c.List()
	if err != nil {
		return
	}
	for _, t := range tasks {
		c.Kill(t.Lease, gpuai.Second)
	}
	eventually(b.t, "the watchdog to quit", func() bool { return c.Quit() != nil && closed(c.Done()) })
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(20 * time.Second); !f(); <-tick.C {
		if time.Now().After(give) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func in(d time.Duration) int64 { return watchdog.Boottime() + int64(d) }

func (b *bench) spec(lease gpuai.Token, script string) *watchdog.Spec {
	b.t.Helper()
	dir := filepath.Join(b.dir, "tasks", lease.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	return &watchdog.Spec{
		Lease: lease, Incarnation: incarnation, Deadline: in(time.Minute), KillBudget: int64(2 * time.Second),
		Argv: []string{"sh", "-c", script},
		Env: []string{
			"PATH=" + os.Getenv("PATH"), gpuai.EnvTaskDir + "=" + dir, gpuai.EnvToken + "=" + lease.String(),
		},
		Cwd: dir, LogDir: dir, LogBytes: 1 << 20,
	}
}

func (b *bench) start(s *watchdog.Spec) watchdog.Task {
	b.t.Helper()
	t, err := b.c.Start(s)
	if err != nil {
		b.t.Fatal(err)
	}
	return t
}

func (b *bench) news() watchdog.Task {
	b.t.Helper()
	select {
	case n := <-b.c.News():
		return n
	case <-b.c.Done():
		b.t.Fatal("the watchdog went away")
	case <-time.After(20 * time.Second):
		b.t.Fatal("no news of the task")
	}
	return watchdog.Task{}
}

func (b *bench) log(lease gpuai.Token, stream string) string {
	b.t.Helper()
	data, _, _, err := watchdog.ReadLog(filepath.Join(b.dir, "tasks", lease.String()), stream, 0, 1<<20)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// family is a script whose processes are hard to find: a child that ignores
// signals, one in a session of its own whose parent is gone, and one of these
// without an environment. Each writes its PID.
const family = `
echo $$ >> pids
sh -c 'trap "" TERM INT HUP; echo $$ >> pids; while :; do sleep 0.05; done' &
(setsid sh -c 'echo $$ >> pids; while :; do sleep 0.05; done' &)
(env -i PATH="$PATH" setsid sh -c 'echo $$ >> pids; while :; do sleep 0.05; done' &)
echo ready
`

// familyOf waits until the whole family is there.
func (b *bench) familyOf(lease gpuai.Token) (pids []int) {
	b.t.Helper()
	eventually(b.t, "the family", func() bool {
		raw, _ := os.ReadFile(filepath.Join(b.dir, "tasks", lease.String(), "pids"))
		pids = nil
		for _, f := range strings.Fields(string(raw)) {
			pid, _ := strconv.Atoi(f)
			pids = append(pids, pid)
		}
		return len(pids) == 4
	})
	return pids
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func (b *bench) mustBeDead(pids []int) {
	b.t.Helper()
	for _, pid := range pids {
		if alive(pid) {
			b.t.Errorf("process %d survived", pid)
		}
	}
}

func TestTaskEnds(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"success": {"echo out; echo err >&2", 0, ""},
		"failure": {"exit 3", 3, "exit code 3"},
		"signal":  {"kill -USR1 $$", 128 + int32(syscall.SIGUSR1), "killed by signal"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if got := b.start(b.spec(1, test.script)); got.PID == 0 || got.PIDStart == 0 {
				t.Errorf("started as %+v", got)
			}
			n := b.news()
			if n.State != watchdog.Exited || n.Code != test.code || n.By != watchdog.ByItself || !strings.Contains(n.Reason, test.reason) {
				t.Errorf("ended as %+v", n)
			}
			if out, err := b.log(1, "stdout"), b.log(1, "stderr"); name == "success" && (out != "out\n" || err != "err\n") {
				t.Errorf("kept %q and %q", out, err)
			}
		})
	}
}

func TestDeadlineKillsTheWholeFamily(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, family+"wait")
	s.Deadline = in(1500 * time.Millisecond)
	b.start(s)
	pids := b.familyOf(1)
	n := b.news()
	if late := time.Duration(watchdog.Boottime() - s.Deadline); n.By != watchdog.ByDeadline || n.Code != 137 || late < 0 || late > 2*time.Second {
		t.Errorf("ended %v after its deadline as %+v", late, n)
	}
	b.mustBeDead(pids)
}

func TestWhatATaskLeavesBehindIsKilled(t *testing.T) {
	b := newBench(t)
	b.start(b.spec(1, family+"while [ $(wc -l < pids) -lt 4 ]; do sleep 0.02; done; exit 0"))
	pids := b.familyOf(1)
	if n := b.news(); n.By != watchdog.ByItself || n.Code != 0 {
		t.Errorf("ended as %+v", n)
	}
	b.mustBeDead(pids)
}

func TestAnotherTasksOrphansLive(t *testing.T) {
	b := newBench(t)
	b.start(b.spec(1, "(setsid sh -c 'echo $$ > orphan; sleep 60' &) ; sleep 60"))
	path := filepath.Join(b.dir, "tasks", "1", "orphan")
	var pid int
	eventually(t, "the orphan", func() bool {
		raw, _ := os.ReadFile(path)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		return pid > 0
	})
	b.start(b.spec(2, "exit 0"))
	if n := b.news(); n.Lease != 2 || !alive(pid) {
		t.Errorf("%+v; the orphan lives: %v", n, alive(pid))
	}
}

func TestExtendMovesTheDeadline(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, "sleep 60")
	s.Deadline = in(400 * time.Millisecond)
	b.start(s)
	later := in(900 * time.Millisecond)
	if err := b.c.Extend(1, later); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Extend(1, s.Deadline); err != nil { // never back
		t.Fatal(err)
	}
	if n := b.news(); n.By != watchdog.ByDeadline || watchdog.Boottime() < later {
		t.Errorf("ended early as %+v", n)
	}
	if err := b.c.Extend(1, in(time.Minute)); err == nil {
		t.Error("a dead task was extended")
	}
}

func TestStop(t *testing.T) {
	for name, test := range map[string]struct {
		script   string
		grace    gpuai.Duration
		deadline time.Duration
		code     int32
		by       watchdog.By
	}{
		"obeys":        {"trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done", 10 * gpuai.Second, time.Minute, 9, watchdog.ByStop},
		"ignores":      {"trap '' TERM; echo up; while :; do sleep 0.02; done", 200, time.Minute, 137, watchdog.ByStop},
		"cut deadline": {"trap '' TERM; echo up; while :; do sleep 0.02; done", gpuai.Minute, 1500 * time.Millisecond, 137, watchdog.ByDeadline},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := b.spec(1, test.script)
			s.Deadline = in(test.deadline)
			b.start(s)
			eventually(t, "the trap", func() bool { return b.log(1, "stdout") != "" })
			if err := b.c.Stop(1, test.grace, gpuai.Checkpoint{}); err != nil {
				t.Fatal(err)
			}
			if n := b.news(); n.Code != test.code || n.By != test.by {
				t.Errorf("ended as %+v", n)
			}
		})
	}
}

// A task that asks for it has time to save its work: the signal goes to its first
// process, the stop follows when the time is over, or at once when it is told to.
func TestStopAfterSaving(t *testing.T) {
	const waits = "trap 'echo saved; exit 0' USR1; trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done"
	const goesOn = "trap 'echo saved' USR1; trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done"
	for name, test := range map[string]struct {
		script string
		save   gpuai.Duration
		hasten bool // a plain stop follows
		code   int32
		log    string
	}{
		"ends when it has saved":     {waits, gpuai.Minute, false, 0, "up\nsaved\n"},
		"is stopped when time is up": {goesOn, 300, false, 9, "up\nsaved\n"},
		"is stopped by another":      {goesOn, gpuai.Minute, true, 9, "up\nsaved\n"},
		"knows no such signal":       {"echo up; while :; do sleep 0.02; done", gpuai.Minute, false, 128 + 10, "up\n"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := b.spec(1, test.script)
			b.start(s)
			eventually(t, "the trap", func() bool { return b.log(1, "stdout") != "" })
			save := gpuai.Checkpoint{Signal: gpuai.SIGUSR1, Grace: test.save}
			for range 2 { // as an agent that was restarted asks again
				if err := b.c.Stop(1, gpuai.Minute, save); err != nil {
					t.Fatal(err)
				}
			}
			if test.hasten {
				eventually(t, "the saving", func() bool { return strings.Contains(b.log(1, "stdout"), "saved") })
				if err := b.c.Stop(1, gpuai.Minute, gpuai.Checkpoint{}); err != nil {
					t.Fatal(err)
				}
			}
			if n := b.news(); n.Code != test.code || n.By != watchdog.ByStop {
				t.Errorf("ended as %+v", n)
			}
			if got := b.log(1, "stdout"); got != test.log {
				t.Errorf("it said %q, want %q", got, test.log)
			}
		})
	}
}

func TestStartIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*watchdog.Spec)
		want   string
	}{
		"passed deadline":   {func(s *watchdog.Spec) { s.Deadline = in(-1) }, "deadline has passed"},
		"other incarnation": {func(s *watchdog.Spec) { s.Incarnation-- }, "incarnation"},
		"no program":        {func(s *watchdog.Spec) { s.Argv = []string{"no-such-program"} }, "no-such-program is not in PATH"},
		"no interpreter":    {func(s *watchdog.Spec) { s.Argv = []string{"/etc/passwd"} }, "permission denied"},
		"no directory":      {func(s *watchdog.Spec) { s.Cwd = "/no/such" }, "working directory"},
		"nothing":           {func(s *watchdog.Spec) { s.Argv = nil }, "needs a lease and a program"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			s := b.spec(1, "exit 0")
			test.change(s)
			_, err := b.c.Start(s)
			var refused *watchdog.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("answered %v", err)
			}
			eventually(t, "nothing to be left", func() bool { l, err := b.c.List(); return err == nil && len(l) == 0 })
		})
	}
}

func TestIncarnationNeverGoesBack(t *testing.T) {
	b := newBench(t)
	if _, _, err := b.c.Hello(incarnation - 1); err == nil {
		t.Error("an older incarnation was taken")
	}
}

func TestStartIsIdempotent(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, "echo once; sleep 60")
	one, two := b.start(s), b.start(s)
	if one.PID != two.PID {
		t.Errorf("started twice: %+v, %+v", one, two)
	}
}

func TestExitCodesWaitForTheNextAgent(t *testing.T) {
	b := newBench(t)
	b.start(b.spec(1, "sleep 0.2; exit 4"))
	b.c.Close()
	var err error
	if b.c, err = watchdog.Dial(b.dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exit code", func() bool {
		l := b.hello()
		return len(l) == 1 && l[0].State == watchdog.Exited && l[0].Code == 4
	})
	if err := b.c.Acknowledge(1); err != nil {
		t.Fatal(err)
	}
	if l := b.hello(); len(l) != 0 {
		t.Errorf("still kept: %+v", l)
	}
}

func TestNewestClientIsTheAgent(t *testing.T) {
	b := newBench(t)
	second, err := watchdog.Dial(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, _, err := second.Hello(incarnation); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first to be cut", func() bool { return closed(b.c.Done()) })
}

func TestOneWatchdogPerDirectory(t *testing.T) {
	b := newBench(t)
	out, err := exec.Command(binary, "--dir", b.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "has a watchdog already") {
		t.Errorf("%v: %s", err, out)
	}
}

// A watchdog that is killed takes its tasks' first processes with it, and what
// they leave is found without it.
func TestSweepAfterTheWatchdogsDeath(t *testing.T) {
	b := newBench(t)
	task := b.start(b.spec(1, family+"wait"))
	pids := b.familyOf(1)
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(task.PID) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent, _ := strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1])
	if err := syscall.Kill(parent, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-b.c.Done()
	eventually(t, "the first process to die", func() bool { return !alive(pids[0]) })
	if !watchdog.Sweep(b.dir, filepath.Join(b.dir, "tasks"), task, 5*gpuai.Second) {
		t.Error("something is left")
	}
	if task.Cgroup == "" { // only a group finds the one without environment
		syscall.Kill(pids[3], syscall.SIGKILL)
		pids = pids[:3]
	}
	b.mustBeDead(pids)
}

func TestStoppedWatchdogIsSweptAround(t *testing.T) {
	b := newBench(t)
	task := b.start(b.spec(1, "sleep 60"))
	if !watchdog.Sweep(b.dir, filepath.Join(b.dir, "tasks"), task, 5*gpuai.Second) || alive(task.PID) {
		t.Error("the task survived")
	}
	if n := b.news(); n.State != watchdog.Exited {
		t.Errorf("told %+v", n)
	}
}

func TestLimits(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, `ulimit -c; ulimit -n; exec head -c 200000000 /dev/zero | tail -c 199999999 > /dev/null`)
	s.NoFile, s.Memory, s.CPU, s.PIDs = 123, 32<<20, 500, 64
	task := b.start(s)
	n := b.news()
	if got := b.log(1, "stdout"); got != "0\n123\n" {
		t.Errorf("limits are %q", got)
	}
	if task.Cgroup == "" {
		t.Log("no control groups here: memory is not limited")
		return
	}
	if !strings.Contains(n.Reason, "out of memory") || n.Code == 0 {
		t.Errorf("ended as %+v", n)
	}
	eventually(t, "the control group to go", func() bool { _, err := os.Stat(task.Cgroup); return err != nil })
}

// The processes of a task are limited. The bomb itself ends at 200: a limit that
// does not hold must fail this test and not the machine.
// The bomb is set off only where the number of processes is known to be bound.
func TestForkBombIsContained(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, `cat /proc/self/limits /sys/fs/cgroup/pids$(grep -E ':pids:' /proc/self/cgroup | cut -d: -f3)/pids.max`)
	s.PIDs = 77
	b.start(s)
	b.news()
	bound := false
	for line := range strings.Lines(b.log(1, "stdout")) {
		f := strings.Fields(line)
		bound = bound || line == "77\n" || len(f) > 3 && f[1] == "processes" && f[2] == "77" && os.Getuid() != 0
	}
	if !bound {
		t.Skip("the number of processes of a task is not bound here, or not seen to be")
	}
	s = b.spec(2, `f() { f | f & }; f; sleep 60`)
	s.PIDs = 77
	b.start(s)
	if err := b.c.Kill(2, 3*gpuai.Second); err != nil {
		t.Fatal(err)
	}
	if n := b.news(); n.State != watchdog.Exited || n.By != watchdog.ByKill {
		t.Errorf("told %+v", n)
	}
}

func TestOutputIsBounded(t *testing.T) {
	b := newBench(t)
	s := b.spec(1, `i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done; echo the end`)
	s.LogBytes = 16 << 10
	b.start(s)
	if n := b.news(); n.Code != 0 {
		t.Fatalf("ended as %+v", n)
	}
	data, at, end, err := watchdog.ReadLog(s.LogDir, "stdout", 0, 1<<20)
	text := string(data)
	if err != nil || at == 0 || end != at+int64(len(data)) || len(data) > 17<<10 {
		t.Fatalf("read %d bytes at %d of %d: %v", len(data), at, end, err)
	}
	if !strings.HasPrefix(text, "gpuai: output before this line was dropped") || !strings.HasSuffix(text, "line 19999\nthe end\n") {
		t.Errorf("kept %q … %q", text[:80], text[len(text)-40:])
	}
	tail, _, _, err := watchdog.ReadLog(s.LogDir, "stdout", -8, 100)
	if err != nil || string(tail) != "the end\n" {
		t.Errorf("tail is %q, %v", tail, err)
	}
}

// A process that the kernel will not let die is told of after the budget, and
// its end is told too.
func TestUnkillable(t *testing.T) {
	freezer := "/sys/fs/cgroup/freezer/gpuai-test-" + strconv.Itoa(os.Getpid())
	if os.Mkdir(freezer, 0o755) != nil {
		t.Skip("needs root and the version 1 freezer, to hold a process that SIGKILL cannot end")
	}
	defer os.Remove(freezer)
	set := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(freezer, file), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	b := newBench(t)
	task := b.start(b.spec(1, "sleep 60"))
	set("cgroup.procs", strconv.Itoa(task.PID))
	set("freezer.state", "FROZEN")
	defer set("freezer.state", "THAWED")
	if err := b.c.Kill(1, 300); err != nil {
		t.Fatal(err)
	}
	if n := b.news(); n.State != watchdog.Unkillable || n.Reason == "" {
		t.Errorf("told %+v", n)
	}
	set("freezer.state", "THAWED")
	if n := b.news(); n.State != watchdog.Exited {
		t.Errorf("then told %+v", n)
	}
}

// A task must not inherit what keeps the kernel from killing its watchdog.
func TestTaskIsNotProtectedFromWantOfMemory(t *testing.T) {
	b := newBench(t)
	b.start(b.spec(1, `cat /proc/$PPID/oom_score_adj /proc/self/oom_score_adj`))
	b.news()
	score := strings.Fields(b.log(1, "stdout"))
	if len(score) != 2 {
		t.Fatalf("%q", score)
	}
	if !strings.HasPrefix(score[0], "-") {
		t.Skip("this host does not let the watchdog protect itself: it lacks CAP_SYS_RESOURCE")
	}
	if score[1] != "0" {
		t.Errorf("the task's score is %s", score[1])
	}
}
