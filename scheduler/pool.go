package scheduler

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A poolRec is a pool. Its number is the lowest that was free when its first
// unit came; it is retired with its last. Numbers reach decisions: they are
// hashed, and written in snapshots.
type poolRec struct {
	hash  uint64 // of def
	def   uint32 // blob: see appendPool
	units uint32
	tier  uint8
	used  bool
	zone  uint16 // pools of one zone have one number, which means nothing else
	model uint64 // ModelHash; 0 without devices; derived
	// closes is NodeInfo.Closes of its nodes; derived.
	closes uint32
	// What all its units have when nothing is used, for EverCapacity. A node
	// of several kinds counts in the pool of each.
	cpu uint64 // milli
	mem uint64 // MiB, each node's rounded up
}

func hashPool(_ []byte, i uint32, r *poolRec) uint64 {
	if !r.used {
		return 0
	}
	return mem.Mix(mem.Mix(uint64(i), 0x706f6f6c), mem.Mix(r.hash, uint64(r.units)))
}

// A kind tells the devices of a unit from others.
type kind struct {
	vendor, model string
	memory        int64
	none          bool // a node without devices
}

// appendPool appends the bytes that describe a pool. Labels come last: few
// filters read them.
func appendPool(b []byte, n *NodeInfo, keys []string, k kind) []byte {
	zone := n.Zone
	if zone == "" {
		zone = "default"
	}
	b = append(b, priceTier(n.Price))
	if n.Closes != 0 {
		b[len(b)-1] |= poolCloses
		b = binary.LittleEndian.AppendUint32(b, n.Closes)
	}
	b = appendStr(b, zone)
	if k.none {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = appendStr(b, k.vendor)
		b = appendStr(b, k.model)
		b = binary.AppendUvarint(b, uint64(k.memory))
	}
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, key := range keys {
		b = appendStr(b, key)
		b = appendStr(b, n.Labels[key])
	}
	return b
}

// poolCloses is set in the price tier of a pool whose nodes close: when follows it.
const poolCloses = 1 << 7

// A poolView is a pool's description, taken apart. It refers to the bytes.
type poolView struct {
	closes              uint32
	zone, vendor, model []byte
	memory              int64
	hasDevice           bool
	labels              cursor // count, then (key, value) by key
}

func viewPool(b []byte) poolView {
	c := cursor{b: b}
	var v poolView
	if c.byte()&poolCloses != 0 {
		v.closes = c.u32()
	}
	v.zone = c.str()
	if v.hasDevice = c.byte() != 0; v.hasDevice {
		v.vendor, v.model, v.memory = c.str(), c.str(), int64(c.num())
	}
	v.labels = c
	return v
}

func (v *poolView) label(key []byte) (value []byte, ok bool) {
	c := v.labels
	for range min(c.num(), gpuai.MaxLabels) {
		k, val := c.str(), c.str()
		if bytes.Equal(k, key) {
			return val, true
		}
	}
	return nil, false
}

// validPool reports whether b can have come from appendPool.
func validPool(b []byte) bool {
	v := viewPool(b)
	c := v.labels
	n := c.num()
	for range min(n, gpuai.MaxLabels) {
		c.str()
		c.str()
	}
	return c.whole() && n <= gpuai.MaxLabels && v.memory >= 0 && b[0]&^poolCloses < numTiers &&
		(b[0]&poolCloses != 0) == (v.closes != 0)
}

// numTiers bounds priceTier.
const numTiers = 64

// minTierBits is the length of the least price that has a tier of its own:
// 2^15 micro-dollars, about 3 cents.
const minTierBits = 16

// priceTier puts prices that are within about 20 % of each other together:
// a quarter of a doubling each. Tier 0 is free of charge, or nearly.
func priceTier(p gpuai.Micros) uint8 {
	n := bits.Len64(uint64(max(p, 0)))
	if n < minTierBits {
		return 0
	}
	quarter := uint64(p) >> (n - 3) & 3
	return uint8(min(uint64(n-minTierBits)*4+quarter+1, numTiers-1))
}

// findPool returns the pool that b describes.
func (s *State) findPool(b []byte) (uint32, bool) {
	return s.poolHash.Find(mem.HashBytes(0, b), func(p uint32) bool {
		s.poolBuf = s.poolBytes.Append(s.poolBuf[:0], s.pools.Get(p).def)
		return bytes.Equal(s.poolBuf, b)
	})
}

