package scheduler

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A filterRec is one distinct (constraints, GPU alternative): a bitmap of the
// pools that pass it.
type filterRec struct {
	hash uint64 // of def
	def  uint32 // blob: see appendFilter
	refs uint32 // shapes, one for each of their alternatives
}

// appendFilter appends the bytes that describe a filter: the alternative,
// which may be nil, and the constraints, which must all hold.
func appendFilter(b []byte, a *gpuai.GPUAlternative, cs []gpuai.Constraint) []byte {
	if a == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = appendStr(b, a.Vendor)
		b = appendStr(b, a.Model)
		b = binary.AppendUvarint(b, uint64(a.MemoryMin))
		b = binary.AppendUvarint(b, uint64(a.MemoryMax))
	}
	return appendConstraints(b, cs)
}

func appendConstraints(b []byte, cs []gpuai.Constraint) []byte {
	b = binary.AppendUvarint(b, uint64(len(cs)))
	for i := range cs {
		b = appendStr(b, cs[i].Attribute)
		b = append(b, byte(cs[i].Op))
		b = binary.AppendUvarint(b, uint64(len(cs[i].Values)))
		for _, v := range cs[i].Values {
			b = appendStr(b, v)
		}
	}
	return b
}

// An altView is the alternative of a filter's bytes.
type altView struct {
	vendor, model []byte
	low, high     int64
	any           bool // no alternative: all devices pass
}

func viewAlt(c *cursor) altView {
	if c.byte() == 0 {
		return altView{any: true}
	}
	return altView{c.str(), c.str(), int64(c.num()), int64(c.num()), false}
}

func (a *altView) vendorOK(v *poolView) bool {
	return a.any || v.hasDevice && (len(a.vendor) == 0 || bytes.Equal(a.vendor, v.vendor))
}

func (a *altView) modelOK(v *poolView) bool {
	return a.any || v.hasDevice && (len(a.model) == 0 || bytes.Equal(a.model, v.model))
}

func (a *altView) memoryOK(v *poolView) bool {
	return a.any || v.hasDevice && v.memory >= a.low && (a.high == 0 || v.memory <= a.high)
}

// passes reports whether a pool passes the filter that b describes.
func passes(b []byte, v *poolView) bool {
	c := cursor{b: b}
	if a := viewAlt(&c); !a.vendorOK(v) || !a.modelOK(v) || !a.memoryOK(v) {
		return false
	}
	for range min(c.num(), gpuai.MaxConstraints) {
		if x := viewConstraint(&c); !x.holds(v) {
			return false
		}
	}
	return true
}

// validFilter reports whether b can have come from appendFilter.
func validFilter(b []byte) bool {
	c := cursor{b: b}
	a := viewAlt(&c)
	n := c.num()
	ok := n <= gpuai.MaxConstraints && a.low >= 0 && a.high >= 0
	for range min(n, gpuai.MaxConstraints) {
		x := viewConstraint(&c)
		ok = ok && x.count <= gpuai.MaxValues
	}
	return ok && c.whole()
}

// A constraintView is a constraint of a filter's bytes.
type constraintView struct {
	attribute []byte
	op        gpuai.Op
	count     uint64
	values    cursor
}

func viewConstraint(c *cursor) constraintView {
	x := constraintView{attribute: c.str(), op: gpuai.Op(c.byte()), count: c.num()}
	x.values = *c
	for range min(x.count, gpuai.MaxValues) {
		c.str()
	}
	return x
}

