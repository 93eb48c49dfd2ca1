package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
)

const (
	// laneBytes bounds the commands of one message to the leader.
	laneBytes = 1 << 20
	// laneTimeout bounds one message: the leader's own bound on a proposal
	// comes first.
	laneTimeout = 15 * time.Second
	// laneQueue is how many calls may wait; agents' commands are refused then.
	laneQueue = 65_536
)

// A lane carries commands of this server's agents to the leader, in order and
// one message at a time: what comes while one is under way goes with the next.
type lane struct {
	s *Server

	mu      sync.Mutex // guards below
	queue   []*laneCall
	running bool
	closed  bool
	wg      sync.WaitGroup
}

// laneCall is one proposal that waits.
type laneCall struct {
	cmds [][]byte
	out  []outcome
	err  error
	done chan struct{}
}

// propose has encoded commands applied in order, here or at the leader. The
// error says that nothing is known of any; else each has its outcome. The
// caller's commands must be safe to repeat.
func (s *Server) propose(ctx context.Context, cmds ...[]byte) ([]outcome, error) {
	if s.node.IsLeader() {
		applied, err := s.node.ProposeAll(ctx, cmds)
		return outcomes(applied, err), nil
	}
	c := &laneCall{cmds: cmds, done: make(chan struct{})}
	if err := s.lane.add(c); err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.out, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// outcomes converts what the proposer says. Commands whose fate is not known
// carry err's code.
func outcomes(applied []raft.Applied, err error) []outcome {
	unknown := outcome{Code: gpuai.OutcomeUnknown}
	if err != nil {
		unknown.Detail = err.Error()
		var e *gpuai.Error
		if errors.As(err, &e) {
			unknown.Code, unknown.Detail = e.Code, e.Detail
		}
	}
	out := make([]outcome, len(applied))
	for i := range applied {
		a := &applied[i]
		if out[i] = unknown; a.Index != 0 {
			out[i] = outcome{a.Result.Code, a.Result.Incarnation, a.Index, a.Result.Detail}
		}
	}
	return out
}

func (l *lane) add(c *laneCall) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errNotLeading
	}
	if len(l.queue) >= laneQueue {
		return gpuai.NewError(gpuai.RateLimited, "too many commands wait for the leader; retry later")
	}
	l.queue = append(l.queue, c)
	if !l.running {
		l.running = true
		l.wg.Go(l.run)
	}
	return nil
}

// close takes no more calls and waits for those under way, which end with the
// server's context.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}

// run sends until nothing waits.
func (l *lane) run() {
	for {
		l.mu.Lock()
		batch := l.take()
		if len(batch) == 0 {
			l.running = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		l.send(batch)
	}
}

// take removes calls up to the size of a message. The caller holds the lock.
func (l *lane) take() []*laneCall {
	n, size := 0, 0
	for n < len(l.queue) && (n == 0 || size < laneBytes) {
		for _, cmd := range l.queue[n].cmds {
			size += len(cmd)
		}
		n++
	}
	batch := l.queue[:n:n]
	l.queue = l.queue[n:]
	return batch
}

// send has one message answered and hands the outcomes out.
func (l *lane) send(batch []*laneCall) {
	ctx, cancel := context.WithTimeout(l.s.ctx, laneTimeout)
	defer cancel()
	var body []byte
	n := 0
	for _, c := range batch {
		body = appendCommands(body, c.cmds)
		n += len(c.cmds)
	}
	answer, err := l.s.askLeader(ctx, pathPropose, body)
	var out []outcome
	if err == nil {
		out, err = readOutcomes(answer)
	}
	if err == nil && len(out) != n {
		err = errWire
	}
	for _, c := range batch {
		if c.err = err; err == nil {
			c.out, out = out[:len(c.cmds):len(c.cmds)], out[len(c.cmds):]
		}
		close(c.done)
	}
}

// proposePeer serves another server's lane.
func (s *Server) proposePeer(ctx context.Context, body []byte) ([]byte, error) {
	cmds, err := readCommands(body)
	if err != nil {
		return nil, err
	}
	for _, c := range cmds {
		if len(c) > fsm.MaxCommandBytes {
			return nil, gpuai.NewError(gpuai.TooLarge, "a command is larger than the log takes")
		}
	}
	if !s.node.IsLeader() {
		return nil, errNotLeading
	}
	applied, err := s.node.ProposeAll(ctx, cmds)
	if len(applied) != len(cmds) {
		applied = make([]raft.Applied, len(cmds))
	}
	return appendOutcomes(nil, outcomes(applied, err)), nil
}
