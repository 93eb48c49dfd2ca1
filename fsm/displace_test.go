package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// twoRacks returns a region of two racks, which are NVLink domains and zones
// too, of two nodes each: a1, a2 and b1, b2.
func twoRacks(t *testing.T, gpus int) *region {
	r := newest(t, nil)
	for _, n := range []string{"a1", "a2", "b1", "b2"} {
		s := nodeSpec(n, gpus, "H100")
		s.Zone, s.Rack, s.NVLinkDomain, s.Labels = "z"+n[:1], "r", "n", map[string]string{"host": n}
		r.register(s)
	}
	return r
}

// on submits a job of one task for each of the nodes, and returns its ID.
func (r *region) on(name string, p gpuai.Priority, gpus uint32, nodes ...string) (ids []gpuai.JobID) {
	r.t.Helper()
	for _, n := range nodes {
		s := at(jobSpec(name, 1, gpus), p)
		s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.host", Op: gpuai.In, Values: []string{n}}}
		ids = append(ids, r.submit(s))
	}
	return ids
}

// going returns the nodes of the leases that are being revoked, in their order.
func (r *region) going(ids ...gpuai.JobID) (nodes []string) {
	for _, id := range ids {
		for _, l := range r.revoking(id) {
			nodes = append(nodes, string(l.Node))
		}
	}
	return nodes
}

// leave lets all that is being revoked end, one after the other, of which none but
// the last may let a job start.
func (r *region) leave(id gpuai.JobID, victims ...gpuai.JobID) {
	r.t.Helper()
	for _, v := range victims {
		for _, l := range r.revoking(v) {
			if len(r.leases(id)) > 0 {
				r.t.Fatal("it starts before all have left that make room for it")
			}
			r.report(l, gpuai.ReportStopped, 0)
		}
	}
}

// A gang that must be in one domain takes the room of the domain where the least
// goes.
func TestPreemptionInADomain(t *testing.T) {
	for _, level := range []gpuai.Topology{gpuai.TopologyNVLink, gpuai.TopologyRack, gpuai.TopologyZone} {
		for _, c := range []struct {
			name string
			fill func(r *region) []gpuai.JobID
			want string
		}{
			{"where the lowest goes", func(r *region) []gpuai.JobID {
				return append(r.on("mid", 20, 2, "a1", "a2"), r.on("low", 10, 2, "b1", "b2")...)
			}, "[b1 b2]"},
			{"where room lacks for the fewest", func(r *region) []gpuai.JobID {
				return append(r.on("low", 10, 2, "a1", "b1", "b2"), r.on("part", 10, 1, "a2")...)
			}, "[a1 a2]"},
			{"not where somebody stays", func(r *region) []gpuai.JobID {
				r.submit(firm(jobSpec("stays", 1, 1)))
				return append(r.on("low", 10, 2, "b1", "b2"), r.on("low", 10, 1, "a1", "a2")...)
			}, "[b1 b2]"},
			{"nowhere", func(r *region) []gpuai.JobID {
				for _, n := range []string{"a1", "b1"} {
					s := firm(jobSpec("stays", 1, 1))
					s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.host", Op: gpuai.In, Values: []string{n}}}
					r.submit(s)
				}
				return r.on("low", 10, 1, "a1", "a2", "b1", "b2")
			}, "[]"},
		} {
			t.Run(fmt.Sprint(level, " ", c.name), func(t *testing.T) {
				r := twoRacks(t, 2)
				victims := c.fill(r)
				s := gangOf(at(jobSpec("gang", 4, 1), 60))
				s.Placement.Same = level
				id := r.submit(s)
				if got := fmt.Sprint(r.going(victims...)); got != c.want {
					t.Fatalf("room is made on %s, want %s", got, c.want)
				}
				if c.want == "[]" {
					return
				}
				other := restored(t, r.m)
				r.leave(id, victims...)
				r.status(id, gpuai.JobRunning)
				sc := map[string]bool{}
				for _, l := range r.wantLive(id, 4) {
					sc[string(l.Node[:1])] = true
				}
				if len(sc) != 1 {
					t.Fatalf("it runs in %v", sc)
				}
				for _, e := range r.log[other.Index():] {
					if err := other.Apply(other.Index()+1, r.term, e, &Output{}); err != nil {
						t.Fatal(err)
					}
				}
				if other.Digest() != r.m.Digest() {
					t.Fatal("a restored machine decides otherwise")
				}
			})
		}
	}
}

