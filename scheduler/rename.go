package scheduler

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// Renames give the texts of an index others. Each gives different texts for
// different ones, and equal ones for equal.
type Renames struct {
	// Label renames a label of a node, Domain a rack or an NVLink domain.
	Label  func(key, value string) (string, string)
	Domain func(name string) string
	// Constraints renames constraints, and puts them in the order in which
	// AddShape is told them.
	Constraints func([]gpuai.Constraint) []gpuai.Constraint
	// Key returns the key of a shape with such needs.
	Key func(gpuai.Resources, []gpuai.Constraint) []byte
}

// Rename gives the texts of the index others. No number changes, so it decides
// as before when it is asked in the new terms.
func (s *State) Rename(x *Renames) {
	for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
		r := s.pools.Mut(p)
		b := renamePool(s.poolBytes.Append(nil, r.def), x)
		s.poolHash.Delete(r.hash, p)
		s.poolBytes.Free(r.def)
		r.hash, r.def = mem.HashBytes(0, b), s.poolBytes.Put(b)
		s.poolHash.Insert(r.hash, p)
	}
	for l := range s.topo {
		s.renameDomains(&s.topo[l], x)
	}
	for f, ok := s.filterSlots.Next(0); ok; f, ok = s.filterSlots.Next(f + 1) {
		r := s.filters.Mut(f)
		b := renameFilter(s.shapeBytes.Append(nil, r.def), x)
		s.filterHash.Delete(r.hash, f)
		s.shapeBytes.Free(r.def)
		r.hash, r.def = mem.HashBytes(0, b), s.shapeBytes.Put(b)
		s.filterHash.Insert(r.hash, f)
	}
	for i, ok := s.shapeSlots.Next(0); ok; i, ok = s.shapeSlots.Next(i + 1) {
		b := x.Key(s.ShapeOf(ShapeID(i)))
		r := s.shapes.Mut(i)
		s.shapeHash.Delete(r.hash, i)
		s.shapeBytes.Free(r.key)
		r.hash, r.key = mem.HashBytes(0, b), s.shapeBytes.Put(b)
		s.shapeHash.Insert(r.hash, i)
	}
	if s.packing.Get().demand != 0 {
		s.packing.Mut().demand = s.demandHash()
	}
}

func (s *State) renameDomains(t *topology, x *Renames) {
	for d, ok := t.slots.Next(0); ok; d, ok = t.slots.Next(d + 1) {
		r := t.domains.Mut(d)
		zone, name := domainName(s.poolBytes.Append(nil, r.def))
		b := appendDomain(nil, zone, x.Domain(name))
		t.byDef.Delete(r.hash, d)
		s.poolBytes.Free(r.def)
		r.hash, r.def = mem.HashBytes(0, b), s.poolBytes.Put(b)
		t.byDef.Insert(r.hash, d)
	}
}

// renamePool returns what appendPool gives for a node with renamed labels.
func renamePool(b []byte, x *Renames) []byte {
	v := viewPool(b)
	c := v.labels
	head := len(b) - len(c.b)
	labels := make([][2]string, min(c.num(), gpuai.MaxLabels))
	for i := range labels {
		key, value := string(c.str()), string(c.str())
		labels[i][0], labels[i][1] = x.Label(key, value)
	}
	slices.SortFunc(labels, func(a, b [2]string) int { return cmp.Compare(a[0], b[0]) })
	out := binary.AppendUvarint(slices.Clone(b[:head]), uint64(len(labels)))
	for _, l := range labels {
		out = appendStr(appendStr(out, l[0]), l[1])
	}
	return out
}

// renameFilter returns what appendFilter gives for renamed constraints.
func renameFilter(b []byte, x *Renames) []byte {
	c := cursor{b: b}
	viewAlt(&c)
	head := len(b) - len(c.b)
	return appendConstraints(slices.Clone(b[:head]), x.Constraints(readConstraints(&c)))
}
