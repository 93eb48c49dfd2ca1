package scheduler

import "encoding/binary"

// Pools and filters are described by byte strings: what is equal has equal
// bytes. A string is its length and itself, a number a uvarint.

func appendStr[T string | []byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// A cursor reads such bytes. Beyond their end it is short, and reads zeros.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) num() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.b, c.short = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// whole reports whether all bytes were read, and no more.
func (c *cursor) whole() bool { return len(c.b) == 0 && !c.short }

// view returns the next n bytes, or nil.
func (c *cursor) view(n uint64) []byte {
	if uint64(len(c.b)) < n {
		c.b, c.short = nil, true
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) str() []byte { return c.view(c.num()) }

func (c *cursor) byte() byte {
	if v := c.view(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.view(2); v != nil {
		return le.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.view(4); v != nil {
		return le.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.view(8); v != nil {
		return le.Uint64(v)
	}
	return 0
}
