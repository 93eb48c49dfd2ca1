package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// newRackChurn is newChurn among two racks, of which each is an NVLink domain
// too, and two zones.
func newRackChurn(t *testing.T, limit gpuai.Duration) *churn {
	c := &churn{region: placing(t), limit: limit}
	for i, n := range []string{"a", "b", "c", "d"} {
		s := nodeSpec(n, 4, "H100")
		s.Zone, s.Rack, s.NVLinkDomain = fmt.Sprint("z", i/2), fmt.Sprint("r", i/2), fmt.Sprint("n", i/2)
		c.register(s)
	}
	for range 24 {
		c.small()
	}
	return c
}

// startsWithin submits a job and ends others' leases until it runs.
func (c *churn) startsWithin(t *testing.T, s *gpuai.JobSpec, most int) {
	t.Helper()
	id := c.newID()
	c.do(&SubmitJob{ID: id, Spec: s})
	ends := 0
	for ; c.job(id).Status == gpuai.JobPending; ends++ {
		if ends > most {
			t.Fatalf("it waits still after %d ends of others: %+v", ends, c.m.meta.Get().reserve)
		}
		c.end()
	}
	t.Logf("started after %d ends", ends)
	if got := len(c.leases(id)); got != int(c.job(id).Tasks) {
		t.Fatalf("%d leases of %d", got, c.job(id).Tasks)
	}
}

// What must be in one domain, and groups that start together, start once all that
// ran before them has ended, whatever small jobs come meanwhile.
func TestDomainGangsStartWithinABound(t *testing.T) {
	t.Parallel()
	groups := func(s *gpuai.JobSpec, more ...gpuai.Group) *gpuai.JobSpec {
		for i, g := range more {
			x := s.Groups[0]
			x.Name, x.Count, x.Gang, x.Resources.GPU.Count = fmt.Sprint("more", i), g.Count, g.Gang, g.Resources.GPU.Count
			s.Groups = append(s.Groups, x)
		}
		s.Together = true
		return s
	}
	same := func(s *gpuai.JobSpec, level gpuai.Topology) *gpuai.JobSpec {
		s.Placement.Same = level
		return s
	}
	four := gpuai.Group{Count: 4, Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}}}
	gang := gpuai.Group{Count: 2, Gang: true, Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 2}}}
	for name, spec := range map[string]func() *gpuai.JobSpec{
		"one node":             func() *gpuai.JobSpec { return same(gangSpec("big", 4, 4, 1), gpuai.TopologyNode) },
		"one NVLink domain":    func() *gpuai.JobSpec { return same(gangSpec("big", 2, 2, 4), gpuai.TopologyNVLink) },
		"one rack":             func() *gpuai.JobSpec { return same(gangSpec("big", 4, 4, 2), gpuai.TopologyRack) },
		"one zone":             func() *gpuai.JobSpec { return same(gangSpec("big", 2, 2, 4), gpuai.TopologyZone) },
		"elastic, one rack":    func() *gpuai.JobSpec { return same(gangSpec("big", 2, 2, 4), gpuai.TopologyRack) },
		"together":             func() *gpuai.JobSpec { return groups(gangSpec("big", 2, 2, 4), four, gang) },
		"together, one shape":  func() *gpuai.JobSpec { return groups(jobSpec("big", 8, 1), four) },
		"together in one rack": func() *gpuai.JobSpec { return same(groups(gangSpec("big", 1, 1, 4), four), gpuai.TopologyRack) },
		"together on one node": func() *gpuai.JobSpec {
			return same(groups(gangSpec("big", 1, 1, 2), gpuai.Group{Count: 1, Resources: four.Resources}), gpuai.TopologyNode)
		},
		"together, largest last": func() *gpuai.JobSpec {
			return groups(jobSpec("big", 4, 1), gang, gpuai.Group{Count: 1, Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 4}}})
		},
	} {
		for limits, limit := range map[string]gpuai.Duration{"without limits": 0, "with limits": gpuai.Hour} {
			t.Run(name+" "+limits, func(t *testing.T) {
				newRackChurn(t, limit).startsWithin(t, spec(), 16+8) // what ran, and what was older in the queue
			})
		}
	}
}

// The domain is the one that can hold the gang soonest, going by the limits; jobs
// that end before pass, and others do not.
func TestReservationOfADomain(t *testing.T) {
	r := placing(t)
	r.rack("r1", "a1", "a2")
	r.rack("r2", "b1", "b2")
	job := func(name string, gpus uint32, limit gpuai.Duration) gpuai.JobID {
		s := jobSpec(name, 1, gpus)
		s.Limits.RunTime = limit
		return r.submit(s)
	}
	for range 2 {
		job("long", 8, 2*gpuai.Hour)
	}
	for range 2 {
		job("short", 7, gpuai.Hour)
	}
	s := gangSpec("gang", 2, 2, 8)
	s.Placement.Same = gpuai.TopologyRack
	id := r.submit(s)
	if v := r.m.meta.Get().reserve; v.group == 0 || v.shadow != gpuai.Instant(gpuai.Hour) {
		t.Fatalf("%+v", v)
	}
	r.reason(id, gpuai.QueueOrder)
	r.m = restored(t, r.m)
	fits, over := job("fits", 1, gpuai.Hour), job("over", 1, gpuai.Hour+1)
	r.status(fits, gpuai.JobRunning)
	r.status(over, gpuai.JobPending)
	high := jobSpec("high", 1, 1)
	high.Priority = 90
	r.status(r.submit(high), gpuai.JobRunning)
	r.do(&StopJob{Job: id}) // the reservation goes with its job
	r.status(over, gpuai.JobPending)
	if v := r.m.meta.Get().reserve; v.group != 0 {
		t.Fatalf("%+v", v)
	}
}

// A reserved node that moves to another rack, or can hold its part no more, ends
// the reservation: its group needs others.
func TestReservationMovesOffAChangedNode(t *testing.T) {
	for name, change := range map[string]func(s *gpuai.NodeSpec){
		"another rack":  func(s *gpuai.NodeSpec) { s.Rack = "elsewhere" },
		"fewer devices": func(s *gpuai.NodeSpec) { s.Devices[7].Health = gpuai.DeviceLost },
	} {
		r := placing(t)
		r.rack("r1", "a1", "a2")
		small := r.submit(jobSpec("small", 2, 5))
		s := gangSpec("gang", 2, 2, 8)
		s.Placement.Same = gpuai.TopologyRack
		id := r.submit(s)
		if r.m.meta.Get().reserve.group == 0 {
			t.Fatalf("%s: nothing is reserved", name)
		}
		n := nodeSpec("a1", 8, "H100")
		n.Rack = "r1"
		change(&n)
		inc, _, _ := r.m.NodeLive("a1")
		r.do(&RegisterNode{Spec: n, BootID: "boot-2", Nonce: "nonce-2", Replaces: inc})
		if r.m.meta.Get().reserve.group != 0 {
			t.Fatalf("%s: nodes are reserved that cannot hold it", name)
		}
		r.rack("r2", "b1", "b2")
		r.status(id, gpuai.JobRunning)
		r.status(small, gpuai.JobRunning)
	}
}
