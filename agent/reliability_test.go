package agent

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/store"
)

// The agent's side of the cases of the reliability document, by their numbers.

// beating writes (token, CLOCK_BOOTTIME in hundredths) every 50 ms: the oracle
// of double runs. It ignores SIGTERM and leaves its session.
func beating(file string) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) { a.Task.Script, a.Lease.TTL = beats(file), shortTTL }
}

func beats(file string) string {
	return `trap '' TERM
echo $$ > pid
setsid sh -c 'trap "" TERM; while :; do read up rest < /proc/uptime; echo "$GPUAI_FENCING_TOKEN $up" >> ` + file + `; sleep 0.05; done'`
}

// span returns the first and last beat of a token, in hundredths of a second.
func span(t *testing.T, file string, token gpuai.Token) (first, last int64) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[0] != token.String() {
			continue
		}
		at, err := strconv.ParseInt(strings.Replace(f[1], ".", "", 1), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if last = at; first == 0 {
			first = at
		}
	}
	return first, last
}

// silent waits until a node was silent for TTL and grace, and ends its lease as
// the region would.
func (f *fixture) silent(node gpuai.NodeID, lease gpuai.Token) (heard int64) {
	f.t.Helper()
	eventually(f.t, "TTL and grace to pass", func() bool {
		f.region.mu.Lock()
		defer f.region.mu.Unlock()
		heard = f.region.node[node].heard
		return watchdog.Boottime()-heard >= int64(shortTTL+testGrace)*1e6
	})
	f.expire(node, lease)
	return heard
}

func TestCase21PartitionedAgentFences(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	other := &fixture{t: t, region: f.region, dir: t.TempDir()}
	t.Cleanup(other.endWatchdog)
	const second gpuai.NodeID = "gpu-a2"
	other.run(func(c *Config) { c.Node = second })
	file := filepath.Join(t.TempDir(), "beats")
	old := f.grant(testNode, beating(file))
	pid := f.pidOf(old)
	f.running(old)
	f.set(func(r *region) { r.node[testNode].cut = true })
	heard := f.silent(testNode, old)
	if alive(pid) {
		t.Fatal("the task runs when its place is given away")
	}
	next := other.grant(second, beating(file))
	other.running(next)
	eventually(t, "the next runner's beats", func() bool { first, _ := span(t, file, next); return first > 0 })
	_, last := span(t, file, old)
	first, _ := span(t, file, next)
	if last >= first {
		t.Errorf("the old runner's last beat was at %d, the new one's first at %d", last, first)
	}
	if late := last*1e7 - heard; late > int64(shortTTL)*1e6 {
		t.Errorf("the old runner lived %d ms after its last renewal was received", late/1e6)
	}
	f.set(func(r *region) { r.node[testNode].cut = false; r.node[testNode].session.Close() })
	if r := f.last(old); r.State != gpuai.ReportFenced {
		t.Errorf("reported %+v", r)
	}
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("after the partition it reported %+v", r)
	}
}

func TestCase22StoppedAgentFences(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	file := filepath.Join(t.TempDir(), "beats")
	lease := f.grant(testNode, beating(file))
	pid := f.pidOf(lease)
	f.running(lease)
	p.signal(t, syscall.SIGSTOP)
	heard := f.silent(testNode, lease)
	if alive(pid) {
		t.Fatal("the task outlived its lease under a stopped agent")
	}
	if _, last := span(t, file, lease); last*1e7-heard > int64(shortTTL)*1e6 {
		t.Errorf("it lived %d ms after its last renewal was received", (last*1e7-heard)/1e6)
	}
	before := len(f.reports(lease))
	p.signal(t, syscall.SIGCONT)
	// What it says of the lease now is answered with a conflict and is final.
	eventually(t, "the stale report", func() bool { return len(f.reports(lease)) > before })
	if r := f.last(lease); r.State != gpuai.ReportFenced {
		t.Errorf("reported %+v", r)
	}
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("then reported %+v", r)
	}
}

// An agent that was killed and does not come back: its tasks end in time.
func TestKilledAgentFences(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	file := filepath.Join(t.TempDir(), "beats")
	lease := f.grant(testNode, beating(file))
	pid := f.pidOf(lease)
	f.running(lease)
	p.kill()
	heard := f.silent(testNode, lease)
	if _, last := span(t, file, lease); alive(pid) || last*1e7-heard > int64(shortTTL)*1e6 {
		t.Error("the task outlived its lease")
	}
}

func TestCase23KilledAgentAdopts(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	stays := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "echo $$ > pid; while [ ! -e go ]; do sleep 0.02; done; exit 6", gpuai.Minute
	})
	ends := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "echo $$ > pid; while [ ! -e go ]; do sleep 0.02; done; exit 5", gpuai.Minute
	})
	pid, ending := f.pidOf(stays), f.pidOf(ends)
	f.running(stays)
	f.running(ends)
	p.kill()
	f.touch(ends, "go")
	eventually(t, "the second task to end", func() bool { return !alive(ending) })
	stranger := f.startStranger(999)
	d := newDriver("GPU-1")
	d.reserved["777"] = plugins.Reservation{ID: "777"}

	f.runWith(d, nil)
	hello := f.hellos(testNode)[len(f.hellos(testNode))-1]
	if len(hello.Held) != 1 || hello.Held[0].Lease != stays || hello.Nonce != f.hellos(testNode)[0].Nonce {
		t.Errorf("the hello offers %+v", hello.Held)
	}
	if r := f.last(ends); r.State != gpuai.ReportFailed || r.ExitCode != 5 || r.Seq != 2 {
		t.Errorf("the one that ended meanwhile is reported %+v", r)
	}
	eventually(t, "the task of no known lease to die", func() bool { return !alive(stranger.PID) })
	if d.holds(777) {
		t.Error("a reservation of no lease stays")
	}
	if !alive(pid) {
		t.Fatal("the adopted task died")
	}
	f.touch(stays, "go")
	if r := f.last(stays); r.State != gpuai.ReportFailed || r.ExitCode != 6 || r.Seq != 2 {
		t.Errorf("the adopted one is reported %+v", r)
	}
}

