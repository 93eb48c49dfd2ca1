package mem

import "slices"

const blockData = 120

// A block is one link of a blob's chain; the first holds the blob's length.
type block struct {
	next uint32
	size uint32
	data [blockData]byte
}

// Blobs stores byte strings in chains of fixed blocks. A reference is a block
// number + 1; 0 is the empty blob. References are local to a machine: they must
// neither be hashed nor reach a snapshot.
type Blobs struct {
	blocks *Table[block]
	slots  *Slots
}

// NewBlobs returns an empty store.
func NewBlobs(s *Space) *Blobs {
	return &Blobs{NewTable[block](s, 6), NewSlots(s)}
}

// Fork returns the copy of b in ns.
func (b *Blobs) Fork(ns *Space) *Blobs { return &Blobs{b.blocks.Fork(ns), b.slots.Fork(ns)} }

// Len returns how many blocks are in use.
func (b *Blobs) Len() uint32 { return b.slots.Len() }

// Room reports whether a blob of n bytes fits beside those there are, when at
// most limit blocks may be in use.
func (b *Blobs) Room(n int, limit uint32) bool {
	return uint64(b.slots.Len())+uint64(n)/blockData+1 <= uint64(limit)
}

// Put stores a copy of data. The caller has asked Room.
func (b *Blobs) Put(data []byte) uint32 {
	if len(data) == 0 {
		return 0
	}
	first, prev := uint32(0), uint32(0)
	size := uint32(len(data))
	for len(data) > 0 {
		i, ok := b.slots.Alloc()
		if !ok {
			break // Room was not asked; the blob is cut, alike on every replica
		}
		b.blocks.Grow(i + 1)
		r := b.blocks.Mut(i)
		*r = block{}
		data = data[copy(r.data[:], data):]
		if first == 0 {
			first, r.size = i+1, size
		} else {
			b.blocks.Mut(prev).next = i + 1
		}
		prev = i
	}
	return first
}

// Size returns the length of a blob.
func (b *Blobs) Size(ref uint32) int {
	if ref == 0 {
		return 0
	}
	return int(b.blocks.Get(ref - 1).size)
}

// Append appends a blob to dst.
func (b *Blobs) Append(dst []byte, ref uint32) []byte {
	left := b.Size(ref)
	dst = slices.Grow(dst, left)
	for ref != 0 && left > 0 {
		r := b.blocks.Get(ref - 1)
		n := min(left, blockData)
		dst = append(dst, r.data[:n]...)
		left -= n
		ref = r.next
	}
	return dst
}

// Free gives a blob's blocks back.
func (b *Blobs) Free(ref uint32) {
	for ref != 0 {
		i := ref - 1
		ref = b.blocks.Get(i).next
		*b.blocks.Mut(i) = block{}
		b.slots.Free(i)
	}
}
