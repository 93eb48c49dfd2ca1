package wire

import (
	"encoding/binary"
	"errors"

	"github.com/gpuai/gpuai"
)

var le = binary.LittleEndian

// ErrMalformed is returned, wrapped or not, for bytes that are no value of the
// kind that was asked for.
var ErrMalformed = errors.New("malformed bytes")

// maxStr bounds the length of a string or blob.
const maxStr = 1<<24 - 1

// A Reader reads values one behind the other. After the first value that is not
// there, or a Fail, it reads zeros and Err says so.
type Reader struct {
	b     []byte
	err   error
	brief *Brief // nil: everything is read
	texts *Texts // nil: every text has its own memory
}

// NewReader returns a reader of b, which it does not copy.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Err returns what went wrong first.
func (r *Reader) Err() error { return r.err }

// More reports whether there are bytes left to read.
func (r *Reader) More() bool { return r.err == nil && len(r.b) > 0 }

// Done returns what went wrong first, or that bytes are left over.
func (r *Reader) Done() error {
	if r.err == nil && len(r.b) > 0 {
		return ErrMalformed
	}
	return r.err
}

// Fail makes every later read fail. Why is a constant sentence.
func (r *Reader) Fail(why string) {
	if r.err == nil {
		r.err = errors.New(why)
	}
	r.b = nil
}

// Rest returns a view of all that is left, and reads it.
func (r *Reader) Rest() []byte {
	b := r.b
	r.b = nil
	return b
}

// Bytes returns a view of the next n bytes. When they are not there it returns
// n zero bytes for n up to 64, so that a fixed-size array can be made of them,
// else none.
func (r *Reader) Bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short()
		if n >= 0 && n <= 64 {
			return make([]byte, n)
		}
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// U8 reads one byte.
func (r *Reader) U8() uint8 {
	if len(r.b) < 1 {
		r.short()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// U16 reads two bytes.
func (r *Reader) U16() uint16 {
	if len(r.b) < 2 {
		r.short()
		return 0
	}
	v := le.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

// U32 reads four bytes.
func (r *Reader) U32() uint32 {
	if len(r.b) < 4 {
		r.short()
		return 0
	}
	v := le.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// U64 reads eight bytes.
func (r *Reader) U64() uint64 {
	if len(r.b) < 8 {
		r.short()
		return 0
	}
	v := le.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// I64 reads eight bytes.
func (r *Reader) I64() int64 { return int64(r.U64()) }

func (r *Reader) short() {
	if r.err == nil {
		r.err = ErrMalformed
	}
	r.b = nil
}

// Blob returns a view of the next length-prefixed bytes. A length below 255 is
// one byte; a longer one is 255 and four bytes.
func (r *Reader) Blob() []byte {
	n := uint32(r.U8())
	if n == 255 {
		if n = r.U32(); n < 255 || n > maxStr {
			r.short() // one length has one form
			return nil
		}
	}
	if r.err != nil || uint64(n) > uint64(len(r.b)) {
		r.short()
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// Str reads the next length-prefixed string.
func (r *Reader) Str() string { return string(r.Blob()) }

// AppendBytes appends v with its length in front. It must be below 16 MiB.
func AppendBytes(b, v []byte) []byte { return append(appendLen(b, len(v)), v...) }

// AppendStr appends v with its length in front. It must be below 16 MiB.
func AppendStr(b []byte, v string) []byte { return append(appendLen(b, len(v)), v...) }

func appendLen(b []byte, n int) []byte {
	if n < 255 {
		return append(b, uint8(n))
	}
	return le.AppendUint32(append(b, 255), uint32(n))
}

func appendI64(b []byte, v int64) []byte { return le.AppendUint64(b, uint64(v)) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func (r *Reader) bool() bool {
	v := r.U8()
	if v > 1 {
		r.Fail("a flag is neither 0 nor 1")
	}
	return v == 1
}

// within passes v on when it lies in [lo, hi], and fails the reader otherwise:
// what it returns is in range whatever was read.
func (r *Reader) within(v, lo, hi int64) int64 {
	if v >= lo && v <= hi {
		return v
	}
	r.Fail("a number is out of range")
	return lo
}

// count8 reads how many of something follow, at most limit.
func (r *Reader) count8(limit int) int { return int(r.within(int64(r.U8()), 0, int64(limit))) }

// count16 is count8 for what may be more than 255.
func (r *Reader) count16(limit int) int { return int(r.within(int64(r.U16()), 0, int64(limit))) }

// text reads a view of a text that users may give.
func (r *Reader) text() []byte { return r.limited(gpuai.MaxTextLen) }

// limited reads a view of a text of at most limit bytes.
func (r *Reader) limited(limit int) []byte {
	b := r.Blob()
	if len(b) > limit {
		r.Fail("a text is too long")
		return nil
	}
	return b
}

// appendCount8 writes a count whose limit is below 255. More is written as 255,
// so that the reader refuses it instead of reading another number.
func appendCount8(b []byte, n int) []byte { return append(b, uint8(min(n, 255))) }

// appendCount16 is appendCount8 for limits below 65535.
func appendCount16(b []byte, n int) []byte { return le.AppendUint16(b, uint16(min(n, 65_535))) }
