package frames

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// setBytes is how large a set of leases may be, by a rough count, so that
	// its frame stays below gpuai.MaxFrameBytes.
	setBytes = gpuai.MaxFrameBytes / 4
	// assignmentBytes is what an assignment takes beside its texts.
	assignmentBytes = 1_024
)

// A Due is what is to be told. Acks are of confirmed beats only, and only once
// the machine has applied the entry that confirmed them.
type Due struct {
	Full  bool          // the whole set
	Dirty []gpuai.Token // leases that may have changed
	Acks  []AckDue
}

// An AckDue is a confirmed beat that is not answered yet.
type AckDue struct {
	Seq  uint64
	Sent int64
}

// A View is what the machine says of the session's node at one index. With
// another incarnation than the session's, no other field is set.
type View struct {
	Incarnation gpuai.Incarnation

	index   uint64
	epoch   uint8
	restore string
	policy  gpuai.Policy
	state   gpuai.NodeState
	live    []gpuai.Token
	held    []gpuai.Token // of live: prepared, and waiting for their gangs
	changed []gpuai.Assignment
	ended   []gpuai.Token
}

// A Teller remembers what one session has told its agent. It is not safe for
// concurrent use.
type Teller struct {
	ref    fsm.NodeRef
	known  map[gpuai.Token]struct{} // leases that the agent was told of
	held   map[gpuai.Token]struct{} // leases that it told of
	policy gpuai.Policy             // that it was told
}

// New returns the teller of a new session of a node's life, whose agent offered
// the leases of held.
func New(ref fsm.NodeRef, held []gpuai.HeldLease) *Teller {
	t := &Teller{ref: ref, held: make(map[gpuai.Token]struct{}, len(held))}
	for _, l := range held {
		t.held[l.Lease] = struct{}{}
	}
	return t
}

// Look reads what is due into v. The caller holds the machine's read lock; ok
// is false when the machine does not know the node. A view of another
// incarnation must not be told: the session is over.
func (t *Teller) Look(m *fsm.Machine, d *Due, v *View) (ok bool) {
	if v.Incarnation, v.state, ok = m.NodeLive(t.ref.Node); !ok || v.Incarnation != t.ref.Incarnation {
		return ok
	}
	v.index, v.epoch, v.restore, v.policy = m.Index(), m.Epoch(), m.RestoreID(), m.Policy()
	if d.Full {
		v.changed = m.Assignments(t.ref.Node)
	} else {
		for _, lease := range sorted(d.Dirty) {
			t.lookAt(m, lease, v)
		}
	}
	if len(d.Acks) > 0 {
		v.live = sorted(m.AppendTokens(nil, t.ref.Node))
		v.held = m.AppendHeld(nil, v.live)
		if !d.Full {
			t.compare(m, v)
		}
	}
	return true
}

// lookAt reads one lease that changed.
func (t *Teller) lookAt(m *fsm.Machine, lease gpuai.Token, v *View) {
	a, live := m.Assignment(lease)
	switch _, known := t.known[lease]; {
	case live && a.Lease.Node == t.ref.Node && a.Lease.Incarnation == t.ref.Incarnation:
		v.changed = append(v.changed, a)
	case known:
		v.ended = append(v.ended, lease)
	}
}

// compare finds leases whose event was not seen yet: an ack names leases that
// its agent must have heard of, and the other way round.
func (t *Teller) compare(m *fsm.Machine, v *View) {
	for _, lease := range v.live {
		if _, known := t.known[lease]; !known && !slices.ContainsFunc(v.changed, func(a gpuai.Assignment) bool { return a.Lease.ID == lease }) {
			t.lookAt(m, lease, v)
		}
	}
	for lease := range t.known {
		if _, live := slices.BinarySearch(v.live, lease); !live && !slices.Contains(v.ended, lease) {
			v.ended = append(v.ended, lease)
		}
	}
}

func sorted(ts []gpuai.Token) []gpuai.Token {
	slices.Sort(ts)
	return slices.Compact(ts)
}

// Greet answers the hello with w, of which the caller fills in who answers, and
// with the first ack of d, which it takes.
func (t *Teller) Greet(d *Due, v *View, w gpuai.Welcome) gpuai.Frame {
	t.policy = v.policy
	w.Epoch, w.RestoreID, w.Incarnation = v.epoch, v.restore, v.Incarnation
	w.Index, w.Policy, w.Ack = v.index, v.policy, *t.ackOf(d.Acks[0], v)
	d.Acks = d.Acks[1:]
	return gpuai.Frame{Kind: gpuai.FrameWelcome, Welcome: &w}
}

// Append appends the sets and then the acks that are due. A node that the
// machine calls silent gets no ack: its next beat brings it back.
func (t *Teller) Append(out []gpuai.Frame, d *Due, v *View) []gpuai.Frame {
	out = append(out, t.sets(d, v)...)
	if v.state != gpuai.NodeSilent {
		for _, a := range d.Acks {
			out = append(out, gpuai.Frame{Kind: gpuai.FrameAck, Ack: t.ackOf(a, v)})
		}
	}
	return out
}

func (t *Teller) ackOf(a AckDue, v *View) *gpuai.Ack {
	ack := &gpuai.Ack{Seq: a.Seq, Sent: a.Sent, Epoch: v.epoch, Incarnation: v.Incarnation, Index: v.index, Tokens: v.live, Held: v.held}
	if t.policy != v.policy {
		t.policy = v.policy
		ack.Policy = &v.policy
	}
	return ack
}

// sets makes the frames that tell of leases. A full set that does not fit in a
// frame begins with what the agent holds: what it does not name is ended.
func (t *Teller) sets(d *Due, v *View) []gpuai.Frame {
	if !d.Full && len(v.changed) == 0 && len(v.ended) == 0 {
		return nil
	}
	if d.Full {
		slices.SortStableFunc(v.changed, func(a, b gpuai.Assignment) int { return t.rank(a) - t.rank(b) })
		t.known = make(map[gpuai.Token]struct{}, len(v.changed))
	}
	for _, lease := range v.ended {
		delete(t.known, lease)
	}
	var frames []gpuai.Frame
	full, ended := d.Full, sorted(v.ended)
	for {
		n := fitting(v.changed)
		for i := range v.changed[:n] {
			t.known[v.changed[i].Lease.ID] = struct{}{}
		}
		frames = append(frames, gpuai.Frame{Kind: gpuai.FrameLeases, Leases: &gpuai.LeaseSet{
			Full: full, Epoch: v.epoch, Incarnation: v.Incarnation, Index: v.index,
			Leases: v.changed[:n:n], Ended: ended,
		}})
		if v.changed, full, ended = v.changed[n:], false, nil; len(v.changed) == 0 {
			return frames
		}
	}
}

// rank puts the leases first that the agent knows.
func (t *Teller) rank(a gpuai.Assignment) int {
	if _, held := t.held[a.Lease.ID]; held {
		return 0
	}
	if _, known := t.known[a.Lease.ID]; known {
		return 0
	}
	return 1
}

// What a gang's member takes of a frame for each of the others, and for each
// node that it is told of.
const (
	memberBytes = 24
	peerBytes   = 160
)

// gangBytes is what an assignment takes for its gang.
func gangBytes(g *gpuai.GangInfo) int {
	if g == nil {
		return 0
	}
	return len(g.NodeIPs)*memberBytes + len(g.Peers)*peerBytes
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
		size += gangBytes(as[i].Gang)
		if size > setBytes && i > 0 {
			return i
		}
	}
	return len(as)
}
