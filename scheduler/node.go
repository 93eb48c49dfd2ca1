package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A NodeInfo is what the index is told of a node.
type NodeInfo struct {
	Zone    string // empty means "default"
	Labels  map[string]string
	CPU     int64 // milli
	Memory  int64 // bytes
	Price   gpuai.Micros
	Devices []DeviceInfo // at most gpuai.MaxGPUs; a device's number is its place
}

// A DeviceInfo is one device of a node.
type DeviceInfo struct {
	Vendor, Model string
	Memory        int64
	Usable        bool // takes new leases
}

// A nodeRec is a node by its slot.
type nodeRec struct {
	capCPU, capMem   int64
	freeCPU, freeMem int64  // below 0 when a node came back smaller than what runs on it
	rows             uint32 // first row of devices + 1
	unit             uint32 // first unit + 1
	devices          uint8
	known            bool
	open             bool
}

// A unitRec is the devices of one kind of one node.
type unitRec struct {
	devs   uint64
	usable uint64
	whole  uint64 // usable and free as a whole
	node   uint32
	next   uint32 // unit of the node + 1, by first device
	pool   uint16
}

const rowLen = 8

// A rowRec is what is free of eight devices, in milli.
type rowRec struct {
	free [rowLen]int16
	next uint32 // row of the node + 1
}

// SetNode registers a node, or defines it anew: everything of it is free, and
// it is closed until SetOpen. Who defines a node anew takes what its leases
// hold with Hold before it opens it.
func (s *State) SetNode(slot uint32, n *NodeInfo) gpuai.Code {
	if !n.valid() || slot >= MaxNodes {
		return gpuai.InvalidSpec
	}
	mark := s.space.Mark()
	s.nodes.Grow(slot + 1)
	old := *s.nodes.Get(slot)
	if old.known {
		s.unlist(slot)
	}
	var rec nodeRec
	rec.capCPU, rec.capMem, rec.freeCPU, rec.freeMem = n.CPU, n.Memory, n.CPU, n.Memory
	rec.known, rec.devices = true, uint8(len(n.Devices))
	rec.rows = s.makeRows(len(n.Devices))
	first, code := s.makeUnits(slot, n)
	if code != gpuai.OK {
		s.space.RollbackTo(mark)
		return code
	}
	rec.unit = first
	// The old units go last, so that a pool that stays keeps its number.
	s.dropUnits(old.unit)
	s.dropRows(old.rows)
	*s.nodes.Mut(slot) = rec
	s.list(slot)
	if !old.known {
		s.sums.Mut().nodes++
	}
	return gpuai.OK
}

func (n *NodeInfo) valid() bool {
	ok := n.CPU >= 0 && n.CPU < int64(gpuai.MaxCPU) && n.Memory >= 0 && n.Memory < int64(gpuai.MaxMemory) &&
		len(n.Devices) <= gpuai.MaxGPUs && len(n.Labels) <= gpuai.MaxLabels
	for i := range n.Devices[:min(len(n.Devices), gpuai.MaxGPUs)] {
		ok = ok && n.Devices[i].Memory >= 0
	}
	return ok
}

// RemoveNode forgets a node. Its leases are gone, or their ends do not matter.
func (s *State) RemoveNode(slot uint32) {
	if !s.Known(slot) {
		return
	}
	s.unlist(slot)
	old := *s.nodes.Get(slot)
	s.dropUnits(old.unit)
	s.dropRows(old.rows)
	*s.nodes.Mut(slot) = nodeRec{}
	s.sums.Mut().nodes--
}

// Known reports whether a node is registered.
func (s *State) Known(slot uint32) bool {
	return slot < s.nodes.Len() && s.nodes.Get(slot).known
}

// SetOpen says whether a node takes new placements.
func (s *State) SetOpen(slot uint32, open bool) {
	if !s.Known(slot) || s.nodes.Get(slot).open == open {
		return
	}
	if open {
		s.nodes.Mut(slot).open = true
		s.index(slot)
		return
	}
	s.unindex(slot)
	s.nodes.Mut(slot).open = false
}

// SetDevice says whether a device takes new placements. What leases hold of it
// stays.
func (s *State) SetDevice(slot uint32, dev uint8, usable bool) {
	if !s.Known(slot) || dev >= s.nodes.Get(slot).devices {
		return
	}
	u, bit := s.unitWith(slot, dev), uint64(1)<<dev
	if s.units.Get(u).usable&bit != 0 == usable {
		return
	}
	s.unindex(slot)
	r := s.units.Mut(u)
	r.usable ^= bit
	s.wholeAgain(slot, r, bit)
	s.index(slot)
}

