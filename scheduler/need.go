package scheduler

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A Need is a bound of what one task of a shape takes, to tell without a search
// that it does not fit: its size is 0 without a device, 1 for a share of one,
// and k+1 for k whole ones. Pools has a bit, of pool number modulo 64, for each
// pool that the shape passes.
type Need struct {
	CPU, Memory int64
	Pools       uint64
	Size        uint8
}

// Everything is room for any need that some pool passes, or none.
var Everything = Need{CPU: math.MaxInt64, Memory: math.MaxInt64, Pools: math.MaxUint64, Size: math.MaxUint8}

// Need returns the bound of a shape. It holds until PoolChanges is another. It
// only reads.
func (s *State) Need(id ShapeID) Need {
	r := s.shapes.Get(uint32(id))
	n := Need{CPU: r.cpu, Memory: int64(r.mem)}
	switch {
	case r.share != 0:
		n.Size = 1
	case r.count > 0:
		n.Size = uint8(r.count) + 1
	}
	sum := s.sums.Get()
	for w := range sum.words {
		live, pass := uint64(0), uint64(0)
		for t := sum.tiers; t != 0; t &= t - 1 {
			live |= *s.tiers.Get(uint32(bits.TrailingZeros64(t))*poolWords + w)
		}
		for _, f := range r.filters[:r.alts] {
			pass |= *s.masks.Get(f*poolWords + w)
		}
		n.Pools |= live & pass
	}
	return n
}

// PoolChanges counts the pools that came or went since s was made or restored.
func (s *State) PoolChanges() uint32 { return s.sums.Get().changes }

