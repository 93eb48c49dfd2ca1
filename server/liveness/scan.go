package liveness

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// Observe looks at nodes whose registration was applied, so that an older
// incarnation's silence counts from now and not from when the new one would be
// noticed. Nodes that are unknown are passed over.
func (t *Tracker) Observe(m Region, now Time, registered []gpuai.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms := up(t.listen(now))
	for _, id := range registered {
		if slot, inc, _, ok := m.NodeSlot(id); ok {
			t.meet(m, slot, fsm.NodeRef{Node: id, Incarnation: inc}, ms)
		}
	}
}

// Scan looks for what has changed, MaxRows nodes at most; the caller repeats
// it, each time with the machine locked anew, until more is false, and then
// calls Decide.
func (t *Tracker) Scan(m Region, p *gpuai.Policy, now Time) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.listen(now)
	rows := t.meetAll(m, e, MaxRows)
	rows = t.scanMarks(m, p, e, rows)
	rows = t.scanOld(m, down(e), rows)
	rows = t.scanTouched(m, rows)
	return rows <= 0
}

// meetAll takes up nodes that registered since the last scan; in the first
// pass all of them, counted from the start of the term.
func (t *Tracker) meetAll(m Region, e Time, rows int) int {
	ms := up(e)
	if !t.settled {
		ms = 0
	}
	next := m.EachNode(t.seen, func(slot uint32, id gpuai.NodeID, inc gpuai.Incarnation, _ gpuai.NodeState, live uint32) bool {
		if rows <= 0 {
			return false
		}
		rows--
		if !t.meet(m, slot, fsm.NodeRef{Node: id, Incarnation: inc}, ms) && live > 0 {
			t.old.find(m, id, ms)
		}
		t.seen = slot + 1
		return true
	})
	if next == 0 {
		t.settled = true
	}
	return rows
}

// scanMarks watches the nodes that have not beaten for a while. It reads eight
// bytes of the others.
func (t *Tracker) scanMarks(m Region, p *gpuai.Policy, e Time, rows int) int {
	now, w := down(e), &t.window
	after := int64(min(p.SuspectAfter, shortest))
	for ; w.slot < len(t.marks) && rows > 0; w.slot++ {
		quiet := now - t.marks[w.slot].ms()
		if quiet < after {
			continue
		}
		slot := uint32(w.slot)
		s := t.silent[slot]
		if s == nil || now >= s.look {
			rows--
			if s = t.look(m, slot, now); s == nil {
				continue
			}
			s.look = now + lookEvery
			if left := int64(s.minEnd) - quiet; left > 0 {
				s.look = min(s.look, now+left) // judged by fresh knowledge
			}
			if quiet >= int64(p.SuspectAfter) {
				t.suspect(m, slot, s)
			}
		}
		if s.minEnd > 0 {
			w.silent++
			if quiet >= int64(s.minEnd) {
				w.due = append(w.due, slot)
			}
		}
	}
	return rows
}

// look asks the machine about a silent node; nil when it is another life's
// silence that the mark tells of.
func (t *Tracker) look(m Region, slot uint32, now int64) *silence {
	s := t.silent[slot]
	fresh := s == nil
	m.EachNode(slot, func(_ uint32, id gpuai.NodeID, inc gpuai.Incarnation, state gpuai.NodeState, live uint32) bool {
		ref := fsm.NodeRef{Node: id, Incarnation: inc}
		if t.meet(m, slot, ref, now+1) {
			s = nil
			return false
		}
		if fresh {
			s = &silence{}
			t.silent[slot] = s
		}
		if fresh && (state == gpuai.NodeReady || state == gpuai.NodeSuspect && live > 0) {
			t.breaker.fell(now)
		}
		s.ref = ref
		s.minEnd = 0
		if end, n := m.LeaseTTLs(id, inc); n > 0 {
			s.minEnd = end
		}
		return false
	})
	return s
}

// suspect lists a silent node that the machine still calls ready.
func (t *Tracker) suspect(m Region, slot uint32, s *silence) {
	if _, inc, state, ok := m.NodeSlot(s.ref.Node); ok && inc == s.ref.Incarnation && state == gpuai.NodeReady {
		t.window.suspect = append(t.window.suspect, s.ref)
		t.window.suspectSlots = append(t.window.suspectSlots, slot)
	}
}

// scanOld finds superseded lives whose leases have outlived their time.
func (t *Tracker) scanOld(m Region, now int64, rows int) int {
	w := &t.window
	for ; w.old < len(t.old.all) && rows > 0; w.old++ {
		o := &t.old.all[w.old]
		if now-o.since < int64(shortest) {
			continue
		}
		if now >= o.look {
			rows--
			o.minEnd = 0
			m.SupersededLeases(o.Node, func(inc gpuai.Incarnation, end gpuai.Duration) {
				if inc == o.Incarnation && (o.minEnd == 0 || end < o.minEnd) {
					o.minEnd = end
				}
			})
			o.look, o.gone = now+lookEvery, o.minEnd == 0
		}
		if o.minEnd > 0 && now-o.since >= int64(o.minEnd) {
			w.dueOld = append(w.dueOld, w.old)
		}
	}
	return rows
}

// scanTouched lists the nodes that beat and that the machine calls suspect or
// silent.
func (t *Tracker) scanTouched(m Region, rows int) int {
	w := &t.window
	for ; w.beat < len(t.touched) && rows > 0; w.beat++ {
		rows--
		b := t.touched[w.beat]
		_, inc, state, ok := m.NodeSlot(b.Node)
		if ok && inc == b.Incarnation && (state == gpuai.NodeSuspect || state == gpuai.NodeSilent) {
			w.ready = append(w.ready, b)
		}
	}
	return rows
}
