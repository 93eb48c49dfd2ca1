package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/store"
)

func TestTaskRunsAndIsReported(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*gpuai.Assignment)
		state  gpuai.ReportState
		code   int32
		reason string
		out    string
	}{
		"script":  {script(`echo "hello $GPUAI_TASK_INDEX"; echo bad >&2`), gpuai.ReportDone, 0, "", "hello 0\n"},
		"failure": {script(`exit 7`), gpuai.ReportFailed, 7, "exit code 7", ""},
		"command": {func(a *gpuai.Assignment) {
			a.Task.Command = []string{"echo", "$NAME-${NAME}", "$UNSET", "$GPUAI_LEASE_ID"}
			a.Task.Env = map[string]string{"NAME": "x"}
			a.Lease.ID = gpuai.MakeToken(0, a.Lease.ID.Index(), 9)
		}, gpuai.ReportDone, 0, "", "x-x $UNSET "},
		"missing program": {func(a *gpuai.Assignment) { a.Task.Command = []string{"no-such-program"} }, gpuai.ReportFailed, 127, "not in PATH", ""},
		"gang": {func(a *gpuai.Assignment) {
			a.Task.Script = `echo $GPUAI_NODE_RANK/$GPUAI_NODES $MASTER_ADDR:$MASTER_PORT $GPUAI_NODE_IPS`
			a.Gang = &gpuai.GangInfo{Rank: 1, Size: 2, MasterAddr: "10.0.0.1", MasterPort: 7000, NodeIPs: []string{"10.0.0.1", "10.0.0.2"}}
		}, gpuai.ReportDone, 0, "", "1/2 10.0.0.1:7000 10.0.0.1,10.0.0.2\n"},
		"elastic gang": {func(a *gpuai.Assignment) {
			a.Task.Script = `echo $GPUAI_NODE_RANK/$GPUAI_NODES of $GPUAI_NODES_MIN to $GPUAI_NODES_MAX`
			a.Gang = &gpuai.GangInfo{Rank: 3, Size: 3, Min: 2, Max: 8, MasterAddr: "10.0.0.1", MasterPort: 7000}
		}, gpuai.ReportDone, 0, "", "3/3 of 2 to 8\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.run(nil)
			lease := f.grant(testNode, test.change)
			r := f.last(lease)
			if r.State != test.state || r.ExitCode != test.code || !strings.Contains(r.Reason, test.reason) {
				t.Errorf("reported %+v", r)
			}
			c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 1000})
			if !strings.HasPrefix(string(c.Data), test.out) || test.out != "" && !c.EOF {
				t.Errorf("output %q, EOF %v, %s", c.Data, c.EOF, c.Error)
			}
		})
	}
}

func TestProcessRuntimeMustBeAllowed(t *testing.T) {
	f := newFixture(t)
	f.run(func(c *Config) { c.AllowProcess = false })
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportFailed || !strings.HasSuffix(r.Reason, errProcess) {
		t.Errorf("reported %+v", r)
	}
}

func TestStopWithGrace(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, script(`trap 'echo saved; exit 3' TERM; echo $$ > pid; while :; do sleep 0.02; done`))
	f.running(lease)
	f.pidOf(lease)
	f.revoke(testNode, lease)
	if r := f.last(lease); r.State != gpuai.ReportStopped || r.ExitCode != 3 {
		t.Errorf("reported %+v", r)
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Offset: -6}); string(c.Data) != "saved\n" {
		t.Errorf("output %q", c.Data)
	}
}

func TestRevokedBeforeItStarted(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.State = "echo no", gpuai.LeaseRevoking
	})
	if r := f.last(lease); r.State != gpuai.ReportStopped {
		t.Errorf("reported %+v", r)
	}
}

func TestEndedLeaseIsFencedAtOnce(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, script(`trap '' TERM; echo $$ > pid; sleep 60`))
	pid := f.pidOf(lease)
	f.running(lease)
	f.expire(testNode, lease)
	if r := f.last(lease); r.State != gpuai.ReportFenced || alive(pid) {
		t.Errorf("reported %+v", r)
	}
}

