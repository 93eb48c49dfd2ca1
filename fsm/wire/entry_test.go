package wire_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/gpuai/gpuai/fsm/wire"
)

// headerSize is that of an entry; the checksum is at crcAt.
const (
	headerSize = 36
	crcAt      = 4
)

var header = wire.Header{Time: 12_345, Wall: 1_700_000_000_123, Term: 7}

func command(typ uint8, tenant, actor, key, body string) []byte {
	b, at := wire.BeginCommand(nil, typ, 1, tenant, actor, key)
	return wire.EndCommand(append(b, body...), at)
}

// sealed returns e with its size and checksum made right, so that what is wrong
// behind them is seen.
func sealed(e []byte) []byte {
	e = slices.Clone(e)
	if len(e) >= headerSize {
		binary.LittleEndian.PutUint32(e[headerSize-4:], uint32(len(e)-headerSize))
		sum := crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), e[:crcAt])
		sum = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), e[crcAt+4:])
		binary.LittleEndian.PutUint32(e[crcAt:], sum)
	}
	return e
}

func TestEntryRoundTrip(t *testing.T) {
	cmds := [][]byte{
		command(5, "default", "alice", "key-1", "body"),
		command(9, "", "", "", ""),
		command(255, "t", string(make([]byte, 300)), "k", string(make([]byte, 5_000))),
	}
	data := wire.AppendEntry([]byte("before"), header, cmds...)[len("before"):]
	e, err := wire.OpenEntry(data)
	if err != nil {
		t.Fatal(err)
	}
	if e.Header != header || e.Count != 3 {
		t.Errorf("opened %+v with %d commands", e.Header, e.Count)
	}
	first, _ := e.Next()
	if first.Type != 5 || first.Version != 1 || string(first.Tenant) != "default" ||
		string(first.Actor) != "alice" || string(first.Key) != "key-1" || string(first.Body) != "body" {
		t.Errorf("first command: %+v", first)
	}
	second, _ := e.Next()
	if second.Type != 9 || len(second.Tenant)+len(second.Actor)+len(second.Key)+len(second.Body) != 0 {
		t.Errorf("second command: %+v", second)
	}
	if third, ok := e.Next(); !ok || third.Type != 255 || len(third.Actor) != 300 || len(third.Body) != 5_000 {
		t.Errorf("third command: %v %d %d", ok, len(third.Actor), len(third.Body))
	}
	if _, ok := e.Next(); ok {
		t.Error("a fourth command")
	}
}

func TestEntryMayBeEmpty(t *testing.T) {
	e, err := wire.OpenEntry(wire.AppendEntry(nil, header))
	if err != nil || e.Count != 0 || e.Header != header {
		t.Errorf("%+v, %v", e, err)
	}
	if _, ok := e.Next(); ok {
		t.Error("a command in an empty entry")
	}
}

func TestEntryEveryBitIsChecked(t *testing.T) {
	data := wire.AppendEntry(nil, header, command(5, "default", "a", "k", "body"), command(9, "", "", "", ""))
	for i := range len(data) * 8 {
		bad := slices.Clone(data)
		bad[i/8] ^= 1 << (i % 8)
		if err := wire.CheckEntry(bad); err == nil {
			t.Errorf("bit %d of byte %d may flip", i%8, i/8)
		}
	}
	for n := range data {
		if err := wire.CheckEntry(data[:n]); err == nil {
			t.Errorf("an entry may end at byte %d", n)
		}
	}
	if err := wire.CheckEntry(append(slices.Clone(data), 0)); err == nil {
		t.Error("an entry may be followed by a byte")
	}
}

func TestEntryRefusals(t *testing.T) {
	one := command(9, "", "", "", "")
	entry := func(change func(e []byte) []byte) []byte {
		return sealed(change(wire.AppendEntry(nil, header, one)))
	}
	at := func(i int, v byte) func([]byte) []byte {
		return func(e []byte) []byte { e[i] = v; return e }
	}
	many := make([][]byte, wire.MaxCommands+1)
	for i := range many {
		many[i] = one
	}
	huge := command(5, "", "", "", string(make([]byte, wire.MaxCommandBytes)))
	most := command(5, "", "", "", string(make([]byte, wire.MaxCommandBytes-len(one))))
	for _, c := range []struct {
		name string
		data []byte
		ok   bool
	}{
		{"untouched", entry(func(e []byte) []byte { return e }), true},
		{"nothing", nil, false},
		{"a later format", entry(at(0, 2)), false},
		{"a flag", entry(at(1, 1)), false},
		{"a count too high", entry(at(2, 2)), false},
		{"a count too low", entry(at(2, 0)), false},
		{"a negative time", entry(at(15, 0x80)), false},
		{"bytes behind the commands", entry(func(e []byte) []byte { return append(e, 1, 2, 3) }), false},
		{"a command that ends early", entry(func(e []byte) []byte { return e[:len(e)-1] }), false},
		{"a command length beyond the entry", entry(at(headerSize, 200)), false},
		{"a command too short for its envelope", entry(at(headerSize, 2)), false},
		{"a text beyond its command", entry(at(headerSize+6, 9)), false},
		{"the most commands", wire.AppendEntry(nil, header, many[1:]...), true},
		{"too many commands", wire.AppendEntry(nil, header, many...), false},
		{"the largest command", wire.AppendEntry(nil, header, most), true},
		{"too large a command", wire.AppendEntry(nil, header, huge), false},
		{"too large an entry", wire.AppendEntry(nil, header, most, most), false},
		{"a count that does not fit its field", wire.AppendEntry(nil, header, make([][]byte, 1<<16)...), false},
	} {
		if err := wire.CheckEntry(c.data); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestOpenEntryAllocatesNothing(t *testing.T) {
	data := wire.AppendEntry(nil, header, command(5, "default", "a", "k", "body"), command(9, "", "", "", ""))
	if n := testing.AllocsPerRun(100, func() {
		e, _ := wire.OpenEntry(data)
		for _, ok := e.Next(); ok; _, ok = e.Next() {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzEntry(f *testing.F) {
	f.Add(wire.AppendEntry(nil, header))
	f.Add(wire.AppendEntry(nil, header, command(5, "default", "a", "k", "body"), command(9, "", "", "", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = wire.CheckEntry(data)
		data = sealed(data)
		e, err := wire.OpenEntry(data)
		if err != nil {
			return
		}
		var cmds [][]byte
		for c, ok := e.Next(); ok; c, ok = e.Next() {
			b, at := wire.BeginCommand(nil, c.Type, c.Version, string(c.Tenant), string(c.Actor), string(c.Key))
			cmds = append(cmds, wire.EndCommand(append(b, c.Body...), at))
		}
		if again := wire.AppendEntry(nil, e.Header, cmds...); !bytes.Equal(again, data) {
			t.Errorf("%x was written again as %x", data, again)
		}
	})
}

func BenchmarkOpenEntry(b *testing.B) {
	cmds := make([][]byte, 200)
	for i := range cmds {
		cmds[i] = command(5, "default", "alice", "key-000001", string(make([]byte, 200)))
	}
	data := wire.AppendEntry(nil, header, cmds...)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := wire.CheckEntry(data); err != nil {
			b.Fatal(err)
		}
	}
}