// unitWith returns the unit that a device of a node belongs to.
func (s *State) unitWith(slot uint32, dev uint8) uint32 {
	u := s.nodes.Get(slot).unit
	for u != 0 && s.units.Get(u-1).devs>>dev&1 == 0 {
		u = s.units.Get(u - 1).next
	}
	return u - 1
}

// wholeAgain sets the bits of a unit's wholly free devices among devs anew.
func (s *State) wholeAgain(slot uint32, u *unitRec, devs uint64) {
	u.whole &^= devs
	for m := devs & u.usable; m != 0; m &= m - 1 {
		if d := uint8(bits.TrailingZeros64(m)); s.free(slot, d) == int16(gpuai.WholeDevice) {
			u.whole |= 1 << d
		}
	}
}

// row returns the row of a node's device.
func (s *State) row(slot uint32, dev uint8) uint32 {
	r := s.nodes.Get(slot).rows
	for ; dev >= rowLen; dev -= rowLen {
		r = s.rows.Get(r - 1).next
	}
	return r - 1
}

// free returns what is free of a device, in milli.
func (s *State) free(slot uint32, dev uint8) int16 {
	return s.rows.Get(s.row(slot, dev)).free[dev%rowLen]
}

// makeRows returns rows for n devices that are free.
func (s *State) makeRows(n int) (first uint32) {
	for at := (n + rowLen - 1) / rowLen * rowLen; at > 0; at -= rowLen {
		i, _ := s.rowSlots.Alloc()
		s.rows.Grow(i + 1)
		r := s.rows.Mut(i)
		*r = rowRec{next: first}
		for d := range r.free {
			if at-rowLen+d < n {
				r.free[d] = int16(gpuai.WholeDevice)
			}
		}
		first = i + 1
	}
	return first
}

func (s *State) dropRows(first uint32) {
	for first != 0 {
		next := s.rows.Get(first - 1).next
		*s.rows.Mut(first - 1) = rowRec{}
		s.rowSlots.Free(first - 1)
		first = next
	}
}

// makeUnits makes the units of a node and joins their pools. After an error
// the caller rolls back.
func (s *State) makeUnits(slot uint32, n *NodeInfo) (first uint32, code gpuai.Code) {
	keys := gpuai.EnvNames(n.Labels)
	last := uint32(0)
	var buf []byte
	for d := 0; d < max(len(n.Devices), 1); d++ {
		k, rec := kind{none: true}, unitRec{node: slot}
		if len(n.Devices) > 0 {
			if k, rec = unitOf(n, d); rec.devs == 0 {
				continue // of a unit that is there
			}
			rec.node = slot
		}
		buf = appendPool(buf[:0], n, keys, k)
		if rec.pool, code = s.joinPool(buf); code != gpuai.OK {
			return 0, code
		}
		i, _ := s.unitSlots.Alloc()
		s.units.Grow(i + 1)
		*s.units.Mut(i) = rec
		if last == 0 {
			first = i + 1
		} else {
			s.units.Mut(last - 1).next = i + 1
		}
		last = i + 1
	}
	return first, gpuai.OK
}

// unitOf returns the unit that begins with device d: all devices of its kind.
// It has none when an earlier device begins it.
func unitOf(n *NodeInfo, d int) (kind, unitRec) {
	k := kind{vendor: n.Devices[d].Vendor, model: n.Devices[d].Model, memory: n.Devices[d].Memory}
	var r unitRec
	for i := range n.Devices {
		x := &n.Devices[i]
		if x.Vendor != k.vendor || x.Model != k.model || x.Memory != k.memory {
			continue
		}
		if i < d {
			return k, unitRec{}
		}
		r.devs |= 1 << i
		if x.Usable {
			r.usable |= 1 << i
		}
	}
	r.whole = r.usable
	return k, r
}

func (s *State) dropUnits(first uint32) {
	for first != 0 {
		u := *s.units.Get(first - 1)
		s.leavePool(uint32(u.pool))
		*s.units.Mut(first - 1) = unitRec{}
		s.unitSlots.Free(first - 1)
		first = u.next
	}
}
