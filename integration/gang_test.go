package integration

import (
	"context"
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// An elastic gang that must be in one rack starts with what the rack has, grows
// when a host joins the rack and not when one joins another, and goes on under
// its leases when that host is lost.
func TestElasticGangGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	for _, m := range r.servers {
		r.levelOf(m, fsm.MaxLevel) // below it no node has a rack
	}
	r.shortLeases()
	dir := scratch(t)
	r.startNodeIn("r1", "a", 2, r.addrs()...)
	spec := beatJob(t, "elastic", dir)
	g := &spec.Groups[0]
	g.Gang, g.Count, g.MinCount = true, 4, 2
	spec.Placement.Same = gpuai.TopologyRack
	job := r.submit(spec).Job.ID
	first := r.awaitMembers(job, 2, nil)
	r.startNodeIn("r2", "b", 2, r.addrs()...)
	c := r.startNodeIn("r1", "c", 2, r.addrs()...)
	grown := r.awaitMembers(job, 4, first)
	for i, task := range grown {
		if want := gpuai.NodeID("aacc"[i : i+1]); task.Node != want {
			t.Fatalf("task %d runs on %s, want %s", i, task.Node, want)
		}
		r.awaitBeats(dir, task.Lease, 3)
	}
	c.kill()
	for _, task := range r.awaitMembers(job, 2, first) {
		r.awaitBeats(dir, task.Lease, 3)
	}
	r.stop(job)
	oneRunner(t, dir)
}

// awaitMembers waits until exactly so many tasks of a gang run, the first of
// them under the leases that they had before.
func (r *region) awaitMembers(job gpuai.JobID, n int, before []gpuai.Task) (running []gpuai.Task) {
	r.t.Helper()
	c := r.client()
	eventually(r.t, patience, fmt.Sprintf("%d members of gang %s", n, job), func(ctx context.Context) error {
		tasks, _, err := c.Tasks(ctx, job.String(), client.Page{Limit: 10})
		running = running[:0]
		for _, k := range tasks {
			if k.Status == gpuai.TaskRunning {
				running = append(running, k)
			}
		}
		if err == nil && len(running) != n {
			err = fmt.Errorf("%d run: %+v", len(running), tasks)
		}
		return err
	})
	for i := range before {
		if running[i].Lease != before[i].Lease {
			r.t.Fatalf("task %d runs under lease %s, it had %s", i, running[i].Lease, before[i].Lease)
		}
	}
	return running
}