// A gang that must be on one node takes room on one.
func TestPreemptionOnOneNode(t *testing.T) {
	r := twoRacks(t, 4)
	victims := append(r.on("mid", 20, 4, "a1"), r.on("low", 10, 2, "a2", "b1", "b2")...)
	r.on("mid", 20, 1, "a2", "b1", "b2")
	s := gangOf(at(jobSpec("gang", 3, 1), 60))
	s.Placement.Same = gpuai.TopologyNode
	id := r.submit(s)
	if got := fmt.Sprint(r.going(victims...)); got != "[a2]" {
		t.Fatalf("room is made on %s", got)
	}
	r.leave(id, victims...)
	r.status(id, gpuai.JobRunning)
}

// Groups that start together take room for all of them or for none, and start in
// the entry in which the last has left.
func TestPreemptionTogether(t *testing.T) {
	for _, same := range []gpuai.Topology{gpuai.TopologyNone, gpuai.TopologyRack, gpuai.TopologyZone} {
		t.Run(fmt.Sprint(same), func(t *testing.T) {
			r := twoRacks(t, 2)
			victims := append(r.on("mid", 20, 2, "a1", "a2"), r.on("low", 10, 2, "b1", "b2")...)
			s := at(jobSpec("both", 2, 1), 60)
			second := s.Groups[0]
			second.Name, second.Gang, second.Count, second.Resources.GPU.Count = "gang", true, 1, 2
			s.Groups, s.Together, s.Placement.Same = append(s.Groups, second), true, same
			id := r.submit(s)
			if got := fmt.Sprint(r.going(victims...)); got != "[b1 b2]" {
				t.Fatalf("room is made on %s", got)
			}
			other := restored(t, r.m)
			r.leave(id, victims...)
			r.wantLive(id, 3)
			for _, e := range r.log[other.Index():] {
				if err := other.Apply(other.Index()+1, r.term, e, &Output{}); err != nil {
					t.Fatal(err)
				}
			}
			if other.Digest() != r.m.Digest() {
				t.Fatal("a restored machine decides otherwise")
			}
			for _, l := range r.live(id) {
				r.report(l, gpuai.ReportDone, 0)
			}
			r.status(id, gpuai.JobSucceeded)
		})
	}
}

// What is kept for groups that start together is given up for all of them when a
// node of it closes, and when the job is stopped.
func TestHoldsOfGroupsThatStartTogetherEnd(t *testing.T) {
	start := func(t *testing.T) (r *region, id gpuai.JobID, victims []gpuai.JobID) {
		r = twoRacks(t, 2)
		victims = r.on("low", 10, 2, "a1", "a2")
		for _, id := range r.on("stays", 20, 2, "b1", "b2") {
			defer r.status(id, gpuai.JobRunning)
		}
		s := at(jobSpec("both", 1, 2), 45)
		second := s.Groups[0]
		second.Name = "second"
		s.Groups, s.Together, s.Placement.Same = append(s.Groups, second), true, gpuai.TopologyRack
		id = r.submit(s)
		if n := r.m.holdSlots.Len(); n != 2 {
			t.Fatalf("room is kept for %d tasks", n)
		}
		return r, id, victims
	}
	t.Run("drained", func(t *testing.T) {
		r, id, victims := start(t)
		r.do(&SetNodeEligibility{Node: "a2", Drained: true})
		if n := r.m.holdSlots.Len(); n != 0 {
			t.Fatalf("room is kept for %d tasks", n)
		}
		r.leave(id, victims...)
		r.status(id, gpuai.JobPending)
		r.do(&SetNodeEligibility{Node: "a2", Drained: false})
		r.leave(id, victims...) // one had come back to a1
		r.status(id, gpuai.JobRunning)
	})
	t.Run("stopped", func(t *testing.T) {
		r, id, victims := start(t)
		r.do(&StopJob{Job: id})
		if n := r.m.holdSlots.Len(); n != 0 {
			t.Fatalf("room is kept for %d tasks", n)
		}
		r.leave(id, victims...)
		for _, v := range victims {
			r.status(v, gpuai.JobRunning)
		}
	})
	t.Run("other room", func(t *testing.T) {
		r, id, _ := start(t)
		s := nodeSpec("c1", 4, "H100")
		s.Rack = "r3"
		r.register(s)
		r.wantLive(id, 2)
		if n := r.m.holdSlots.Len(); n != 0 {
			t.Fatalf("room is kept for %d tasks", n)
		}
	})
}

