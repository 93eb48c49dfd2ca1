package server

import (
	"context"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// An agent deletes what its own lease has stored and the region does not keep. What
// earlier leases of the task have left the leader deletes: all of a lease at once,
// when nothing of it is kept any more.

const (
	// maxPublishes bounds the publishes that wait to be looked at. What finds them
	// full is looked at behind a later one, or goes with the job.
	maxPublishes = 1_024
	// maxLooked bounds the leases of which it is remembered how often they were
	// looked behind.
	maxLooked = 1 << 16
	// attemptsTimeout bounds the store's time for one task.
	attemptsTimeout = time.Minute
)

// A publish is a lease that has published a checkpoint of its task.
type publish struct {
	lease gpuai.Token
	task  gpuai.TaskRef
}

// published notes publishes; it does not block.
func (r *reign) published(out *fsm.Output) {
	for i := range out.Events {
		e := &out.Events[i]
		if e.Kind != gpuai.CheckpointPublished {
			continue
		}
		select {
		case r.publishes <- publish{e.Lease, gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}}:
		default:
		}
	}
}

// sweepAttempts deletes, while the reign lasts, what earlier leases have left of
// tasks that publish. A lease is looked behind twice at the most: when it publishes
// first, and once all that is kept is its own.
func (r *reign) sweepAttempts(ctx context.Context) {
	if r.s.blobs.url == "" {
		return
	}
	looked := map[gpuai.Token]int{}
	for {
		var p publish
		select {
		case p = <-r.publishes:
		case <-ctx.Done():
			return
		}
		kept, own := r.s.keptLeases(p.lease)
		alone := len(kept) == 1 && kept[p.lease]
		if n := looked[p.lease]; own == 0 || n >= 2 || n == 1 && (!alone || own == 1) {
			continue
		}
		if len(looked) >= maxLooked {
			clear(looked)
		}
		if looked[p.lease]++; alone {
			looked[p.lease] = 2
		}
		n, err := r.s.deleteAttempts(ctx, p, kept)
		if err != nil && ctx.Err() == nil {
			r.s.log.Warn("what earlier attempts have stored of a task stays in the store for now", "job", p.task.Job, "lease", p.lease, "error", err)
			looked[p.lease] = 0
		} else if n > 0 {
			r.s.log.Info("deleted what earlier attempts had stored of a task", "job", p.task.Job, "lease", p.lease, "blobs", n)
		}
	}
}

// keptLeases returns under which leases the checkpoints were published that are kept
// of a live lease's task, and how many of them are its own.
func (s *Server) keptLeases(lease gpuai.Token) (kept map[gpuai.Token]bool, own int) {
	kept = map[gpuai.Token]bool{}
	s.node.View(func(m *fsm.Machine) {
		for _, c := range m.CheckpointsOf(lease) {
			if kept[c.Lease] = true; c.Lease == lease {
				own++
			}
		}
	})
	return kept, own
}

// deleteAttempts deletes what leases of a task before p's have stored of which
// nothing is kept. None of them can publish any more.
func (s *Server) deleteAttempts(ctx context.Context, p publish, kept map[gpuai.Token]bool) (deleted int, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptsTimeout)
	defer cancel()
	store, err := s.blobs.open(ctx)
	if err != nil {
		return 0, err
	}
	prefix := gpuai.CheckpointTaskPrefix(p.task)
	for name, err := range store.Below(ctx, prefix) {
		if err != nil {
			return deleted, err
		}
		var t gpuai.Token
		if t.UnmarshalText([]byte(name)) != nil || t >= p.lease || kept[t] {
			continue
		}
		n, err := store.DeletePrefix(ctx, prefix+name+"/")
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}