func TestLogsFollow(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, script(`echo one; while [ ! -e go ]; do sleep 0.02; done; echo two`))
	f.running(lease)
	ask := func(offset int64, wait gpuai.Duration) gpuai.LogChunk {
		return f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Offset: offset, Limit: 100, Wait: wait})
	}
	eventually(t, "the first line", func() bool { return string(ask(0, 0).Data) == "one\n" })
	if c := ask(4, 50); len(c.Data) > 0 || c.EOF {
		t.Errorf("early: %+v", c)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "tasks", lease.String(), "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c := ask(4, 10*gpuai.Second); string(c.Data) != "two\n" {
		t.Errorf("then: %+v", c)
	}
	if c := ask(8, 10*gpuai.Second); len(c.Data) != 0 || !c.EOF {
		t.Errorf("at the end: %+v", c)
	}
	for _, q := range []gpuai.LogRequest{{Lease: 12345, Stream: "stdout"}, {Lease: lease, Stream: "../../journal"}} {
		if c := f.log(testNode, q); c.Error == "" {
			t.Errorf("%+v answered %+v", q, c)
		}
	}
}

// A server asks for the output of a lease before the agent's own has sent it the
// lease: whoever can wait gets what there will be.
func TestLogsAskedBeforeTheLeaseComes(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	var next gpuai.Token
	f.set(func(r *region) { next = gpuai.MakeToken(r.epoch, r.index+1, 1) })
	answer := make(chan gpuai.LogChunk)
	go func() {
		answer <- f.log(testNode, gpuai.LogRequest{Lease: next, Stream: "stdout", Limit: 100, Wait: 20 * gpuai.Second})
	}()
	eventually(t, "the question", func() (asked bool) {
		f.set(func(r *region) { asked = len(r.logs) > 0 })
		return asked
	})
	if got := f.grant(testNode, script("echo here")); got != next {
		t.Fatalf("granted %s, want %s", got, next)
	}
	if c := <-answer; string(c.Data) != "here\n" {
		t.Errorf("answered %+v", c)
	}
}

