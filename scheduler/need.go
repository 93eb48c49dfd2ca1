package scheduler

import "math/bits"

// A Need is a bound of what one task of a shape takes, to tell without a search
// that it does not fit: its size is 0 without a device, 1 for a share of one,
// and k+1 for k whole ones.
type Need struct {
	CPU, Memory int64
	Size        uint8
}

// Need returns the bound of a shape. It only reads.
func (s *State) Need(id ShapeID) Need {
	r := s.shapes.Get(uint32(id))
	n := Need{CPU: r.cpu, Memory: int64(r.mem)}
	switch {
	case r.share != 0:
		n.Size = 1
	case r.count > 0:
		n.Size = uint8(r.count) + 1
	}
	return n
}

// Room returns the largest need that a node may meet now; of a node that takes
// nothing its CPU is negative. A shape that Covers does not hold for has no fit
// there; of one that it does hold for, FitsOn says the rest. It only reads.
func (s *State) Room(node uint32) Need {
	if !s.Known(node) {
		return Need{CPU: -1}
	}
	n := s.nodes.Get(node)
	if !n.indexed() {
		return Need{CPU: -1}
	}
	room := Need{CPU: n.freeCPU, Memory: n.freeMem}
	for u := &n.unit; u != nil; u = s.next(u) {
		if g := bits.OnesCount64(u.whole); g > 0 {
			room.Size = max(room.Size, uint8(g)+1)
		} else if u.parts != 0 {
			room.Size = max(room.Size, 1)
		}
	}
	return room
}

// Covers reports whether room a may meet a need of b.
func (a *Need) Covers(b *Need) bool {
	return a.CPU >= b.CPU && a.Memory >= b.Memory && a.Size >= b.Size
}

// Least returns the least of both in each part.
func (a *Need) Least(b *Need) Need {
	return Need{min(a.CPU, b.CPU), min(a.Memory, b.Memory), min(a.Size, b.Size)}
}
