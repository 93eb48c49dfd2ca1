package mem

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

type rec struct{ a, b uint64 }

func hashRec(_ []byte, i uint32, r *rec) uint64 {
	if *r == (rec{}) {
		return 0
	}
	return Mix(uint64(i)+1, Mix(r.a, r.b))
}

// world is one of each structure, beside plain Go models of them.
type world struct {
	sp    *Space
	table *Table[rec]
	slots *Slots
	bits  *Bitmap
	hash  *Hash
	strs  *Strings
	blobs *Blobs
	keys  *Table[uint64]
}

func newWorld() *world {
	s := NewSpace()
	w := &world{s, NewHashed(s, 2, hashRec), NewSlots(s), NewBitmap(s), NewHash(s), NewStrings(s), NewBlobs(s), NewTable[uint64](s, 3)}
	s.Commit()
	return w
}

func (w *world) fork() *world {
	s := w.sp.Fork()
	return &world{s, w.table.Fork(s), w.slots.Fork(s), w.bits.Fork(s), w.hash.Fork(s), w.strs.Fork(s), w.blobs.Fork(s), w.keys.Fork(s)}
}

func (w *world) state() string {
	var out []string
	for i := range w.table.Len() {
		out = append(out, fmt.Sprint(*w.table.Get(i)))
	}
	for i, ok := w.slots.Next(0); ok; i, ok = w.slots.Next(i + 1) {
		out = append(out, fmt.Sprint("s", i))
	}
	for i, ok := w.bits.Next(0); ok; i, ok = w.bits.Next(i + 1) {
		out = append(out, fmt.Sprint("b", i))
	}
	for i := range w.keys.Len() {
		k := *w.keys.Get(i)
		got, ok := w.hash.Find(Mix(k, 1), func(s uint32) bool { return *w.keys.Get(s) == k })
		out = append(out, fmt.Sprint("h", k, got == i && ok))
	}
	for i := range w.strs.Len() {
		n, ok := w.strs.Find(w.strs.Get(i))
		out = append(out, fmt.Sprint("t", w.strs.Get(i), n == i, ok))
	}
	return fmt.Sprint(out, w.sp.Hash(), w.blobs.Len(), w.slots.Len())
}

func (w *world) step(r *rand.Rand) {
	switch r.IntN(7) {
	case 0:
		w.table.Append(rec{r.Uint64(), r.Uint64()})
	case 1:
		if n := w.table.Len(); n > 0 {
			*w.table.Mut(r.Uint32N(n)) = rec{r.Uint64N(3), 0}
		}
	case 2:
		w.slots.Alloc()
	case 3:
		if i, ok := w.slots.Next(r.Uint32N(40)); ok {
			w.slots.Free(i)
		}
	case 4:
		w.bits.Set(r.Uint32N(300))
		w.bits.Clear(r.Uint32N(300))
	case 5:
		k := r.Uint64()
		w.hash.Insert(Mix(k, 1), w.keys.Append(k))
		w.strs.Intern(fmt.Sprint("x", r.IntN(100)))
	case 6:
		b := make([]byte, r.IntN(500))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		ref := w.blobs.Put(b)
		if got := w.blobs.Append(nil, ref); !slices.Equal(got, b) {
			panic("a blob came back changed")
		}
		if r.IntN(2) == 0 {
			w.blobs.Free(ref)
		}
	}
}

// A rollback restores everything, a fork keeps apart, and the incremental hash
// equals the hash computed anew.
func TestRollbackAndFork(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld()
		for range 60 {
			before := w.state()
			var fork *world
			if r.IntN(4) == 0 {
				fork = w.fork()
			}
			for range r.IntN(30) {
				w.step(r)
			}
			mark, mid := w.sp.Mark(), w.state()
			for range r.IntN(30) {
				w.step(r)
			}
			w.sp.RollbackTo(mark)
			if got := w.state(); got != mid {
				t.Fatalf("seed %d: rolled back to a mark:\n%s\nwant\n%s", seed, got, mid)
			}
			if r.IntN(3) == 0 {
				w.sp.RollbackTo(0)
				if got := w.state(); got != before {
					t.Fatalf("seed %d: rolled back:\n%s\nwant\n%s", seed, got, before)
				}
			}
			w.sp.Commit()
			if got := w.table.Sum(); got != w.sp.Hash() {
				t.Fatalf("seed %d: incremental hash %x, computed anew %x", seed, w.sp.Hash(), got)
			}
			if fork != nil {
				if got := fork.state(); got != before {
					t.Fatalf("seed %d: a fork changed with its origin:\n%s\nwant\n%s", seed, got, before)
				}
				now := w.state()
				for range 20 {
					fork.step(r)
				}
				fork.sp.Commit()
				if got := w.state(); got != now {
					t.Fatalf("seed %d: the origin changed with its fork", seed)
				}
			}
		}
	}
}

