package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// join reports a member prepared, reached by a key of its own; told are those whose
// agents are to look at their peers.
func (r *region) join(l gpuai.Lease, key byte) (told []gpuai.Token) {
	r.t.Helper()
	slot, _ := r.m.leaseSlot(l.ID)
	out := r.apply(&ReportLease{Node: l.Node, Report: gpuai.Report{
		Lease: l.ID, Seq: r.m.leases.Get(slot).seq + 1, Incarnation: l.Incarnation, State: gpuai.ReportPrepared,
		Mesh: &gpuai.MeshPoint{Key: gpuai.MeshKey{key}, Port: 1000 + uint16(key)},
	}})
	for _, e := range out.Events {
		if e.Kind == gpuai.LeasePeers {
			told = append(told, e.Lease)
		}
	}
	return told
}

func (r *region) gangOf(l gpuai.Lease) *gpuai.GangInfo {
	r.t.Helper()
	a, ok := r.m.Assignment(l.ID)
	if !ok {
		r.t.Fatalf("lease %s is not live", l.ID)
	}
	return a.Gang
}

// Members learn where those on other nodes are when all are ready, one peer for each
// node and key, also by a machine that was restored meanwhile.
func TestMembersLearnTheirPeers(t *testing.T) {
	r, id := heldGang(t, 3, 3)
	all := r.live(id)
	if all[0].Node != all[1].Node || all[0].Node == all[2].Node {
		t.Fatalf("leases %+v", all)
	}
	for i, l := range all {
		if told := r.join(l, []byte{7, 7, 9}[i]); len(told) > 0 {
			t.Errorf("behind the barrier %v are told", told)
		}
		if g := r.gangOf(l); !g.Spread || i < 2 && len(g.Peers) > 0 {
			t.Errorf("before all are ready member %d is told %+v", i, g)
		}
	}
	r.join(all[0], 8) // it has told already
	r.m = restored(t, r.m)
	near, far := r.gangOf(all[0]).Peers, r.gangOf(all[2]).Peers
	if len(near) != 1 || near[0].Key != (gpuai.MeshKey{9}) || near[0].Port != 1009 || len(near[0].Ranks) != 1 || near[0].Ranks[0] != 2 {
		t.Errorf("members 0 and 1 are told %+v", near)
	}
	if len(far) != 1 || far[0].Key != (gpuai.MeshKey{7}) || len(far[0].Ranks) != 2 || far[0].Ranks[1] != 1 {
		t.Errorf("member 2 is told %+v", far)
	}
	for _, l := range all {
		r.report(l, gpuai.ReportDone, 0)
	}
	if n := r.m.pointSlots.Len(); n != 0 {
		t.Errorf("%d points are left of no lease", n)
	}
}

// A member that joins a gang which runs has one of each other node told.
func TestPeersOfALateMemberAreTold(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	id := r.submit(gangSpec("gang", 1, 4, 1))
	first := r.live(id)
	if g := r.gangOf(first[0]); g.Spread {
		t.Errorf("on one node: %+v", g)
	}
	for _, l := range first {
		r.join(l, 1)
		r.report(l, gpuai.ReportRunning, 0)
	}
	r.node("b", 2)
	all := r.wantLive(id, 4)
	if told := r.join(all[2], 2); len(told) != 1 || told[0] != all[0].ID {
		t.Errorf("told are %v, of %v", told, all)
	}
	r.join(all[3], 2)
	if p := r.gangOf(all[0]).Peers; len(p) != 1 || len(p[0].Ranks) != 2 {
		t.Errorf("member 0 is told %+v", p)
	}
	r.report(all[2], gpuai.ReportRunning, 0)
	r.report(all[2], gpuai.ReportLost, 0) // the gang goes on without it
	if p := r.gangOf(all[0]).Peers; len(p) != 1 || len(p[0].Ranks) != 1 || p[0].Ranks[0] != 3 {
		t.Errorf("without member 2 member 0 is told %+v", p)
	}
}

// What is no member of a gang has no point, and builds before the level do not read one.
func TestOnlyMembersHaveAPoint(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	l := r.live(r.submit(jobSpec("alone", 1, 1)))[0]
	r.join(l, 1)
	if r.m.pointSlots.Len() != 0 {
		t.Error("it has a point")
	}
}

// Machines that apply one log of gangs that meet, restored and forked at random points,
// are equal in digest.
func TestRandomMeshLogs(t *testing.T) {
	t.Parallel()
	points := uint32(0)
	for seed := range few(8, 3) {
		w := newGangWalk(t, 500+seed)
		w.meets = true
		other := New(w.m.opts)
		if err := other.Apply(w.index, w.term, w.log[0], &Output{}); err != nil {
			t.Fatal(err)
		}
		w.beside(seed, other, 120)
		points = max(points, w.m.pointSlots.Len())
	}
	if points == 0 {
		t.Error("no point was kept: the walk is no test of them")
	}
}
