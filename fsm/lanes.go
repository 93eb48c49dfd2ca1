package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai/internal/mem"
)

// The groups of a bucket are a list in order; lanes are lists of some of them,
// one of 32 and one of 1,024, so that a group that joins in the middle finds
// its place in some hundred steps among a million. Without them, a rack that
// falls silent with 10,000 tasks costs 10,000 walks through all that wait.
// They are derived: no snapshot holds them.

const (
	numLanes = 2
	laneBits = 5 // each lane has one of 2^laneBits of the list below
)

// A lane is the ends of one lane of a bucket.
type lane struct{ first, last ref }

// A laneLink is a group's place in a lane.
type laneLink struct{ next, prev ref }

// lanesOf returns in how many lanes a group is: a function of its place in the
// order, so that every replica has the same.
func (m *Machine) lanesOf(group uint32) int {
	g := m.groups.Get(group)
	h := mem.Mix(m.jobs.Get(g.job.slot()).seq, uint64(g.idx)+11)
	n := 0
	for ; n < numLanes && h&(1<<laneBits-1) == 0; n++ {
		h >>= laneBits
	}
	return n
}

// seekLanes returns the first group of a bucket behind the given one, of which
// there must be one, and those before it in the lanes.
func (m *Machine) seekLanes(bucket, group uint32) (at ref, before [numLanes]ref, steps int64) {
	b := m.buckets.Get(bucket)
	last := ref(0)
	for l := numLanes - 1; l >= 0; l-- {
		next := b.lanes[l].first
		if last != 0 {
			next = m.groups.Get(last.slot()).lanes[l].next
		}
		for ; next != 0 && m.groupBefore(next.slot(), group); steps++ {
			last, next = next, m.groups.Get(next.slot()).lanes[l].next
		}
		before[l] = last
	}
	if at = b.first; last != 0 {
		at = m.groups.Get(last.slot()).qnext
	}
	for ; m.groupBefore(at.slot(), group); steps++ {
		at = m.groups.Get(at.slot()).qnext
	}
	return at, before, steps
}

// appendLanes adds the last group of a bucket to its lanes.
func (m *Machine) appendLanes(bucket, group uint32) {
	var before [numLanes]ref
	for l := range before {
		before[l] = m.buckets.Get(bucket).lanes[l].last
	}
	m.joinLanes(bucket, group, before)
}

// joinLanes links a group into its lanes, behind those given.
func (m *Machine) joinLanes(bucket, group uint32, before [numLanes]ref) {
	for l := range m.lanesOf(group) {
		b, g := &m.buckets.Mut(bucket).lanes[l], &m.groups.Mut(group).lanes[l]
		if g.prev, g.next = before[l], b.first; g.prev != 0 {
			p := &m.groups.Mut(g.prev.slot()).lanes[l]
			g.next, p.next = p.next, refTo(group)
		} else {
			b.first = refTo(group)
		}
		if g.next != 0 {
			m.groups.Mut(g.next.slot()).lanes[l].prev = refTo(group)
		} else {
			b.last = refTo(group)
		}
	}
}

// leaveLanes takes a group out of its lanes.
func (m *Machine) leaveLanes(bucket, group uint32) {
	for l := range m.lanesOf(group) {
		b, g := &m.buckets.Mut(bucket).lanes[l], &m.groups.Mut(group).lanes[l]
		if g.prev != 0 {
			m.groups.Mut(g.prev.slot()).lanes[l].next = g.next
		} else {
			b.first = g.next
		}
		if g.next != 0 {
			m.groups.Mut(g.next.slot()).lanes[l].prev = g.prev
		} else {
			b.last = g.prev
		}
		*g = laneLink{}
	}
}

// buildLanes makes the lanes of a restored bucket.
func (m *Machine) buildLanes(bucket uint32) {
	for at := m.buckets.Get(bucket).first; at != 0; at = m.groups.Get(at.slot()).qnext {
		m.appendLanes(bucket, at.slot())
	}
}

// checkLanes compares a bucket's lanes with its list.
func (m *Machine) checkLanes(bucket uint32) error {
	b := m.buckets.Get(bucket)
	var last [numLanes]ref
	for at := b.first; at != 0; at = m.groups.Get(at.slot()).qnext {
		g, in := m.groups.Get(at.slot()), m.lanesOf(at.slot())
		for l := range numLanes {
			switch {
			case l >= in && g.lanes[l] != (laneLink{}):
				return fmt.Errorf("bucket %d: a group is in lane %d, where it does not belong", bucket, l)
			case l < in && (g.lanes[l].prev != last[l] || last[l] == 0 && b.lanes[l].first != at):
				return fmt.Errorf("bucket %d: lane %d is out of order", bucket, l)
			case l < in:
				last[l] = at
			}
		}
	}
	for l := range numLanes {
		end := last[l] == 0 && b.lanes[l].first != 0 || last[l] != 0 && m.groups.Get(last[l].slot()).lanes[l].next != 0
		if end || b.lanes[l].last != last[l] {
			return fmt.Errorf("bucket %d: lane %d does not end where it should", bucket, l)
		}
	}
	return nil
}