func TestSlotsAreLowestFirst(t *testing.T) {
	s := NewSpace()
	x := NewSlots(s)
	for want := range uint32(5000) {
		if got, _ := x.Alloc(); got != want {
			t.Fatalf("slot %d, want %d", got, want)
		}
	}
	for _, i := range []uint32{4999, 64, 4096, 0, 63} {
		x.Free(i)
	}
	for _, want := range []uint32{0, 63, 64, 4096, 4999, 5000} {
		if got, _ := x.Alloc(); got != want {
			t.Fatalf("slot %d, want %d", got, want)
		}
	}
	if x.Len() != 5001 || !x.Has(5000) || x.Has(5001) {
		t.Fatalf("%d slots in use", x.Len())
	}
}

// Keys with a hash of their own, and keys of which hundreds share one.
func TestHashDeletes(t *testing.T) {
	for _, hashes := range []uint64{1 << 40, 50, 1} {
		s := NewSpace()
		h := NewHash(s)
		live := map[uint32]bool{}
		r := rand.New(rand.NewPCG(7, 7))
		key := func(i uint32) uint64 { return Mix(uint64(i)%hashes, 9) }
		n := uint32(min(20_000, hashes*500))
		for i := range n {
			h.Insert(key(i), i)
			live[i] = true
			for range r.IntN(3) {
				d := r.Uint32N(i + 1)
				h.Delete(key(d), d)
				delete(live, d)
			}
			s.Commit()
		}
		for i := range n {
			if _, ok := h.Find(key(i), func(s uint32) bool { return s == i }); ok != live[i] {
				t.Fatalf("%d hashes: %d: found %v, want %v", hashes, i, ok, live[i])
			}
		}
		if int(h.Len()) != len(live) {
			t.Fatalf("%d hashes: %d entries, want %d", hashes, h.Len(), len(live))
		}
	}
}

func BenchmarkMutCommit(b *testing.B) {
	s := NewSpace()
	t := NewHashed(s, 8, hashRec)
	t.Grow(100_000)
	s.Commit()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		t.Mut(uint32(i)%100_000).a++
		s.Commit()
	}
}

func BenchmarkFork(b *testing.B) {
	s := NewSpace()
	t := NewHashed(s, 8, hashRec)
	t.Grow(1_000_000)
	s.Commit()
	for b.Loop() {
		t.Fork(s.Fork())
	}
}

// TestReservedHash: a table that was given its room beforehand has the shape of
// one that grew, and finds what was put in.
func TestReservedHash(t *testing.T) {
	for _, n := range []uint32{0, 1, 4, 5, 63, 64, 1_000, 40_001} {
		grown, reserved := NewHash(NewSpace()), NewHash(NewSpace())
		reserved.Reserve(n)
		for i := range n {
			grown.Insert(Mix(uint64(i), 7), i)
			reserved.Insert(Mix(uint64(i), 7), i)
		}
		if a, b := grown.shape.Get(), reserved.shape.Get(); a.level != b.level || a.split != b.split || a.count != b.count {
			t.Errorf("%d slots: the shape is %+v, grown it is %+v", n, *b, *a)
		}
		reserved.Reserve(10 * n) // too late
		for i := range n {
			if got, ok := reserved.Find(Mix(uint64(i), 7), func(s uint32) bool { return s == i }); !ok || got != i {
				t.Fatalf("%d slots: slot %d is found as %d, %v", n, i, got, ok)
			}
		}
		if reserved.Len() != n || reserved.buckets.Len() != grown.buckets.Len() {
			t.Errorf("%d slots: %d in %d buckets, grown in %d", n, reserved.Len(), reserved.buckets.Len(), grown.buckets.Len())
		}
	}
}

