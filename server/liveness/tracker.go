package liveness

import (
	"sync"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A Time is nanoseconds on the leader's monotonic clock, from any origin. No
// wall clock has a part in it.
type Time int64

const millisecond Time = 1_000_000

// MaxRows is how many nodes one Scan looks up in the machine, which is held
// locked meanwhile.
const MaxRows = 1_000

const (
	// deafAfter bounds how much of a time without any call counts as silence
	// of the nodes: the process itself did not run, and could hear nobody.
	deafAfter = 1_000 * millisecond
	// lookEvery is how old what a Tracker knows of a silent node may be, in
	// milliseconds.
	lookEvery = 2_000
	// shortest is the least TTL + grace that any policy allows.
	shortest = gpuai.MinLeaseTTL + 2*gpuai.Second
)

// A Region is what a Tracker reads of the machine. Calls come under the
// machine's read lock.
type Region interface {
	// NodeSlot returns a node's number, 0 … nodes-1, and its incarnation.
	NodeSlot(n gpuai.NodeID) (slot uint32, inc gpuai.Incarnation, state gpuai.NodeState, ok bool)
	// EachNode calls f for the nodes from a slot on until f says false, and
	// returns where to go on; 0 at the end.
	EachNode(from uint32, f func(slot uint32, id gpuai.NodeID, inc gpuai.Incarnation, state gpuai.NodeState, live uint32) bool) uint32
	// LeaseTTLs returns the smallest TTL + grace of an incarnation's leases.
	LeaseTTLs(n gpuai.NodeID, inc gpuai.Incarnation) (minEnd gpuai.Duration, live int)
	// SupersededLeases calls f for the leases of older incarnations.
	SupersededLeases(n gpuai.NodeID, f func(inc gpuai.Incarnation, minEnd gpuai.Duration))
}

var _ Region = (*fsm.Machine)(nil)

// A Tracker is the soft state of one term. It is made when the term's own
// barrier has been applied, counts every node from then, and is thrown away
// with the term. Its methods are safe for concurrent use; touching, computing
// a silence and putting an expiry in its place of the order happen under one
// lock.
type Tracker struct {
	term uint64

	mu    sync.Mutex // guards below
	start Time
	heard Time // the latest call
	deaf  Time // of the time since start, what does not count as silence

	marks   []mark // by slot: 8 bytes a node
	seen    uint32 // slots of the machine that were looked at once
	settled bool   // the first pass over the machine's nodes is done
	touched []fsm.NodeRef
	silent  map[uint32]*silence // slots whose silence is watched
	old     superseded
	breaker breaker
	window  window
}

// silence is what is known of a node that has not beaten for a while.
type silence struct {
	ref    fsm.NodeRef
	minEnd gpuai.Duration // smallest TTL + grace of its leases; 0: it has none
	look   int64          // when to ask the machine again, in ms
}

// window is one round of scans.
type window struct {
	slot, old, beat int // how far it has come
	silent          int // nodes that are, and hold leases
	due             []uint32
	dueOld          []int // places in superseded
	suspect, ready  []fsm.NodeRef
	suspectSlots    []uint32
}

// New returns the soft state of a term, every node counted from now.
func New(term uint64, now Time) *Tracker {
	return &Tracker{
		term: term, start: now, heard: now,
		silent: make(map[uint32]*silence),
		old:    superseded{at: make(map[life]int)},
	}
}

// Term returns the term that the soft state belongs to.
func (t *Tracker) Term() uint64 { return t.term }

// A mark is when a node last beat, in milliseconds since the start and rounded
// up, above the low bits of the incarnation that did.
type mark uint64

const tagBits = 24

func makeMark(ms int64, inc gpuai.Incarnation) mark { return mark(ms)<<tagBits | tagOf(inc) }

func tagOf(inc gpuai.Incarnation) mark { return mark(inc) & (1<<tagBits - 1) }

func (k mark) ms() int64                   { return int64(k >> tagBits) }
func (k mark) of(i gpuai.Incarnation) bool { return k&(1<<tagBits-1) == tagOf(i) }

// listen notes that the leader runs at now, and returns how long it has
// listened in this term.
func (t *Tracker) listen(now Time) Time {
	if gap := now - t.heard; gap > deafAfter {
		t.deaf += gap - deafAfter
	}
	t.heard = max(t.heard, now)
	return t.heard - t.start - t.deaf
}

// up and down round to milliseconds so that no silence is ever overstated:
// beats are dated late, scans early.
func up(e Time) int64   { return int64((e + millisecond - 1) / millisecond) }
func down(e Time) int64 { return int64(e / millisecond) }

// Beats touches the nodes that beat, and returns which of the beats counted:
// those of a node's current incarnation. Others touch nothing. The caller
// confirms the counted ones with the next window's ConfirmBeats, and not with
// one that was decided before.
func (t *Tracker) Beats(m Region, now Time, beats []fsm.NodeRef) []bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := up(t.listen(now))
	counted := make([]bool, len(beats))
	for i, b := range beats {
		slot, inc, _, ok := m.NodeSlot(b.Node)
		if !ok || inc != b.Incarnation {
			continue
		}
		t.meet(m, slot, b, ms)
		t.marks[slot] = makeMark(ms, inc)
		delete(t.silent, slot)
		t.touched = append(t.touched, b)
		counted[i] = true
	}
	return counted
}

// meet makes sure that a node's mark is of its current incarnation. A new
// incarnation counts from ms, when the leader sees it, and so do the leases
// that it left to an older one.
func (t *Tracker) meet(m Region, slot uint32, cur fsm.NodeRef, ms int64) (isNew bool) {
	for uint32(len(t.marks)) <= slot {
		t.marks = append(t.marks, makeMark(ms, 0))
	}
	if t.marks[slot].of(cur.Incarnation) {
		return false
	}
	t.marks[slot] = makeMark(ms, cur.Incarnation)
	delete(t.silent, slot)
	t.old.find(m, cur.Node, ms)
	return true
}
