package server

import (
	"context"
	"errors"
	"fmt"
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

// serve receives until the session is over, and returns why it is. cancel ends
// ctx.
func (se *session) serve(ctx context.Context, cancel context.CancelFunc) error {
	received := make(chan struct{})
	over := make(chan error, 1)
	se.mu.Lock()
	se.ctx, se.cancel, se.received, se.over = ctx, cancel, received, over
	if se.sends(); se.carrier.due || se.doubt {
		se.carries()
	}
	se.mu.Unlock()
	se.stop(se.receive(ctx), nil)
	close(received)
	err := <-over // which the sender says when it has seen the end
	se.running.Wait()
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
	judged   []gpuai.Published
	requests []gpuai.LogRequest
	execs    []gpuai.ExecRequest
	secrets  []gpuai.SecretDelivery
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
	d = due{frames.Due{Full: se.full, Dirty: se.dirty[:n:n], Acks: se.acks}, se.answers, se.judged, se.requests, se.execs, se.secrets}
	if se.dirty = se.dirty[n:]; len(se.dirty) > 0 {
		se.sends()
	}
	se.full, se.acks, se.answers, se.judged, se.requests, se.execs, se.secrets = false, nil, nil, nil, nil, nil, nil
	return d, nil
}

// send builds and sends what is due until nothing is. When the session is over
// it says so, and never runs again.
func (se *session) send(ctx context.Context) {
	for se.more(&se.sender) {
		var err error
		se.s.sessions.turns.do(func() { err = se.sendDue(ctx) })
		if err != nil {
			se.finish(ctx, err)
			return
		}
	}
}

// finish tells the agent why the session is over, where there is something to
// tell, and ends it.
func (se *session) finish(ctx context.Context, err error) {
	se.stop(err, nil)
	var r *refusal
	if errors.As(err, &r) && se.sendFrame(ctx, refusedFrame(r)) == nil {
		// cancel tears the connection down, and what the agent has not read
		// with it: let it read and leave by itself.
		select {
		case <-se.received:
		case <-time.After(leaveTimeout):
		}
	}
	se.cancel()
	se.over <- err
}

// sendDue sends what is due now.
func (se *session) sendDue(ctx context.Context) error {
	d, err := se.take()
	if err != nil {
		return err
	}
	frames, err := se.build(&d)
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
func (se *session) build(d *due) ([]gpuai.Frame, error) {
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
	if !se.greeted {
		se.greeted = true
		out = append(out, se.teller.Greet(&d.Due, &v, gpuai.Welcome{
			Session: se.name, Server: se.s.cfg.ID, Cluster: se.s.cluster(), Region: se.s.cfg.Region,
			CheckpointStore: se.s.cfg.CheckpointStore,
		}))
	}
	out = se.teller.Append(out, &d.Due, &v)
	for i := range d.answers {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameReported, Reported: &d.answers[i]})
	}
	for i := range d.judged {
		out = append(out, gpuai.Frame{Kind: gpuai.FramePublished, Published: &d.judged[i]})
	}
	for i := range d.requests {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameLogRequest, LogRequest: &d.requests[i]})
	}
	for i := range d.secrets {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameSecrets, Secrets: &d.secrets[i]})
	}
	for i := range d.execs {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameExec, Exec: &d.execs[i]})
	}
	return out, nil
}
