package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

func TestSubmitPlacesAtOnce(t *testing.T) {
	r := newRegion(t)
	r.node("a", 8)
	id := r.newID()
	res := r.do(&SubmitJob{ID: id, Spec: jobSpec("j", 3, 2)})
	if res.Tasks != 3 || res.Leased != 3 || res.Job != id {
		t.Fatalf("%+v", res)
	}
	r.status(id, gpuai.JobRunning)
	ls := r.leases(id)
	if len(ls) != 3 || ls[0].TTL != 20*gpuai.Second || ls[0].Grace != 5*gpuai.Second {
		t.Fatalf("%+v", ls)
	}
	if n, _ := r.m.Node("a"); n.FreeGPUs != 2 || n.Leases != 3 {
		t.Fatalf("%+v", n)
	}
	for _, l := range ls {
		r.report(l, gpuai.ReportRunning, 0)
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}

func TestQueueIsServedInOrder(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	first := r.submit(jobSpec("first", 1, 2))
	low := jobSpec("low", 1, 2)
	low.Priority = 10
	lowID := r.submit(low)
	mid := r.submit(jobSpec("mid", 1, 1))
	high := jobSpec("high", 1, 2)
	high.Priority = 90
	highID := r.submit(high)
	for _, id := range []gpuai.JobID{lowID, mid, highID} {
		r.status(id, gpuai.JobPending)
	}
	if q := r.m.QueueEntries(0, 10); len(q) != 3 || q[0].Job != highID || q[1].Job != mid || q[2].Job != lowID {
		t.Fatalf("%+v", q)
	}
	for _, id := range []gpuai.JobID{first, highID, mid, lowID} {
		r.status(id, gpuai.JobRunning)
		r.report(r.leases(id)[0], gpuai.ReportDone, 0)
		r.status(id, gpuai.JobSucceeded)
	}
}

func TestGangIsAllOrNothing(t *testing.T) {
	r := newRegion(t)
	r.node("a", 4)
	r.node("b", 4)
	one := r.submit(jobSpec("one", 1, 1))
	g := jobSpec("gang", 4, 2)
	g.Groups[0].Gang = true
	id := r.submit(g)
	r.status(id, gpuai.JobPending)
	r.report(r.leases(one)[0], gpuai.ReportDone, 0)
	r.status(id, gpuai.JobRunning)
	ls := r.leases(id)
	if len(ls) != 4 {
		t.Fatalf("%d leases", len(ls))
	}
	a, _ := r.m.Assignment(ls[2].ID)
	if a.Gang == nil || a.Gang.Rank != 2 || a.Gang.Size != 4 || a.Gang.MasterPort != 20_000 || len(a.Gang.NodeIPs) != 4 {
		t.Fatalf("%+v", a.Gang)
	}
	// A lost member stops the others, and all are placed again as one.
	inc := ls[0].Incarnation
	lost := ls[0].Node
	r.expire(string(lost), inc)
	for _, l := range r.leases(id) {
		if l.Node != lost && l.State != gpuai.LeaseRevoking {
			t.Fatalf("a member on %s is %s", l.Node, l.State)
		}
	}
	for _, l := range r.leases(id) {
		if l.State == gpuai.LeaseRevoking {
			r.report(l, gpuai.ReportStopped, 143)
		}
	}
	r.status(id, gpuai.JobPending)
	r.wait(2 * gpuai.Second)
	r.status(id, gpuai.JobPending) // one node is silent
	r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{lost, inc}}})
	r.status(id, gpuai.JobRunning)
	if j := r.job(id); j.Restarts != 1 {
		t.Fatalf("%+v", j)
	}
	for _, l := range r.leases(id) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}

func TestFailuresAndRestarts(t *testing.T) {
	for _, c := range []struct {
		name   string
		on     []gpuai.RestartCause
		report gpuai.ReportState
		want   gpuai.JobStatus // after the first end
		used   uint32
	}{
		{"a failure is final by default", nil, gpuai.ReportFailed, gpuai.JobFailed, 0},
		{"a failure may be retried", []gpuai.RestartCause{gpuai.CauseFailure}, gpuai.ReportFailed, gpuai.JobPending, 1},
		{"a fenced task is placed again", nil, gpuai.ReportFenced, gpuai.JobPending, 1},
		{"a lost task may be final", []gpuai.RestartCause{}, gpuai.ReportLost, gpuai.JobFailed, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegion(t)
			r.node("a", 1)
			s := jobSpec("j", 1, 1)
			if c.on != nil {
				s.Groups[0].Restart.On = c.on
			}
			id := r.submit(s)
			r.report(r.leases(id)[0], c.report, 1)
			r.status(id, c.want)
			if got := r.job(id).Restarts; got != c.used {
				t.Fatalf("%d restarts, want %d", got, c.used)
			}
			if c.want == gpuai.JobPending {
				r.wait(gpuai.Second)
				r.status(id, gpuai.JobRunning)
			}
		})
	}
}

