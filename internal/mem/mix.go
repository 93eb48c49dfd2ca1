package mem

import (
	"encoding/binary"
	"math/bits"
)

// Constants of wyhash (W. Yi, public domain), which HashBytes follows in kind.
const (
	mixA = 0xa0761d6478bd642f
	mixB = 0xe7037ed1a0b428db
	mixC = 0x8ebc6af09c88c6e3
)

// Mix folds b into a, both spread over 64 bits.
func Mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^mixA, b^mixB)
	return hi ^ lo
}

// HashBytes hashes b. It is no defence against chosen collisions: tables that
// use it compare the key itself.
func HashBytes(seed uint64, b []byte) uint64 {
	h := seed ^ mixC
	n := uint64(len(b))
	for len(b) >= 16 {
		h = Mix(binary.LittleEndian.Uint64(b)^h, binary.LittleEndian.Uint64(b[8:])^mixC)
		b = b[16:]
	}
	var x, y uint64
	if len(b) >= 8 {
		x = binary.LittleEndian.Uint64(b)
		b = b[8:]
	}
	for i, c := range b {
		y |= uint64(c) << (8 * i)
	}
	return Mix(Mix(x^h, y^mixC), n^mixC) // not mixB: Mix would cancel it, and a product with 0 forgets all
}

// HashString hashes s as HashBytes does its bytes.
func HashString(seed uint64, s string) uint64 {
	var buf [64]byte
	if len(s) <= len(buf) {
		return HashBytes(seed, buf[:copy(buf[:], s)])
	}
	return HashBytes(seed, []byte(s))
}
