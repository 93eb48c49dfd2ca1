package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/frames"
)

const (
	// leaveTimeout is how long an agent that was refused may take to leave.
	leaveTimeout = time.Second
	// maxChanges bounds the leases that are read at one hold of the machine.
	maxChanges = 512
)

// serve runs the session's goroutines until one ends.
func (se *session) serve(ctx context.Context, cancel context.CancelFunc) error {
	var wg sync.WaitGroup
	received := make(chan struct{})
	wg.Go(func() {
		defer close(received)
		se.stop(se.receive(ctx), nil)
	})
	wg.Go(func() { se.stop(se.carrier(ctx), nil) })
	err := se.send(ctx)
	var r *refusal
	if errors.As(err, &r) && se.sendFrame(ctx, refusedFrame(r)) == nil {
		// cancel tears the connection down, and what the agent has not read
		// with it: let it read and leave by itself.
		select {
		case <-received:
		case <-time.After(leaveTimeout):
		}
	}
	cancel()
	wg.Wait()
	se.logs.fail()
	return err
}

func refusedFrame(r *refusal) gpuai.Frame {
	return gpuai.Frame{Kind: gpuai.FrameRefused, Refused: &r.SessionError}
}

// due is what the sender took to send.
type due struct {
	frames.Due
	answers  []gpuai.Reported
	requests []gpuai.LogRequest
}

// take empties what waits, or says why the session is over.
func (se *session) take() (d due, err error) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.end != nil {
		if se.refusal != nil {
			return d, &refusal{*se.refusal}
		}
		return d, se.end
	}
	n := min(len(se.dirty), maxChanges)
	d = due{frames.Due{Full: se.full, Dirty: se.dirty[:n:n], Acks: se.acks}, se.answers, se.requests}
	if se.dirty = se.dirty[n:]; len(se.dirty) > 0 {
		nudge(se.wake)
	}
	se.full, se.acks, se.answers, se.requests = false, nil, nil, nil
	return d, nil
}

// send builds and sends frames until the session ends.
func (se *session) send(ctx context.Context) error {
	for first := true; ; first = false {
		select {
		case <-se.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		se.s.sessions.turns.do(func() { err = se.sendDue(ctx, first) })
		if err != nil {
			return err
		}
	}
}

// sendDue sends what is due now.
func (se *session) sendDue(ctx context.Context, first bool) error {
	d, err := se.take()
	if err != nil {
		return err
	}
	frames, err := se.build(&d, first)
	if err != nil {
		return err
	}
	for i := range frames {
		if err := se.sendFrame(ctx, frames[i]); err != nil {
			return err
		}
	}
	return nil
}

func (se *session) sendFrame(ctx context.Context, f gpuai.Frame) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := se.conn.Send(ctx, f); err != nil {
		return fmt.Errorf("send a frame to node %s: %w", se.ref.Node, err)
	}
	return nil
}

// build makes the frames for what is due, all of one index.
func (se *session) build(d *due, first bool) ([]gpuai.Frame, error) {
	var v frames.View
	ok := false
	se.s.node.View(func(m *fsm.Machine) { ok = se.teller.Look(m, &d.Due, &v) })
	if !ok {
		return nil, fmt.Errorf("node %s is not in this server's state any more", se.ref.Node)
	}
	if v.Incarnation != se.ref.Incarnation {
		se.replaced(v.Incarnation)
		_, err := se.take()
		return nil, err
	}
	var out []gpuai.Frame
	if first {
		out = append(out, se.teller.Greet(&d.Due, &v, gpuai.Welcome{
			Session: se.name, Server: se.s.cfg.ID, Cluster: se.s.cluster(), Region: se.s.cfg.Region,
		}))
	}
	out = se.teller.Append(out, &d.Due, &v)
	for i := range d.answers {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameReported, Reported: &d.answers[i]})
	}
	for i := range d.requests {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameLogRequest, LogRequest: &d.requests[i]})
	}
	return out, nil
}
