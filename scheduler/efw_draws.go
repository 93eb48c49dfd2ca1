package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A drawSet is a set of draws: a bit for each of a sequence.
type drawSet [packSequences]uint32

// size returns how many draws are in the set.
func (d *drawSet) size() (n int) {
	for _, m := range d {
		n += bits.OnesCount32(m)
	}
	return n
}

func (d *drawSet) add(o *drawSet) {
	for k := range d {
		d[k] |= o[k]
	}
}

const (
	// Cells in which CPU and memory are looked up: of 128 milli, and 512 MiB.
	cpuCell   = 7
	memCell   = 9
	drawCells = 1_024
)

// A drawTable tells which draws may fit a state, by its CPU, its memory and its
// devices: some that do not fit by CPU or memory are among them, as these are
// looked up in cells.
type drawTable struct {
	with  drawSet   // draws with devices
	sets  []drawSet // what the others are places in
	cpu   [drawCells]uint16
	mem   [drawCells]uint16
	part  [gpuai.WholeDevice]uint16 // by the widest remainder, when no device is whole
	whole [gpuai.MaxGPUs + 1]uint16 // by whole devices
}

// newDrawTable returns the table of kinds and where each is drawn.
func newDrawTable(kinds []packNeed, drawn []drawSet) drawTable {
	var t drawTable
	for i := range kinds {
		if kinds[i].count > 0 {
			t.with.add(&drawn[i])
		}
	}
	t.classify(t.cpu[:], kinds, drawn, func(n *packNeed) uint32 { return n.cpu >> cpuCell })
	t.classify(t.mem[:], kinds, drawn, func(n *packNeed) uint32 { return n.mem >> memCell })
	t.classify(t.part[:], kinds, drawn, func(n *packNeed) uint32 {
		if n.count > 0 && n.share == 0 {
			return never
		}
		return uint32(n.share)
	})
	t.classify(t.whole[:], kinds, drawn, func(n *packNeed) uint32 {
		if n.share > 0 {
			return 0
		}
		return uint32(n.count)
	})
	return t
}

// never is beyond all cells.
const never = 1 << 31

// classify has each cell name the set of the draws whose kinds need at most
// that cell, or the last one when they need more.
func (t *drawTable) classify(cells []uint16, kinds []packNeed, drawn []drawSet, cellOf func(*packNeed) uint32) {
	at := make([][]int, len(cells))
	for i := range kinds {
		if c := cellOf(&kinds[i]); c != never {
			c = min(c, uint32(len(cells)-1))
			at[c] = append(at[c], i)
		}
	}
	t.sets = append(t.sets, drawSet{})
	for c := range cells {
		if len(at[c]) > 0 {
			set := t.sets[len(t.sets)-1]
			for _, i := range at[c] {
				set.add(&drawn[i])
			}
			t.sets = append(t.sets, set)
		}
		cells[c] = uint16(len(t.sets) - 1)
	}
}

func (t *drawTable) ofCPU(milli uint32) *drawSet {
	return &t.sets[t.cpu[min(milli>>cpuCell, drawCells-1)]]
}

func (t *drawTable) ofMem(mib uint32) *drawSet {
	return &t.sets[t.mem[min(mib>>memCell, drawCells-1)]]
}

func (t *drawTable) ofDevices(s *packState) *drawSet {
	if s.whole > 0 {
		return &t.sets[t.whole[s.whole]]
	}
	return &t.sets[t.part[s.widest()]]
}
