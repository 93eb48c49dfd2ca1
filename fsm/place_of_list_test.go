package fsm

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A place in the list of jobs tells nothing of the job that was there: whatever is
// made up for one, a tenant is told its jobs behind that number, and is never led to
// itself.
func TestPlacesInListsOfJobsTellNothing(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	type job struct {
		id  gpuai.JobID
		seq uint64
	}
	var mine []job // the newest first
	for i := range 12 {
		s := jobSpec("j", 1, 1)
		if s.Tenant = "beta"; i%3 == 0 {
			s.Tenant = "acme"
		}
		id := r.submit(s)
		if i%4 == 1 { // its place is another's, or nobody's
			r.do(&StopJob{Job: id})
			for _, l := range r.leases(id) {
				r.report(l, gpuai.ReportStopped, 0)
			}
			r.do(&RetireJobs{Jobs: []gpuai.JobID{id}})
		} else if s.Tenant == "acme" {
			slot, _ := r.m.jobSlot(id)
			mine = slices.Insert(mine, 0, job{id, r.m.jobs.Get(slot).seq})
		}
	}
	if len(mine) < 2 {
		t.Fatalf("acme has %d jobs: this tests nothing", len(mine))
	}
	for slot := range uint32(20) {
		for seq := range uint64(20) {
			var want []gpuai.JobID
			for _, j := range mine {
				if seq == 0 || j.seq < seq {
					want = append(want, j.id)
				}
			}
			var got []gpuai.JobID
			page, last := r.m.JobsOf("acme", JobCursor{Slot: slot, Seq: seq}, 100, nil)
			for i := range page {
				got = append(got, page[i].ID)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || last != (JobCursor{}) {
				t.Errorf("behind %d in slot %d acme is told %v and %v, want %v", seq, slot, got, last, want)
			}
		}
	}
}

// A contributor's list goes over the nodes of others, and is bounded all the same.
func TestNodesOfAContributor(t *testing.T) {
	r := accessRegion(t)
	for i := range 7 {
		name := fmt.Sprintf("n%d", i)
		r.node(name, 1)
		owner := gpuai.ContributorID("carol")
		if i%2 == 1 {
			owner = "dave"
		}
		r.do(&SetNodeOwner{Node: gpuai.NodeID(name), Contributor: owner})
	}
	for _, limit := range []int{1, 2, 10} {
		var got []gpuai.NodeID
		for from, first := uint32(0), true; first || from != 0; first = false {
			var page []gpuai.Node
			page, from = r.m.NodesOf("dave", from, limit)
			for i := range page {
				got = append(got, page[i].ID)
			}
			if len(page) > limit {
				t.Fatalf("%d nodes of %d", len(page), limit)
			}
		}
		if fmt.Sprint(got) != "[n1 n3 n5]" {
			t.Errorf("by %d dave is told %v", limit, got)
		}
	}
	for _, nobody := range []gpuai.ContributorID{"", "erin"} {
		if page, next := r.m.NodesOf(nobody, 0, 10); len(page) > 0 || next != 0 {
			t.Errorf("%q is told %v, %d", nobody, page, next)
		}
	}
}
