package wire

import (
	"errors"
	"hash/crc32"
)

// Limits of an entry. A command within its limit always fits an entry of its
// own.
const (
	MaxCommands     = 1_000
	MaxEntryBytes   = 256 << 10 // of an entry with its header
	MaxCommandBytes = 160 << 10 // of an encoded command, its length field included
)

// Format is the version of the entry's frame.
const Format = 1

// A Header says when and by whom an entry was made.
type Header struct {
	Time int64 // region time, ms
	Wall int64 // Unix time, ms
	Term uint64
}

// The header's layout: format:u8 flags:u8 count:u16 crc:u32 time wall term:u64
// size:u32. The checksum is over all but itself.
const (
	headerSize = 1 + 1 + 2 + 4 + 8 + 8 + 8 + 4
	crcAt      = 4
	sizeAt     = headerSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errFrame    = errors.New("the frame of the entry is malformed")
	errSize     = errors.New("the entry is larger than an entry may be")
	errFormat   = errors.New("the entry has a format that this version does not know")
	errChecksum = errors.New("the entry fails its checksum")
)

// AppendEntry appends an entry that holds the encoded commands. The caller keeps
// MaxCommands, MaxEntryBytes and a time that is not negative: an entry beyond
// them is one that OpenEntry refuses.
func AppendEntry(dst []byte, h Header, cmds ...[]byte) []byte {
	at := len(dst)
	dst = append(dst, Format, 0)
	dst = appendCount16(dst, len(cmds))
	dst = le.AppendUint32(dst, 0)
	dst = appendI64(dst, h.Time)
	dst = appendI64(dst, h.Wall)
	dst = le.AppendUint64(dst, h.Term)
	dst = le.AppendUint32(dst, 0)
	for _, c := range cmds {
		dst = append(dst, c...)
	}
	e := dst[at:]
	le.PutUint32(e[sizeAt:], uint32(len(e)-headerSize))
	le.PutUint32(e[crcAt:], checksum(e))
	return dst
}

func checksum(e []byte) uint32 {
	sum := crc32.Update(0, castagnoli, e[:crcAt])
	return crc32.Update(sum, castagnoli, e[crcAt+4:])
}

// An Entry is a checked entry whose commands are read with Next. It is a view
// of the bytes that it was opened on.
type Entry struct {
	Header Header
	Count  uint16
	types  uint64 // by bit, of its commands; 63 is also those above, and of versions other than 1
	rest   []byte
}

// Only reports whether all commands are of these types, by bit, and of version 1.
func (e *Entry) Only(types uint64) bool { return e.types&^(types&^(1<<63)) == 0 }

// OpenEntry checks an entry's frame, checksum and the frames of its commands.
func OpenEntry(data []byte) (Entry, error) {
	switch {
	case len(data) < headerSize:
		return Entry{}, errFrame
	case len(data) > MaxEntryBytes:
		return Entry{}, errSize
	case data[0] != Format || data[1] != 0:
		return Entry{}, errFormat
	case checksum(data) != le.Uint32(data[crcAt:]):
		return Entry{}, errChecksum
	case uint64(le.Uint32(data[sizeAt:])) != uint64(len(data)-headerSize):
		return Entry{}, errFrame
	}
	e := Entry{Count: le.Uint16(data[2:]), rest: data[headerSize:]}
	e.Header.Time = int64(le.Uint64(data[8:]))
	e.Header.Wall = int64(le.Uint64(data[16:]))
	e.Header.Term = le.Uint64(data[24:])
	if e.Count > MaxCommands || e.Header.Time < 0 {
		return Entry{}, errFrame
	}
	n, walk := uint16(0), e
	for c, ok := walk.Next(); ok; c, ok = walk.Next() {
		n++
		if c.Version != 1 {
			c.Type = 63
		}
		e.types |= 1 << min(c.Type, 63)
	}
	if n != e.Count || len(walk.rest) > 0 {
		return Entry{}, errFrame
	}
	return e, nil
}

// CheckEntry reports whether OpenEntry would take data.
func CheckEntry(data []byte) error {
	_, err := OpenEntry(data)
	return err
}

// A Command is one command of an entry: views of its bytes. Nothing is known of
// the texts but that they are there.
type Command struct {
	Type, Version      uint8
	Tenant, Actor, Key []byte
	Body               []byte
}

// Next returns the entry's next command; false behind the last.
func (e *Entry) Next() (Command, bool) {
	if len(e.rest) < 4 {
		return Command{}, false
	}
	n := le.Uint32(e.rest)
	if n > MaxCommandBytes-4 || uint64(n) > uint64(len(e.rest)-4) {
		return Command{}, false
	}
	r := Reader{b: e.rest[4 : 4+n]}
	c := Command{Type: r.U8(), Version: r.U8()}
	c.Tenant, c.Actor, c.Key = r.Blob(), r.Blob(), r.Blob()
	c.Body = r.Rest()
	if r.err != nil {
		return Command{}, false
	}
	e.rest = e.rest[4+n:]
	return c, true
}

// BeginCommand appends the envelope of a command, behind which its body is to
// be appended. EndCommand takes the mark and completes it.
func BeginCommand(dst []byte, typ, version uint8, tenant, actor, key string) ([]byte, int) {
	at := len(dst)
	dst = append(le.AppendUint32(dst, 0), typ, version)
	dst = AppendStr(dst, tenant)
	dst = AppendStr(dst, actor)
	return AppendStr(dst, key), at
}

// EndCommand completes the command that was begun at a mark.
func EndCommand(dst []byte, at int) []byte {
	le.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}
