package mem

import (
	"encoding/binary"
	"testing"
)

// TestHashBytesTellsKeysApart hashes keys of every short length, those that
// end with a whole word or in zeros too.
func TestHashBytesTellsKeysApart(t *testing.T) {
	for size := 2; size <= 40; size++ {
		seen := make(map[uint32]bool)
		const keys = 5000
		for i := range uint64(keys) {
			var b [48]byte
			binary.LittleEndian.PutUint64(b[:], i+1)
			seen[fold(HashBytes(1, b[:size]))] = true
		}
		if len(seen) < keys-5 {
			t.Errorf("%d keys of %d bytes have %d hashes", keys, size, len(seen))
		}
	}
}
