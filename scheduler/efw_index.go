package scheduler

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A packRec is the state of packing that decisions depend on.
type packRec struct {
	want, have gpuai.Packing // the policy, and what the index is made for
	fixed      bool          // the demand was given and is not learnt
	stale      bool          // pools came or went since the slot classes were made
	epoch      uint32        // of the frozen demand; 0: none was frozen yet
	cursor     uint32        // nodes below are in the index; MaxNodes when all are
	slots      uint32        // slot classes
	arrivals   uint64        // that were counted
	births     uint64        // of buckets, ever, since the policy was not best fit
	cold       uint64        // how often all scores had to be made anew
	demand     uint64        // hash of the frozen demand; 0: none
}

func hashPacking(_ []byte, _ uint32, r *packRec) uint64 {
	if *r == (packRec{}) {
		return 0
	}
	h := mem.Mix(uint64(r.want)<<16|uint64(r.have)<<8|uint64(r.flags()), 0x7061636b)
	h = mem.Mix(h, uint64(r.epoch)<<32|uint64(r.cursor))
	h = mem.Mix(h, mem.Mix(r.births, r.cold))
	return mem.Mix(h, mem.Mix(uint64(r.slots)<<56^r.arrivals, r.demand))
}

// flags are fixed and stale.
func (r *packRec) flags() (b uint8) {
	if r.fixed {
		b |= 1
	}
	if r.stale {
		b |= 2
	}
	return b
}

// ready reports whether all nodes are in the index of the policy's kind.
func (r *packRec) ready() bool { return r.have != 0 && r.have == r.want && r.cursor == MaxNodes }

// settled reports whether the index is what the policy wants.
func (r *packRec) settled() bool { return r.ready() || r.want == 0 && r.have == 0 }

// A packSumRec sums up what follows from the nodes and from searches.
type packSumRec struct {
	idle   int64  // milli-GPU of the nodes in the index
	births uint64 // of buckets, ever
	prices uint64 // how often prices have changed
	live   uint32 // buckets
	newest uint32 // bucket + 1, the one born last
	heaps  heapSums
}

// A packBucket is all indexed nodes of one state.
type packBucket struct {
	key   packKey
	birth uint64 // births then
	nodes uint32 // 0: the slot is free
	older uint32 // bucket + 1
	newer uint32 // bucket + 1
}

// SetPacking sets the policy by which Place chooses. A change takes effect once
// PackStep has built the index for it; until then Place is best fit.
func (s *State) SetPacking(p gpuai.Packing) {
	if s.packing.Get().want == p {
		return
	}
	r := s.packing.Mut()
	if r.want = p; r.have != 0 {
		r.cursor = min(r.cursor, s.nodes.Len())
	}
	if r.have == 0 {
		r.have = p
		if p != 0 && s.nodes.Len() == 0 {
			r.cursor = MaxNodes
		}
	}
	if p == gpuai.PackingBestFit {
		s.dropDemand()
	}
}

// PackingSettled reports whether the index is what the policy wants, so that
// PackStep has nothing to do.
func (s *State) PackingSettled() bool { return s.packing.Get().settled() }

// Packing returns the policy by which Place chooses now: best fit while an
// index is being built.
func (s *State) Packing() gpuai.Packing {
	if p := s.packing.Get(); p.ready() && p.demand != 0 {
		return p.have
	}
	return gpuai.PackingBestFit
}

// workPackNode is the work of one node of PackStep.
const workPackNode = 24

// PackStep brings the index some way towards what the policy wants, by at most
// budget units of work of which it returns those that it used. A node costs
// 24, about 1.2 µs.
func (s *State) PackStep(budget int64) int64 {
	left := budget
	for !s.packing.Get().settled() && left >= workPackNode {
		r := s.packing.Get()
		building := r.have == r.want
		switch {
		case building && r.cursor >= s.nodes.Len():
			s.packing.Mut().cursor = MaxNodes
		case building:
			at := r.cursor
			s.packing.Mut().cursor++
			s.packAdd(at)
			left -= workPackNode
		case r.cursor > 0:
			at := r.cursor - 1
			s.packDrop(at)
			s.packing.Mut().cursor = at
			left -= workPackNode
		default:
			s.dropHeaps()
			p := s.packing.Mut()
			p.cold++
			if p.have = p.want; p.want == 0 {
				*p = packRec{}
				for i := range s.seen.Len() {
					s.forgetSeen(i)
				}
			} else if p.demand != 0 {
				s.demandFrozen()
			}
		}
	}
	return budget - left
}

