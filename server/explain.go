package server

import (
	"context"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// maxExplain is how many questions may wait for a fork. An explanation looks
// at every node, so a flood of submits that cannot be placed must not each
// have one.
const maxExplain = 32

// An explainer answers questions that look at the whole state, on forks. All
// questions that wait when a fork is made share it.
type explainer struct {
	s        *Server
	asks     chan *question
	planning chan struct{} // holds one: each plan takes a fork of its own
	past     chan struct{} // holds one: each look at the past has a machine of its own
	report   chan struct{} // holds one: each report has two
}

// A question is asked of one fork.
type question struct {
	ask  func(m *fsm.Machine)
	done chan struct{}
}

func newExplainer(s *Server) *explainer {
	return &explainer{s: s, asks: make(chan *question, maxExplain), planning: make(chan struct{}, 1), past: make(chan struct{}, 1), report: make(chan struct{}, 1)}
}

// run answers until ctx ends.
func (x *explainer) run(ctx context.Context) {
	for {
		select {
		case q := <-x.asks:
			x.round(q)
		case <-ctx.Done():
			return
		}
	}
}

// round answers the questions that wait, on one fork.
func (x *explainer) round(first *question) {
	questions := []*question{first}
	for len(questions) < maxExplain && len(x.asks) > 0 {
		questions = append(questions, <-x.asks)
	}
	m, release := x.s.node.Fork()
	defer release()
	for _, q := range questions {
		q.ask(m)
		close(q.done)
	}
}

// errBusyExplaining is returned when too many questions wait.
var errBusyExplaining = &gpuai.Error{
	Code: gpuai.RateLimited, Detail: "too many explanations are asked for at once; retry", RetryAfter: gpuai.Second,
}

// do runs ask on a fork that is no older than the call. ask may change the
// fork only in ways that later questions do not see.
func (x *explainer) do(ctx context.Context, ask func(m *fsm.Machine)) error {
	q := &question{ask: ask, done: make(chan struct{})}
	select {
	case x.asks <- q:
	default:
		return errBusyExplaining
	}
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-x.s.ctx.Done():
		return gpuai.NewError(gpuai.NoLeader, errStopping.Error())
	}
}

// explainLater stands for the reasons of a pending job when too many ask.
func explainLater() []gpuai.Reason {
	return []gpuai.Reason{{
		Code: gpuai.QueueOrder, Message: "the job waits in the queue; many jobs do",
		Fix: "ask for its explanation",
	}}
}
