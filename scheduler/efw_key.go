package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai/internal/mem"
)

// maxParts is how many partly used devices a unit in the packing index may
// have. Units with more, and nodes of several kinds, are left to best fit.
const maxParts = 8

// Grids on which packing looks at a node: what is free is rounded down to
// them, so that nodes that differ by next to nothing are in one bucket. What is
// lost by it is found by the best fit behind the search.
const (
	cpuGrid = 100  // milli
	memGrid = 1024 // MiB
)

// A packState is what packing sees of a node: the free devices of its one
// unit, free CPU and memory on the grid, and the pool for what filters say.
type packState struct {
	cpu   uint32           // milli
	mem   uint32           // MiB
	parts [maxParts]uint16 // what is left of partly used devices, ascending, 0 behind the last
	pool  uint16
	whole uint8
}

// A packKey is a packState in three words that order as ties are broken: fewer
// whole devices first, then smaller remainders, then less CPU, less memory, and
// the pool.
type packKey [3]uint64

const partBits = 10 // of a remainder, below gpuai.WholeDevice

func (s *packState) key() packKey {
	var k packKey
	k[0] = uint64(s.whole)
	for _, p := range s.parts[:5] {
		k[0] = k[0]<<partBits | uint64(p)
	}
	for _, p := range s.parts[5:] {
		k[1] = k[1]<<partBits | uint64(p)
	}
	k[1] = k[1]<<31 | uint64(s.cpu)
	k[2] = uint64(s.mem)<<16 | uint64(s.pool)
	return k
}

func (k *packKey) state() packState {
	s := packState{
		whole: k.whole(), cpu: uint32(k[1] & cpuMask),
		mem: uint32(k[2] >> 16), pool: uint16(k[2]),
	}
	parts := k[1] >> 31
	for i := maxParts - 1; i >= 5; i-- {
		s.parts[i] = uint16(parts & (1<<partBits - 1))
		parts >>= partBits
	}
	parts = k[0]
	for i := 4; i >= 0; i-- {
		s.parts[i] = uint16(parts & (1<<partBits - 1))
		parts >>= partBits
	}
	return s
}

// whole returns how many whole devices are free in the state.
func (k *packKey) whole() uint8 { return uint8(k[0] >> (5 * partBits)) }

func (k *packKey) pool() uint16 { return uint16(k[2]) }

// before orders keys.
func (k *packKey) before(o *packKey) bool {
	if k[0] != o[0] {
		return k[0] < o[0]
	}
	if k[1] != o[1] {
		return k[1] < o[1]
	}
	return k[2] < o[2]
}

func (k *packKey) hash() uint64 { return mem.Mix(mem.Mix(k[0], k[1]), k[2]) }

// idle returns what is free of the state's devices, in milli.
func (s *packState) idle() int64 {
	t := int64(s.whole) * 1000
	for _, p := range s.parts {
		t += int64(p)
	}
	return t
}

// used reports whether nothing is free of any device.
func (s *packState) used() bool { return s.whole == 0 && s.parts[0] == 0 }

// put adds a remainder; 0 is none.
func (s *packState) put(left uint16) {
	if left == 0 {
		return
	}
	i := 0
	for i < maxParts-1 && s.parts[i] != 0 && s.parts[i] < left {
		i++
	}
	for ; i < maxParts; i++ {
		s.parts[i], left = left, s.parts[i]
		if left == 0 {
			break
		}
	}
}

// cut takes the remainder at place i out.
func (s *packState) cut(i int) {
	for ; i < maxParts-1 && s.parts[i] != 0; i++ {
		s.parts[i] = s.parts[i+1]
	}
	s.parts[maxParts-1] = 0
}

// A packNeed is what a task takes, in the units of a packState.
type packNeed struct {
	cpu, mem uint32
	share    uint16
	count    uint8
}

// needOf returns what a task of a shape takes.
func (r *shapeRec) needOf() packNeed {
	return packNeed{cpu: uint32(r.cpu), mem: uint32(min(mebibytes(int64(r.mem)), 1<<32-1)), share: r.share, count: uint8(r.count)}
}

// milli is what a task takes of devices, in milli.
func (n *packNeed) milli() int64 {
	if n.share != 0 {
		return int64(n.share)
	}
	return int64(n.count) * 1000
}

// room reports whether the state has the CPU and memory.
func (s *packState) room(n *packNeed) bool { return s.cpu >= n.cpu && s.mem >= n.mem }

// less returns the state without the CPU and memory of a task, on the grid.
func (s *packState) less(n *packNeed, grid packGrid) packState {
	t := *s
	t.cpu = grid.cpuOf(int64(s.cpu - n.cpu))
	t.mem = grid.memOf(int64(s.mem - n.mem))
	return t
}

// A packGrid says how finely states are told apart.
type packGrid struct{ cpu, mem uint32 }

func (g packGrid) cpuOf(milli int64) uint32 { return uint32(milli) / g.cpu * g.cpu }
func (g packGrid) memOf(mib int64) uint32   { return uint32(min(mib, 1<<32-1)) / g.mem * g.mem }

// packStateOf returns what packing sees of a node, when it can be seen so.
func (s *State) packStateOf(n *nodeRec, grid packGrid) (packState, bool) {
	u := &n.unit
	if u.next != 0 || bits.OnesCount64(u.parts) > maxParts {
		return packState{}, false
	}
	t := packState{
		cpu: grid.cpuOf(n.freeCPU), mem: grid.memOf(n.freeMem >> 20),
		whole: uint8(bits.OnesCount64(u.whole)), pool: u.pool,
	}
	for m := u.parts; m != 0; m &= m - 1 {
		t.put(uint16(s.free(n, uint8(bits.TrailingZeros64(m)))))
	}
	return t, true
}