// packAdd puts a node in its bucket.
func (s *State) packAdd(slot uint32) {
	p := s.packing.Get()
	if p.have == 0 || slot >= p.cursor || slot >= s.nodes.Len() {
		return
	}
	n := s.nodes.Get(slot)
	if !n.known || !n.indexed() {
		return
	}
	t, ok := s.packStateOf(n, p.grid())
	if !ok {
		return
	}
	b := s.joinBucket(&t)
	s.packOf.Grow(slot + 1)
	*s.packOf.Mut(slot) = b + 1
	s.packSums.Mut().idle += t.idle()
	s.supplyOf(&t, 1)
	root := *s.packRoot.Get()
	s.packNodes.insert(&root, packNodeKey(b, slot), 0)
	*s.packRoot.Mut() = root
}

// packDrop takes a node out of its bucket, if it is in one.
func (s *State) packDrop(slot uint32) {
	if slot >= s.packOf.Len() || *s.packOf.Get(slot) == 0 {
		return
	}
	b := *s.packOf.Get(slot) - 1
	*s.packOf.Mut(slot) = 0
	t := s.packBuckets.Get(b).key.state()
	s.packSums.Mut().idle -= t.idle()
	s.supplyOf(&t, -1)
	root := *s.packRoot.Get()
	s.packNodes.remove(&root, packNodeKey(b, slot))
	*s.packRoot.Mut() = root
	s.leaveBucket(b)
}

// packNodeKey orders nodes by bucket, then slot.
func packNodeKey(b, slot uint32) uint64 { return uint64(b)<<cpuShift | uint64(slot) }

// joinBucket counts a node more in the bucket of a state, which is born when
// there is none.
func (s *State) joinBucket(t *packState) uint32 {
	k := t.key()
	h := k.hash()
	if b, ok := s.packHash.Find(h, func(b uint32) bool { return s.packBuckets.Get(b).key == k }); ok {
		s.packBuckets.Mut(b).nodes++
		return b
	}
	b, _ := s.packSlots.Alloc() // there are no more buckets than nodes
	s.packBuckets.Grow(b + 1)
	s.packing.Mut().births++
	sum := s.packSums.Mut()
	sum.births++
	*s.packBuckets.Mut(b) = packBucket{key: k, birth: sum.births, nodes: 1, older: sum.newest}
	if sum.newest != 0 {
		s.packBuckets.Mut(sum.newest - 1).newer = b + 1
	}
	sum.newest = b + 1
	sum.live++
	s.packHash.Insert(h, b)
	return b
}

// leaveBucket counts a node less; a bucket without nodes dies.
func (s *State) leaveBucket(b uint32) {
	r := s.packBuckets.Mut(b)
	if r.nodes--; r.nodes > 0 {
		return
	}
	dead := *r
	*r = packBucket{}
	if dead.older != 0 {
		s.packBuckets.Mut(dead.older - 1).newer = dead.newer
	}
	sum := s.packSums.Mut()
	if dead.newer != 0 {
		s.packBuckets.Mut(dead.newer - 1).older = dead.older
	} else {
		sum.newest = dead.older
	}
	sum.live--
	s.packHash.Delete(dead.key.hash(), b)
	s.packSlots.Free(b)
}

// grid returns how finely an index of this kind tells states apart.
func (r *packRec) grid() packGrid {
	if r.have == gpuai.PackingFGD {
		return packGrid{1, 1}
	}
	return packGrid{cpuGrid, memGrid}
}