// TestLoad: a space that was loaded is equal to one whose writes were
// committed, and takes back and forks as any other from then on.
func TestLoad(t *testing.T) {
	for seed := range uint64(20) {
		written, loaded := newWorld(), newWorld()
		a, b := rand.New(rand.NewPCG(seed, 2)), rand.New(rand.NewPCG(seed, 2))
		loaded.sp.Load()
		for range 400 {
			written.step(a)
			loaded.step(b)
			written.sp.Commit()
			if n := loaded.sp.Uncommitted(); n != 0 {
				t.Fatalf("seed %d: %d writes wait while loading", seed, n)
			}
		}
		for _, w := range []*world{written, loaded} {
			w.table.Grow(w.table.Len() + 9)
			w.sp.Commit()
		}
		loaded.sp.Loaded()
		want := written.state()
		if got := loaded.state(); got != want {
			t.Fatalf("seed %d: loaded\n%s\nwritten\n%s", seed, got, want)
		}
		fork := loaded.fork()
		for range 40 {
			loaded.step(b)
		}
		loaded.sp.RollbackTo(0)
		if got := loaded.state(); got != want {
			t.Fatalf("seed %d: rolled back\n%s\nwant\n%s", seed, got, want)
		}
		loaded.step(b)
		loaded.sp.Commit()
		if got := fork.state(); got != want {
			t.Fatalf("seed %d: a fork changed with its origin", seed)
		}
		if loaded.table.Sum() != loaded.sp.Hash() {
			t.Fatalf("seed %d: the hash is not that of the records", seed)
		}
	}
}

// TestSlotsAgree: with any history, the slot handed out is the lowest free one.
func TestSlotsAgree(t *testing.T) {
	s := NewSpace()
	x := NewSlots(s)
	s.Commit()
	var used [2000]bool
	r := rand.New(rand.NewPCG(4, 4))
	for range 60_000 {
		mark := s.Mark()
		back := used
		for range r.IntN(4) {
			i := r.Uint32N(uint32(len(used)) - 300)
			switch k := r.IntN(5); {
			case k < 2 && used[i]:
				x.Free(i)
				used[i] = false
			case k == 2 && !used[i]:
				x.Take(i)
				used[i] = true
			case k > 2 && x.Len() < 1500:
				want := uint32(slices.Index(used[:], false))
				if got, ok := x.Alloc(); !ok || got != want {
					t.Fatalf("slot %d, %v; want %d", got, ok, want)
				}
				used[want] = true
			}
		}
		switch r.IntN(6) {
		case 0:
			s.RollbackTo(mark)
			used = back
		case 1:
			s.Commit()
		}
	}
}

// BenchmarkAppend appends records of the size of a job's, four a commit.
func BenchmarkAppend(b *testing.B) {
	type row [21]uint64
	s := NewSpace()
	t := NewTable[row](s, 5)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%200_000 == 0 { // reuses the memory of the collector, not of the table
			s = NewSpace()
			t = NewTable[row](s, 5)
		}
		t.Append(row{uint64(i)})
		if i%4 == 0 {
			s.Commit()
		}
	}
}

// A Bitmap finds the next of few members far apart, and of many.
func TestBitmapNext(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 9))
	for _, most := range []uint32{1, 64, 4_096, 1 << 18, 1 << 21} {
		s := NewSpace()
		b, has := NewBitmap(s), map[uint32]bool{}
		for step := range 4_000 {
			i := r.Uint32N(most)
			if step%8 == 0 { // empty it, now and then
				for k := range has {
					b.Clear(k)
					delete(has, k)
				}
			}
			if b.Set(i); r.IntN(3) == 0 {
				b.Clear(i)
				delete(has, i)
			} else {
				has[i] = true
			}
			from, want, some := r.Uint32N(most+1), uint32(0), false
			for k := range has {
				if k >= from && (!some || k < want) {
					want, some = k, true
				}
			}
			if got, ok := b.Next(from); ok != some || got != want {
				t.Fatalf("below %d: next from %d is %d %v, want %d %v", most, from, got, ok, want, some)
			}
		}
	}
}
