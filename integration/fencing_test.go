package integration

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/cable"
)

// away bounds the time from a node's silence to its task running elsewhere.
const away = time.Duration(testTTL+testGrace)*time.Millisecond + patience

// A pair is a region with two nodes, of which the first runs a beating task.
type pair struct {
	*region
	first, second *node
	beats         string
	sub           gpuai.Submitted
	job           gpuai.JobID
	task          gpuai.Task // as it runs first
}

// startPair starts the task on the first node, which reaches the servers at
// addrs, and the second node behind it.
func startPair(t *testing.T, addrs func(*region) []string) *pair {
	t.Helper()
	p := &pair{region: startRegion(t), beats: t.TempDir()}
	p.shortLeases()
	p.first = p.startNode("n1", 1, addrs(p.region)...)
	p.sub = p.submit(beatJob(t, "beats", p.beats))
	p.job = p.sub.Job.ID
	p.task = p.awaitRunning(p.job, p.beats, 0, patience)
	p.second = p.startNode("n2", 1, p.addrs()...)
	return p
}

func direct(r *region) []string { return r.addrs() }

// moved waits until the task runs on the second node, and checks from its beats
// that it was dead in time and placed again no sooner than it may. since is
// CLOCK_BOOTTIME of the fault.
func (p *pair) moved(since int64) gpuai.Task {
	p.t.Helper()
	next := p.awaitRunning(p.job, p.beats, p.task.Lease, away)
	if next.Node != gpuai.NodeID(p.second.id) {
		p.t.Errorf("the task runs on node %s", next.Node)
	}
	runs := oneRunner(p.t, p.beats)
	if len(runs) != 2 || runs[0].Token != p.task.Lease || runs[1].Token != next.Lease {
		p.t.Fatalf("there are %d runs, not one of lease %s and one of %s: %+v", len(runs), p.task.Lease, next.Lease, runs)
	}
	old, now := runs[0], runs[1]
	p.t.Logf("after the fault: last beat of the old lease at %s, first of the new at %s", ms(old.Last-since), ms(now.First-since))
	policy := gpuai.DefaultPolicy()
	// Every renewal was sent before the fault, and none longer before it than
	// two beats: one may have been under way.
	if at := ms(old.Last - since); at > testTTL {
		p.t.Errorf("the task beat for %s after the fault, its TTL is %s", at, testTTL)
	} else if least := policy.FenceAfter(testTTL) - 3*testBeatEvery; at < least {
		p.t.Errorf("the task ended %s after the fault, and had its lease for %s at least", at, least)
	}
	if at, least := ms(now.First-since), testTTL+testGrace-2*testBeatEvery; at < least {
		p.t.Errorf("the task ran elsewhere %s after the fault, before %s", at, least)
	}
	return next
}

// unchanged checks, after the first node's return, that what its agent reports
// of the old lease changes nothing: the task, and what the region tells of the
// lease. That the node then runs another job says that its devices came free.
func (p *pair) unchanged(next gpuai.Task) {
	p.t.Helper()
	p.first.awaitState(gpuai.NodeReady)
	other := p.submit(beatJob(p.t, "another", p.beats, p.first.id)).Job.ID
	p.awaitRunning(other, p.beats, 0, patience)
	p.stop(other)
	var ends []gpuai.LeaseCause
	for _, e := range p.eventsUntil(p.sub.Index, func(e gpuai.Event) bool { return e.Kind == gpuai.JobEnded && e.Job == other }) {
		if e.Kind == gpuai.LeaseEndedEvent && e.Lease == p.task.Lease {
			ends = append(ends, e.Cause)
		}
	}
	if len(ends) != 1 || ends[0] != gpuai.CauseExpired {
		p.t.Errorf("the old lease ended %d times, causes %v, not once because it expired", len(ends), ends)
	}
	tasks, _, err := p.client().Tasks(p.t.Context(), p.job.String(), client.Page{Limit: 1})
	if err != nil || tasks[0] != next {
		p.t.Errorf("a late report changed the task from %+v to %+v, %v", next, tasks, err)
	}
	p.awaitBeats(p.beats, next.Lease, 3)
	if runs := oneRunner(p.t, p.beats); len(runs) != 3 {
		p.t.Errorf("there are %d runs, not 3: %+v", len(runs), runs)
	}
}

