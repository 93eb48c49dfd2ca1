package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// newLevel3 returns a region of feature level 3.
func newLevel3(t testing.TB) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	return r
}

// rack registers nodes of eight GPUs in a rack.
func (r *region) rack(rack string, names ...string) {
	r.t.Helper()
	for _, n := range names {
		s := nodeSpec(n, 8, "H100")
		s.Rack = rack
		r.register(s)
	}
}

func gangSpec(name string, least, count, gpus uint32) *gpuai.JobSpec {
	s := jobSpec(name, count, gpus)
	s.Groups[0].Gang = true
	if least != count {
		s.Groups[0].MinCount = least
	}
	return s
}

// live returns the job's leases that have not ended, by task.
func (r *region) live(id gpuai.JobID) (out []gpuai.Lease) {
	for _, l := range r.leases(id) {
		if l.State != gpuai.LeaseEnded {
			out = append(out, l)
		}
	}
	return out
}

func (r *region) wantLive(id gpuai.JobID, want int) []gpuai.Lease {
	r.t.Helper()
	ls := r.live(id)
	if len(ls) != want {
		r.t.Fatalf("%d leases, want %d: %+v", len(ls), want, r.job(id))
	}
	return ls
}

func TestElasticGangStartsGrowsAndShrinks(t *testing.T) {
	r := newLevel3(t)
	r.node("a", 8)
	r.node("b", 8)
	other := r.submit(jobSpec("other", 1, 8))
	id := r.submit(gangSpec("gang", 2, 4, 4))
	r.wantLive(id, 2)
	a, _ := r.m.Assignment(r.live(id)[1].ID)
	if g := a.Gang; g.Rank != 1 || g.Size != 2 || g.Min != 2 || g.Max != 4 || g.MasterPort == 0 || len(g.NodeIPs) != 2 {
		t.Fatalf("%+v", g)
	}
	// It grows on what is freed.
	r.report(r.leases(other)[0], gpuai.ReportDone, 0)
	ls := r.wantLive(id, 4)
	// It goes on without members that are lost, and grows again after a back-off.
	inc, _, _ := r.m.NodeLive(ls[3].Node)
	if ls[0].Node == ls[3].Node {
		t.Fatal("all on one node")
	}
	r.expire(string(ls[3].Node), inc)
	r.wantLive(id, 2)
	r.status(id, gpuai.JobRunning)
	if j := r.job(id); j.Restarts != 0 || j.Counts.Pending != 2 {
		t.Fatalf("%+v", j)
	}
	for i, k := range r.m.Tasks(id, 0, 10) {
		if waits := i >= 2; waits != (k.RetryAt != 0) {
			t.Fatalf("task %d is %s and grows at %d", i, k.Status, k.RetryAt)
		}
	}
	r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{ls[3].Node, inc}}})
	r.wantLive(id, 2)
	r.wait(4 * gpuai.Second)
	r.wantLive(id, 4)
	for _, l := range r.live(id) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}

func TestElasticGangRestartsAsOne(t *testing.T) {
	for _, c := range []struct {
		name string
		lose int // index of the task
		by   gpuai.ReportState
		want int // that go on
	}{
		{"a lost member is done without", 2, gpuai.ReportFenced, 2},
		{"without the first task the others cannot meet", 0, gpuai.ReportFenced, 0},
		{"a failure is no loss", 2, gpuai.ReportFailed, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newLevel3(t)
			r.node("a", 8)
			s := gangSpec("gang", 2, 3, 1)
			s.Groups[0].Restart.On = append(s.Groups[0].Restart.On, gpuai.CauseFailure)
			id := r.submit(s)
			ls := r.wantLive(id, 3)
			r.report(ls[c.lose], c.by, 1)
			going := 0
			for _, l := range r.live(id) {
				if l.State != gpuai.LeaseRevoking {
					going++
				}
			}
			if going != c.want {
				t.Fatalf("%d members go on, want %d", going, c.want)
			}
			for _, l := range r.live(id) {
				if l.State == gpuai.LeaseRevoking {
					r.report(l, gpuai.ReportStopped, 143)
				}
			}
			r.wait(3 * gpuai.Second)
			r.wantLive(id, 3)
			if got, want := r.job(id).Restarts, min(1, uint32(3-c.want)/2); got != want {
				t.Fatalf("%d restarts, want %d", got, want)
			}
		})
	}
}

