package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A NodeInfo is what the index is told of a node.
type NodeInfo struct {
	Zone string // empty means "default"
	// Rack and NVLinkDomain are of the zone; empty means none.
	Rack, NVLinkDomain string

	Labels  map[string]string
	CPU     int64 // milli
	Memory  int64 // bytes
	Scratch int64 // bytes it lends to tasks; 0: it is not counted
	Price   gpuai.Micros
	// Closes is the minute since 1970, by the wall clock, from which on the node may
	// not be used; 0: none. See Bar.
	Closes  uint32
	Devices []DeviceInfo // at most gpuai.MaxGPUs; a device's number is its place
}

// A DeviceInfo is one device of a node.
type DeviceInfo struct {
	Vendor, Model string
	Memory        int64
	Usable        bool // takes new leases
	Place         gpuai.DevicePlace
}

// A nodeRec is a node by its slot. What is needed of nearly all nodes is here:
// one kind of devices, and eight of them.
type nodeRec struct {
	capCPU, capMem   int64
	freeCPU, freeMem int64 // below 0 when a node came back smaller than what runs on it
	scratch, lent    int64 // bytes of scratch space, see scratch.go
	unit             unitRec
	left             devRow // free of the first devices
	rows             uint32 // row of the further ones + 1
	devices          uint8
	known            bool
	open             bool
	seated           bool // in a rack or an NVLink domain
}

// A unitRec is the devices of one kind of one node.
type unitRec struct {
	devs   uint64
	usable uint64
	whole  uint64 // usable and free as a whole
	parts  uint64 // usable and free in part
	next   uint32 // further unit of the node + 1, by first device
	pool   uint16
	placed bool // it is known where its devices are
}

const rowLen = 8

// A devRow is what is free of eight devices, in milli.
type devRow [rowLen]int16

// A rowRec is a row of devices beyond the first.
type rowRec struct {
	left devRow
	next uint32 // row of the node + 1
}

// next returns the unit of a node that follows u, or nil.
func (s *State) next(u *unitRec) *unitRec {
	if u.next == 0 {
		return nil
	}
	return s.units.Get(u.next - 1)
}

// free returns what is free of a node's device, in milli.
func (s *State) free(n *nodeRec, dev uint8) int16 {
	if dev < rowLen {
		return n.left[dev]
	}
	return s.rows.Get(s.row(n, dev)).left[dev%rowLen]
}

// row returns the row of a device beyond the first row.
func (s *State) row(n *nodeRec, dev uint8) uint32 {
	r := n.rows
	for ; dev >= 2*rowLen; dev -= rowLen {
		r = s.rows.Get(r - 1).next
	}
	return r - 1
}

// SetNode registers a node, or defines it anew: everything of it is free, and
// it is closed until SetOpen. Who defines a node anew takes what its leases
// hold with Hold before it opens it.
func (s *State) SetNode(slot uint32, n *NodeInfo) gpuai.Code {
	if !n.valid() || slot >= MaxNodes {
		return gpuai.InvalidSpec
	}
	mark := s.space.Mark()
	s.dropReclaim(slot)
	s.nodes.Grow(slot + 1)
	old := *s.nodes.Get(slot)
	if old.known {
		s.unlist(slot)
	}
	rec := nodeRec{
		capCPU: n.CPU, capMem: n.Memory, freeCPU: n.CPU, freeMem: n.Memory, scratch: n.Scratch,
		devices: uint8(len(n.Devices)), known: true,
	}
	s.freeAll(&rec)
	if code := s.makeUnits(&rec.unit, n); code != gpuai.OK {
		s.space.RollbackTo(mark)
		return code
	}
	joined, code := s.joinDomains(n)
	if code != gpuai.OK {
		s.space.RollbackTo(mark)
		return code
	}
	rec.seated = joined != [numLevelsKept]uint32{}
	// The old units go last, so that a pool that stays keeps its number.
	s.dropUnits(&old)
	s.dropRows(old.rows)
	*s.nodes.Mut(slot) = rec
	s.setPlaces(slot, n)
	s.sit(slot, joined)
	s.list(slot)
	if !old.known {
		s.sums.Mut().nodes++
	}
	return gpuai.OK
}

func (n *NodeInfo) valid() bool {
	ok := n.Scratch >= 0 && n.CPU >= 0 && n.CPU < int64(gpuai.MaxCPU) && n.Memory >= 0 && n.Memory < int64(gpuai.MaxMemory) &&
		len(n.Devices) <= gpuai.MaxGPUs && len(n.Labels) <= gpuai.MaxLabels
	for i := range n.Devices[:min(len(n.Devices), gpuai.MaxGPUs)] {
		p := &n.Devices[i].Place
		ok = ok && n.Devices[i].Memory >= 0 && p.LinkIsland <= gpuai.MaxGPUs && p.PCIeGroup <= gpuai.MaxGPUs
	}
	return ok
}

// RemoveNode forgets a node. Its leases are gone, or their ends do not matter.
func (s *State) RemoveNode(slot uint32) {
	if !s.Known(slot) {
		return
	}
	s.dropReclaim(slot)
	s.unlist(slot)
	s.sit(slot, [numLevelsKept]uint32{})
	old := *s.nodes.Get(slot)
	s.dropUnits(&old)
	s.dropRows(old.rows)
	s.dropPlaces(slot)
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
	s.dropReclaim(slot)
	s.unindex(slot)
	s.nodes.Mut(slot).open = false
}

