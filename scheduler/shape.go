package scheduler

import (
	"bytes"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A ShapeID numbers a shape. The lowest free number is given out; numbers are
// a function of the shapes there are, idle ones included.
type ShapeID uint32

// A shapeRef is a shape's number + 1; 0 is none.
type shapeRef uint32

func (r shapeRef) id() uint32 { return uint32(r) - 1 }

// A shapeRec is what one task of a group needs.
type shapeRec struct {
	hash    uint64 // of key
	mem     uint64
	cpu     int64
	scratch int64    // bytes, of its constraints
	key     uint32   // blob: what the caller knows the shape by
	refs    uint32   // groups
	prev    shapeRef // idle ones, the longest idle first
	next    shapeRef
	filters [gpuai.MaxAlternatives]uint32
	count   uint16 // devices; 1 for a share
	share   uint16 // milli; 0: whole devices
	alts    uint8  // filters, tried in order; at least 1
	used    bool
}

func hashShape(_ []byte, i uint32, r *shapeRec) uint64 {
	if !r.used {
		return 0
	}
	h := mem.Mix(mem.Mix(uint64(i), 0x7368617065), mem.Mix(r.hash, uint64(r.refs)))
	return mem.Mix(h, uint64(r.prev)<<32|uint64(r.next))
}

// FindShape returns the shape that was added under key.
func (s *State) FindShape(key []byte) (ShapeID, bool) {
	i, ok := s.shapeHash.Find(mem.HashBytes(0, key), func(i uint32) bool {
		s.keyBuf = s.shapeBytes.Append(s.keyBuf[:0], s.shapes.Get(i).key)
		return bytes.Equal(s.keyBuf, key)
	})
	return ShapeID(i), ok
}

// AddShape adds a shape that needs r on a node where all of cs hold, and that
// FindShape will find under key from now on. It is idle until RetainShape.
// InvalidSpec says that the needs are out of range; TooLarge that there are
// too many shapes in use.
func (s *State) AddShape(key []byte, r gpuai.Resources, cs []gpuai.Constraint) (ShapeID, gpuai.Code) {
	if id, ok := s.FindShape(key); ok {
		return id, gpuai.OK
	}
	for {
		i, ok := s.shapeSlots.Lowest()
		if !ok {
			return 0, gpuai.TooLarge
		}
		mark, code := s.space.Mark(), gpuai.TooLarge
		if i < MaxShapes {
			code = s.makeShape(i, key, &r, cs)
		}
		if code == gpuai.OK {
			s.shrinkIdle(MaxIdleShapes)
			return ShapeID(i), code
		}
		s.space.RollbackTo(mark)
		idle := s.sums.Get().idle
		if code != gpuai.TooLarge || idle == 0 {
			return 0, code
		}
		s.shrinkIdle(idle / 2) // room that nobody uses
	}
}

// makeShape makes shape i, which must be free. After an error the caller rolls
// back.
func (s *State) makeShape(i uint32, key []byte, r *gpuai.Resources, cs []gpuai.Constraint) gpuai.Code {
	rec, ok := needsOf(r)
	if !ok || len(cs) > gpuai.MaxConstraints {
		return gpuai.InvalidSpec
	}
	for j := range cs {
		if len(cs[j].Values) > gpuai.MaxValues {
			return gpuai.InvalidSpec
		}
	}
	for a := range rec.alts {
		var alt *gpuai.GPUAlternative
		if len(r.GPU.Any) > 0 {
			alt = &r.GPU.Any[a]
		}
		s.keyBuf = appendFilter(s.keyBuf[:0], alt, cs)
		f, code := s.joinFilter(s.keyBuf)
		if code != gpuai.OK {
			return code
		}
		rec.filters[a], rec.scratch = f, scratchIn(s.keyBuf)
	}
	return s.storeShape(i, key, &rec)
}

// storeShape stores a shape whose filters are joined, as an idle one.
func (s *State) storeShape(i uint32, key []byte, rec *shapeRec) gpuai.Code {
	if !s.shapeBytes.Room(len(key), maxShapeBlocks) {
		return gpuai.TooLarge
	}
	rec.key, rec.hash, rec.used = s.shapeBytes.Put(key), mem.HashBytes(0, key), true
	s.shapeSlots.Take(i)
	s.shapes.Grow(i + 1)
	*s.shapes.Mut(i) = *rec
	s.shapeHash.Insert(rec.hash, i)
	s.setIdle(i)
	return gpuai.OK
}

// needsOf returns the record of what r asks for; false when that is out of
// range.
func needsOf(r *gpuai.Resources) (shapeRec, bool) {
	g := &r.GPU
	ok := r.CPU >= 0 && r.CPU < gpuai.MaxCPU && r.Memory >= 0 && r.Memory < gpuai.MaxMemory &&
		g.Count <= gpuai.MaxGPUs && len(g.Any) <= gpuai.MaxAlternatives &&
		g.Share.Milli < gpuai.WholeDevice && (g.Share.Milli == 0 || g.Count == 1) &&
		(g.Count > 0 || len(g.Any) == 0)
	for i := range g.Any[:min(len(g.Any), gpuai.MaxAlternatives)] {
		ok = ok && g.Any[i].MemoryMin >= 0 && g.Any[i].MemoryMax >= 0
	}
	return shapeRec{
		mem: uint64(r.Memory), cpu: int64(r.CPU),
		count: uint16(g.Count), share: uint16(g.Share.Milli),
		alts: uint8(max(1, min(len(g.Any), gpuai.MaxAlternatives))),
	}, ok
}

// ShapeWeight returns what a shape takes of the index: one for each of its
// alternatives and KiB of its key. It only reads.
func (s *State) ShapeWeight(id ShapeID) uint32 {
	r := s.shapes.Get(uint32(id))
	return uint32(r.alts) * (1 + uint32(s.shapeBytes.Size(r.key))/1024)
}

// Crowded reports whether the shapes in use, their filters or what describes
// them takes more than half of what the index can hold. It only reads.
func (s *State) Crowded() bool {
	return s.shapeSlots.Len()-s.sums.Get().idle > MaxShapes/2 || s.filterSlots.Len() > MaxFilters/2 || s.shapeBytes.Len() > maxShapeBlocks/2
}

// RetainShape counts one user more of a shape.
func (s *State) RetainShape(id ShapeID) {
	r := s.shapes.Mut(uint32(id))
	if r.refs++; r.refs == 1 {
		s.unsetIdle(uint32(id))
	}
}

// ReleaseShape counts one user less. A shape without users is idle, and goes
// when MaxIdleShapes others have become idle since.
func (s *State) ReleaseShape(id ShapeID) {
	r := s.shapes.Mut(uint32(id))
	if r.refs == 0 {
		return
	}
	if r.refs--; r.refs == 0 {
		s.setIdle(uint32(id))
		s.shrinkIdle(MaxIdleShapes)
	}
}

// setIdle puts a shape behind all idle ones.
func (s *State) setIdle(i uint32) {
	sum := s.sums.Mut()
	r := s.shapes.Mut(i)
	r.prev, r.next = sum.last, 0
	if sum.last != 0 {
		s.shapes.Mut(sum.last.id()).next = shapeRef(i + 1)
	} else {
		sum.first = shapeRef(i + 1)
	}
	sum.last = shapeRef(i + 1)
	sum.idle++
}

// unsetIdle takes a shape out of the idle ones.
func (s *State) unsetIdle(i uint32) {
	sum := s.sums.Mut()
	r := s.shapes.Mut(i)
	prev, next := r.prev, r.next
	r.prev, r.next = 0, 0
	if prev != 0 {
		s.shapes.Mut(prev.id()).next = next
	} else {
		sum.first = next
	}
	if next != 0 {
		s.shapes.Mut(next.id()).prev = prev
	} else {
		sum.last = prev
	}
	sum.idle--
}

// shrinkIdle forgets the longest idle shapes until there are at most keep.
func (s *State) shrinkIdle(keep uint32) {
	for s.sums.Get().idle > keep {
		i := s.sums.Get().first.id()
		s.unsetIdle(i)
		r := *s.shapes.Get(i)
		for a := range r.alts {
			s.leaveFilter(r.filters[a])
		}
		s.dropHeapsOf(i)
		s.shapeHash.Delete(r.hash, i)
		s.shapeBytes.Free(r.key)
		*s.shapes.Mut(i) = shapeRec{}
		s.shapeSlots.Free(i)
	}
}

// Demand returns what a task of a shape takes of a node: milli-CPU, bytes, and
// devices, 1 for a share. It only reads.
func (s *State) Demand(id ShapeID) (cpu, memory int64, devices uint32) {
	r := s.shapes.Get(uint32(id))
	return r.cpu, int64(r.mem), uint32(r.count)
}

// ShapeOf returns what a shape needs. It only reads.
func (s *State) ShapeOf(id ShapeID) (gpuai.Resources, []gpuai.Constraint) {
	r := s.shapes.Get(uint32(id))
	out := gpuai.Resources{
		GPU: gpuai.GPURequest{Count: uint32(r.count), Share: gpuai.Share{Milli: gpuai.Milli(r.share)}},
		CPU: gpuai.MilliCPU(r.cpu), Memory: gpuai.Bytes(r.mem),
	}
	var cs []gpuai.Constraint
	for a := range r.alts {
		c := cursor{b: s.shapeBytes.Append(nil, s.filters.Get(r.filters[a]).def)}
		if alt := viewAlt(&c); !alt.any {
			out.GPU.Any = append(out.GPU.Any, gpuai.GPUAlternative{
				Vendor: string(alt.vendor), Model: string(alt.model),
				MemoryMin: gpuai.Bytes(alt.low), MemoryMax: gpuai.Bytes(alt.high),
			})
		}
		if a == 0 {
			cs = readConstraints(&c)
		}
	}
	return out, cs
}

func readConstraints(c *cursor) []gpuai.Constraint {
	var cs []gpuai.Constraint
	for range min(c.num(), gpuai.MaxConstraints) {
		x := viewConstraint(c)
		y := gpuai.Constraint{Attribute: string(x.attribute), Op: x.op}
		for range min(x.count, gpuai.MaxValues) {
			y.Values = append(y.Values, string(x.values.str()))
		}
		cs = append(cs, y)
	}
	return cs
}
