package scheduler

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
)

// Displace decides which holdings of a node go so that a task of a shape has
// room, and where it will be: hs come with the most worth sparing first, those
// of one Unit beside each other. Each is spared in this order if the task still
// has room without its going, so who goes is as little as can be, and the first
// are spared before the later ones. gone, of the length of hs, tells who goes;
// holdings that are going anyway are never marked. It only reads; false when
// there is no room even if all go. Whether the node is open is the caller's.
func (s *State) Displace(id ShapeID, node uint32, hs []Holding, gone []bool) (Fit, bool) {
	if !s.Known(node) {
		return Fit{}, false
	}
	d := s.displacing(id, node)
	return d.decide(node, hs, gone)
}

// DisplaceUncounted is Displace that takes no notice of scratch space.
func (s *State) DisplaceUncounted(id ShapeID, node uint32, hs []Holding, gone []bool) (Fit, bool) {
	if !s.Known(node) {
		return Fit{}, false
	}
	d := s.displacing(id, node)
	d.now.scratch = math.MaxInt64
	return d.decide(node, hs, gone)
}

// A displacing is what a choice of those who go is made of.
type displacing struct {
	*State
	r   *shapeRec
	n   *nodeRec
	now space
}

func (s *State) displacing(id ShapeID, node uint32) displacing {
	n := s.nodes.Get(node)
	return displacing{s, s.shapes.Get(uint32(id)), n, s.spaceOf(n)}
}

func (d *displacing) decide(node uint32, hs []Holding, gone []bool) (Fit, bool) {
	p := d.now
	for i := range hs {
		p.give(&hs[i], 1)
		gone[i] = false
	}
	if _, _, ok := d.roomIn(d.r, d.n, &p); !ok {
		return Fit{}, false
	}
	for i := 0; i < len(hs); {
		end := unitEnd(hs, i)
		if !hs[i].Going {
			d.spare(d.r, d.n, &p, hs[i:end], gone[i:end])
		}
		i = end
	}
	alt, u, _ := d.roomIn(d.r, d.n, &p)
	return Fit{Node: node, Devices: d.devicesFor(node, u, &p), Share: d.r.share, Alt: alt}, true
}

// unitEnd returns where the holdings that go together with the i-th end.
func unitEnd(hs []Holding, i int) int {
	end := i + 1
	for hs[i].Unit != 0 && end < len(hs) && hs[end].Unit == hs[i].Unit {
		end++
	}
	return end
}

// spare leaves holdings where they are if the shape has room without them, and
// marks them as gone if not.
func (s *State) spare(r *shapeRec, n *nodeRec, p *space, hs []Holding, gone []bool) {
	for i := range hs {
		p.give(&hs[i], -1)
	}
	if _, _, ok := s.roomIn(r, n, p); ok {
		return
	}
	for i := range hs {
		p.give(&hs[i], 1)
		gone[i] = true
	}
}

// roomIn returns the first unit of a node, by alternative, that would have room
// for a shape.
func (s *State) roomIn(r *shapeRec, n *nodeRec, p *space) (alt uint8, u *unitRec, ok bool) {
	if p.cpu < r.cpu || p.mem < 0 || uint64(p.mem) < r.mem || r.scratch != 0 && p.scratch < r.scratch {
		return 0, nil, false
	}
	for alt := range r.alts {
		for u := &n.unit; u != nil; u = s.next(u) {
			if !s.passes(r, alt, uint32(u.pool)) {
				continue
			}
			whole, part := p.unitFree(u)
			if whole >= uint64(r.count) || r.share != 0 && part >= int16(r.share) {
				return alt, u, true
			}
		}
	}
	return 0, nil, false
}

// devicesFor picks devices of a unit that would have room: for a share that
// with the least left, else those that are free already before those that will
// be; the lowest first, or where their places are known the nearest.
func (x *displacing) devicesFor(node uint32, u *unitRec, p *space) uint64 {
	r := x.r
	if r.share != 0 {
		best := -1
		for m := u.usable; m != 0; m &= m - 1 {
			d := bits.TrailingZeros64(m)
			if f := p.left[d]; f >= int16(r.share) && (best < 0 || f < p.left[best]) {
				best = d
			}
		}
		return 1 << best
	}
	var free, later uint64
	for m := u.usable; m != 0; m &= m - 1 {
		d := bits.TrailingZeros64(m)
		switch full := int16(gpuai.WholeDevice); {
		case x.now.left[d] == full:
			free |= 1 << d
		case p.left[d] == full:
			later |= 1 << d
		}
	}
	switch n := uint16(bits.OnesCount64(free)); {
	case n >= r.count:
		return x.choose(node, u, free, r.count)
	case u.placed:
		return x.choose(node, u, free|later, r.count)
	default:
		return free | lowest(later, r.count-n)
	}
}

// A Room is what is free of a node; below 0 where more is taken than there is.
type Room struct{ space }

// Free returns what is free of a node. It only reads.
func (s *State) Free(node uint32) Room { return Room{s.spaceOf(s.nodes.Get(node))} }

// Add adds what somebody holds to what is free.
func (r *Room) Add(devices uint64, share uint16, cpu, memory int64) {
	r.give(&Holding{Devices: devices, Share: share, CPU: cpu, Memory: memory}, 1)
}

// Lend takes off scratch space that somebody would hold, or adds what one holds.
func (r *Room) Lend(bytes int64) { r.give(&Holding{Scratch: bytes}, -1) }

// Lends reports whether so much scratch space is free.
func (r *Room) Lends(bytes int64) bool { return bytes == 0 || r.scratch >= bytes }

// Has reports whether so much is free.
func (r *Room) Has(devices uint64, share uint16, cpu, memory int64) bool {
	for m := devices; m != 0; m &= m - 1 {
		if r.left[bits.TrailingZeros64(m)] < milli(share) {
			return false
		}
	}
	return r.cpu >= cpu && r.mem >= memory
}