// SetDevice says whether a device takes new placements. What leases hold of it
// stays.
func (s *State) SetDevice(slot uint32, dev uint8, usable bool) {
	if !s.Known(slot) || dev >= s.nodes.Get(slot).devices {
		return
	}
	bit := uint64(1) << dev
	if s.unitWith(slot, bit).usable&bit != 0 == usable {
		return
	}
	s.unindex(slot)
	n := s.nodes.Mut(slot)
	u := &n.unit
	if at := n.unitAt(s, bit); at != 0 {
		u = s.units.Mut(at - 1)
	}
	u.usable ^= bit
	s.freeAgain(n, u, bit)
	s.index(slot)
}

// unitWith returns the unit that a device of a node belongs to, for reading.
func (s *State) unitWith(slot uint32, bit uint64) *unitRec {
	n := s.nodes.Get(slot)
	if at := n.unitAt(s, bit); at != 0 {
		return s.units.Get(at - 1)
	}
	return &n.unit
}

// unitAt returns the further unit + 1 that a device belongs to; 0 is the first.
func (n *nodeRec) unitAt(s *State, bit uint64) uint32 {
	if n.unit.devs&bit != 0 {
		return 0
	}
	at := n.unit.next
	for at != 0 && s.units.Get(at-1).devs&bit == 0 {
		at = s.units.Get(at - 1).next
	}
	return at
}

// freeAgain sets a unit's bits of wholly and partly free devices among devs
// anew.
func (s *State) freeAgain(n *nodeRec, u *unitRec, devs uint64) {
	u.whole &^= devs
	u.parts &^= devs
	for m := devs & u.usable; m != 0; m &= m - 1 {
		d := uint8(bits.TrailingZeros64(m))
		switch f := s.free(n, d); {
		case f == int16(gpuai.WholeDevice):
			u.whole |= 1 << d
		case f > 0 && f < int16(gpuai.WholeDevice):
			u.parts |= 1 << d
		}
	}
}

// freeAll makes all devices of a new node free.
func (s *State) freeAll(n *nodeRec) {
	count := int(n.devices)
	for at := (count - 1) / rowLen * rowLen; at > 0; at -= rowLen {
		i, _ := s.rowSlots.Alloc()
		s.rows.Grow(i + 1)
		r := s.rows.Mut(i)
		*r = rowRec{left: freeRow(count - at), next: n.rows}
		n.rows = i + 1
	}
	n.left = freeRow(count)
}

// freeRow returns a row whose first n devices are free, and has no others.
func freeRow(n int) (r devRow) {
	for d := range min(n, rowLen) {
		r[d] = int16(gpuai.WholeDevice)
	}
	return r
}

func (s *State) dropRows(first uint32) {
	for first != 0 {
		next := s.rows.Get(first - 1).next
		*s.rows.Mut(first - 1) = rowRec{}
		s.rowSlots.Free(first - 1)
		first = next
	}
}

// makeUnits makes the units of a node, of which the first is stored in first,
// and joins their pools. After an error the caller rolls back.
func (s *State) makeUnits(first *unitRec, n *NodeInfo) gpuai.Code {
	var keys []string
	if len(n.Labels) > 0 {
		keys = gpuai.EnvNames(n.Labels)
	}
	var code gpuai.Code
	if len(n.Devices) == 0 {
		first.pool, code = s.joinPool(appendPool(nil, n, keys, kind{none: true}))
		return code
	}
	var all uint64    // devices of units that are there
	last := uint32(0) // further unit + 1
	for d := range n.Devices {
		if all>>d&1 != 0 {
			continue
		}
		k, rec := unitOf(n, d)
		all |= rec.devs
		s.unitBuf = appendPool(s.unitBuf[:0], n, keys, k)
		if rec.pool, code = s.joinPool(s.unitBuf); code != gpuai.OK {
			return code
		}
		if d == 0 {
			*first = rec
			continue
		}
		i, _ := s.unitSlots.Alloc()
		s.units.Grow(i + 1)
		*s.units.Mut(i) = rec
		if last == 0 {
			first.next = i + 1
		} else {
			s.units.Mut(last - 1).next = i + 1
		}
		last = i + 1
	}
	return gpuai.OK
}

// unitOf returns the unit that begins with device d: all devices of its kind.
func unitOf(n *NodeInfo, d int) (kind, unitRec) {
	k := kind{vendor: n.Devices[d].Vendor, model: n.Devices[d].Model, memory: n.Devices[d].Memory}
	var r unitRec
	for i := d; i < len(n.Devices); i++ {
		x := &n.Devices[i]
		if x.Memory != k.memory || x.Model != k.model || x.Vendor != k.vendor {
			continue
		}
		r.devs |= 1 << i
		if x.Usable {
			r.usable |= 1 << i
		}
	}
	r.whole = r.usable
	return k, r
}

func (s *State) dropUnits(n *nodeRec) {
	if !n.known {
		return
	}
	s.leavePool(uint32(n.unit.pool))
	for at := n.unit.next; at != 0; {
		u := *s.units.Get(at - 1)
		s.leavePool(uint32(u.pool))
		*s.units.Mut(at - 1) = unitRec{}
		s.unitSlots.Free(at - 1)
		at = u.next
	}
}