func TestReportsAreRepeatedUntilAnswered(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	f.set(func(r *region) { r.mute = true })
	lease := f.grant(testNode, script("while [ ! -e go ]; do sleep 0.02; done"))
	eventually(t, "the first report", func() bool { return len(f.reports(lease)) > 0 })
	if err := os.WriteFile(filepath.Join(f.dir, "tasks", lease.String(), "work", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.last(lease)
	f.set(func(r *region) { r.mute = false })
	// The session goes; the next brings what was not answered, in order.
	f.set(func(r *region) { r.node[testNode].reports = nil; r.node[testNode].session.Close() })
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Errorf("reported %+v", r)
	}
	if all := f.reports(lease); len(all) != 2 || all[0].Seq != 1 || all[0].State != gpuai.ReportRunning || all[1].Seq != 2 {
		t.Errorf("reported %+v", all)
	}
}

func TestSecondAgentOnOneDataDir(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	_, err := Open(testConfig(f.dir, f.addr(), discard()))
	if !errors.Is(err, store.ErrJournalInUse) || strings.Contains(err.Error(), "\n") {
		t.Errorf("opened: %v", err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*testing.T, *Config)
		want   string
	}{
		"watchdog": {func(_ *testing.T, c *Config) { c.Watchdog = "/no/such/gpuai-watchdog" }, "give the path of gpuai-watchdog"},
		"name":     {func(_ *testing.T, c *Config) { c.Node = "No Name" }, "/id"},
		"servers":  {func(_ *testing.T, c *Config) { c.Servers = nil }, "at least one server"},
		"journal": {func(t *testing.T, c *Config) {
			if err := os.WriteFile(filepath.Join(c.DataDir, journalFile), []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "--take-over"},
		"other node": {func(t *testing.T, c *Config) {
			j, err := store.OpenJournal(filepath.Join(c.DataDir, journalFile))
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if err := j.Commit(store.JournalChange{Identity: &store.JournalIdentity{Node: "other", Nonce: "n"}}); err != nil {
				t.Fatal(err)
			}
		}, "is that of node other"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t.TempDir(), "127.0.0.1:1", discard())
			test.change(t, &cfg)
			a, err := Open(cfg)
			if err == nil {
				a.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

// Case 34, the agent's half: another agent has the node's identity. This one fences
// and ends with a sentence for its operator.
func TestCase34SupersededAgentFencesAndHalts(t *testing.T) {
	f := newFixture(t)
	a := f.run(nil)
	lease := f.grant(testNode, script("echo $$ > pid; sleep 60"))
	pid := f.pidOf(lease)
	f.running(lease)
	f.set(func(r *region) {
		r.node[testNode].incarnation++
		r.node[testNode].nonce = "another"
		r.node[testNode].session.Close()
	})
	err := <-a.done
	if err == nil || !strings.Contains(err.Error(), "another agent holds this node's identity") {
		t.Errorf("ended with %v", err)
	}
	eventually(t, "the task to die", func() bool { return !alive(pid) })
	a.done <- nil
}

func TestTakeOver(t *testing.T) {
	f := newFixture(t)
	f.set(func(r *region) {
		r.node[testNode] = &fakeNode{incarnation: 4, nonce: "lost", leases: map[gpuai.Token]gpuai.Assignment{}}
	})
	f.run(func(c *Config) { c.TakeOver = true })
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone || r.Incarnation != 5 {
		t.Errorf("reported %+v", r)
	}
}

func TestStopTasksLeavesNothing(t *testing.T) {
	f := newFixture(t)
	a := f.run(func(c *Config) { c.StopTasks = true })
	lease := f.grant(testNode, script("trap 'exit 0' TERM; echo $$ > pid; while :; do sleep 0.02; done"))
	pid := f.pidOf(lease)
	f.running(lease)
	a.stop(t)
	if alive(pid) {
		t.Error("the task survived")
	}
	eventually(t, "the watchdog to end", func() bool { c, err := watchdog.Dial(f.dir); return err != nil || c.Close() != nil })
}

// The watchdog dies: what it ran is gone or swept, reported lost, and another
// takes its place.
func TestWatchdogIsReplaced(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, script("sh -c 'echo $$ > pid; sleep 60' & wait"))
	pid := f.pidOf(lease)
	f.running(lease)
	killWatchdog(t, f.dir)
	if r := f.last(lease); r.State != gpuai.ReportLost || alive(pid) {
		t.Errorf("reported %+v; alive: %v", r, alive(pid))
	}
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("then reported %+v", r)
	}
}

// A journal that cannot be written drains the node with a reason; what runs
// goes on (the agent's side of case 24).
func TestFullJournalDrains(t *testing.T) {
	f := newFixture(t)
	dev := newDriver("GPU-1")
	a := f.runWith(dev, nil)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "while [ ! -e go ]; do sleep 0.02; done", shortTTL
	})
	f.running(lease)
	a.post(func() { a.journal = fullJournal{a.journal} })
	second := f.grant(testNode, script("exit 0"))
	if r := f.last(second); r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "journal") {
		t.Errorf("reported %+v", r)
	}
	eventually(t, "the devices to be taken out", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })
	time.AfterFunc(time.Duration(2*shortTTL)*time.Millisecond, func() {
		os.WriteFile(filepath.Join(f.dir, "tasks", lease.String(), "work", "go"), nil, 0o600)
	})
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Errorf("the running task was reported %+v", r)
	}
}

// fullJournal is a journal whose disk is full.
type fullJournal struct{ journal }

func (fullJournal) Commit(store.JournalChange) error { return errors.New("no space left on device") }

func (f *fixture) health(id gpuai.DeviceID) gpuai.DeviceHealth {
	f.region.mu.Lock()
	defer f.region.mu.Unlock()
	ds := f.region.node[testNode].devices
	i := slices.IndexFunc(ds, func(d gpuai.Device) bool { return d.ID == id })
	if i < 0 {
		return gpuai.DeviceLost
	}
	return ds[i].Health
}
