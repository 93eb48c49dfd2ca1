package scheduler

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gpuai/gpuai"
)

// What the index cannot learn from the nodes and leases again: the numbers of
// pools and shapes, which are history and reach decisions.

var le = binary.LittleEndian

// errState is what RestoreState wraps.
var errState = errors.New("the scheduler's part of the snapshot does not fit together")

// AppendState appends the pools in the order of their numbers, and the shapes
// with their needs and users: those in use by number, then the idle ones, the
// longest idle first; then the racks and NVLink domains, when there are any.
func (s *State) AppendState(b []byte) []byte {
	b = le.AppendUint32(b, s.poolSlots.Len())
	var buf []byte
	for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
		buf = s.poolBytes.Append(buf[:0], s.pools.Get(p).def)
		b = appendStr(le.AppendUint16(b, uint16(p)), buf)
	}
	count, domains := s.shapeSlots.Len(), s.topo[levelNVLink].slots.Len()+s.topo[levelRack].slots.Len() > 0
	if domains {
		count |= domainsFollow
	}
	b = le.AppendUint32(b, count)
	for i, ok := s.shapeSlots.Next(0); ok; i, ok = s.shapeSlots.Next(i + 1) {
		if s.shapes.Get(i).refs > 0 {
			b = s.appendShape(b, i)
		}
	}
	for i := s.sums.Get().first; i != 0; i = s.shapes.Get(i.id()).next {
		b = s.appendShape(b, i.id())
	}
	if domains {
		b = s.appendDomains(b)
	}
	return s.appendPacking(b)
}

// domainsFollow is set in the number of shapes when domains follow them.
const domainsFollow = 1 << 31

func (s *State) appendDomains(b []byte) []byte {
	for l := range s.topo {
		t := &s.topo[l]
		b = le.AppendUint32(b, t.slots.Len())
		for d, ok := t.slots.Next(0); ok; d, ok = t.slots.Next(d + 1) {
			b = appendStr(le.AppendUint16(b, uint16(d)), s.poolBytes.Append(nil, t.domains.Get(d).def))
		}
	}
	return b
}

func (s *State) restoreDomains(c *cursor) error {
	for l := range s.topo {
		for n := c.u32(); n > 0; n-- {
			d, def := uint32(c.u16()), c.str()
			if c.short || d >= MaxDomains || s.topo[l].slots.Has(d) || !validDomain(def) {
				return fmt.Errorf("domain %d: %w", d, errState)
			}
			if twin, ok := s.findDomain(l, def); ok {
				return fmt.Errorf("domain %d is domain %d: %w", d, twin, errState)
			}
			if code := s.makeDomain(l, d, def); code != gpuai.OK {
				return fmt.Errorf("domain %d: %w: %v", d, errState, code)
			}
		}
	}
	if s.topo[levelNVLink].slots.Len()+s.topo[levelRack].slots.Len() == 0 {
		return fmt.Errorf("it is said to have domains: %w", errState)
	}
	return nil
}

func (s *State) appendShape(b []byte, i uint32) []byte {
	r := s.shapes.Get(i)
	b = le.AppendUint32(b, i)
	b = le.AppendUint32(b, r.refs)
	b = le.AppendUint64(b, r.mem)
	b = le.AppendUint64(b, uint64(r.cpu))
	b = append(b, byte(r.count), r.alts)
	b = le.AppendUint16(b, r.share)
	b = appendStr(b, s.shapeBytes.Append(nil, r.key))
	for a := range r.alts {
		b = appendStr(b, s.shapeBytes.Append(nil, s.filters.Get(r.filters[a]).def))
	}
	return b
}

// RestoreState gives an empty index what AppendState wrote. SetNode for every
// node, Hold for every live lease and SetOpen make the rest. A pool that gets
// no node stays for ever; Check tells of it.
func (s *State) RestoreState(b []byte) error {
	c := cursor{b: b}
	for n := c.u32(); n > 0; n-- {
		number, def := c.u16(), c.str()
		if c.short || number >= MaxPools || s.poolSlots.Has(uint32(number)) || !validPool(def) {
			return fmt.Errorf("pool %d: %w", number, errState)
		}
		if twin, ok := s.findPool(def); ok {
			return fmt.Errorf("pool %d is pool %d: %w", number, twin, errState)
		}
		if code := s.makePool(uint32(number), def); code != gpuai.OK {
			return fmt.Errorf("pool %d: %w: %v", number, errState, code)
		}
	}
	count := c.u32()
	for n := count &^ domainsFollow; n > 0; n-- {
		if err := s.restoreShape(&c); err != nil {
			return err
		}
	}
	if count&domainsFollow != 0 {
		if err := s.restoreDomains(&c); err != nil {
			return err
		}
	}
	if err := s.restorePacking(&c); err != nil {
		return err
	}
	if !c.whole() {
		return fmt.Errorf("%d bytes are left: %w", len(c.b), errState)
	}
	return nil
}

func (s *State) restoreShape(c *cursor) error {
	i, refs := c.u32(), c.u32()
	rec := shapeRec{mem: c.u64(), cpu: int64(c.u64()), count: uint16(c.byte()), alts: c.byte(), share: c.u16()}
	key := c.str()
	_, known := s.FindShape(key)
	ok := !c.short && !known && i < MaxShapes && !s.shapeSlots.Has(i) && rec.alts >= 1 &&
		rec.alts <= gpuai.MaxAlternatives && rec.count <= gpuai.MaxGPUs && rec.share < uint16(gpuai.WholeDevice) && (rec.share == 0 || rec.count == 1) &&
		rec.cpu >= 0 && rec.cpu < int64(gpuai.MaxCPU) && rec.mem < uint64(gpuai.MaxMemory)
	if !ok {
		return fmt.Errorf("shape %d: %w", i, errState)
	}
	for a := range rec.alts {
		def := c.str()
		if !validFilter(def) {
			return fmt.Errorf("shape %d: %w", i, errState)
		}
		f, code := s.joinFilter(def)
		if code != gpuai.OK {
			return fmt.Errorf("shape %d: %w: %v", i, errState, code)
		}
		rec.filters[a], rec.scratch = f, scratchIn(def)
	}
	if code := s.storeShape(i, key, &rec); code != gpuai.OK || c.short {
		return fmt.Errorf("shape %d: %w: %v", i, errState, code)
	}
	if refs > 0 {
		s.unsetIdle(i)
		s.shapes.Mut(i).refs = refs
	}
	return nil
}