// TestCase21Partition cuts an agent off while its task runs.
func TestCase21Partition(t *testing.T) {
	t.Parallel()
	var cables []*cable.Cable
	p := startPair(t, func(r *region) (addrs []string) {
		for _, m := range r.servers {
			c := newCable(t, m.http)
			cables = append(cables, c)
			addrs = append(addrs, c.Addr)
		}
		return addrs
	})
	since := beat.Boottime()
	for _, c := range cables {
		c.Set(true)
	}
	next := p.moved(since)
	if !p.first.alive() {
		t.Error("the agent that was cut off has ended")
	}
	for _, c := range cables {
		c.Set(false)
	}
	p.unchanged(next)
	p.equalDigests(0)
}

// TestCase22AgentStopped stops an agent with SIGSTOP beyond the TTL: the
// watchdog fences its task meanwhile, and what the agent reports once it goes
// on changes nothing.
func TestCase22AgentStopped(t *testing.T) {
	t.Parallel()
	p := startPair(t, direct)
	since := beat.Boottime()
	p.first.signal(syscall.SIGSTOP)
	next := p.moved(since)
	p.first.signal(syscall.SIGCONT)
	p.unchanged(next)
	if log := p.first.err.String(); strings.Contains(log, "driver is down") {
		t.Error("the agent took its own absence for the driver's silence")
	}
	p.equalDigests(0)
}

// TestCase23AgentKilled kills an agent with -9 and starts it again at once: its
// task goes on under the same lease, and its device is offered to nobody else.
func TestCase23AgentKilled(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.shortLeases()
	n := r.startNode("n1", 1, r.addrs()...)
	dir := t.TempDir()
	job := r.submit(beatJob(t, "beats", dir)).Job.ID
	task := r.awaitRunning(job, dir, 0, patience)
	waiting := r.submit(beatJob(t, "waits", dir)).Job.ID
	before, _ := runOf(t, dir, task.Lease)

	for range 2 {
		n.kill()
		r.awaitBeats(dir, task.Lease, 5) // with no agent there
		n.start()
		r.awaitBeats(dir, task.Lease, 2*int(time.Duration(testBeatEvery)*time.Millisecond/beat.Every))
	}
	now := r.awaitTask(job, patience, "task", func(gpuai.Task) bool { return true })
	if now.Lease != task.Lease || now.Status != gpuai.TaskRunning || now.Attempts != 0 {
		t.Errorf("the task was %+v and is %+v", task, now)
	}
	after, _ := runOf(t, dir, task.Lease)
	if after.File != before.File {
		t.Errorf("another process beats: %s, then %s", before.File, after.File)
	}
	if gap := longestGap(t, after.File); gap > 2*gpuai.Second {
		t.Errorf("the task stood still for %s", gap)
	}
	if j, err := r.client().Job(t.Context(), waiting.String()); err != nil || j.StartedAt != 0 {
		t.Errorf("the only device was offered twice: %+v, %v", j, err)
	}
	r.stop(job)
	r.awaitRunning(waiting, dir, 0, patience)
	runs := oneRunner(t, dir)
	if len(runs) != 2 || runs[0].Last >= runs[1].First {
		t.Errorf("the device had two users at once: %+v", runs)
	}
}

// TestCase23AgentKilledForLong kills an agent with -9 and starts it again
// after its task was placed elsewhere: the watchdog has fenced the task.
func TestCase23AgentKilledForLong(t *testing.T) {
	t.Parallel()
	p := startPair(t, direct)
	since := beat.Boottime()
	p.first.kill()
	next := p.moved(since)
	p.first.start()
	p.unchanged(next)
	p.equalDigests(0)
}