// holds reports whether the constraint holds in a pool, as gpuai.Constraint
// says.
func (x constraintView) holds(v *poolView) bool {
	var digits [20]byte
	have, ok := v.attribute(x.attribute, digits[:0])
	if !ok {
		return x.op == gpuai.NotEqual || x.op == gpuai.NotIn
	}
	switch x.op {
	case gpuai.Equal, gpuai.In:
		return x.names(have)
	case gpuai.NotEqual, gpuai.NotIn:
		return !x.names(have)
	}
	a, err := strconv.ParseInt(string(have), 10, 64)
	b, err2 := strconv.ParseInt(string(x.values.str()), 10, 64)
	if err != nil || err2 != nil {
		return false
	}
	switch x.op {
	case gpuai.Less:
		return a < b
	case gpuai.AtMost:
		return a <= b
	case gpuai.Greater:
		return a > b
	case gpuai.AtLeast:
		return a >= b
	}
	return false
}

// names reports whether a value is among the constraint's.
func (x constraintView) names(have []byte) bool {
	for range min(x.count, gpuai.MaxValues) {
		if bytes.Equal(x.values.str(), have) {
			return true
		}
	}
	return false
}

// attribute returns what a pool has under a constraint's name. A number is
// written to buf.
func (v *poolView) attribute(name, buf []byte) (value []byte, ok bool) {
	if key, ok := bytes.CutPrefix(name, []byte(gpuai.LabelPrefix)); ok {
		return v.label(key)
	}
	switch string(name) {
	case "zone":
		return v.zone, true
	case "gpu.vendor":
		return v.vendor, v.hasDevice
	case "gpu.model":
		return v.model, v.hasDevice
	case "gpu.memory_bytes":
		return strconv.AppendInt(buf, v.memory, 10), v.hasDevice
	}
	return nil, false
}

// joinFilter counts one use more of the filter that b describes, which is made
// when there is none.
func (s *State) joinFilter(b []byte) (uint32, gpuai.Code) {
	h := mem.HashBytes(0, b)
	f, ok := s.filterHash.Find(h, func(f uint32) bool {
		s.filterBuf = s.shapeBytes.Append(s.filterBuf[:0], s.filters.Get(f).def)
		return bytes.Equal(s.filterBuf, b)
	})
	if ok {
		s.filters.Mut(f).refs++
		return f, gpuai.OK
	}
	f, ok = s.filterSlots.Lowest()
	if !ok || f >= MaxFilters || !s.shapeBytes.Room(len(b), maxShapeBlocks) {
		return 0, gpuai.TooLarge
	}
	s.filterSlots.Take(f)
	s.filters.Grow(f + 1)
	s.masks.Grow((f + 1) * poolWords)
	*s.filters.Mut(f) = filterRec{hash: h, def: s.shapeBytes.Put(b), refs: 1}
	s.filterHash.Insert(h, f)
	s.maskPools(f, b)
	return f, gpuai.OK
}

// maskPools asks all pools about a new filter.
func (s *State) maskPools(f uint32, b []byte) {
	for w := range s.sums.Get().words {
		var m uint64
		end := (w + 1) << 6
		for p, ok := s.poolSlots.Next(w << 6); ok && p < end; p, ok = s.poolSlots.Next(p + 1) {
			s.poolBuf = s.poolBytes.Append(s.poolBuf[:0], s.pools.Get(p).def)
			if v := viewPool(s.poolBuf); passes(b, &v) {
				m |= 1 << (p & 63)
			}
		}
		if i := f*poolWords + w; *s.masks.Get(i) != m {
			*s.masks.Mut(i) = m
		}
	}
}

// setMask notes whether a pool passes a filter.
func (s *State) setMask(f, p uint32, pass bool) {
	i, bit := f*poolWords+p>>6, uint64(1)<<(p&63)
	if m := *s.masks.Get(i); pass != (m&bit != 0) {
		*s.masks.Mut(i) = m ^ bit
	}
}

// leaveFilter counts one use less, and forgets a filter that has none.
func (s *State) leaveFilter(f uint32) {
	r := s.filters.Mut(f)
	if r.refs--; r.refs > 0 {
		return
	}
	s.filterHash.Delete(r.hash, f)
	s.shapeBytes.Free(r.def)
	*s.filters.Mut(f) = filterRec{}
	s.filterSlots.Free(f)
}
