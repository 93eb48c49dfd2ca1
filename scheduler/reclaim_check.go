package scheduler

import (
	"cmp"
	"fmt"
	"slices"
)

// CheckReclaim says whether a node is listed with what hs imply; it sorts hs.
func (s *State) CheckReclaim(node uint32, hs []Holding) error {
	var want []reclaimRow
	if len(hs) > 0 && s.Known(node) && s.nodes.Get(node).open {
		s.eachReclaim(node, hs, func(_ uint32, r *reclaimRow) { want = append(want, *r) })
	}
	var got []reclaimRow
	if s.Reclaimable(node) {
		for at := *s.reclaim.first.Get(node); at != 0; at = s.reclaim.rows.Get(at - 1).next {
			r := *s.reclaim.rows.Get(at - 1)
			r.next = 0
			got = append(got, r)
		}
	}
	slices.Reverse(got) // the newest is listed first
	if !slices.Equal(got, want) {
		return fmt.Errorf("node %d is listed as %+v, its holdings imply %+v", node, got, want)
	}
	return nil
}

// checkReclaim says whether the trees hold the rows of all nodes, and no more.
func (s *State) checkReclaim() error {
	x := &s.reclaim
	whole, parts := map[uint32][]entry{}, map[uint32][]entry{}
	rows := make([]uint32, x.counts.Len())
	count := uint32(0)
	for node := range x.first.Len() {
		for at := *x.first.Get(node); at != 0; at = x.rows.Get(at - 1).next {
			r := x.rows.Get(at - 1)
			place := uint32(x.bands.Get().place[r.band])
			tree := place*MaxPools + uint32(r.pool)
			count++
			rows[place]++
			whole[tree] = append(whole[tree], entry{key: r.whole, mem: r.mem})
			if r.partly {
				parts[tree] = append(parts[tree], entry{key: r.parts, mem: r.mem})
			}
		}
	}
	if count != x.rowSlots.Len() {
		return fmt.Errorf("%d rows may be reclaimed, %d are in use", count, x.rowSlots.Len())
	}
	for place, n := range rows {
		if got := *x.counts.Get(uint32(place)); got != n || x.places.Has(uint32(place)) != (n > 0) {
			return fmt.Errorf("%d rows are at place %d, %d are counted", n, place, got)
		}
	}
	blocks := uint32(0)
	for i := range x.trees.Len() {
		t := x.trees.Get(i)
		filled := *x.filled.Get(i/MaxPools*poolWords + i%MaxPools>>6)>>(i&63)&1 != 0
		if filled != (len(whole[i]) > 0) {
			return fmt.Errorf("pool %d of place %d has %d units, marked %v", i%MaxPools, i/MaxPools, len(whole[i]), filled)
		}
		if err := x.checkTree(&t.whole, whole[i], &blocks); err != nil {
			return fmt.Errorf("whole devices of pool %d, place %d: %w", i%MaxPools, i/MaxPools, err)
		}
		if err := x.checkTree(&t.parts, parts[i], &blocks); err != nil {
			return fmt.Errorf("parts of pool %d, place %d: %w", i%MaxPools, i/MaxPools, err)
		}
	}
	if blocks != x.forest.slots.Len() {
		return fmt.Errorf("%d blocks, %d are in use", blocks, x.forest.slots.Len())
	}
	return nil
}

func (x *reclaimIndex) checkTree(t *tree, want []entry, blocks *uint32) error {
	if t.empty() || len(want) == 0 {
		if t.empty() != (len(want) == 0) {
			return fmt.Errorf("%d pairs are implied, empty is %v", len(want), t.empty())
		}
		return nil
	}
	slices.SortFunc(want, func(a, b entry) int { return cmp.Compare(a.key, b.key) })
	got, err := x.forest.entries(t.root-1, t.height, nil, blocks)
	if err != nil {
		return err
	}
	most := uint64(0)
	for _, e := range want {
		most = max(most, e.mem)
	}
	if !slices.Equal(got, want) || t.maxMem != most || t.maxKey != want[len(want)-1].key {
		return fmt.Errorf("%d pairs, %d are implied; %+v", len(got), len(want), *t)
	}
	return nil
}
