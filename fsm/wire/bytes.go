package wire

import (
	"encoding/binary"
	"errors"
)

var le = binary.LittleEndian

// ErrMalformed is returned, wrapped or not, for bytes that are no value of the
// kind that was asked for.
var ErrMalformed = errors.New("malformed bytes")

// maxStr bounds a string's length: 24 bits of it are used.
const maxStr = 1<<24 - 1

// A Reader reads values one behind the other. After the first value that is not
// there, or a Fail, it reads zeros and Err says so.
type Reader struct {
	b   []byte
	err error
}

// NewReader returns a reader of b, which it does not copy.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Err returns what went wrong first.
func (r *Reader) Err() error { return r.err }

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
// n zero bytes for n up to 64, else none.
func (r *Reader) Bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		if r.err == nil {
			r.err = ErrMalformed
		}
		r.b = nil
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

// Blob returns a view of the next length-prefixed bytes.
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

// AppendBytes appends v with its length in front.
func AppendBytes(b, v []byte) []byte { return append(appendLen(b, len(v)), v...) }

// AppendStr appends v with its length in front.
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

// within reads a number that must lie in [lo, hi].
func (r *Reader) within(v, lo, hi int64) int64 {
	if r.err == nil && (v < lo || v > hi) {
		r.Fail("a number is out of range")
	}
	return v
}