// After a reboot nothing of the journal runs and nothing is said of it: the
// leases wait for their TTL and grace, since the journal may be a copy.
func TestCase23OtherBoot(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	lease := f.grant(testNode, func(a *gpuai.Assignment) { a.Task.Script, a.Lease.TTL = "echo $$ > pid; sleep 60", gpuai.Minute })
	pid := f.pidOf(lease)
	f.running(lease)
	p.kill()
	f.journal(func(id *store.JournalIdentity, leases []store.JournalLease) {
		id.BootID = "before"
		for i := range leases {
			leases[i].BootID = "before"
		}
	})
	f.set(func(r *region) { r.node[testNode].boot = "before" })
	f.run(nil)
	eventually(t, "the task to die", func() bool { return !alive(pid) })
	if h := f.hellos(testNode); len(h[len(h)-1].Held) != 0 {
		t.Error("it was offered for adoption")
	}
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone || r.Incarnation != 2 {
		t.Errorf("then reported %+v", r)
	}
	if n := len(f.reports(lease)); n != 1 {
		t.Errorf("%d reports of the lost lease", n)
	}
}

// Agent and watchdog die together: what is left of the tasks is swept and
// reported lost.
func TestCase23WatchdogDiedToo(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "sh -c 'echo $$ > pid; sleep 60' & wait", gpuai.Minute
	})
	pid := f.pidOf(lease)
	f.running(lease)
	p.kill()
	killWatchdog(t, f.dir)
	f.run(nil)
	if r := f.last(lease); r.State != gpuai.ReportLost || alive(pid) {
		t.Errorf("reported %+v; alive: %v", r, alive(pid))
	}
}

// Late, repeated and reordered messages of the region change nothing.
func TestCase25RepeatedAndReorderedMessages(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	starts := filepath.Join(t.TempDir(), "starts")
	f.set(func(r *region) { r.deaf = true })
	var offered gpuai.Assignment
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script = "echo started >> " + starts
		offered = *a
	})
	f.last(lease)
	f.set(func(r *region) {
		n := r.node[testNode]
		send := func(s gpuai.LeaseSet) {
			s.Epoch, s.Incarnation = r.epoch, n.incarnation
			n.session.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameLeases, Leases: &s})
		}
		for range 3 { // offered again, by a late set and by one from before
			send(gpuai.LeaseSet{Index: r.index, Leases: []gpuai.Assignment{offered}})
			send(gpuai.LeaseSet{Index: 1, Leases: []gpuai.Assignment{offered}})
			send(gpuai.LeaseSet{Index: r.index, Full: true, Leases: []gpuai.Assignment{offered}})
		}
		for _, code := range []gpuai.Code{gpuai.OK, gpuai.Conflict} { // answered again
			n.session.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameReported, Reported: &gpuai.Reported{Lease: lease, Seq: 1, Code: code}})
		}
		r.deaf = false
	})
	stale := f.grant(testNode, func(a *gpuai.Assignment) { a.Task.Script = "exit 0"; a.Lease.Incarnation-- })
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("the next lease is reported %+v", r)
	}
	if raw, _ := os.ReadFile(starts); string(raw) != "started\n" {
		t.Errorf("the task ran as %q", raw)
	}
	if all := f.reports(lease); len(all) > 2 {
		t.Errorf("reported %+v", all)
	}
	if all := f.reports(stale); len(all) != 0 {
		t.Errorf("a lease of another incarnation was taken: %+v", all)
	}
}

func (f *fixture) touch(t gpuai.Token, name string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, "tasks", t.String(), "work", name), nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// journal changes the journal of an agent that is down.
func (f *fixture) journal(change func(*store.JournalIdentity, []store.JournalLease)) {
	f.t.Helper()
	j, err := store.OpenJournal(filepath.Join(f.dir, journalFile))
	if err != nil {
		f.t.Fatal(err)
	}
	defer j.Close()
	id, leases, err := j.Load()
	if err != nil {
		f.t.Fatal(err)
	}
	change(&id, leases)
	if err := j.Commit(store.JournalChange{Identity: &id, Put: leases}); err != nil {
		f.t.Fatal(err)
	}
}

// startStranger has the watchdog run a task that no journal knows.
func (f *fixture) startStranger(t gpuai.Token) watchdog.Task {
	f.t.Helper()
	c, err := watchdog.Dial(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	dir := filepath.Join(f.dir, "tasks", t.String())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	task, err := c.Start(&watchdog.Spec{
		Lease: t, Incarnation: 1, Deadline: watchdog.Boottime() + 60e9, KillBudget: 1e9,
		Argv: []string{"/bin/sleep", "60"}, Cwd: "/", LogDir: dir, LogBytes: 1 << 16,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return task
}
