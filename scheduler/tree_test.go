package scheduler

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gpuai/gpuai/internal/mem"
)

type model []entry

func (m model) seek(lo, need uint64) (uint64, bool) {
	for _, e := range m {
		if e.key >= lo && e.mem >= need {
			return e.key, true
		}
	}
	return 0, false
}

func TestTreeAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := mem.NewSpace()
		f := newForest(s)
		var tr tree
		var m model
		span := []uint64{20, 300, 1 << 40}[seed%3]
		for round := range 6000 {
			grow := round/1500%2 == 0
			key, memory := r.Uint64N(span), r.Uint64N(50)
			if len(m) > 0 && r.IntN(4) != 0 != grow {
				key = m[r.IntN(len(m))].key
			}
			i, have := slices.BinarySearchFunc(m, key, func(e entry, k uint64) int {
				switch {
				case e.key < k:
					return -1
				case e.key > k:
					return 1
				}
				return 0
			})
			if have {
				if !f.remove(&tr, key) {
					t.Fatalf("seed %d: key %d is not there to remove", seed, key)
				}
				m = slices.Delete(m, i, i+1)
			} else {
				if f.remove(&tr, key) {
					t.Fatalf("seed %d: removed key %d, which was not there", seed, key)
				}
				f.insert(&tr, key, memory)
				m = slices.Insert(m, i, entry{key: key, mem: memory})
			}
			for range 3 {
				lo, need := r.Uint64N(span+1), r.Uint64N(55)
				got, ok := f.seek(&tr, lo, need)
				want, wantOK := m.seek(lo, need)
				if got != want || ok != wantOK {
					t.Fatalf("seed %d: seek(%d, %d) = %d %v, want %d %v", seed, lo, need, got, ok, want, wantOK)
				}
			}
			if round%97 == 0 {
				checkTree(t, f, &tr, m)
			}
			s.Commit()
		}
		for len(m) > 0 {
			f.remove(&tr, m[0].key)
			m = m[1:]
		}
		if checkTree(t, f, &tr, m); f.slots.Len() != 0 {
			t.Fatalf("seed %d: an empty tree keeps %d blocks", seed, f.slots.Len())
		}
	}
}

func checkTree(t *testing.T, f forest, tr *tree, m model) {
	t.Helper()
	if len(m) == 0 {
		if *tr != (tree{}) {
			t.Fatalf("an empty tree has handle %+v", *tr)
		}
		return
	}
	var blocks uint32
	got, err := f.entries(tr.root-1, tr.height, nil, &blocks)
	if err != nil {
		t.Fatal(err)
	}
	if blocks != f.slots.Len() || tr.height > 0 && uint32(len(m)) < blocks*fan/6 {
		t.Fatalf("%d pairs in %d blocks, %d in use", len(m), blocks, f.slots.Len())
	}
	if !slices.Equal(got, []entry(m)) {
		t.Fatalf("%d pairs, want %d", len(got), len(m))
	}
	most := uint64(0)
	for _, e := range m {
		most = max(most, e.mem)
	}
	if tr.maxMem != most || tr.maxKey != m[len(m)-1].key {
		t.Fatalf("handle says at most %d, %d; the pairs say %d, %d", tr.maxMem, tr.maxKey, most, m[len(m)-1].key)
	}
}
