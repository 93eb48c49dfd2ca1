package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
)

const (
	// askWait is how long a question waits for its turn before it is told to
	// come again.
	askWait = 5 * time.Second
	// pastTime bounds one look at the past: the log is applied from a snapshot
	// on.
	pastTime = 30 * time.Second
	// whyTime bounds the one behind an explanation that goes without it too.
	whyTime = 3 * time.Second
)

// turn takes a place in a queue of one, within askWait.
func (s *Server) turn(ctx context.Context, q chan struct{}) (done func(), err error) {
	t := time.NewTimer(askWait)
	defer t.Stop()
	select {
	case q <- struct{}{}:
		return func() { <-q }, nil
	case <-t.C:
		return nil, errBusyExplaining
	case <-s.ctx.Done():
		return nil, gpuai.NewError(gpuai.NoLeader, errStopping.Error())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Suppose implements httpd.Asker: commands on a fork, through the same Apply.
func (s *Server) Suppose(ctx context.Context, r *gpuai.PlanRequest) (gpuai.Plan, error) {
	done, err := s.turn(ctx, s.explainer.planning)
	if err != nil {
		return gpuai.Plan{}, err
	}
	defer done()
	ids := make([]gpuai.JobID, len(r.Submit))
	for i := range ids {
		if ids[i], err = s.newJobID(); err != nil {
			return gpuai.Plan{}, err
		}
	}
	m, release := s.node.Fork()
	defer release()
	h := fsm.Header{Time: s.node.RegionTime(), Wall: gpuai.WallTime(s.cfg.Wall().UnixMilli()), Term: m.Term()}
	who := asker(ctx)
	m.AnswerTo(who)
	p, err := m.Plan(r, ids, h)
	if who != "" {
		p.Changes = slices.DeleteFunc(p.Changes, func(x gpuai.PlanChange) bool {
			of, ok := m.TenantOf(x.Job)
			return !slices.Contains(ids, x.Job) && (!ok || of != who)
		})
	}
	for i := range p.Jobs {
		s.calibrate(p.Jobs[i].Estimate)
	}
	return p, err
}

// Explain implements httpd.Asker.
func (s *Server) Explain(ctx context.Context, ref string, index uint64) (gpuai.Explanation, error) {
	if index > 0 {
		return s.explainAt(ctx, ref, index)
	}
	var out gpuai.Explanation
	at, err := s.locate(ref)
	if err != nil {
		return out, err
	}
	if at.archived {
		return s.explainArchived(at.id)
	}
	found, now := false, gpuai.Instant(0)
	if err := s.explainer.do(ctx, func(m *fsm.Machine) {
		m.AnswerTo(asker(ctx))
		out, found = m.Ask(at.id)
		m.AnswerTo("")
		now = m.Time()
	}); err != nil {
		return out, err
	}
	if !found {
		return s.explainArchived(at.id)
	}
	s.calibration.said(at.id, now, out.Estimate)
	s.calibrate(out.Estimate)
	s.whyThere(ctx, &out)
	return out, nil
}

// Estimate implements httpd.Asker.
func (s *Server) Estimate(ctx context.Context, id gpuai.JobID) (*gpuai.StartEstimate, error) {
	var est gpuai.StartEstimate
	now := gpuai.Instant(0)
	err := s.explainer.do(ctx, func(m *fsm.Machine) {
		now = m.Time()
		f := m.Fork()
		f.AnswerTo(asker(ctx))
		est = f.EstimateStart(id)
	})
	if err != nil {
		return nil, err
	}
	s.calibration.said(id, now, &est)
	s.calibrate(&est)
	return &est, nil
}

// past calls f with the state after an index.
func (s *Server) past(ctx context.Context, index uint64, f func(context.Context, *fsm.Machine) error) error {
	done, err := s.turn(ctx, s.explainer.past)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, pastTime)
	defer cancel()
	m, err := s.node.MachineAt(ctx, index)
	switch {
	case errors.Is(err, raft.ErrNoReplay):
		return s.errNotRetained(index)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &gpuai.Error{Code: gpuai.TooLarge, Detail: fmt.Sprintf("making the state of index %d takes more than %s here: use gpuai operator replay on a copy of the data directory", index, pastTime)}
	case err != nil:
		return fmt.Errorf("make the state of index %d: %w", index, err)
	}
	return f(ctx, m)
}

// errNotRetained says which past states there are.
func (s *Server) errNotRetained(index uint64) error {
	r, err := s.node.Retained()
	if err != nil {
		return err
	}
	return &gpuai.Error{Code: gpuai.NotFound, Index: r.To, Detail: fmt.Sprintf(
		"the state of index %d cannot be made here: this server keeps the log for indexes %d to %d; another server may keep more, and gpuai operator replay reads a copy of a data directory", index, r.From, r.To)}
}

// explainAt explains a job at a past index.
func (s *Server) explainAt(ctx context.Context, ref string, index uint64) (out gpuai.Explanation, err error) {
	err = s.past(ctx, index, func(_ context.Context, m *fsm.Machine) error {
		id, err := m.FindJob(ref)
		if err != nil {
			return err
		}
		m.AnswerTo(asker(ctx))
		out, _ = m.Ask(id)
		return nil
	})
	if err == nil {
		s.whyThere(ctx, &out)
	}
	return out, err
}

// whyThere adds why the first tasks that have a lease have it where they do:
// what is no longer retained is said without its reasons.
func (s *Server) whyThere(ctx context.Context, x *gpuai.Explanation) {
	var tokens []gpuai.Token
	var first, last uint64
	for i := range x.Tasks {
		t := &x.Tasks[i]
		if t.Lease == 0 || t.Status != gpuai.TaskLeased && t.Status != gpuai.TaskRunning || len(tokens) == fsm.MaxTraced {
			continue
		}
		at := t.Lease.Index()
		tokens = append(tokens, t.Lease)
		if first == 0 {
			first = at
		}
		first, last = min(first, at), max(last, at)
		x.Places = append(x.Places, gpuai.PlacedWhy{TaskRef: t.TaskRef, Lease: t.Lease, Node: t.Node, Index: at})
	}
	if len(tokens) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, whyTime)
	defer cancel()
	err := s.past(ctx, first-1, func(ctx context.Context, m *fsm.Machine) error {
		m.TraceGrants(tokens)
		if err := s.node.Advance(ctx, m, last); err != nil {
			return err
		}
		for _, w := range m.Traced() {
			for i := range x.Places {
				if x.Places[i].Lease == w.Lease {
					x.Places[i] = w
				}
			}
		}
		return nil
	})
	for i := range x.Places {
		if p := &x.Places[i]; err != nil && p.Nodes == 0 {
			p.Note = "the reasons are not known: " + err.Error()
		}
	}
}
