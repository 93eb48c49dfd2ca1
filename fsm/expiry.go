package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// Records that are of no more use at some time are forgotten then: access tokens
// that have long been over, join tokens that have expired, identities of those who
// never came or were removed. Each has its place in a heap of its own, so that
// nothing is searched for them, and what waits for time to pass to start or end a
// task does not see them. They go within a quarter of an entry's work; what is
// left goes with the entries that follow.

// expiryStep is what the times at which records are forgotten are rounded up to:
// one Tick serves many.
const expiryStep = gpuai.Minute

// forgetAt has the record of a slot be forgotten at a time, in place of the one
// that was set.
func (m *Machine) forgetAt(at gpuai.Instant, kind timerKind, slot uint32) {
	if over := gpuai.Duration(int64(at) % int64(expiryStep)); over != 0 {
		at = at.Add(expiryStep - over)
	}
	m.expiries.set(at, kind, slot)
}

// forgetDue forgets the records whose time has come.
func (m *Machine) forgetDue() {
	for left := max(m.now.work-WorkPerEntry/4, 0); m.now.work > left; {
		e, ok := m.expiries.next()
		if !ok || e.at > m.now.time {
			return
		}
		m.now.work -= workEnd
		switch e.kind {
		case timerToken:
			m.dropToken(e.slot)
		case timerJoinToken:
			m.dropJoinToken(e.slot)
		default:
			m.dropIdentity(e.slot)
		}
	}
}

// checkExpiries verifies that every record which is to be forgotten is in the heap
// once, at its place.
func (m *Machine) checkExpiries() error {
	var want, have [numTimerKinds]uint32
	want[timerToken], want[timerJoinToken] = m.tokenSlots.Len(), m.joinTokenSlots.Len()
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		if m.passing(s) {
			want[timerIdentity]++
		}
	}
	for i := range *m.expiries.n.Get() {
		have[m.expiries.heap.Get(i).kind]++
	}
	if want != have {
		return fmt.Errorf("%v records are to be forgotten by kind, should be %v", have, want)
	}
	return m.checkHeap(m.expiries)
}
