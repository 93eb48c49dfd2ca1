package gpuai_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"pgregory.net/rapid"
)

func TestToken(t *testing.T) {
	for _, c := range []struct {
		epoch   uint8
		index   uint64
		ordinal uint16
		text    string
	}{
		{0, 0, 0, "0"},
		{0, 1, 0, "65536"},
		{1, 0, 0, "72057594037927936"},
		{255, gpuai.MaxTokenIndex, gpuai.MaxTokenOrdinal, "18446744073709551615"},
	} {
		tok := gpuai.MakeToken(c.epoch, c.index, c.ordinal)
		if tok.Epoch() != c.epoch || tok.Index() != c.index || tok.Ordinal() != c.ordinal || tok.String() != c.text {
			t.Errorf("%+v became %d: epoch %d, index %d, ordinal %d", c, tok, tok.Epoch(), tok.Index(), tok.Ordinal())
		}
		var back gpuai.Token
		if err := back.UnmarshalText([]byte(c.text)); err != nil || back != tok {
			t.Errorf("%s was read as %d, %v", c.text, back, err)
		}
	}
}

func TestTokenOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) (uint8, uint64, uint16) {
			return rapid.Uint8().Draw(t, label), rapid.Uint64Range(0, gpuai.MaxTokenIndex).Draw(t, label), rapid.Uint16().Draw(t, label)
		}
		e1, i1, o1 := draw("first")
		e2, i2, o2 := draw("second")
		later := slices.Compare([]uint64{uint64(e1), i1, uint64(o1)}, []uint64{uint64(e2), i2, uint64(o2)}) < 0
		if (gpuai.MakeToken(e1, i1, o1) < gpuai.MakeToken(e2, i2, o2)) != later {
			t.Fatal("tokens are not ordered by epoch, index and ordinal")
		}
	})
}

func TestTokenIndexIsCut(t *testing.T) {
	if tok := gpuai.MakeToken(3, gpuai.MaxTokenIndex+1, 4); tok.Epoch() != 3 || tok.Index() != 0 || tok.Ordinal() != 4 {
		t.Errorf("an index beyond its bits reached the epoch: %d", tok)
	}
}

func TestIncarnation(t *testing.T) {
	i := gpuai.MakeIncarnation(2, 7)
	if i.Epoch() != 2 || i.Counter() != 7 || i.String() != "144115188075855879" {
		t.Errorf("epoch %d, counter %d, text %s", i.Epoch(), i.Counter(), i)
	}
	if i := gpuai.MakeIncarnation(2, 1<<56+7); i.Epoch() != 2 || i.Counter() != 7 {
		t.Errorf("a counter beyond its bits reached the epoch: %d", i)
	}
	text, err := i.MarshalText()
	var back gpuai.Incarnation
	if err != nil || back.UnmarshalText(text) != nil || back != i {
		t.Errorf("%s was read as %d", text, back)
	}
}

func TestDecimalsAreRefused(t *testing.T) {
	for _, s := range []string{"", "-1", "+1", "1.0", "1e3", "0x10", " 1", "1 ", "18446744073709551616", "a"} {
		tok, inc := gpuai.Token(7), gpuai.Incarnation(7)
		if err := tok.UnmarshalText([]byte(s)); err == nil || tok != 7 {
			t.Errorf("token %q: %d, %v", s, tok, err)
		}
		if err := inc.UnmarshalText([]byte(s)); err == nil || inc != 7 {
			t.Errorf("incarnation %q: %d, %v", s, inc, err)
		}
	}
	var m gpuai.Micros
	if err := m.UnmarshalText([]byte("1.5")); err == nil || strings.Contains(err.Error(), "strconv") || m != 0 {
		t.Errorf("money: %d, %v", m, err)
	}
	if err := m.UnmarshalText([]byte("-2500000")); err != nil || m != -2_500_000 || m.String() != "-2500000" {
		t.Errorf("money: %d, %v", m, err)
	}
}

// vector is the example of the ULID specification's reference implementations.
var vector = gpuai.JobID{0x01, 0x56, 0x3e, 0x3a, 0xb5, 0xd3, 0xd6, 0x76, 0x4c, 0x61, 0xef, 0xb9, 0x93, 0x02, 0xbd, 0x5b}

func TestJobIDText(t *testing.T) {
	const text = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	if vector.String() != text {
		t.Errorf("String = %s", vector)
	}
	for _, s := range []string{text, strings.ToLower(text)} {
		if id, err := gpuai.ParseJobID(s); err != nil || id != vector {
			t.Errorf("%s was read as %v, %v", s, id, err)
		}
	}
	var most gpuai.JobID
	for i := range most {
		most[i] = 0xff
	}
	if most.String() != "7ZZZZZZZZZZZZZZZZZZZZZZZZZ" || !(gpuai.JobID{}).IsZero() || most.IsZero() {
		t.Errorf("the greatest ID is %s", most)
	}
	for _, s := range []string{
		"", text[1:], text + "0", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "I1ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAU",
		"01ARZ3NDEKTSV4RRFFQ69G5FAL", "01ARZ3NDEKTSV4RRFFQ69G5FAO", "01ARZ3NDEKTSV4RRFFQ69G5FA-", "z1ARZ3NDEKTSV4RRFFQ69G5FAV",
	} {
		id := vector
		if err := id.UnmarshalText([]byte(s)); err == nil || !id.IsZero() {
			t.Errorf("%q was read as %v", s, id)
		}
	}
}

func TestJobIDOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := gpuai.JobID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "a"))
		b := gpuai.JobID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "b"))
		want := bytes.Compare(a[:], b[:])
		if got := a.Compare(b); (got < 0) != (want < 0) || (got > 0) != (want > 0) || strings.Compare(a.String(), b.String()) != want {
			t.Fatalf("%s and %s: Compare %d, bytes %d", a, b, got, want)
		}
		if back, err := gpuai.ParseJobID(a.String()); err != nil || back != a {
			t.Fatalf("%s was read as %s, %v", a, back, err)
		}
	})
}

func FuzzParseJobID(f *testing.F) {
	f.Add(vector.String())
	f.Add("7zzzzzzzzzzzzzzzzzzzzzzzzz")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := gpuai.ParseJobID(s)
		if err == nil && id.String() != strings.ToUpper(s) {
			t.Errorf("%q was written again as %s", s, id)
		}
		if err != nil && !id.IsZero() {
			t.Errorf("%q gave an ID and %v", s, err)
		}
	})
}

func TestValidName(t *testing.T) {
	for s, ok := range map[string]bool{
		"a": true, "0": true, "a-b": true, "a--b": true, strings.Repeat("a", 63): true,
		"": false, "-": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "a b": false,
		"é": false, "a\x00": false, strings.Repeat("a", 64): false,
	} {
		if gpuai.ValidName(s) != ok {
			t.Errorf("ValidName(%q) = %v", s, !ok)
		}
	}
	for s, ok := range map[string]bool{
		"a": true, "-": true, "a.b/c_d-e": true, strings.Repeat("a", 63): true,
		"": false, "A": false, "a b": false, "é": false, strings.Repeat("a", 64): false,
	} {
		if gpuai.ValidLabel(s) != ok {
			t.Errorf("ValidLabel(%q) = %v", s, !ok)
		}
	}
}
