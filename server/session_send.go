package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// leaveTimeout is how long an agent that was refused may take to leave.
	leaveTimeout = time.Second
	// maxChanges bounds the leases that are read at one hold of the machine.
	maxChanges = 512
	// setBytes is how large a set of leases may be, by a rough count, so that
	// its frame stays below gpuai.MaxFrameBytes.
	setBytes = gpuai.MaxFrameBytes / 4
	// assignmentBytes is what an assignment takes beside its texts.
	assignmentBytes = 1_024
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
	full     bool
	dirty    []gpuai.Token
	acks     []ackDue
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
	d = due{se.full, se.dirty[:n:n], se.acks, se.answers, se.requests}
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
	}
}

func (se *session) sendFrame(ctx context.Context, f gpuai.Frame) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := se.conn.Send(ctx, f); err != nil {
		return fmt.Errorf("send a frame to node %s: %w", se.ref.Node, err)
	}
	return nil
}

// view is what the machine says of the session's node at one index.
type view struct {
	index   uint64
	epoch   uint8
	restore string
	policy  gpuai.Policy
	inc     gpuai.Incarnation
	state   gpuai.NodeState
	live    []gpuai.Token
	changed []gpuai.Assignment
	ended   []gpuai.Token
}

// build makes the frames for what is due, all of one index.
func (se *session) build(d *due, first bool) ([]gpuai.Frame, error) {
	var v view
	ok := false
	se.s.node.View(func(m *fsm.Machine) { ok = se.look(m, d, &v) })
	if !ok {
		return nil, fmt.Errorf("node %s is not in this server's state any more", se.ref.Node)
	}
	if v.inc != se.ref.Incarnation {
		se.replaced(v.inc)
		_, err := se.take()
		return nil, err
	}
	frames := se.greet(d, &v, first)
	frames = append(frames, se.sets(d, &v)...)
	if v.state != gpuai.NodeSilent { // not live: its next beat brings it back
		for _, a := range d.acks {
			frames = append(frames, gpuai.Frame{Kind: gpuai.FrameAck, Ack: se.ackOf(a, &v)})
		}
	}
	for i := range d.answers {
		frames = append(frames, gpuai.Frame{Kind: gpuai.FrameReported, Reported: &d.answers[i]})
	}
	for i := range d.requests {
		frames = append(frames, gpuai.Frame{Kind: gpuai.FrameLogRequest, LogRequest: &d.requests[i]})
	}
	return frames, nil
}

// look reads what is due. The caller holds the machine's lock.
func (se *session) look(m *fsm.Machine, d *due, v *view) (ok bool) {
	if v.inc, v.state, ok = m.NodeLive(se.ref.Node); !ok || v.inc != se.ref.Incarnation {
		return ok
	}
	v.index, v.epoch, v.restore, v.policy = m.Index(), m.Epoch(), m.RestoreID(), m.Policy()
	if d.full {
		v.changed = m.Assignments(se.ref.Node)
	} else {
		for _, t := range sorted(d.dirty) {
			se.lookAt(m, t, v)
		}
	}
	if len(d.acks) > 0 {
		v.live = sorted(m.AppendTokens(nil, se.ref.Node))
		if !d.full {
			se.compare(m, v)
		}
	}
	return true
}

// lookAt reads one lease that changed.
func (se *session) lookAt(m *fsm.Machine, t gpuai.Token, v *view) {
	a, live := m.Assignment(t)
	switch _, known := se.known[t]; {
	case live && a.Lease.Node == se.ref.Node && a.Lease.Incarnation == se.ref.Incarnation:
		v.changed = append(v.changed, a)
	case known:
		v.ended = append(v.ended, t)
	}
}

// compare finds leases whose event was not seen yet: an ack names leases that
// its agent must have heard of, and the other way round.
func (se *session) compare(m *fsm.Machine, v *view) {
	for _, t := range v.live {
		if _, known := se.known[t]; !known && !slices.ContainsFunc(v.changed, func(a gpuai.Assignment) bool { return a.Lease.ID == t }) {
			se.lookAt(m, t, v)
		}
	}
	for t := range se.known {
		if _, live := slices.BinarySearch(v.live, t); !live && !slices.Contains(v.ended, t) {
			v.ended = append(v.ended, t)
		}
	}
}

func sorted(ts []gpuai.Token) []gpuai.Token {
	slices.Sort(ts)
	return slices.Compact(ts)
}

// greet answers the hello, with its ack.
func (se *session) greet(d *due, v *view, first bool) []gpuai.Frame {
	if !first {
		return nil
	}
	se.policy = v.policy
	w := &gpuai.Welcome{
		Session: se.name, Server: se.s.cfg.ID, Cluster: se.s.cluster(), Region: se.s.cfg.Region,
		Epoch: v.epoch, RestoreID: v.restore, Incarnation: v.inc, Index: v.index, Policy: v.policy,
		Ack: *se.ackOf(d.acks[0], v),
	}
	d.acks = d.acks[1:]
	return []gpuai.Frame{{Kind: gpuai.FrameWelcome, Welcome: w}}
}

func (se *session) ackOf(a ackDue, v *view) *gpuai.Ack {
	ack := &gpuai.Ack{Seq: a.seq, Sent: a.sent, Epoch: v.epoch, Incarnation: v.inc, Index: v.index, Tokens: v.live}
	if se.policy != v.policy {
		se.policy = v.policy
		ack.Policy = &v.policy
	}
	return ack
}

// sets makes the frames that tell of leases. A full set that does not fit in a
// frame begins with what the agent holds: what it does not name is ended.
func (se *session) sets(d *due, v *view) []gpuai.Frame {
	if !d.full && len(v.changed) == 0 && len(v.ended) == 0 {
		return nil
	}
	if d.full {
		slices.SortStableFunc(v.changed, func(a, b gpuai.Assignment) int { return se.rank(a) - se.rank(b) })
		se.known = make(map[gpuai.Token]struct{}, len(v.changed))
	}
	for _, t := range v.ended {
		delete(se.known, t)
	}
	var frames []gpuai.Frame
	full, ended := d.full, sorted(v.ended)
	for {
		n := fitting(v.changed)
		for i := range v.changed[:n] {
			se.known[v.changed[i].Lease.ID] = struct{}{}
		}
		frames = append(frames, gpuai.Frame{Kind: gpuai.FrameLeases, Leases: &gpuai.LeaseSet{
			Full: full, Epoch: v.epoch, Incarnation: v.inc, Index: v.index,
			Leases: v.changed[:n:n], Ended: ended,
		}})
		if v.changed, full, ended = v.changed[n:], false, nil; len(v.changed) == 0 {
			return frames
		}
	}
}

// rank puts the leases first that the agent knows.
func (se *session) rank(a gpuai.Assignment) int {
	if _, held := se.held[a.Lease.ID]; held {
		return 0
	}
	if _, known := se.known[a.Lease.ID]; known {
		return 0
	}
	return 1
}

// fitting returns how many assignments go into one frame; at least one.
func fitting(as []gpuai.Assignment) int {
	size := 0
	for i := range as {
		t := &as[i].Task
		size += assignmentBytes + len(t.Script)
		for _, arg := range t.Command {
			size += len(arg)
		}
		for k, v := range t.Env {
			size += len(k) + len(v)
		}
		if size > setBytes && i > 0 {
			return i
		}
	}
	return len(as)
}
