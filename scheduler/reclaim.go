package scheduler

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A Band orders what may be taken from its holders for somebody else: the lower
// band goes first. What the numbers stand for is the caller's.
type Band uint16

// NumBands is one more than the highest band.
const NumBands = 512

// A Holding is what one lease holds of a node and may have to give up.
type Holding struct {
	Band    Band
	Share   uint16 // milli of each device; 0: all of it
	Going   bool   // it ends whatever is decided
	Unit    uint32 // holdings with one of these, other than 0, only go together
	Devices uint64
	CPU     int64
	Memory  int64
	Scratch int64 // bytes of scratch space
}

// A reclaimIndex has, for each band, what the units of open nodes would have
// free if all holdings up to that band had gone. A node is in a band only if it
// has holdings of that very band: with no more than those below it, it is as
// good there. So a search that goes up the bands in use finds every node, the
// one whose holders matter least first, and looks at none.
type reclaimIndex struct {
	forest forest
	trees  *mem.Table[reclaimTrees] // place·MaxPools + pool
	filled *mem.Table[uint64]       // pools that have units: place·poolWords + word
	places *mem.Slots
	counts *mem.Table[uint32] // rows of a place
	bands  mem.Var[bandRec]

	rows     *mem.Table[reclaimRow]
	rowSlots *mem.Slots
	first    *mem.Table[uint32] // by node: its first row + 1
}

// A bandRec says which bands are in use, and where. Places are history, but no
// answer depends on them.
type bandRec struct {
	used  [NumBands / 64]uint64
	place [NumBands]uint16
}

// reclaimTrees are the units of one pool in one band: whole by the devices that
// would be wholly free, parts by the most that would be free of another one.
type reclaimTrees struct{ whole, parts tree }

// A reclaimRow is a unit of a node in a band.
type reclaimRow struct {
	whole, parts uint64 // keys
	mem          uint64
	scratch      int64  // bytes of scratch space that would be given back
	next         uint32 // row of the node + 1
	pool         uint16
	band         Band
	partly       bool // it is in parts
}

func newReclaimIndex(sp *mem.Space) reclaimIndex {
	return reclaimIndex{
		forest: newForest(sp), trees: mem.NewTable[reclaimTrees](sp, 6), filled: mem.NewTable[uint64](sp, 6),
		places: mem.NewSlots(sp), counts: mem.NewTable[uint32](sp, 6), bands: mem.NewVar(sp, bandRec{}),
		rows: mem.NewTable[reclaimRow](sp, 6), rowSlots: mem.NewSlots(sp), first: mem.NewTable[uint32](sp, 9),
	}
}

func (x *reclaimIndex) fork(ns *mem.Space) reclaimIndex {
	return reclaimIndex{
		forest: x.forest.fork(ns), trees: x.trees.Fork(ns), filled: x.filled.Fork(ns),
		places: x.places.Fork(ns), counts: x.counts.Fork(ns), bands: x.bands.Fork(ns),
		rows: x.rows.Fork(ns), rowSlots: x.rowSlots.Fork(ns), first: x.first.Fork(ns),
	}
}

// next returns the first band ≥ b that is in use, or NumBands.
func (r *bandRec) next(b Band) Band {
	for w := int(b >> 6); w < len(r.used); w++ {
		if m := r.used[w] >> (b & 63) << (b & 63); m != 0 {
			return Band(w<<6 | bits.TrailingZeros64(m))
		}
		b = 0
	}
	return NumBands
}

// A key of these trees orders units by what would be free, then by CPU, then by
// node, in 10 + 31 + 18 bits.
const (
	reclaimCPUShift    = 18
	reclaimPrefixShift = reclaimCPUShift + 31
)

var _ [MaxNodes]struct{} = [1 << reclaimCPUShift]struct{}{}

func reclaimKey(prefix uint64, cpu int64, node uint32) uint64 {
	return prefix<<reclaimPrefixShift | min(uint64(cpu), cpuMask)<<reclaimCPUShift | uint64(node)
}

func reclaimPrefix(k uint64) uint64 { return k >> reclaimPrefixShift }
func reclaimCPU(k uint64) uint64    { return k >> reclaimCPUShift & cpuMask }
func reclaimNode(k uint64) uint32   { return uint32(k & (1<<reclaimCPUShift - 1)) }

