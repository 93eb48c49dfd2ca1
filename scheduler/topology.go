package scheduler

import (
	"bytes"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// Levels of which the index keeps domains. Nodes are domains by themselves, and
// zones are sets of pools.
const (
	levelNVLink = iota
	levelRack
	numLevelsKept
)

// keptLevel returns the place of a level's domains; false for a level that has
// none here.
func keptLevel(t gpuai.Topology) (int, bool) {
	switch t {
	case gpuai.TopologyNVLink:
		return levelNVLink, true
	case gpuai.TopologyRack:
		return levelRack, true
	}
	return 0, false
}

// maxRow is the number of free devices from which on domains count as equally
// roomy.
const maxRow = 1_023

// domainWords is the length of a bitmap of all domains of a level.
const domainWords = MaxDomains / 64

// domainPools is how many pools a domain remembers to have units of.
const domainPools = 4

// A domainRec is a rack or an NVLink domain. Its number is the lowest that was
// free when its first node came; it is retired with its last. Numbers reach
// decisions: they are hashed, and written in snapshots.
type domainRec struct {
	hash    uint64 // of def
	def     uint32 // blob: zone and name
	nodes   uint32
	first   uint32 // node + 1
	devices uint32 // of all nodes
	pools   [domainPools]uint16
	numPool uint8
	widest  uint8 // most devices of one node
	mixed   bool  // it has units of more pools than it remembers
	used    bool
}

func hashDomain(_ []byte, i uint32, r *domainRec) uint64 {
	if !r.used {
		return 0
	}
	return mem.Mix(mem.Mix(uint64(i), 0x646f6d), mem.Mix(r.hash, uint64(r.nodes)))
}

// A seatRec is a node's place in a domain.
type seatRec struct {
	domain     uint32 // + 1
	next, prev uint32 // node of the domain + 1
}

// A rowsRec says which rows of a level hold a domain.
type rowsRec struct {
	filled [(maxRow + 1) / 64]uint64
	words  uint32 // of a row that are in use
}

// A topology is the domains of one level.
type topology struct {
	domains *mem.Table[domainRec]
	slots   *mem.Slots
	byDef   *mem.Hash
	seats   *mem.Table[seatRec] // by node
	free    *mem.Table[uint32]  // wholly free devices of open nodes, by domain: apart, as they change often
	sizes   *mem.Table[uint16]  // open nodes by wholly free devices: domain·numSizes + devices
	rows    *mem.Table[uint64]  // domains by free devices, none too: row·domainWords + word
	counts  *mem.Table[uint32]  // domains of a row
	sum     mem.Var[rowsRec]
}

func newTopology(sp *mem.Space) topology {
	return topology{
		domains: mem.NewHashed(sp, 5, hashDomain), slots: mem.NewSlots(sp), byDef: mem.NewHash(sp),
		seats: mem.NewTable[seatRec](sp, 8), free: mem.NewTable[uint32](sp, 7), sizes: mem.NewTable[uint16](sp, 9),
		rows: mem.NewTable[uint64](sp, 7), counts: mem.NewTable[uint32](sp, 8), sum: mem.NewVar(sp, rowsRec{}),
	}
}

func (t *topology) fork(ns *mem.Space) topology {
	return topology{
		domains: t.domains.Fork(ns), slots: t.slots.Fork(ns), byDef: t.byDef.Fork(ns),
		seats: t.seats.Fork(ns), free: t.free.Fork(ns), sizes: t.sizes.Fork(ns), rows: t.rows.Fork(ns), counts: t.counts.Fork(ns), sum: t.sum.Fork(ns),
	}
}

// domainOf returns the domain of a node + 1; 0 when it has none.
func (t *topology) domainOf(node uint32) uint32 {
	if node >= t.seats.Len() {
		return 0
	}
	return t.seats.Get(node).domain
}

// appendDomain appends the bytes that describe a domain: names of racks need
// only be unique in their zone.
func appendDomain(b []byte, zone, name string) []byte {
	if zone == "" {
		zone = "default"
	}
	return appendStr(appendStr(b, zone), name)
}

// validDomain reports whether b can have come from appendDomain.
func validDomain(b []byte) bool {
	c := cursor{b: b}
	c.str()
	name := c.str()
	return c.whole() && len(name) > 0
}

// domainName takes a domain's description apart.
func domainName(b []byte) (zone, name string) {
	c := cursor{b: b}
	z := c.str()
	return string(z), string(c.str())
}

func (s *State) findDomain(l int, b []byte) (uint32, bool) {
	t := &s.topo[l]
	return t.byDef.Find(mem.HashBytes(0, b), func(d uint32) bool {
		s.keyBuf = s.poolBytes.Append(s.keyBuf[:0], t.domains.Get(d).def)
		return bytes.Equal(s.keyBuf, b)
	})
}

// joinDomain counts one node more in the domain that b describes, which is made
// when there is none.
func (s *State) joinDomain(l int, b []byte) (uint32, gpuai.Code) {
	t := &s.topo[l]
	d, ok := s.findDomain(l, b)
	if !ok {
		if d, ok = t.slots.Lowest(); !ok || d >= MaxDomains {
			return 0, gpuai.TooLarge
		}
		if code := s.makeDomain(l, d, b); code != gpuai.OK {
			return 0, code
		}
	}
	if t.domains.Get(d).nodes >= MaxDomainNodes {
		return 0, gpuai.TooLarge
	}
	t.domains.Mut(d).nodes++
	return d, gpuai.OK
}

// makeDomain makes domain d, which must be free.
func (s *State) makeDomain(l int, d uint32, b []byte) gpuai.Code {
	if !s.poolBytes.Room(len(b), maxPoolBlocks) {
		return gpuai.TooLarge
	}
	t := &s.topo[l]
	t.slots.Take(d)
	t.domains.Grow(d + 1)
	t.free.Grow(d + 1)
	t.sizes.Grow((d + 1) * numSizes)
	h := mem.HashBytes(0, b)
	*t.domains.Mut(d) = domainRec{hash: h, def: s.poolBytes.Put(b), used: true}
	t.byDef.Insert(h, d)
	if t.sum.Get().words <= d>>6 {
		t.sum.Mut().words = d>>6 + 1
	}
	t.joinRow(d, 0)
	return gpuai.OK
}

// leaveDomain counts one node less, and retires a domain that has none.
func (s *State) leaveDomain(l int, d uint32) {
	t := &s.topo[l]
	r := t.domains.Mut(d)
	if r.nodes--; r.nodes > 0 {
		return
	}
	t.leaveRow(d, 0) // nothing of it is free
	t.byDef.Delete(r.hash, d)
	s.poolBytes.Free(r.def)
	*t.domains.Mut(d) = domainRec{}
	t.slots.Free(d)
}

// joinDomains counts a node in the domains that it names. After an error the
// caller rolls back.
func (s *State) joinDomains(n *NodeInfo) (joined [numLevelsKept]uint32, code gpuai.Code) {
	for l, name := range [...]string{n.NVLinkDomain, n.Rack} {
		if name == "" {
			continue
		}
		d, code := s.joinDomain(l, appendDomain(nil, n.Zone, name))
		if code != gpuai.OK {
			return joined, code
		}
		joined[l] = d + 1
	}
	return joined, gpuai.OK
}

// sit moves a node, whose record stands, from its domains to those it joined.
func (s *State) sit(slot uint32, joined [numLevelsKept]uint32) {
	for l := range s.topo {
		if old := s.topo[l].domainOf(slot); old != 0 {
			s.unlink(l, slot, old-1)
			s.leaveDomain(l, old-1)
		}
		if d := joined[l]; d != 0 {
			s.link(l, slot, d-1)
		}
	}
}

// link puts a node in a domain's list.
func (s *State) link(l int, slot, d uint32) {
	t := &s.topo[l]
	t.seats.Grow(slot + 1)
	r := t.domains.Mut(d)
	*t.seats.Mut(slot) = seatRec{domain: d + 1, next: r.first}
	if r.first != 0 {
		t.seats.Mut(r.first - 1).prev = slot + 1
	}
	r.first = slot + 1
	s.addDevices(r, slot)
}

// unlink takes a node out of a domain's list. Its record may be another by now:
// what the domain has is counted anew.
func (s *State) unlink(l int, slot, d uint32) {
	t := &s.topo[l]
	x := *t.seats.Get(slot)
	if x.prev != 0 {
		t.seats.Mut(x.prev - 1).next = x.next
	} else {
		t.domains.Mut(d).first = x.next
	}
	if x.next != 0 {
		t.seats.Mut(x.next - 1).prev = x.prev
	}
	*t.seats.Mut(slot) = seatRec{}
	r := t.domains.Mut(d)
	r.devices, r.widest, r.pools, r.numPool, r.mixed = 0, 0, [domainPools]uint16{}, 0, false
	for n := r.first; n != 0; n = t.seats.Get(n - 1).next {
		s.addDevices(r, n-1)
	}
}

// addDevices notes what devices a node has, and of which pools.
func (s *State) addDevices(r *domainRec, slot uint32) {
	r.devices += uint32(s.nodes.Get(slot).devices)
	r.widest = max(r.widest, s.nodes.Get(slot).devices)
	for u := &s.nodes.Get(slot).unit; u != nil; u = s.next(u) {
		known := false
		for _, p := range r.pools[:r.numPool] {
			known = known || p == u.pool
		}
		switch {
		case known:
		case r.numPool == domainPools:
			r.mixed = true
		default:
			r.pools[r.numPool] = u.pool
			r.numPool++
		}
	}
}

// wholeOn returns how many devices of a node are wholly free.
func (s *State) wholeOn(n *nodeRec) uint32 {
	g := uint32(0)
	for u := &n.unit; u != nil; u = s.next(u) {
		g += uint32(bits.OnesCount64(u.whole))
	}
	return g
}

// noDevices stands for a node that does not count in its domains.
const noDevices = ^uint32(0)

// counted returns what a node counts with in its domains: its wholly free
// devices.
func (s *State) counted(slot uint32) uint32 {
	n := s.nodes.Get(slot)
	if !n.seated || !n.indexed() {
		return noDevices
	}
	return s.wholeOn(n)
}

// recount tells a node's domains what it counts with now.
func (s *State) recount(slot, from, to uint32) {
	if from == to {
		return
	}
	for l := range s.topo {
		t := &s.topo[l]
		d := t.domainOf(slot)
		if d == 0 {
			continue
		}
		d--
		free := *t.free.Get(d)
		was := free
		if from != noDevices {
			*t.sizes.Mut(d*numSizes + from)--
			free -= from
		}
		if to != noDevices {
			*t.sizes.Mut(d*numSizes + to)++
			free += to
		}
		t.shift(d, was, free)
	}
}

// shift moves a domain to the row of what it has free now.
func (t *topology) shift(d, from, to uint32) {
	if from == to {
		return
	}
	*t.free.Mut(d) = to
	if from, to = min(from, maxRow), min(to, maxRow); from == to {
		return
	}
	t.leaveRow(d, from)
	t.joinRow(d, to)
}

func (t *topology) leaveRow(d, row uint32) {
	*t.rows.Mut(row*domainWords + d>>6) &^= 1 << (d & 63)
	c := t.counts.Mut(row)
	if *c--; *c == 0 {
		t.sum.Mut().filled[row>>6] &^= 1 << (row & 63)
	}
}

func (t *topology) joinRow(d, row uint32) {
	t.rows.Grow((row + 1) * domainWords)
	t.counts.Grow(row + 1)
	*t.rows.Mut(row*domainWords + d>>6) |= 1 << (d & 63)
	c := t.counts.Mut(row)
	if *c++; *c == 1 {
		t.sum.Mut().filled[row>>6] |= 1 << (row & 63)
	}
}

// rowFrom returns the first row ≥ row that holds a domain.
func (r *rowsRec) rowFrom(row uint32) (uint32, bool) {
	for w := row >> 6; w < uint32(len(r.filled)); w++ {
		if m := r.filled[w] >> (row & 63) << (row & 63); m != 0 {
			return w<<6 | uint32(bits.TrailingZeros64(m)), true
		}
		row = 0
	}
	return 0, false
}

// rowUpTo returns the last row ≤ row that holds a domain.
func (r *rowsRec) rowUpTo(row uint32) (uint32, bool) {
	keep := 63 - row&63
	for w := int(row >> 6); w >= 0; w-- {
		if m := r.filled[w] << keep >> keep; m != 0 {
			return uint32(w<<6 + 63 - bits.LeadingZeros64(m)), true
		}
		keep = 0
	}
	return 0, false
}

// rowBelow returns the last row < row that holds a domain.
func (r *rowsRec) rowBelow(row uint32) (uint32, bool) {
	if row == 0 {
		return 0, false
	}
	return r.rowUpTo(row - 1)
}

// nextIn returns the first domain ≥ from of a row.
func (t *topology) nextIn(row, from uint32) (uint32, bool) {
	words := t.sum.Get().words
	for w := from >> 6; w < words; w++ {
		if m := *t.rows.Get(row*domainWords + w) >> (from & 63) << (from & 63); m != 0 {
			return w<<6 | uint32(bits.TrailingZeros64(m)), true
		}
		from = (w + 1) << 6
	}
	return 0, false
}
