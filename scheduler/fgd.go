package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// Fragmentation gradient descent (Weng et al., USENIX ATC '23), as its own
// simulator does it: a reference to measure against, with no index. It looks at
// every bucket, and at every device of the node it chooses.

// popularShare is the part of the demand, in percent, that FGD looks at: its
// most popular classes.
const popularShare = 95

// popular leaves the most popular classes, with their weights summing up to
// all again.
func (c *packScratch) popular() {
	var all, kept int64
	for i := range c.classes {
		all += c.classes[i].weight
	}
	left := c.classes
	c.classes = nil
	for len(left) > 0 && kept*100 < all*popularShare {
		best := 0
		for i := range left {
			if left[i].weight > left[best].weight {
				best = i
			}
		}
		c.classes = append(c.classes, left[best])
		kept += left[best].weight
		left = append(left[:best], left[best+1:]...)
	}
	for i := range c.classes {
		c.classes[i].weight = c.classes[i].weight << weightBits / kept
		c.classes[i].need.mem = 0 // FGD does not look at memory
	}
}

// findFGD returns FGD's place for a task: the highest score, then the first
// node, then the first device.
func (s *State) findFGD(id ShapeID) (Fit, bool) {
	s.work += workPackSearch + uint64(s.packSums.Get().live)
	q := &scoring{State: s, c: s.scratch(), r: s.shapes.Get(uint32(id))}
	q.need = q.r.needOf()
	for q.alt = range q.r.alts {
		best, node := int64(-1), uint32(0)
		for b := s.packSums.Get().newest; b != 0; b = s.packBuckets.Get(b - 1).older {
			score, ok := q.bucketFGD(&s.packBuckets.Get(b - 1).key)
			if !ok || score < best {
				continue
			}
			key, _ := s.packNodes.seek(s.packRoot.Get(), packNodeKey(b-1, 0), 0)
			if slot := uint32(key & nodeMask); score > best || slot < node {
				best, node = score, slot
			}
		}
		if best >= 0 {
			return q.fitFGD(node), true
		}
	}
	return Fit{}, false
}

// bucketFGD returns the best score on any device of a state.
func (q *scoring) bucketFGD(key *packKey) (best int64, ok bool) {
	t := key.state()
	n := &q.need
	if !t.room(n) || t.whole < n.count && (n.share == 0 || t.used()) || !q.passes(q.r, q.alt, uint32(t.pool)) {
		return 0, false
	}
	left := t.less(n, packGrid{1, 1})
	if n.share == 0 {
		left.whole -= n.count
		return q.scoreFGD(&t, &left), true
	}
	best = -1
	for i, p := range t.parts {
		if p < n.share || i > 0 && p == t.parts[i-1] {
			continue
		}
		to := left
		to.cut(i)
		to.put(p - n.share)
		best = max(best, q.scoreFGD(&t, &to))
	}
	if t.whole > 0 && t.parts[maxParts-1] == 0 {
		left.whole--
		left.put(1000 - n.share)
		best = max(best, q.scoreFGD(&t, &left))
	}
	return best, best >= 0
}

// scoreFGD is the reference's score of 0 to 100: a sigmoid of the fall of the
// fragmentation in devices, rounded down. Ties are what it is known by.
func (q *scoring) scoreFGD(from, to *packState) int64 {
	fall := (q.c.fragFGD(q.State, from) - q.c.fragFGD(q.State, to)) / 1000
	score := int64(0)
	for _, x := range sigmoid {
		if fall < x {
			break
		}
		score++
	}
	return score
}

// fragFGD returns the fragmentation of a state, remembered.
func (c *packScratch) fragFGD(s *State, t *packState) int64 {
	k := t.key()
	m := &c.memo[k.hash()%memoSize]
	if !m.used || m.key != k {
		*m = memoRec{k, c.view(s, t.pool).frag(t), true}
	}
	return m.value
}

// fitFGD chooses the devices on a node.
func (q *scoring) fitFGD(node uint32) Fit {
	f := Fit{Node: node, Share: q.r.share, Alt: q.alt}
	n := q.nodes.Get(node)
	if q.need.share == 0 {
		f.Devices = q.choose(node, &n.unit, n.unit.whole, q.r.count)
		return f
	}
	t, _ := q.packStateOf(n, packGrid{1, 1})
	left := t.less(&q.need, packGrid{1, 1})
	best := int64(-1)
	for m := n.unit.whole | n.unit.parts; m != 0; m &= m - 1 {
		d := uint8(bits.TrailingZeros64(m))
		have := uint16(q.free(n, d))
		if have < q.need.share {
			continue
		}
		to := left
		if have == uint16(gpuai.WholeDevice) {
			if t.parts[maxParts-1] != 0 {
				continue
			}
			to.whole--
		} else {
			i := 0
			for to.parts[i] != have {
				i++
			}
			to.cut(i)
		}
		to.put(have - q.need.share)
		if score := q.scoreFGD(&t, &to); score > best {
			best, f.Devices = score, 1<<d
		}
	}
	return f
}

// sigmoid holds, for each score from 1 on, the least fall of the fragmentation
// (in devices, of 1<<weightBits) that has it: ln(s/(100-s)).
var sigmoid = [...]int64{
	-4818332, -4080869, -3644953, -3332430, -3087468, -2885193, -2712340, -2560986, -2426022,
	-2303956, -2192300, -2089214, -1993299, -1903469, -1818861, -1738778, -1662650, -1590005,
	-1520445, -1453634, -1389284, -1327147, -1267006, -1208672, -1151978, -1096777, -1042937,
	-990339, -938878, -888456, -838985, -790387, -742585, -695514, -649109, -603313,
	-558069, -513328, -469040, -425160, -381645, -338452, -295542, -252876, -210418,
	-168131, -125980, -83930, -41948, 0, 41949, 83931, 125981, 168132,
	210419, 252877, 295543, 338453, 381646, 425161, 469041, 513329, 558070,
	603314, 649110, 695515, 742586, 790388, 838986, 888457, 938879, 990340,
	1042938, 1096778, 1151979, 1208673, 1267007, 1327148, 1389285, 1453635, 1520446,
	1590006, 1662651, 1738779, 1818862, 1903470, 1993300, 2089215, 2192301, 2303957,
	2426023, 2560987, 2712341, 2885194, 3087469, 3332431, 3644954, 4080870, 4818333,
}
