package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetNodeSchedule says at which hours of the week a node may be used, by the wall
// clock that entries carry. Outside of them it takes no leases, and inside only those
// whose run-time limit ends before the hours do. When they end what runs there is
// revoked, as by a drain. No windows: always.
//
// Rejected: InvalidSpec (see gpuai.Schedule.Validate), also below LevelTenants;
// NotFound for a node that never registered; TooLarge when the region has too many
// kinds of nodes, among which those count apart that close at another minute.
type SetNodeSchedule struct {
	Node     gpuai.NodeID
	Schedule gpuai.Schedule
}

// Append appends the encoded command to dst.
func (c *SetNodeSchedule) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetNodeSchedule, env, func(b []byte) []byte {
		b = wire.AppendStr(b, string(c.Node))
		b = append(le.AppendUint16(b, uint16(c.Schedule.UTCOffset)), uint8(min(len(c.Schedule.Windows), 255)))
		for _, w := range c.Schedule.Windows {
			b = le.AppendUint16(le.AppendUint16(b, uint16(w.From)), uint16(w.To))
		}
		return b
	})
}

func (m *Machine) applySetNodeSchedule(r *wire.Reader) Result {
	id := gpuai.NodeID(r.Str())
	rec := scheduleRec{}
	rec.offset = int16(r.U16())
	if rec.count = r.U8(); rec.count > gpuai.MaxWindows {
		return malformed
	}
	for i := range rec.windows[:rec.count] {
		rec.windows[i] = gpuai.Window{From: gpuai.WeekMinute(r.U16()), To: gpuai.WeekMinute(r.U16())}
	}
	sched := rec.schedule()
	node, ok := m.nodeSlot(id)
	switch {
	case m.Level() < LevelTenants || r.Done() != nil:
		return malformed
	case len(sched.Validate()) > 0:
		return rejected(gpuai.InvalidSpec, "the schedule is invalid")
	case !ok:
		return rejected(gpuai.NotFound, "no such node")
	}
	rec.node = node
	slot, has := m.scheduleSlot(node)
	now := max(m.meta.Get().wall, m.owners.hours.Get().clock)
	switch {
	case has && *m.owners.schedules.Get(slot) == rec, !has && rec.count == 0:
		return Result{}
	case has:
		*m.owners.schedules.Mut(slot) = rec
	default:
		if m.owners.schedules.Len() == 0 {
			*m.owners.hours.Mut() = hoursRec{now, gpuai.MaxWallTime}
		}
		slot = m.owners.schedules.Append(rec)
		m.owners.scheduleOf.Grow(node + 1)
		*m.owners.scheduleOf.Mut(node) = refTo(slot)
	}
	if open, _ := sched.At(now); open && !m.mayOpen(slot, now) {
		m.takeBack()
		return rejected(gpuai.TooLarge, "the region has too many kinds of nodes: have this one close when others do")
	}
	until := m.followSchedule(slot, now)
	if h := m.owners.hours.Get(); h.next > now { // so all others are as they are to be now, too
		*m.owners.hours.Mut() = hoursRec{now, min(h.next, until)}
	}
	m.nodes.Mut(node).modified = m.now.index
	return Result{Incarnation: m.nodes.Get(node).incarnation}
}

// mayOpen opens a node, and reports whether it could be.
func (m *Machine) mayOpen(slot uint32, now gpuai.WallTime) bool {
	m.followSchedule(slot, now)
	return !m.nodes.Get(m.owners.schedules.Get(slot).node).outside
}

// SetNodeAsk says what a node's contributor asks for a device of it and hour, which
// stands before what the agent says; below 0 it asks nothing of its own. A price that
// an operator gives stands before both. Leases keep the price of their grant.
//
// Rejected: InvalidSpec outside of the policy's bounds, also below LevelTenants;
// NotFound; TooLarge when the region has too many kinds of nodes.
type SetNodeAsk struct {
	Node  gpuai.NodeID
	Price gpuai.Micros
}

// Append appends the encoded command to dst.
func (c *SetNodeAsk) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetNodeAsk, env, func(b []byte) []byte {
		return put64(wire.AppendStr(b, string(c.Node)), int64(c.Price))
	})
}

func (m *Machine) applySetNodeAsk(r *wire.Reader) Result {
	id, ask := gpuai.NodeID(r.Str()), gpuai.Micros(r.I64())
	slot, ok := m.nodeSlot(id)
	low, high := m.policy.Get().AskBounds()
	switch {
	case m.Level() < LevelTenants || r.Done() != nil:
		return malformed
	case ask >= 0 && (ask < low || ask > high):
		return rejected(gpuai.InvalidSpec, fmt.Sprintf("the price is outside of what the region's operator allows: %s to %s USD", dollars(uint64(low)), dollars(uint64(high))))
	case !ok:
		return rejected(gpuai.NotFound, "no such node")
	}
	n := m.nodes.Mut(slot)
	n.ask, n.asked, n.modified = max(ask, 0), ask >= 0, m.now.index
	return m.reprice(slot)
}

// reprice has a node cost what it is to.
func (m *Machine) reprice(slot uint32) Result {
	body := m.nodeBody(slot)
	price := m.priceOf(m.nodes.Get(slot), body.spec.Price)
	if price == m.nodes.Get(slot).price {
		return Result{}
	}
	m.loseHolds(slot)
	m.nodes.Mut(slot).price = price
	if code := m.tellScheduler(slot, &body); code != gpuai.OK {
		m.takeBack()
		return rejected(code, "the region has too many kinds of nodes")
	}
	m.pricesMoved()
	return Result{}
}

// applyOwners applies a command about a contributor's node.
func (m *Machine) applyOwners(typ uint8, r *wire.Reader) Result {
	switch typ {
	case typeSetNodeSchedule:
		return m.applySetNodeSchedule(r)
	case typeSetNodeAsk:
		return m.applySetNodeAsk(r)
	default:
		return m.applySetNodeOwner(r)
	}
}
