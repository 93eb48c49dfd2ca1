package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// TestLeaderChangeDeclaresNobodyDead kills the leader while four agents run a
// task each, and watches for longer than a TTL and its grace: no node changes
// its state, no lease ends.
func TestLeaderChangeDeclaresNobodyDead(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.shortLeases()
	dir := t.TempDir()
	var nodes []*node
	var tasks []gpuai.Task
	for i := range 4 {
		id := fmt.Sprintf("n%d", i+1)
		nodes = append(nodes, r.startNode(id, 1, r.addrs()...))
		sub := r.submit(beatJob(t, "beats-"+id, dir, id))
		tasks = append(tasks, r.awaitRunning(sub.Job.ID, dir, 0, patience))
	}
	from, err := r.servers[0].client.Digest(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}

	old := r.leader()
	old.kill()
	r.quietFor(from.Index, time.Duration(testTTL+testGrace+gpuai.Second)*time.Millisecond)
	if next := r.leader(); next == old {
		t.Errorf("server %s leads, and is dead", next.id)
	}
	for i, n := range nodes {
		if got := n.awaitState(gpuai.NodeReady); got.Leases != 1 || got.Incarnation.Counter() != 1 {
			t.Errorf("node %s has %d leases and incarnation %s", n.id, got.Leases, got.Incarnation)
		}
		r.awaitBeats(dir, tasks[i].Lease, 3)
	}
	if runs := oneRunner(t, dir); len(runs) != len(nodes) {
		t.Errorf("there are %d runs of %d tasks: %+v", len(runs), len(nodes), runs)
	}
}

// quietFor reads the events after an index for a while and fails the test for
// any that says that a node or a lease was given up.
func (r *region) quietFor(from uint64, d time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	defer cancel()
	err := r.client().Events(ctx, client.EventQuery{From: from}, func(events []gpuai.Event, _ uint64) error {
		for _, e := range events {
			switch e.Kind {
			case gpuai.NodeChanged: // an agent that turns to another server registers anew
				if e.NodeState != gpuai.NodeReady {
					r.t.Errorf("a change of leaders made node %s %s", e.Node, e.NodeState)
				}
			case gpuai.LeaseRevokingEvent, gpuai.LeaseEndedEvent, gpuai.TaskRequeued, gpuai.LeaseAdopted:
				r.t.Errorf("a change of leaders led to %s: %+v", e.Kind, e)
			}
		}
		return nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		r.t.Errorf("reading events: %v", err)
	}
}