// joinPool counts one unit more in the pool that b describes, which is made
// when there is none.
func (s *State) joinPool(b []byte) (uint16, gpuai.Code) {
	p, ok := s.findPool(b)
	if !ok {
		if p, ok = s.poolSlots.Lowest(); !ok || p >= MaxPools {
			return 0, gpuai.TooLarge
		}
		if code := s.makePool(p, b); code != gpuai.OK {
			return 0, code
		}
	}
	s.pools.Mut(p).units++
	return uint16(p), gpuai.OK
}

// makePool makes pool p, which must be free, and asks all filters about it.
func (s *State) makePool(p uint32, b []byte) gpuai.Code {
	if !s.poolBytes.Room(len(b), maxPoolBlocks) {
		return gpuai.TooLarge
	}
	s.poolSlots.Take(p)
	s.pools.Grow(p + 1)
	s.trees.Grow((p>>6 + 1) * numTrees * 64)
	s.sizes.Grow((p + 1) * numSizes)
	s.filled.Grow((p>>6 + 1) * numTrees)
	tier := min(b[0]&^poolCloses, numTiers-1)
	h := mem.HashBytes(0, b)
	*s.pools.Mut(p) = poolRec{hash: h, def: s.poolBytes.Put(b), tier: tier, used: true}
	s.poolHash.Insert(h, p)
	s.tiers.Grow((uint32(tier) + 1) * poolWords)
	*s.tiers.Mut(uint32(tier)*poolWords + p>>6) |= 1 << (p & 63)
	sum := s.sums.Mut()
	sum.tiers |= 1 << tier
	sum.words = max(sum.words, p>>6+1)
	v := viewPool(b)
	if s.pools.Mut(p).closes = v.closes; v.closes != 0 {
		sum.closing++
	}
	if v.hasDevice {
		s.pools.Mut(p).model = ModelHash(string(v.model))
	}
	s.joinZone(p, v.zone)
	for f, ok := s.filterSlots.Next(0); ok; f, ok = s.filterSlots.Next(f + 1) {
		s.filterBuf = s.shapeBytes.Append(s.filterBuf[:0], s.filters.Get(f).def)
		s.setMask(f, p, passes(s.filterBuf, &v))
	}
	s.poolsChanged()
	return gpuai.OK
}

// joinZone gives a new pool the number of its zone.
func (s *State) joinZone(p uint32, zone []byte) {
	at := s.zonePools.Len()
	for z := range s.zonePools.Len() {
		first, ok := s.firstPool(z)
		if !ok {
			at = min(at, z)
			continue
		}
		s.filterBuf = s.poolBytes.Append(s.filterBuf[:0], s.pools.Get(first).def)
		if v := viewPool(s.filterBuf); bytes.Equal(v.zone, zone) {
			at = z
			break
		}
	}
	s.zonePools.Grow(at + 1)
	s.zoneMasks.Grow((at + 1) * poolWords)
	s.pools.Mut(p).zone = uint16(at)
	*s.zonePools.Mut(at)++
	*s.zoneMasks.Mut(at*poolWords + p>>6) |= 1 << (p & 63)
}

// firstPool returns the first pool of a zone; false when the number is free.
func (s *State) firstPool(zone uint32) (uint32, bool) {
	if *s.zonePools.Get(zone) == 0 {
		return 0, false
	}
	for w := range uint32(poolWords) {
		if m := *s.zoneMasks.Get(zone*poolWords + w); m != 0 {
			return uint32(poolAt(w, m)), true
		}
	}
	return 0, false
}

// leavePool counts one unit less, and retires a pool that has none.
func (s *State) leavePool(p uint32) {
	r := s.pools.Mut(p)
	if r.units--; r.units > 0 {
		return
	}
	s.poolsChanged()
	if r.closes != 0 {
		s.sums.Mut().closing--
	}
	tier := uint32(r.tier)
	*s.zoneMasks.Mut(uint32(r.zone)*poolWords + p>>6) &^= 1 << (p & 63)
	*s.zonePools.Mut(uint32(r.zone))--
	s.poolHash.Delete(r.hash, p)
	s.poolBytes.Free(r.def)
	*s.pools.Mut(p) = poolRec{}
	s.poolSlots.Free(p)
	*s.tiers.Mut(tier*poolWords + p>>6) &^= 1 << (p & 63)
	for w := range uint32(poolWords) {
		if *s.tiers.Get(tier*poolWords + w) != 0 {
			return
		}
	}
	s.sums.Mut().tiers &^= 1 << tier
}