func TestRestartsAreUsedUp(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	id := r.submit(jobSpec("j", 1, 1))
	for range 4 {
		r.status(id, gpuai.JobRunning)
		r.report(r.leases(id)[0], gpuai.ReportFenced, 0)
		r.wait(gpuai.Minute)
	}
	r.status(id, gpuai.JobFailed)
}

func TestDrainMovesTasks(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	id := r.submit(jobSpec("j", 1, 1))
	r.node("b", 1)
	r.do(&SetNodeEligibility{Node: "a", Drained: true})
	l := r.leases(id)[0]
	if l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CauseDrained {
		t.Fatalf("%+v", l)
	}
	r.report(l, gpuai.ReportStopped, 143)
	if l := r.leases(id)[0]; l.Node != "b" || l.State != gpuai.LeaseGranted {
		t.Fatalf("%+v", l)
	}
	if n := r.job(id).Restarts; n != 0 {
		t.Fatalf("a drain counts %d restarts", n)
	}
}

func TestStopJob(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	id := r.submit(jobSpec("j", 5, 1))
	r.do(&StopJob{Job: id})
	r.status(id, gpuai.JobRunning)
	for _, l := range r.leases(id) {
		r.report(l, gpuai.ReportStopped, 143)
	}
	r.status(id, gpuai.JobStopped)
	if c := r.job(id).Counts; c.Stopped != 5 {
		t.Fatalf("%+v", c)
	}
	r.do(&StopJob{Job: id})
	r.refuse(&StopJob{Job: r.newID()}, gpuai.NotFound)
}

func TestTimeLimits(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	s := jobSpec("run", 1, 1)
	s.Limits.RunTime = 10 * gpuai.Second
	run := r.submit(s)
	r.report(r.leases(run)[0], gpuai.ReportRunning, 0)
	s = jobSpec("wait", 1, 1)
	s.Limits.QueueTime = 5 * gpuai.Second
	waits := r.submit(s)
	r.wait(6 * gpuai.Second)
	r.status(waits, gpuai.JobFailed)
	r.wait(5 * gpuai.Second)
	l := r.leases(run)[0]
	if l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CauseRunTime {
		t.Fatalf("%+v", l)
	}
	r.report(l, gpuai.ReportStopped, 137)
	r.status(run, gpuai.JobFailed)
}

func TestUnschedulable(t *testing.T) {
	r := newRegion(t)
	r.submit(jobSpec("early", 1, 9)) // nothing to judge by
	r.node("a", 8)
	r.refuse(&SubmitJob{ID: r.newID(), Spec: jobSpec("j", 1, 9)}, gpuai.Unschedulable)
	gang := jobSpec("g", 3, 4)
	gang.Groups[0].Gang = true
	r.refuse(&SubmitJob{ID: r.newID(), Spec: gang}, gpuai.Unschedulable)
	r.do(&SubmitJob{ID: r.newID(), Spec: gang, HoldAnyway: true})
	if w := r.m.ExplainSpec(jobSpec("j", 1, 9)); len(w) == 0 || w[0].Code != gpuai.NoSuchDevice {
		t.Fatalf("%+v", w)
	}
}

// A gang that lacks only a rendezvous port starts when one comes back.
func TestGangWaitsForPort(t *testing.T) {
	r := newRegion(t)
	n := nodeSpec("a", 8, "H100")
	n.PortCount = 1
	r.register(n)
	gang := func(name string) gpuai.JobID {
		s := jobSpec(name, 2, 1)
		s.Groups[0].Gang = true
		return r.submit(s)
	}
	first, second := gang("first"), gang("second")
	r.status(first, gpuai.JobRunning)
	r.status(second, gpuai.JobPending)
	for _, l := range r.leases(first) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(second, gpuai.JobRunning)
}
