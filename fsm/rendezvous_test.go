package fsm

import (
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// meeting registers a node of four GPUs that lends so many ports.
func (r *region) meeting(name string, ports uint16) {
	s := nodeSpec(name, 4, "H100")
	if s.PortCount = ports; ports == 0 {
		s.PortMin = 0
	}
	r.register(s)
}

// rankZero returns the node of a gang's rank 0, and its port.
func (r *region) rankZero(id gpuai.JobID) (gpuai.NodeID, uint16) {
	r.t.Helper()
	for _, l := range r.live(id) {
		if a, _ := r.m.Assignment(l.ID); a.Gang.Rank == 0 {
			return l.Node, a.Gang.MasterPort
		}
	}
	r.t.Fatal("there is no rank 0")
	return "", 0
}

// A gang's rank 0 is the first of its tasks whose node has a port left, wherever
// the first has its place.
func TestGangMeetsWhereAPortIsFree(t *testing.T) {
	for _, c := range []struct {
		name  string
		ports [3]uint16 // of a, b and c; the gang of two tasks finds place on a and b first
		taken bool      // a's port is lent
		level uint32
		node  gpuai.NodeID
		port  uint16
		waits bool
	}{
		{name: "the first has one", ports: [3]uint16{2, 2, 2}, taken: true, node: "a", port: 20_001},
		{name: "the first has none left", ports: [3]uint16{1, 1, 1}, taken: true, node: "b", port: 20_000},
		{name: "the first lends none", ports: [3]uint16{0, 1, 1}, node: "b", port: 20_000},
		{name: "only one without a place has", ports: [3]uint16{1, 0, 1}, taken: true, node: "c", port: 20_000},
		{name: "nobody lends any", ports: [3]uint16{0, 0, 0}, node: "a"},
		{name: "none is left", ports: [3]uint16{1, 0, 0}, taken: true, waits: true},
		{name: "below the level", ports: [3]uint16{1, 1, 1}, taken: true, level: LevelPlacement, waits: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegion(t)
			if c.level == 0 {
				c.level = LevelTenants
			}
			r.do(&SetFeatureLevel{Level: c.level})
			r.meeting("a", c.ports[0])
			if c.taken {
				r.wantLive(r.submit(gangOf(jobSpec("first", 1, 1))), 1)
			}
			r.meeting("b", c.ports[1])
			r.meeting("c", c.ports[2])
			id := r.submit(gangOf(jobSpec("gang", 2, 3)))
			if c.waits {
				r.wantLive(id, 0)
				return
			}
			r.wantLive(id, 2)
			if node, port := r.rankZero(id); node != c.node || port != c.port {
				t.Errorf("rank 0 is on %s at %d, want %s at %d", node, port, c.node, c.port)
			}
			r.m = restored(t, r.m)
			if node, port := r.rankZero(id); node != c.node || port != c.port {
				t.Errorf("restored, rank 0 is on %s at %d", node, port)
			}
		})
	}
}

// A gang that has room and no port says so, and starts when one comes back.
func TestGangWithoutAPortIsTold(t *testing.T) {
	r := newest(t, nil)
	r.meeting("a", 1)
	r.meeting("b", 0)
	first := r.submit(gangOf(jobSpec("first", 1, 1)))
	r.do(&SetNodeEligibility{Node: "b", Drained: true})
	second := r.submit(gangOf(jobSpec("second", 1, 1)))
	r.wantLive(second, 0)
	x, _ := r.m.Fork().Explain(second)
	if !slices.ContainsFunc(x.Reasons, func(why gpuai.Reason) bool {
		return why.Code == gpuai.NoRendezvousPort && strings.Contains(why.Fix, "--ports")
	}) {
		t.Fatalf("%+v", x.Reasons)
	}
	r.report(r.live(first)[0], gpuai.ReportDone, 0)
	if node, port := r.rankZero(second); node != "a" || port != 20_000 {
		t.Errorf("rank 0 is on %s at %d", node, port)
	}
}

// A gang that others make room for takes as rank 0 the first task whose node has a
// port left too.
func TestPreemptingGangMeetsWhereAPortIsFree(t *testing.T) {
	for _, same := range []gpuai.Topology{gpuai.TopologyNone, gpuai.TopologyRack} {
		r := newest(t, nil)
		for _, n := range []string{"a", "b"} {
			s := nodeSpec(n, 4, "H100")
			s.PortCount, s.Rack = 1, "r1"
			r.register(s)
			if n == "a" {
				r.wantLive(r.submit(gangOf(at(jobSpec("first", 1, 1), 90))), 1)
			}
		}
		low := r.submit(jobSpec("low", 2, 3))
		s := gangOf(at(jobSpec("gang", 2, 3), 50))
		s.Placement.Same = same
		id := r.submit(s)
		gone := r.revoking(low)
		if len(gone) != 2 {
			t.Fatalf("in one %v: %d of the victims go", same, len(gone))
		}
		r.m = restored(t, r.m)
		for _, l := range gone {
			r.report(l, gpuai.ReportStopped, 0)
		}
		r.wantLive(id, 2)
		if node, port := r.rankZero(id); node != "b" || port != 20_000 {
			t.Errorf("in one %v: rank 0 is on %s at %d", same, node, port)
		}
	}
}
