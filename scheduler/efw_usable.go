package scheduler

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
)

const (
	// maxUsableCells is how many cells a usableTable uses for levels of memory,
	// of four bytes each; maxUsableLevel how many a single level may have.
	maxUsableCells = 1 << 16
	maxUsableLevel = 1 << 19
	// maxAllCells bounds the cells of all views. Without, a table is slower.
	maxAllCells = 1 << 24
)

// A usableTable answers how much of a state's idle devices the demand classes
// can use: the sum over them of weight × usable milli-GPU.
//
// The devices of a state that a class can use depend on the class's share, or
// count, alone, if its CPU and memory fit at all. So the weights of the classes
// that fit are summed up beforehand for each CPU and some levels of memory, by
// share and count: what is left is one cell per device, and the classes whose
// memory is between a level and the state's.
type usableTable struct {
	all  int64    // weight of all classes, those that the pool turns away too
	cpus []uint32 // of rows, ascending: row i+1 is of the classes with CPU ≤ cpus[i]
	mems []uint32 // of levels, ascending: level i+1 is of the classes with memory ≤ mems[i]
	from []uint32 // of levels: the first of classes above it
	// Weights: ((level−1)·(len(cpus)+1) + row)·cols + column. The columns of
	// counts come behind those of shares, which whole devices serve too.
	cells  []uint32
	cols   uint32
	shares [gpuai.WholeDevice]uint16 // column of the classes that a remainder serves
	counts [gpuai.MaxGPUs + 1]uint16 // column of the classes that whole devices serve
	byMem  []usableClass
}

// A usableClass is a demand class that a pool lets in.
type usableClass struct {
	need   packNeed
	weight int64
}

// newUsable returns the table of classes, which it keeps, and of the weight of
// those that can use nothing, with no more than so many cells.
func newUsable(classes []usableClass, barred int64, cells uint32) usableTable {
	u := usableTable{all: barred, byMem: classes}
	slices.SortStableFunc(classes, func(a, b usableClass) int { return cmp.Compare(a.need.mem, b.need.mem) })
	var shares, counts []uint16
	var mems []uint32
	for i := range classes {
		n := &classes[i].need
		u.all += classes[i].weight
		u.cpus, mems = append(u.cpus, n.cpu), append(mems, n.mem)
		if n.share > 0 {
			shares = append(shares, n.share)
		} else {
			counts = append(counts, uint16(n.count))
		}
	}
	u.cpus, shares, counts = distinct(u.cpus), distinct(shares), distinct(counts)
	for p := range u.shares {
		u.shares[p] = uint16(atMost(shares, uint16(p)))
	}
	for g := range u.counts {
		u.counts[g] = uint16(uint32(len(shares)) + 1 + atMost(counts, uint16(g)))
	}
	u.cols = uint32(len(shares) + len(counts) + 2)
	u.setLevels(distinct(mems), cells)
	u.fill()
	return u
}

// distinct returns the values in x, ascending, each once.
func distinct[T cmp.Ordered](x []T) []T {
	slices.Sort(x)
	return slices.Compact(x)
}

// atMost returns how many of x, which ascend, are at most v.
func atMost[T cmp.Ordered](x []T, v T) uint32 {
	lo, n := uint32(0), uint32(len(x))
	for n > 0 {
		half := (n + 1) / 2
		if x[lo+half-1] <= v {
			lo += half
		}
		n -= half
	}
	return lo
}

// setLevels chooses the levels of memory: all, or as many as there are cells
// for, the last one always, so that much memory needs no further look.
func (u *usableTable) setLevels(mems []uint32, cells uint32) {
	each := u.cols * uint32(len(u.cpus)+1)
	levels := min(max(maxUsableCells, each)/each, cells/each)
	if each > maxUsableLevel {
		levels = 0
	}
	u.from = append(u.from, 0)
	for i := range mems {
		n, i := uint64(len(mems)), uint64(i)
		if l := uint64(levels); l < n && (i+1)*l/n == i*l/n {
			continue
		}
		u.mems = append(u.mems, mems[i])
		at := u.from[len(u.from)-1]
		for at < uint32(len(u.byMem)) && u.byMem[at].need.mem <= mems[i] {
			at++
		}
		u.from = append(u.from, at)
	}
	u.cells = make([]uint32, uint32(len(u.mems))*each)
}

// fill sums up the weights.
func (u *usableTable) fill() {
	each := u.cols * uint32(len(u.cpus)+1)
	for l := range uint32(len(u.mems)) {
		level := u.cells[l*each : (l+1)*each]
		for i := range u.byMem[:u.from[l+1]] {
			x := &u.byMem[i]
			col := uint32(u.counts[x.need.count])
			if x.need.share > 0 {
				col = uint32(u.shares[x.need.share])
			}
			level[atMost(u.cpus, x.need.cpu)*u.cols+col] += uint32(x.weight)
		}
		for at := range each {
			if at%u.cols > 0 {
				level[at] += level[at-1]
			}
		}
		for at := u.cols; at < each; at++ {
			level[at] += level[at-u.cols]
		}
	}
}

// of returns what the classes can use of a state's idle devices.
func (u *usableTable) of(s *packState) int64 {
	var sum int64
	l := atMost(u.mems, s.mem)
	if l > 0 {
		at := ((l-1)*uint32(len(u.cpus)+1) + atMost(u.cpus, s.cpu)) * u.cols
		row := u.cells[at : at+u.cols]
		sum = int64(s.whole) * 1000 * int64(row[u.counts[s.whole]])
		for _, p := range s.parts {
			if p == 0 {
				break
			}
			sum += int64(p) * int64(row[u.shares[p]])
		}
	}
	for i := u.from[l]; i < uint32(len(u.byMem)); i++ {
		x := &u.byMem[i]
		if x.need.mem > s.mem {
			break
		}
		if x.need.cpu <= s.cpu {
			sum += x.weight * x.need.usable(s)
		}
	}
	return sum
}

// usable returns what of a state's idle devices a task can use that has the CPU
// and memory.
func (n *packNeed) usable(s *packState) int64 {
	whole := int64(s.whole) * 1000
	if n.share == 0 {
		if s.whole < n.count {
			return 0
		}
		return whole
	}
	for _, p := range s.parts {
		if p >= n.share {
			whole += int64(p)
		}
	}
	return whole
}
