package gpuai

// GangSizes are the numbers of devices of one node for which fragmentation is
// told.
var GangSizes = [...]uint32{2, 4, 8}

// FreeBlocks sums up the wholly free devices of one kind by the nodes that they
// are on.
type FreeBlocks struct {
	Free    uint32 // devices
	Largest uint32 // on one node
	// Usable is how many of them tasks of each of GangSizes could use.
	Usable [len(GangSizes)]uint32
}

// Add adds the free devices of a node.
func (b *FreeBlocks) Add(free uint32) {
	b.Free += free
	b.Largest = max(b.Largest, free)
	for i, k := range GangSizes {
		b.Usable[i] += free / k * k
	}
}

// Join adds what o sums up.
func (b *FreeBlocks) Join(o *FreeBlocks) {
	b.Free += o.Free
	b.Largest = max(b.Largest, o.Largest)
	for i := range b.Usable {
		b.Usable[i] += o.Usable[i]
	}
}

// Ratio is the part, in thousandths, of the free devices that tasks of
// GangSizes[i] devices cannot use; 0 when none is free.
func (b *FreeBlocks) Ratio(i int) Milli {
	if b.Free == 0 {
		return 0
	}
	return Milli(uint64(b.Free-b.Usable[i]) * uint64(WholeDevice) / uint64(b.Free))
}