func TestElasticGangBelowItsLeastRestarts(t *testing.T) {
	r := newLevel3(t)
	r.node("a", 8)
	id := r.submit(gangSpec("gang", 2, 3, 1))
	ls := r.wantLive(id, 3)
	r.report(ls[1], gpuai.ReportFenced, 0)
	r.report(ls[2], gpuai.ReportFenced, 0)
	l := r.wantLive(id, 1)[0]
	if l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CauseGang {
		t.Fatalf("%+v", l)
	}
	r.report(l, gpuai.ReportStopped, 143)
	r.wait(5 * gpuai.Second)
	r.wantLive(id, 3)
	if n := r.job(id).Restarts; n != 1 {
		t.Fatalf("%d restarts", n)
	}
}

// What a gang could do without does not make its job a stopped one, and once a
// member has succeeded it grows no more.
func TestElasticGangSucceedsWithWhatItHad(t *testing.T) {
	r := newLevel3(t)
	r.node("a", 2)
	id := r.newID()
	r.do(&SubmitJob{ID: id, Spec: gangSpec("gang", 2, 5, 1), HoldAnyway: true})
	ls := r.wantLive(id, 2)
	r.report(ls[1], gpuai.ReportDone, 0)
	r.node("b", 8)
	r.wantLive(id, 1)
	r.report(ls[0], gpuai.ReportDone, 0)
	r.status(id, gpuai.JobSucceeded)
	if c := r.job(id).Counts; c.Succeeded != 2 || c.Stopped != 3 {
		t.Fatalf("%+v", c)
	}
	r.do(&RetireJobs{Jobs: []gpuai.JobID{id}})
}

// What waits to start comes before what would grow, of one priority; a higher
// priority grows first.
func TestGrowthComesBehindStarts(t *testing.T) {
	for _, c := range []struct {
		priority gpuai.Priority
		grows    bool
	}{{50, false}, {90, true}} {
		r := newLevel3(t)
		r.node("a", 4)
		blocker := r.submit(jobSpec("blocker", 1, 2))
		g := gangSpec("gang", 2, 4, 1)
		g.Priority = c.priority
		id := r.submit(g)
		r.wantLive(id, 2)
		s := jobSpec("waits", 1, 2)
		s.Priority = 50
		waits := r.submit(s)
		r.report(r.leases(blocker)[0], gpuai.ReportDone, 0)
		want := map[bool]int{false: 2, true: 4}[c.grows]
		r.wantLive(id, want)
		r.wantLive(waits, (4-want)/2)
	}
}

func TestGangStaysInOneRack(t *testing.T) {
	r := newLevel3(t)
	r.rack("r1", "a1", "a2", "a3")
	r.rack("r2", "b1", "b2")
	r.rack("r3", "c1")
	s := gangSpec("gang", 2, 2, 8)
	s.Placement.Same = gpuai.TopologyRack
	id := r.submit(s)
	for _, l := range r.wantLive(id, 2) {
		if l.Node[0] != 'b' {
			t.Fatalf("a task on %s: r2 is the tighter", l.Node)
		}
	}
	half := r.submit(jobSpec("half", 2, 4)) // on a1
	// The region has room for three, no rack has.
	s = gangSpec("second", 3, 3, 8)
	s.Placement.Same = gpuai.TopologyRack
	second := r.submit(s)
	r.wantLive(second, 0)
	x, _ := r.m.Explain(second)
	if len(x.Reasons) < 2 || x.Reasons[0].Code != gpuai.QueueOrder || !strings.Contains(x.Reasons[0].Message, "3 nodes of one rack are reserved for it") ||
		x.Reasons[1].Code != gpuai.TopologyUnsatisfied || !strings.Contains(x.Reasons[1].Message, "rack r1 of zone z1, has room for 2") {
		t.Fatalf("%+v", x.Reasons)
	}
	if q := r.m.Queue(); q.Shapes[0].Reason != gpuai.TopologyUnsatisfied {
		t.Fatalf("%+v", q.Shapes)
	}
	for _, l := range r.leases(half) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.wantLive(second, 3)
	s = gangSpec("never", 4, 4, 8)
	s.Placement.Same = gpuai.TopologyRack
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.Unschedulable)
	s.Groups[0].MinCount = 3
	r.submit(s)
}