// A space is what would be free of a node. Devices that are held beyond what
// they have count below 0.
type space struct {
	left     [gpuai.MaxGPUs]int16
	cpu, mem int64
	scratch  int64 // math.MaxInt64: it is not counted
}

func (s *State) spaceOf(n *nodeRec) (p space) {
	for d := range n.devices {
		p.left[d] = s.free(n, d)
	}
	p.cpu, p.mem, p.scratch = n.freeCPU, n.freeMem, n.freeScratch()
	return p
}

// give adds a holding to what would be free, or takes it off again.
func (p *space) give(h *Holding, sign int16) {
	for m := h.Devices; m != 0; m &= m - 1 {
		p.left[bits.TrailingZeros64(m)] += sign * milli(h.Share)
	}
	p.cpu += int64(sign) * h.CPU
	p.mem += int64(sign) * h.Memory
	if p.scratch != math.MaxInt64 {
		p.scratch += int64(sign) * h.Scratch
	}
}

// unitFree returns how many devices of a unit would be wholly free, and the most
// that would be free of another.
func (p *space) unitFree(u *unitRec) (whole uint64, part int16) {
	for m := u.usable; m != 0; m &= m - 1 {
		switch f := p.left[bits.TrailingZeros64(m)]; {
		case f == int16(gpuai.WholeDevice):
			whole++
		case f > part && f < int16(gpuai.WholeDevice):
			part = f
		}
	}
	return whole, part
}

// Reclaimable reports whether SetReclaim has listed holdings of a node.
func (s *State) Reclaimable(node uint32) bool {
	return node < s.reclaim.first.Len() && *s.reclaim.first.Get(node) != 0
}

// SetReclaim says which holdings of a node may be taken, all of them; it sorts
// hs. It must be said anew after every change of the node: its holdings, its
// room, its devices, whether it is open. A closed node has none.
func (s *State) SetReclaim(node uint32, hs []Holding) {
	s.dropReclaim(node)
	if len(hs) == 0 || !s.Known(node) || !s.nodes.Get(node).open {
		return
	}
	s.eachReclaim(node, hs, s.addReclaim)
}

// eachReclaim calls f with every row that the holdings of a node imply.
func (s *State) eachReclaim(node uint32, hs []Holding, f func(uint32, *reclaimRow)) {
	slices.SortFunc(hs, func(a, b Holding) int { return cmp.Compare(a.Band, b.Band) })
	n := *s.nodes.Get(node)
	p, back := s.spaceOf(&n), int64(0)
	for i := range hs {
		p.give(&hs[i], 1)
		back += hs[i].Scratch
		if i+1 < len(hs) && hs[i+1].Band == hs[i].Band || p.cpu < 0 || p.mem < 0 {
			continue
		}
		for u := &n.unit; u != nil; u = s.next(u) {
			whole, part := p.unitFree(u)
			f(node, &reclaimRow{
				whole: reclaimKey(whole, p.cpu, node), parts: reclaimKey(uint64(part), p.cpu, node),
				mem: uint64(p.mem), scratch: back, pool: u.pool, band: hs[i].Band, partly: part > 0,
			})
		}
	}
}

func (s *State) addReclaim(node uint32, r *reclaimRow) {
	x := &s.reclaim
	place := x.placeFor(r.band)
	*x.counts.Mut(place) += 1
	*x.filled.Mut(place*poolWords + uint32(r.pool)>>6) |= 1 << (r.pool & 63)
	at := place*MaxPools + uint32(r.pool)
	t := *x.trees.Get(at)
	x.forest.insert(&t.whole, r.whole, r.mem)
	if r.partly {
		x.forest.insert(&t.parts, r.parts, r.mem)
	}
	*x.trees.Mut(at) = t
	x.first.Grow(node + 1)
	slot, _ := x.rowSlots.Alloc()
	x.rows.Grow(slot + 1)
	r.next = *x.first.Get(node)
	*x.rows.Mut(slot) = *r
	*x.first.Mut(node) = slot + 1
}

