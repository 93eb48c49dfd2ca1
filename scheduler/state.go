package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai/internal/mem"
)

// A State is the capacity index of one machine.
type State struct {
	space *mem.Space

	nodes     *mem.Table[nodeRec]
	units     *mem.Table[unitRec]
	unitSlots *mem.Slots
	rows      *mem.Table[rowRec]
	rowSlots  *mem.Slots

	places     *mem.Table[placeRow]
	placeSlots *mem.Slots
	placeOf    *mem.Table[uint32] // first row + 1 of a node

	pools     *mem.Table[poolRec]
	poolSlots *mem.Slots
	poolHash  *mem.Hash
	poolBytes *mem.Blobs
	tiers     *mem.Table[uint64] // pools of a price tier: tier·poolWords + word

	forest forest
	trees  *mem.Table[treeRec] // by spot.tree
	sizes  *mem.Table[uint32]  // units by their devices: pool·numSizes + devices
	filled *mem.Table[uint64]  // pools whose tree is not empty: by spot.word

	filters     *mem.Table[filterRec]
	filterSlots *mem.Slots
	filterHash  *mem.Hash
	masks       *mem.Table[uint64] // pools that pass: filter·poolWords + word

	shapes     *mem.Table[shapeRec]
	shapeSlots *mem.Slots
	shapeHash  *mem.Hash
	shapeBytes *mem.Blobs

	topo [numLevelsKept]topology

	zoneMasks *mem.Table[uint64] // pools of a zone: zone·poolWords + word
	zonePools *mem.Table[uint32] // how many

	sums mem.Var[sumRec]

	packing     mem.Var[packRec]
	demand      *mem.Table[demandRec]
	demandSlots *mem.Slots
	demandOf    *mem.Table[uint32] // demand class + 1 of a shape
	slotClasses *mem.Table[slotRec]
	supply      mem.Var[supplyRec]
	packSums    mem.Var[packSumRec]
	packBuckets *mem.Table[packBucket]
	packSlots   *mem.Slots
	packHash    *mem.Hash
	packOf      *mem.Table[uint32] // bucket + 1 of a node
	packNodes   forest
	packRoot    mem.Var[tree]       // of all (bucket, node)
	seen        *mem.Table[seenRec] // by shape
	heaps       heapStore
	pack        *packScratch // no state: see there

	reclaim reclaimIndex

	work uint64
	// Scratch carries nothing from one call to the next.
	poolBuf, filterBuf, keyBuf, unitBuf []byte

	only [poolWords]uint64
	// barred is what Bar leaves out while barring.
	barred  [poolWords]uint64
	barring bool

	rooms []uint64
	spent uint64 // ticks of the search that runs
}

// A sumRec sums up the tables, so that a search knows where not to look.
type sumRec struct {
	classes [2]uint64 // that a pool has units in, numTrees bits
	tiers   uint64    // that a pool is of
	words   uint32    // of a bitmap of pools that are in use
	nodes   uint32
	closing uint32   // pools whose nodes close
	changes uint32   // pools that came or went, since a restore
	idle    uint32   // shapes that no group uses
	first   shapeRef // the longest idle shape
	last    shapeRef
}

// nextClass returns the first class ≥ c that some pool has units in, or
// numClasses.
func (r *sumRec) nextClass(c uint32) uint32 {
	for w := c >> 6; w < 2; w++ {
		if m := r.classes[w] >> (c & 63) << (c & 63); m != 0 {
			return min(w<<6|uint32(bits.TrailingZeros64(m)), numClasses)
		}
		c = 0
	}
	return numClasses
}

