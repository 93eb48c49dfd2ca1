package liveness

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A Decision is what one window proposes. Its commands go to the proposer in
// the order of Commands, in one go, and windows one after the other: so an
// expiry that was computed without a beat always stands before the entry that
// confirms this beat. It is never kept or proposed again: the next window
// makes a new one.
type Decision struct {
	Term    uint64
	Expire  []fsm.ExpireLeases
	Suspect []fsm.NodeRef // ready in the machine, and quiet
	Ready   []fsm.NodeRef // suspect or silent in the machine, and beating
	// Held is how many expiries the breaker keeps back, Open whether it is
	// open, Tripped whether it opened in this window.
	Held          int
	Open, Tripped bool
}

// refsPerCommand keeps a ConfirmBeats well below the size of a command.
const refsPerCommand = min(fsm.MaxNodeRefs, 500)

// Decide ends a round of scans. No silence in it is older than now: a node
// that beat since its scan is left out.
func (t *Tracker) Decide(p *gpuai.Policy, now Time) Decision {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := down(t.listen(now))
	w := &t.window
	d := Decision{Term: t.term, Ready: w.ready}
	for i, ref := range w.suspect {
		if s := t.silent[w.suspectSlots[i]]; s != nil && s.ref == ref {
			d.Suspect = append(d.Suspect, ref)
		}
	}
	was := t.breaker.open
	due := len(w.due) + len(w.dueOld)
	room := t.breaker.allow(ms, load{nodes: len(t.marks), due: due, silent: w.silent}, p)
	t.expire(&d, ms, room)
	t.expireOld(&d, ms, room-len(d.Expire))
	t.breaker.spend(len(d.Expire))
	d.Open, d.Tripped, d.Held = t.breaker.open, t.breaker.open && !was, due-len(d.Expire)
	t.old.drop()
	t.touched = append(t.touched[:0], t.touched[w.beat:]...)
	t.window = window{}
	return d
}

// expire makes the expiries of nodes' current lives, room at most.
func (t *Tracker) expire(d *Decision, ms int64, room int) {
	for _, slot := range t.window.due {
		s := t.silent[slot]
		if s == nil {
			continue // it beat meanwhile
		}
		if len(d.Expire) == room {
			return
		}
		d.Expire = append(d.Expire, fsm.ExpireLeases{
			Node: s.ref.Node, Incarnation: s.ref.Incarnation,
			SilentFor: gpuai.Duration(ms - t.marks[slot].ms()), Term: t.term,
		})
		s.look = ms // what is left has another end
	}
}

// expireOld makes the expiries of superseded lives, room at most.
func (t *Tracker) expireOld(d *Decision, ms int64, room int) {
	for _, at := range t.window.dueOld {
		if room == 0 {
			return
		}
		room--
		o := &t.old.all[at]
		d.Expire = append(d.Expire, fsm.ExpireLeases{
			Node: o.Node, Incarnation: o.Incarnation,
			SilentFor: gpuai.Duration(ms - o.since), Term: t.term,
		})
		o.look = ms
	}
}

// Commands encodes the decision: the expiries, then the ConfirmBeats entries,
// of which there is one also when nothing but beats is to be confirmed. The
// last one's index is what beats are acknowledged by.
func (d *Decision) Commands(beats bool) [][]byte {
	var cmds [][]byte
	for i := range d.Expire {
		cmds = append(cmds, d.Expire[i].Append(nil, fsm.Envelope{}))
	}
	suspect, ready := d.Suspect, d.Ready
	for beats || len(suspect) > 0 || len(ready) > 0 {
		s, r := min(len(suspect), refsPerCommand), min(len(ready), refsPerCommand)
		c := fsm.ConfirmBeats{Term: d.Term, Suspect: suspect[:s], Ready: ready[:r]}
		cmds = append(cmds, c.Append(nil, fsm.Envelope{}))
		suspect, ready, beats = suspect[s:], ready[r:], false
	}
	return cmds
}