// An elastic gang that must be in one rack grows in its own only.
func TestGangGrowsInItsRack(t *testing.T) {
	r := newLevel3(t)
	r.rack("r1", "a1", "a2")
	s := gangSpec("gang", 2, 3, 8)
	s.Placement.Same = gpuai.TopologyRack
	id := r.newID()
	r.do(&SubmitJob{ID: id, Spec: s})
	r.wantLive(id, 2)
	r.rack("r2", "b1", "b2", "b3")
	r.wantLive(id, 2)
	r.rack("r1", "a3")
	if l := r.wantLive(id, 3)[2]; l.Node != "a3" {
		t.Fatalf("it grew to %s", l.Node)
	}
}

func TestNearIsAWish(t *testing.T) {
	r := newLevel3(t)
	r.rack("r1", "a1", "a2")
	r.rack("r2", "b1", "b2")
	s := gangSpec("gang", 2, 2, 8)
	s.Placement.Near = gpuai.TopologyRack
	one := r.submit(jobSpec("one", 1, 8)) // on a1
	for _, l := range r.wantLive(r.submit(s), 2) {
		if l.Node[0] != 'b' {
			t.Fatalf("a task on %s", l.Node)
		}
	}
	r.report(r.leases(one)[0], gpuai.ReportDone, 0)
	r.rack("r3", "c1")
	s = gangSpec("wide", 3, 3, 8)
	s.Placement.Near = gpuai.TopologyRack
	r.wantLive(r.submit(s), 3)
}

func TestGroupsStartTogether(t *testing.T) {
	r := newLevel3(t)
	r.node("a", 8)
	one := r.submit(jobSpec("one", 1, 3))
	s := gangSpec("both", 2, 2, 2)
	second := s.Groups[0]
	second.Name, second.Gang, second.Count = "actors", false, 4
	second.Resources.GPU.Count = 1
	s.Groups, s.Together = append(s.Groups, second), true
	id := r.submit(s)
	r.wantLive(id, 0) // the first group would fit, the second not
	if q := r.m.QueueEntries(0, 10); len(q) != 1 || q[0].Job != id {
		t.Fatalf("%+v", q)
	}
	r.report(r.leases(one)[0], gpuai.ReportDone, 0)
	ls := r.wantLive(id, 6)
	// From then on each group is by itself.
	r.report(ls[5], gpuai.ReportFenced, 0)
	r.wantLive(id, 5)
	r.wait(2 * gpuai.Second)
	r.wantLive(id, 6)
	for _, l := range r.live(id) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
	s.Groups[1].Count = 5
	r.submit(s)
	s.Groups[1].Count = 9
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.Unschedulable)
}

func TestStoppedBeforeTheyStartTogether(t *testing.T) {
	r := newLevel3(t)
	r.node("a", 1)
	s := jobSpec("both", 1, 1)
	second := s.Groups[0]
	second.Name = "second"
	s.Groups, s.Together = append(s.Groups, second), true
	id := r.newID()
	r.do(&SubmitJob{ID: id, Spec: s, HoldAnyway: true})
	r.wantLive(id, 0)
	r.do(&StopJob{Job: id})
	r.status(id, gpuai.JobStopped)
}

// Below feature level 3 racks and all that asks for them are refused.
func TestTopologyNeedsItsLevel(t *testing.T) {
	r := newRegion(t)
	r.node("a", 8)
	n := nodeSpec("b", 8, "H100")
	n.Rack = "r1"
	out := r.apply(&RegisterNode{Spec: n, BootID: "b", Nonce: "n"})
	if got := out.Results[0].Code; got != malformed.Code {
		t.Fatalf("a node with a rack: %v", got)
	}
	for i, change := range []func(*gpuai.JobSpec){
		func(s *gpuai.JobSpec) { s.Together = true },
		func(s *gpuai.JobSpec) { s.Placement.Same = gpuai.TopologyRack },
		func(s *gpuai.JobSpec) { s.Groups[0].MinCount = 1 },
	} {
		s := gangSpec(fmt.Sprint("j", i), 2, 2, 1)
		change(s)
		r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.InvalidSpec)
	}
}