// New returns an empty index whose structures live in sp.
func New(sp *mem.Space) *State {
	return &State{
		space:     sp,
		nodes:     mem.NewTable[nodeRec](sp, 6),
		units:     mem.NewTable[unitRec](sp, 6),
		unitSlots: mem.NewSlots(sp),
		rows:      mem.NewTable[rowRec](sp, 7),
		rowSlots:  mem.NewSlots(sp),

		places:     mem.NewTable[placeRow](sp, 6),
		placeSlots: mem.NewSlots(sp),
		placeOf:    mem.NewTable[uint32](sp, 9),

		pools:     mem.NewHashed(sp, 4, hashPool),
		poolSlots: mem.NewSlots(sp),
		poolHash:  mem.NewHash(sp),
		poolBytes: mem.NewBlobs(sp),
		tiers:     mem.NewTable[uint64](sp, 6),

		forest: newForest(sp),
		trees:  mem.NewTable[treeRec](sp, 7),
		sizes:  mem.NewTable[uint32](sp, 8),
		filled: mem.NewTable[uint64](sp, 7),

		filters:     mem.NewTable[filterRec](sp, 6),
		filterSlots: mem.NewSlots(sp),
		filterHash:  mem.NewHash(sp),
		masks:       mem.NewTable[uint64](sp, 8),

		shapes:     mem.NewHashed(sp, 4, hashShape),
		shapeSlots: mem.NewSlots(sp),
		shapeHash:  mem.NewHash(sp),
		shapeBytes: mem.NewBlobs(sp),

		topo: [numLevelsKept]topology{newTopology(sp), newTopology(sp)},

		zoneMasks: mem.NewTable[uint64](sp, 8),
		zonePools: mem.NewTable[uint32](sp, 8),

		sums: mem.NewVar(sp, sumRec{}),

		packing:     mem.NewHashedVar(sp, packRec{}, hashPacking),
		demand:      mem.NewHashed(sp, 4, hashDemand),
		demandSlots: mem.NewSlots(sp),
		demandOf:    mem.NewTable[uint32](sp, 8),
		slotClasses: mem.NewHashed(sp, 4, hashSlot),
		supply:      mem.NewVar(sp, supplyRec{}),
		packSums:    mem.NewVar(sp, packSumRec{}),
		packBuckets: mem.NewTable[packBucket](sp, 5),
		packSlots:   mem.NewSlots(sp),
		packHash:    mem.NewHash(sp),
		packOf:      mem.NewTable[uint32](sp, 8),
		packNodes:   newForest(sp),
		packRoot:    mem.NewVar(sp, tree{}),
		seen:        mem.NewHashed(sp, 6, hashSeen),
		heaps:       newHeapStore(sp),

		reclaim: newReclaimIndex(sp),
	}
}

// Fork returns the index's copy in ns, a fork of its space. Work starts at 0.
func (s *State) Fork(ns *mem.Space) *State {
	return &State{
		space:     ns,
		nodes:     s.nodes.Fork(ns),
		units:     s.units.Fork(ns),
		unitSlots: s.unitSlots.Fork(ns),
		rows:      s.rows.Fork(ns),
		rowSlots:  s.rowSlots.Fork(ns),

		places:     s.places.Fork(ns),
		placeSlots: s.placeSlots.Fork(ns),
		placeOf:    s.placeOf.Fork(ns),

		pools:     s.pools.Fork(ns),
		poolSlots: s.poolSlots.Fork(ns),
		poolHash:  s.poolHash.Fork(ns),
		poolBytes: s.poolBytes.Fork(ns),
		tiers:     s.tiers.Fork(ns),

		forest: s.forest.fork(ns),
		trees:  s.trees.Fork(ns),
		sizes:  s.sizes.Fork(ns),
		filled: s.filled.Fork(ns),

		filters:     s.filters.Fork(ns),
		filterSlots: s.filterSlots.Fork(ns),
		filterHash:  s.filterHash.Fork(ns),
		masks:       s.masks.Fork(ns),

		shapes:     s.shapes.Fork(ns),
		shapeSlots: s.shapeSlots.Fork(ns),
		shapeHash:  s.shapeHash.Fork(ns),
		shapeBytes: s.shapeBytes.Fork(ns),

		topo: [numLevelsKept]topology{s.topo[0].fork(ns), s.topo[1].fork(ns)},

		zoneMasks: s.zoneMasks.Fork(ns),
		zonePools: s.zonePools.Fork(ns),

		sums: s.sums.Fork(ns),

		packing:     s.packing.Fork(ns),
		demand:      s.demand.Fork(ns),
		demandSlots: s.demandSlots.Fork(ns),
		demandOf:    s.demandOf.Fork(ns),
		slotClasses: s.slotClasses.Fork(ns),
		supply:      s.supply.Fork(ns),
		packSums:    s.packSums.Fork(ns),
		packBuckets: s.packBuckets.Fork(ns),
		packSlots:   s.packSlots.Fork(ns),
		packHash:    s.packHash.Fork(ns),
		packOf:      s.packOf.Fork(ns),
		packNodes:   s.packNodes.fork(ns),
		packRoot:    s.packRoot.Fork(ns),
		seen:        s.seen.Fork(ns),
		heaps:       s.heaps.fork(ns),

		reclaim: s.reclaim.fork(ns),
	}
}

// Work returns how much work Find and Capacity have done, in units of about 50 ns. Take
// the difference of two calls: what it starts at means nothing. The difference
// is a function of the state and of the calls between, equal on all replicas,
// whatever the history of their trees.
func (s *State) Work() uint64 { return s.work }

// Sum returns what the index contributes to its space's hash, computed anew.
func (s *State) Sum() uint64 {
	return s.pools.Sum() + s.shapes.Sum() + s.topo[levelNVLink].domains.Sum() + s.topo[levelRack].domains.Sum() +
		s.packing.Sum() + s.demand.Sum() + s.slotClasses.Sum() + s.seen.Sum()
}

// HasNodes reports whether any node is registered.
func (s *State) HasNodes() bool { return s.sums.Get().nodes > 0 }