// A domain in which one node comes free and another can be taken is found then,
// and one that has the reservation takes instead of waiting.
func TestPreemptionOfAPartOfADomain(t *testing.T) {
	r := twoRacks(t, 2)
	low := r.on("low", 10, 2, "a1", "b1")
	stays := func(n string) gpuai.JobID {
		s := firm(jobSpec("stays", 1, 2))
		s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.host", Op: gpuai.In, Values: []string{n}}}
		return r.submit(s)
	}
	a, b := stays("a2"), stays("b2")
	s := gangOf(at(jobSpec("gang", 2, 2), 80))
	s.Placement.Same = gpuai.TopologyRack
	gang := r.submit(s)
	if got := r.going(low...); len(got) != 0 || r.m.meta.Get().reserve.group == 0 {
		t.Fatalf("room is made on %v for half a gang; %+v", got, r.m.meta.Get().reserve)
	}
	r.report(r.leases(b)[0], gpuai.ReportDone, 0)
	if got := fmt.Sprint(r.going(low...)); got != "[b1]" {
		t.Fatalf("room is made on %s though the other half is free", got)
	}
	r.leave(gang, low...)
	r.status(gang, gpuai.JobRunning)
	r.status(a, gpuai.JobRunning)
}

// mustDisplaceWhole is mustDisplace for what must be in one domain, or starts
// together with others. Of other gangs those may wait for a port, or for what a
// reservation of lower priority has, until something changes near them.
func (w *walk) mustDisplaceWhole() {
	w.t.Helper()
	for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
		r := w.m.buckets.Get(b)
		most := w.m.displaces(r)
		if most == 0 || r.gang == 0 || !w.inDomain(r.first) {
			continue
		}
		for g := r.first; g != 0; g = w.m.groups.Get(g.slot()).qnext {
			if w.m.wants(g.slot()) == w.m.held(g.slot()) {
				continue
			}
			fork := w.m.Fork()
			fork.now, fork.out = entryState{index: w.index + 1, work: WorkPerEntry, time: w.m.Time()}, &Output{}
			if took, _ := fork.displaceGroup(g.slot(), bandsUpTo(most)); took {
				w.t.Fatalf("entry %d: a group of priority %d waits that could take room: %+v", w.index, r.priority, *w.m.groups.Get(g.slot()))
			}
			break // one that finds nothing answers for those behind it
		}
	}
}

// domainHolds is for how many tasks room is kept of what must be in one domain, or
// starts together with others; reserves says whether it has the reservation.
func (w *walk) domainHolds() (holds int, reserves bool) {
	for h, ok := w.m.holdSlots.Next(0); ok; h, ok = w.m.holdSlots.Next(h + 1) {
		if w.inDomain(w.m.holds.Get(h).group) {
			holds++
		}
	}
	v := w.m.meta.Get().reserve.group
	return holds, v != 0 && w.inDomain(v)
}

func (w *walk) inDomain(group ref) bool {
	g := w.m.groups.Get(group.slot())
	return g.same != gpuai.TopologyNone || g.together != 0
}

// Room that could not be given to whom it was kept for, because that panicked, is
// given up: what a restored machine would look at again is what this one does.
func TestPanicInAClaim(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	low := r.submit(jobSpec("low", 1, 1))
	high := r.submit(at(jobSpec("high", 1, 1), 60))
	l := r.revoking(low)[0]
	r.check = false
	slot, _ := r.m.jobSlot(high)
	group := r.m.jobs.Get(slot).group.slot()
	r.m.groups.Mut(group).again = 1 << 20 // points nowhere
	r.m.sp.Commit()
	r.index++
	out := &Output{}
	cmd := (&ReportLease{Node: "a", Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportStopped}}).Append(nil, Envelope{})
	if err := r.m.Apply(r.index, 1, AppendEntry(nil, Header{Term: 1}, cmd), out); err != nil || out.Panics == 0 {
		t.Fatalf("%v, %+v", err, out)
	}
	r.m.groups.Mut(group).again = 0
	r.m.sp.Commit()
	if _, due := r.m.vacated.Next(0); due || r.m.holdSlots.Len() > 0 {
		t.Fatalf("%d holds, due to be looked at: %v", r.m.holdSlots.Len(), due)
	}
	other := restored(t, r.m)
	r.do(&Tick{})
	if err := other.Apply(r.index, r.term, r.log[len(r.log)-1], &Output{}); err != nil || other.Digest() != r.m.Digest() {
		t.Fatalf("%v; digests %s and %s", err, other.Digest(), r.m.Digest())
	}
}
