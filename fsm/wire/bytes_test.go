package wire_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/fsm/wire"
)

func TestReaderReadsWhatIsThere(t *testing.T) {
	r := wire.NewReader([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 'h', 'i', 1, 'x', 7})
	if v := r.U8(); v != 1 {
		t.Errorf("U8 = %d", v)
	}
	if v := r.U16(); v != 0x0302 {
		t.Errorf("U16 = %#x", v)
	}
	if v := r.U32(); v != 0x07060504 {
		t.Errorf("U32 = %#x", v)
	}
	if v := r.U64(); v != 0x0f0e0d0c0b0a0908 {
		t.Errorf("U64 = %#x", v)
	}
	if v := r.I64(); v != -1 {
		t.Errorf("I64 = %d", v)
	}
	if v := r.Str(); v != "hi" {
		t.Errorf("Str = %q", v)
	}
	if v := r.Blob(); string(v) != "x" {
		t.Errorf("Blob = %q", v)
	}
	if err := r.Done(); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("Done with a byte left over = %v", err)
	}
	if err := r.Err(); err != nil {
		t.Errorf("Err = %v", err)
	}
	if v := r.Rest(); !bytes.Equal(v, []byte{7}) {
		t.Errorf("Rest = %v", v)
	}
	if err := r.Done(); err != nil {
		t.Errorf("Done = %v", err)
	}
}

func TestReaderErrorSticks(t *testing.T) {
	reads := map[string]func(*wire.Reader) bool{
		"U8":      func(r *wire.Reader) bool { return r.U8() == 0 },
		"U16":     func(r *wire.Reader) bool { return r.U16() == 0 },
		"U32":     func(r *wire.Reader) bool { return r.U32() == 0 },
		"U64":     func(r *wire.Reader) bool { return r.U64() == 0 },
		"I64":     func(r *wire.Reader) bool { return r.I64() == 0 },
		"Blob":    func(r *wire.Reader) bool { return r.Blob() == nil },
		"Str":     func(r *wire.Reader) bool { return r.Str() == "" },
		"Rest":    func(r *wire.Reader) bool { return len(r.Rest()) == 0 },
		"Bytes":   func(r *wire.Reader) bool { return bytes.Equal(r.Bytes(16), make([]byte, 16)) },
		"Bytes65": func(r *wire.Reader) bool { return r.Bytes(65) == nil },
		"Bytes-1": func(r *wire.Reader) bool { return r.Bytes(-1) == nil },
	}
	for name, zero := range reads {
		t.Run(name, func(t *testing.T) {
			empty := wire.NewReader(nil)
			if !zero(empty) {
				t.Error("a read behind the end is not zero")
			}
			if err := empty.Err(); name != "Rest" && !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("Err = %v", err)
			}
			r := wire.NewReader([]byte("\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01"))
			r.Fail("first")
			r.Fail("second")
			if !zero(r) {
				t.Error("a read after Fail is not zero")
			}
			if err := r.Done(); err == nil || err.Error() != "first" {
				t.Errorf("Done = %v, want the first failure", err)
			}
		})
	}
}

func TestBlobHasOneForm(t *testing.T) {
	for _, n := range []int{0, 1, 254, 255, 256, 70_000} {
		want := strings.Repeat("a", n)
		b := wire.AppendStr(nil, want)
		if !bytes.Equal(b, wire.AppendBytes(nil, []byte(want))) {
			t.Errorf("%d: AppendStr and AppendBytes differ", n)
		}
		r := wire.NewReader(b)
		if got := r.Str(); got != want || r.Done() != nil {
			t.Errorf("%d: read back %d bytes, %v", n, len(got), r.Done())
		}
		short := wire.NewReader(b[:len(b)-1])
		if short.Blob(); short.Err() == nil {
			t.Errorf("%d: one byte less was taken", n)
		}
	}
	for _, b := range []string{"\xff\x03\x00\x00\x00abc", "\xff\xff\xff\xff\xff", "\xff\x00\x00\x00\x01", "\xff\x01"} {
		r := wire.NewReader([]byte(b))
		if r.Blob(); !errors.Is(r.Err(), wire.ErrMalformed) {
			t.Errorf("%q: %v", b, r.Err())
		}
	}
}

func TestViewsCannotGrowIntoTheRest(t *testing.T) {
	data := []byte("\x02abcd")
	r := wire.NewReader(data)
	_ = append(r.Blob(), 'X')
	_ = append(r.Bytes(1), 'Y')
	if string(data) != "\x02abcd" {
		t.Errorf("appending to a view wrote %q", data)
	}
}
