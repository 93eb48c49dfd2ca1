package scheduler

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
)

// memoSize is how many values of states are remembered.
const memoSize = 1 << 16

// A packScratch is what packing derives from the frozen demand: the demand as
// each pool sees it, and values of states. All of it are pure functions of
// what it was made from, so it belongs to no rollback, fork or snapshot.
type packScratch struct {
	demand  uint64 // hash of the demand it was made from
	classes []frozenClass
	draws   []uint16 // of the sequences: places in classes
	views   []*packView
	cells   uint32                  // that further views may have
	poolOf  []poolSeen              // by pool
	slots   [maxSlotClasses]slotRec // with the prices of the present search
	priced  uint64                  // slot classes with a price
	memo    []memoRec
	buckets []bucketRec // by bucket
	window  window
	narrow  uint32      // width of the windows of new heaps
	most    uint64      // buckets that a search scores
	all     []heapEntry // of the scan that runs
	buf     []uint64
}

// A frozenClass is a class of the frozen demand.
type frozenClass struct {
	need   packNeed
	weight int64
	shape  shapeRef
	class  uint32
}

// A poolSeen is the view of a pool, while the pool is the one it was made for.
type poolSeen struct {
	hash uint64
	view *packView
}

// A memoRec remembers the value of a state.
type memoRec struct {
	key   packKey
	value int64
	used  bool
}

// A bucketRec is what is known of a bucket while it has this key.
type bucketRec struct {
	key   packKey
	state packState
	known bool
	value int64
	asked bool // value is set
}

// bucket returns what is known of a bucket, and the view of its pool.
func (c *packScratch) bucket(s *State, b uint32, key *packKey) (*bucketRec, *packView) {
	v := c.view(s, key.pool()) // first: it forgets what was known if the pool is another one now
	for int(b) >= len(c.buckets) {
		c.buckets = append(c.buckets, bucketRec{})
	}
	x := &c.buckets[b]
	if !x.known || x.key != *key {
		*x = bucketRec{key: *key, state: key.state(), known: true}
	}
	return x, v
}

// scratch returns what follows from the demand that is frozen now.
func (s *State) scratch() *packScratch {
	c := s.pack
	if c == nil {
		c = &packScratch{memo: make([]memoRec, memoSize), narrow: minWindow, most: maxUnseen}
		s.pack = c
	}
	p := s.packing.Get()
	if c.demand != p.demand {
		c.learn(s)
	}
	return c
}

// learn makes everything for the demand that is frozen now.
func (c *packScratch) learn(s *State) {
	p := s.packing.Get()
	c.demand = p.demand
	c.classes, c.draws, c.views, c.cells = c.classes[:0], c.draws[:0], nil, maxAllCells
	clear(c.poolOf)
	clear(c.memo)
	clear(c.buckets)
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		if d := s.demand.Get(i); d.weight > 0 {
			need := s.shapes.Get(d.shape.id()).needOf()
			c.classes = append(c.classes, frozenClass{need, int64(d.weight), d.shape, i})
		}
	}
	if p.have == gpuai.PackingFGD {
		c.popular()
		return
	}
	c.draw(p.epoch)
}

// draw draws the sequences of demand.
func (c *packScratch) draw(epoch uint32) {
	c.draws = c.draws[:0]
	var all uint64
	for i := range c.classes {
		all += uint64(c.classes[i].weight)
	}
	if all == 0 {
		return
	}
	seed := uint64(epoch)
	for range packSequences * packDraws {
		r := int64(splitmix64(&seed) % all)
		i := 0
		for ; r >= c.classes[i].weight; i++ {
			r -= c.classes[i].weight
		}
		c.draws = append(c.draws, uint16(i))
	}
}

// view returns the demand as a pool sees it.
func (c *packScratch) view(s *State, pool uint16) *packView {
	if int(pool) < len(c.poolOf) {
		if p := &c.poolOf[pool]; p.view != nil && p.hash == s.pools.Get(uint32(pool)).hash {
			return p.view
		}
	}
	return c.see(s, pool)
}

// maxViews bounds the views that are kept: pools with the same view share it.
const maxViews = 256

// see makes the view of a pool.
func (c *packScratch) see(s *State, pool uint16) *packView {
	for int(pool) >= len(c.poolOf) {
		c.poolOf = append(c.poolOf, poolSeen{})
	}
	if c.poolOf[pool].view != nil { // another pool had this number
		clear(c.memo)
		clear(c.buckets)
	}
	c.buf = c.buf[:0]
	for i := range c.classes {
		if i%64 == 0 {
			c.buf = append(c.buf, 0)
		}
		if s.passesAny(s.shapes.Get(c.classes[i].shape.id()), uint32(pool)) {
			c.buf[i/64] |= 1 << (i % 64)
		}
	}
	at := slices.IndexFunc(c.views, func(v *packView) bool { return slices.Equal(v.passing, c.buf) })
	if at < 0 {
		if len(c.views) >= maxViews {
			c.views, c.cells = nil, maxAllCells
			clear(c.poolOf)
		}
		at = len(c.views)
		c.views = append(c.views, c.makeView(s))
	}
	c.poolOf[pool] = poolSeen{s.pools.Get(uint32(pool)).hash, c.views[at]}
	return c.views[at]
}

// makeView makes a view of the classes in buf.
func (c *packScratch) makeView(s *State) *packView {
	v := &packView{passing: slices.Clone(c.buf)}
	var classes []usableClass
	barred := int64(0)
	for i := range c.classes {
		if x := &c.classes[i]; v.passes(i) && x.need.count > 0 {
			classes = append(classes, usableClass{x.need, x.weight})
		} else {
			barred += x.weight
		}
	}
	v.use = newUsable(classes, barred, c.cells)
	c.cells -= uint32(len(v.use.cells))
	v.draw(c)
	for j := range s.packing.Get().slots {
		class := s.slotClasses.Get(j).class
		i := slices.IndexFunc(c.classes, func(x frozenClass) bool { return x.class == class })
		if i >= 0 && v.passes(i) {
			v.slots |= 1 << j
		}
	}
	return v
}

// passes reports whether frozen class i passes.
func (v *packView) passes(i int) bool { return v.passing[i/64]>>(i%64)&1 != 0 }

// draw notes which draws there are of each kind.
func (v *packView) draw(c *packScratch) {
	for _, i := range c.draws {
		if n := c.classes[i].need; v.passes(int(i)) && !slices.Contains(v.kinds, n) {
			v.kinds = append(v.kinds, n)
		}
	}
	slices.SortStableFunc(v.kinds, func(a, b packNeed) int { return cmp.Compare(a.cpu, b.cpu) })
	drawn := make([]drawSet, len(v.kinds))
	for at, i := range c.draws {
		if v.passes(int(i)) {
			k := slices.Index(v.kinds, c.classes[i].need)
			v.draws[at] = uint16(k)
			drawn[k][at/packDraws] |= 1 << (at % packDraws)
		}
	}
	v.rate(drawn)
	v.fits = newDrawTable(v.kinds, drawn)
}

// value returns V of a state.
func (c *packScratch) value(s *State, t *packState) int64 {
	if t.used() {
		return 0
	}
	k := t.key()
	m := &c.memo[k.hash()%memoSize]
	if !m.used || m.key != k {
		*m = memoRec{k, c.view(s, t.pool).value(t), true}
	}
	return m.value
}