// placeFor returns where a band has its trees.
func (x *reclaimIndex) placeFor(b Band) uint32 {
	r := x.bands.Get()
	if r.used[b>>6]>>(b&63)&1 != 0 {
		return uint32(r.place[b])
	}
	place, _ := x.places.Alloc()
	x.counts.Grow(place + 1)
	x.filled.Grow((place + 1) * poolWords)
	x.trees.Grow((place + 1) * MaxPools)
	w := x.bands.Mut()
	w.used[b>>6] |= 1 << (b & 63)
	w.place[b] = uint16(place)
	return place
}

// dropReclaim takes a node's rows out.
func (s *State) dropReclaim(node uint32) {
	if !s.Reclaimable(node) {
		return
	}
	x := &s.reclaim
	for at := *x.first.Get(node); at != 0; {
		r := *x.rows.Get(at - 1)
		x.remove(&r)
		*x.rows.Mut(at - 1) = reclaimRow{}
		x.rowSlots.Free(at - 1)
		at = r.next
	}
	*x.first.Mut(node) = 0
}

func (x *reclaimIndex) remove(r *reclaimRow) {
	place := uint32(x.bands.Get().place[r.band])
	at := place*MaxPools + uint32(r.pool)
	t := *x.trees.Get(at)
	x.forest.remove(&t.whole, r.whole)
	if r.partly {
		x.forest.remove(&t.parts, r.parts)
	}
	*x.trees.Mut(at) = t
	if t.whole.empty() {
		*x.filled.Mut(place*poolWords + uint32(r.pool)>>6) &^= 1 << (r.pool & 63)
	}
	if *x.counts.Mut(place) -= 1; *x.counts.Get(place) == 0 {
		x.bands.Mut().used[r.band>>6] &^= 1 << (r.band & 63)
		x.places.Free(place)
	}
}

// maxPrefixes bounds at how many amounts of one tree a search looks that have
// too little CPU or memory beside them. There are no more of whole devices; a
// search for a share may give up early.
const maxPrefixes = gpuai.MaxGPUs + 1

// FindReclaim returns the open node where a task of a shape has room once
// holdings of bands below limit have gone: the first by
//
//  1. the highest band that must go, the lowest first,
//  2. the alternative of the request,
//  3. the devices that would be free, the fewest first; for a share the least
//     remainder that it would leave of a device that stays in use, then nodes
//     with the fewest devices that would be wholly free,
//  4. price tier, pool, CPU that would be free, node, each the least first.
//
// It takes nothing and counts as work.
func (s *State) FindReclaim(id ShapeID, limit Band) (node uint32, ok bool) {
	return s.FindReclaimIn(Scope{}, id, limit)
}

func (q *query) findReclaim(limit Band) (uint32, bool) {
	bands := q.reclaim.bands.Get()
	for b := bands.next(0); b < limit; b = bands.next(b + 1) {
		place := uint32(bands.place[b])
		q.band = b
		for alt := range q.r.alts {
			if key, ok := q.reclaimIn(place, alt); ok {
				return reclaimNode(key), true
			}
		}
	}
	return 0, false
}

// reclaimIn returns the best unit of a band.
func (q *query) reclaimIn(place uint32, alt uint8) (uint64, bool) {
	if q.r.share != 0 {
		if key, ok := q.reclaimLeast(place, alt, true, uint64(q.r.share)); ok {
			return key, ok
		}
	}
	return q.reclaimLeast(place, alt, false, uint64(q.r.count))
}

// reclaimLeast returns the best unit with at least prefix over all pools: the
// least prefix, then the first pool by tier and number.
func (q *query) reclaimLeast(place uint32, alt uint8, parts bool, prefix uint64) (best uint64, ok bool) {
	sum, x := q.sums.Get(), &q.reclaim
	for t := sum.tiers; t != 0; t &= t - 1 {
		tier := uint32(bits.TrailingZeros64(t)) * poolWords
		for w := range sum.words {
			q.ticks++
			m := *x.filled.Get(place*poolWords + w) & q.passingOf(w, alt) & *q.tiers.Get(tier + w)
			for ; m != 0; m &= m - 1 {
				trees := x.trees.Get(place*MaxPools + uint32(poolAt(w, m)))
				at := &trees.whole
				if parts {
					at = &trees.parts
				}
				key, found := q.seekReclaim(at, prefix)
				if !found || ok && reclaimPrefix(key) >= reclaimPrefix(best) {
					continue
				}
				if best, ok = key, true; reclaimPrefix(key) == prefix {
					return best, ok // none is tighter, and the tiers go up
				}
			}
		}
	}
	return best, ok
}

