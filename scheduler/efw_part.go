package scheduler

// A heap of more buckets than one search scores is filled in parts, of so many
// each. It knows of the buckets that were there when it was begun; those that
// were born since are learnt when it is whole, as after any other search.

// approach scores a shape in as many buckets as one search may.
func (s *State) approach(c *packScratch, id ShapeID) {
	for alt := range s.shapes.Get(uint32(id)).alts {
		i := s.heapOf(id, alt)
		q := s.scoringOf(c, id, alt)
		r := s.heaps.heaps.Get(i)
		if !r.partial || r.demand != s.packing.Get().demand || r.era != s.packSums.Get().heaps.era {
			q.beginPart(i)
		}
		q.part(i, c.most)
	}
}

// beginPart empties a heap that is to be filled in parts.
func (q *scoring) beginPart(i uint32) {
	q.emptyHeap(i)
	r := q.heaps.heaps.Mut(i)
	r.partial, r.cursor, r.seen = true, 0, q.packSums.Get().births
}

// part adds up to so many more buckets to a heap; false when the heap was lost
// by it.
func (q *scoring) part(i uint32, most uint64) bool {
	if q.heaps.heaps.Get(i).prices != q.packSums.Get().prices {
		q.reprice(i)
	}
	r := *q.heaps.heaps.Get(i)
	at := r.cursor
	for ; at < q.packBuckets.Len() && most > 0; at++ {
		if b := q.packBuckets.Get(at); b.nodes == 0 || b.birth > r.seen {
			continue
		}
		most--
		if !q.addBucket(i, at) {
			return false
		}
		if h := q.heaps.heaps.Get(i); h.n > 2*h.width {
			q.trim(i)
		}
	}
	h := q.heaps.heaps.Mut(i)
	h.cursor, h.partial = at, at < q.packBuckets.Len()
	return true
}

// addBucket adds the entries of a bucket to a heap, but for those behind what
// was left out; false when the heap was lost by it.
func (q *scoring) addBucket(i, bucket uint32) bool {
	r := q.heaps.heaps.Get(i)
	for k := range q.score(bucket) {
		if e := &q.out[k]; (!r.floored || !r.floor.precedes(e)) && !q.pushHeap(i, e) {
			return false
		}
	}
	return true
}
