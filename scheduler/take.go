package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A Fit is a place for one task.
type Fit struct {
	Node    uint32
	Devices uint64 // by their numbers
	Share   uint16 // milli of the one device; 0: the whole devices
	Alt     uint8  // which GPU alternative it satisfies
}

// Take takes what a task of a shape needs at a place that Find or FitsOn
// found, with nothing changed since.
func (s *State) Take(f Fit, id ShapeID) {
	r := s.shapes.Get(uint32(id))
	s.Hold(f.Node, f.Devices, f.Share, r.cpu, int64(r.mem))
	s.Lend(f.Node, r.scratch)
}

// Hold takes what a lease holds of a node: a share of each of the devices in
// milli, where 0 means all of it, and CPU and memory. The node may be closed,
// and what is taken need not be free: leases that outlive a change of their
// node hold what they hold.
func (s *State) Hold(node uint32, devices uint64, share uint16, cpu, mem int64) {
	s.move(node, devices, -milli(share), -cpu, -mem)
}

// Give gives back what Take or Hold took with the same arguments.
func (s *State) Give(node uint32, devices uint64, share uint16, cpu, mem int64) {
	s.move(node, devices, milli(share), cpu, mem)
}

// milli returns what a lease of a share holds of a device.
func milli(share uint16) int16 {
	if share == 0 || share > uint16(gpuai.WholeDevice) {
		return int16(gpuai.WholeDevice)
	}
	return int16(share)
}

// move changes what is free of a node.
func (s *State) move(slot uint32, devices uint64, by int16, cpu, mem int64) {
	if !s.Known(slot) {
		return
	}
	before := s.counted(slot)
	s.leave(slot)
	n := s.nodes.Mut(slot)
	n.freeCPU += cpu
	n.freeMem += mem
	devices &= 1<<n.devices - 1
	for m := devices; m != 0; m &= m - 1 {
		if d := uint8(bits.TrailingZeros64(m)); d < rowLen {
			n.left[d] += by
		} else {
			s.rows.Mut(s.row(n, d)).left[d%rowLen] += by
		}
	}
	s.freeAgain(n, &n.unit, devices&n.unit.devs)
	for at := n.unit.next; at != 0; at = s.units.Get(at - 1).next {
		if mine := devices & s.units.Get(at-1).devs; mine != 0 {
			s.freeAgain(n, s.units.Mut(at-1), mine)
		}
	}
	s.enter(slot)
	s.recount(slot, before, s.counted(slot))
}