// seekReclaim returns the least key of a tree with at least this prefix, and the
// shape's CPU and memory.
func (q *query) seekReclaim(t *tree, prefix uint64) (uint64, bool) {
	q.ticks += tickTree
	lo := reclaimKey(prefix, q.r.cpu, 0)
	if t.empty() || t.maxMem < q.r.mem || t.maxKey < lo {
		return 0, false
	}
	for n := maxPrefixes; n > 0; n-- {
		q.ticks += tickSeek
		key, ok := q.reclaim.forest.seek(t, lo, q.r.mem)
		if !ok {
			return 0, false
		}
		if reclaimCPU(key) >= uint64(q.r.cpu) {
			if q.givesBack(reclaimNode(key)) {
				return key, true
			}
			lo = key + 1
			n++ // as many as there are: it is no amount of CPU
			continue
		}
		lo = reclaimKey(reclaimPrefix(key), q.r.cpu, 0)
	}
	return 0, false
}

// maxReclaimRows bounds at how many units ReclaimRoom looks.
const maxReclaimRows = 1 << 14

// ReclaimRoom bounds from above, up to most, for how many tasks of a shape there
// would be room once all holdings of bands below limit had gone, on nodes that
// have such. It takes nothing and counts as work.
func (s *State) ReclaimRoom(id ShapeID, limit Band, most uint32) uint32 {
	room, _ := s.ReclaimRoomIn(Scope{}, id, limit, most)
	return room
}

// reclaimRoom returns up to which band it counted too.
func (q *query) reclaimRoom(limit Band, most uint32) (room uint32, upTo Band) {
	if q.r.share != 0 {
		return most, 0 // of a device there may be room for many
	}
	rows := maxReclaimRows
	bands := q.reclaim.bands.Get()
	for b := bands.next(0); b < limit; b = bands.next(b + 1) {
		place := uint32(bands.place[b])
		for alt := range q.r.alts {
			for w := range q.sums.Get().words {
				q.ticks++
				m := *q.reclaim.filled.Get(place*poolWords + w) & q.passingOf(w, alt)
				for ; m != 0; m &= m - 1 {
					room += q.reclaimRoomIn(&q.reclaim.trees.Get(place*MaxPools+uint32(poolAt(w, m))).whole, most-room, &rows)
					if room >= most || rows <= 0 {
						return most, b
					}
				}
			}
		}
	}
	return room, limit
}

// reclaimRoomIn is ReclaimRoom of one tree.
func (q *query) reclaimRoomIn(t *tree, most uint32, rows *int) (room uint32) {
	lo := reclaimKey(uint64(q.r.count), q.r.cpu, 0)
	for room < most && *rows > 0 && !t.empty() {
		*rows--
		q.ticks += tickSeek
		key, ok := q.reclaim.forest.seek(t, lo, q.r.mem)
		if !ok {
			break
		}
		lo = key + 1
		n := uint64(most)
		if q.r.count > 0 {
			n = reclaimPrefix(key) / uint64(q.r.count)
		}
		if q.r.cpu > 0 {
			n = min(n, reclaimCPU(key)/uint64(q.r.cpu))
		}
		room += uint32(min(n, uint64(most-room)))
	}
	return room
}

// FitsReclaim reports whether a task of a shape has room on one node once
// holdings of bands below limit have gone. It only reads.
func (s *State) FitsReclaim(id ShapeID, node uint32, limit Band) bool {
	if !s.Reclaimable(node) {
		return false
	}
	r, n := s.shapes.Get(uint32(id)), s.nodes.Get(node)
	for at := *s.reclaim.first.Get(node); at != 0; at = s.reclaim.rows.Get(at - 1).next {
		row := s.reclaim.rows.Get(at - 1)
		if row.band >= limit || row.mem < r.mem || reclaimCPU(row.whole) < uint64(r.cpu) || !n.lendsWith(r, row.scratch) {
			continue
		}
		has := reclaimPrefix(row.whole) >= uint64(r.count) ||
			r.share != 0 && reclaimPrefix(row.parts) >= uint64(r.share)
		for alt := range r.alts {
			if has && s.passes(r, alt, uint32(row.pool)) {
				return true
			}
		}
	}
	return false
}