// Room returns the largest need that a node, open or not, may meet now; of one
// that has nothing its CPU is negative. A shape that Covers does not hold for has no fit
// there; of one that it does hold for, FitsOn says the rest. It only reads.
func (s *State) Room(node uint32) Need {
	if !s.Known(node) {
		return Need{CPU: -1}
	}
	n := s.nodes.Get(node)
	if n.freeCPU < 0 || n.freeMem < 0 {
		return Need{CPU: -1}
	}
	room := Need{CPU: n.freeCPU, Memory: n.freeMem}
	for u := &n.unit; u != nil; u = s.next(u) {
		room.Pools |= 1 << (u.pool & 63)
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
	return a.CPU >= b.CPU && a.Memory >= b.Memory && a.Size >= b.Size && (a.Pools&b.Pools != 0 || a.Pools == math.MaxUint64)
}

// Least returns a need that all room covers which covers one of both.
func (a *Need) Least(b *Need) Need {
	return Need{min(a.CPU, b.CPU), min(a.Memory, b.Memory), a.Pools | b.Pools, min(a.Size, b.Size)}
}

// A Free is what is free of a node, or would be: to ask what if.
type Free struct {
	cpu, memory int64
	scratch     int64
	left        [gpuai.MaxGPUs]int16
}

// FreeOf sets f to what is free of a node. It only reads.
func (s *State) FreeOf(node uint32, f *Free) {
	n := s.nodes.Get(node)
	f.cpu, f.memory, f.scratch = n.freeCPU, n.freeMem, n.freeScratch()
	for d := range n.devices {
		f.left[d] = s.free(n, d)
	}
}

// Give adds what a lease holds.
func (f *Free) Give(devices uint64, share uint16, cpu, memory int64) {
	f.move(devices, milli(share), cpu, memory)
}

// Lend takes off scratch space that a lease would hold, or adds what one holds.
func (f *Free) Lend(bytes int64) {
	if f.scratch != math.MaxInt64 {
		f.scratch -= bytes
	}
}

// Take takes off what a lease would hold.
func (f *Free) Take(devices uint64, share uint16, cpu, memory int64) {
	f.move(devices, -milli(share), -cpu, -memory)
}

func (f *Free) move(devices uint64, by int16, cpu, memory int64) {
	f.cpu += cpu
	f.memory += memory
	for m := devices; m != 0; m &= m - 1 {
		f.left[bits.TrailingZeros64(m)] += by
	}
}

// Admits reports whether a node, empty and healthy, could take a task of a
// shape. It only reads.
func (s *State) Admits(id ShapeID, node uint32) bool {
	r := s.shapes.Get(uint32(id))
	if !s.Known(node) {
		return false
	}
	n := s.nodes.Get(node)
	if n.capCPU < r.cpu || uint64(n.capMem) < r.mem || n.scratch != 0 && n.scratch < r.scratch {
		return false
	}
	for u := &n.unit; u != nil; u = s.next(u) {
		if bits.OnesCount64(u.devs) >= int(r.count) && s.passesAny(r, uint32(u.pool)) {
			return true
		}
	}
	return false
}

// TasksIn returns how many tasks of a shape a node would take with so much free,
// open or not. It only reads.
func (s *State) TasksIn(id ShapeID, node uint32, f *Free) uint32 {
	r, n := s.shapes.Get(uint32(id)), s.nodes.Get(node)
	if f.cpu < 0 || f.memory < 0 {
		return 0
	}
	most := int64(gpuai.MaxTasks)
	if r.cpu > 0 {
		most = min(most, f.cpu/r.cpu)
	}
	if r.mem > 0 {
		most = min(most, f.memory/int64(r.mem))
	}
	most = min(most, int64(r.lentBy(f.scratch)))
	tasks, any := int64(0), false
	for u := &n.unit; u != nil; u = s.next(u) {
		if !s.passesAny(r, uint32(u.pool)) {
			continue
		}
		any = true
		whole := int64(0)
		for m := u.usable; m != 0; m &= m - 1 {
			left := f.left[bits.TrailingZeros64(m)]
			if left >= int16(gpuai.WholeDevice) {
				whole++
			}
			if r.share != 0 && left > 0 {
				tasks += int64(left / int16(r.share))
			}
		}
		if r.share == 0 && r.count > 0 {
			tasks += whole / int64(r.count)
		}
	}
	if r.count == 0 && r.share == 0 && any {
		tasks = most
	}
	return uint32(min(tasks, most))
}

// TakeTasks takes what some tasks of a shape need off what is free of a node: of
// each unit the first devices that do, for a share the one with the least left.
// It reports false when there is not enough, and what is free is then no more of
// use.
func (s *State) TakeTasks(id ShapeID, node uint32, f *Free, tasks uint32) bool {
	r, n := s.shapes.Get(uint32(id)), s.nodes.Get(node)
	if s.TasksIn(id, node, f) < tasks {
		return false
	}
	f.cpu -= int64(tasks) * r.cpu
	f.memory -= int64(tasks) * int64(r.mem)
	f.Lend(int64(tasks) * r.scratch)
	for u := &n.unit; u != nil && tasks > 0 && r.count > 0; u = s.next(u) {
		if !s.passesAny(r, uint32(u.pool)) {
			continue
		}
		for tasks > 0 {
			devices := s.pick(r, node, u, f)
			if devices == 0 {
				break
			}
			f.move(devices, -milli(r.share), 0, 0)
			tasks--
		}
	}
	return tasks == 0 || r.count == 0
}

// pick returns the devices of a unit that a task would have; 0 when it has none.
func (s *State) pick(r *shapeRec, node uint32, u *unitRec, f *Free) uint64 {
	var whole uint64
	best, at := int16(gpuai.WholeDevice), -1
	for m := u.usable; m != 0; m &= m - 1 {
		d := bits.TrailingZeros64(m)
		switch left := f.left[d]; {
		case left >= int16(gpuai.WholeDevice):
			whole |= 1 << d
		case r.share != 0 && left >= int16(r.share) && left < best:
			best, at = left, d
		}
	}
	switch {
	case at >= 0:
		return 1 << at
	case bits.OnesCount64(whole) < int(r.count):
		return 0
	}
	return s.choose(node, u, whole, r.count)
}
