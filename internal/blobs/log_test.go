package blobs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// putLog stores pieces of a stream, each with one time, ten ms after the one before.
func putLog(t *testing.T, s *Store, prefix, stream string, pieces ...string) {
	t.Helper()
	w := s.NewLog(prefix)
	for i, p := range pieces {
		at := w.Next(stream)
		c := gpuai.LogChunk{Offset: at, Data: []byte(p), Times: []gpuai.LogTime{{Offset: at, At: gpuai.WallTime(1000 + 10*i)}}}
		if err := w.Add(t.Context(), stream, &c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func readLog(t *testing.T, s *Store, prefix string, q gpuai.LogRequest) (gpuai.LogChunk, error) {
	t.Helper()
	l, err := s.OpenLog(t.Context(), prefix)
	if err != nil {
		return gpuai.LogChunk{}, err
	}
	return l.Read(t.Context(), &q)
}

// Output comes back byte for byte whatever the limit, in few blobs where it is
// small.
func TestLogComesBackAsItWas(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		r := rand.NewChaCha8([32]byte{1})
		big := make([]byte, MaxLogPiece)
		_, _ = r.Read(big)
		var want bytes.Buffer
		var pieces []string
		for i := range 8 {
			pieces = append(pieces, fmt.Sprintf("line %d\n", i), string(big[:100_000*i%MaxLogPiece+1]))
		}
		for _, p := range pieces {
			want.WriteString(p)
		}
		putLog(t, s, "logs/a/0-0/1/", "stdout", pieces...)
		putLog(t, s, "logs/a/0-0/2/", "stderr", "few\n", "words")
		var got []byte
		for eof := false; !eof; {
			c, err := readLog(t, s, "logs/a/0-0/1/", gpuai.LogRequest{Stream: "stdout", Offset: int64(len(got)), Limit: 70_001})
			if err != nil || len(c.Data) == 0 || c.Offset != int64(len(got)) {
				t.Fatalf("%d bytes at %d, %v", len(c.Data), c.Offset, err)
			}
			got, eof = append(got, c.Data...), c.EOF
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%d bytes came back, of %d", len(got), want.Len())
		}
		n := 0
		for range s.List(t.Context(), "logs/a/0-0/2/") {
			n++
		}
		if c, err := readLog(t, s, "logs/a/0-0/2/", gpuai.LogRequest{Stream: "stdout"}); n != 1 || err != nil || !c.EOF || len(c.Data) > 0 {
			t.Errorf("%d blobs; the other stream: %+v, %v", n, c, err)
		}
		if _, err := readLog(t, s, "logs/a/0-0/3/", gpuai.LogRequest{Stream: "stdout"}); !errors.Is(err, ErrNotFound) {
			t.Errorf("what is not there: %v", err)
		}
		below := map[string]bool{}
		for name, err := range s.Below(t.Context(), "logs/") {
			if below[name] = true; err != nil {
				t.Fatal(err)
			}
		}
		if n, err := s.DeletePrefix(t.Context(), "logs/a/"); len(below) != 1 || !below["a"] || n < 3 || err != nil {
			t.Errorf("%v; deleted %d, %v", below, n, err)
		}
		for name := range s.Below(t.Context(), "logs/") {
			t.Errorf("%s is left", name)
		}
	})
}

// A request means what it means to the agent: the cases are those of a stream of
// three pieces whose lines cross them.
func TestLogIsSoughtByOffsetTimeAndLine(t *testing.T) {
	s := open(t, "file://"+t.TempDir())
	putLog(t, s, "p/", "stdout", "a1\na2", "\nb1\nb2\n", "c1\n")
	putLog(t, s, "open/", "stdout", "a1\na2\n", "b1")
	all := "a1\na2\nb1\nb2\nc1\n"
	for name, c := range map[string]struct {
		at   string
		q    gpuai.LogRequest
		want string
	}{
		"all":                 {"p/", gpuai.LogRequest{}, all},
		"from an offset":      {"p/", gpuai.LogRequest{Offset: 4}, all[4:]},
		"from the end":        {"p/", gpuai.LogRequest{Offset: -5}, all[len(all)-5:]},
		"behind the end":      {"p/", gpuai.LogRequest{Offset: 99}, ""},
		"the last line":       {"p/", gpuai.LogRequest{Tail: 1}, "c1\n"},
		"two lines":           {"p/", gpuai.LogRequest{Tail: 2}, "b2\nc1\n"},
		"lines over an edge":  {"p/", gpuai.LogRequest{Tail: 4}, "a2\nb1\nb2\nc1\n"},
		"more than there are": {"p/", gpuai.LogRequest{Tail: 9}, all},
		"an open last line":   {"open/", gpuai.LogRequest{Tail: 2}, "a2\nb1"},
		"since the second":    {"p/", gpuai.LogRequest{Since: 1001}, all[5:]},
		"since later":         {"p/", gpuai.LogRequest{Since: 1021}, ""},
		"both":                {"p/", gpuai.LogRequest{Since: 1001, Tail: 1}, "c1\n"},
	} {
		var got strings.Builder
		for q, eof := c.q, false; !eof; {
			q.Stream = "stdout"
			chunk, err := readLog(t, s, c.at, q)
			if err != nil || len(chunk.Data) == 0 && !chunk.EOF {
				t.Fatalf("%s: %+v, %v", name, chunk, err)
			}
			got.Write(chunk.Data)
			q, eof = gpuai.LogRequest{Offset: chunk.Offset + int64(len(chunk.Data))}, chunk.EOF
		}
		if got.String() != c.want {
			t.Errorf("%s: %q, want %q", name, got.String(), c.want)
		}
	}
	c, err := readLog(t, s, "p/", gpuai.LogRequest{Stream: "stdout", Offset: 6, Times: true})
	if want := []gpuai.LogTime{{Offset: 5, At: 1010}}; err != nil || !slices.Equal(c.Times, want) {
		t.Errorf("%v, %v", c.Times, err)
	}
	if _, err := readLog(t, s, "p/", gpuai.LogRequest{Stream: "../x"}); err == nil {
		t.Error("a stream that leads elsewhere is read")
	}
}

// What an agent stored is not trusted: bombs, lies of the index and pieces that are
// not there are errors, and take no memory.
func TestHostileLogs(t *testing.T) {
	s := open(t, "file://"+t.TempDir())
	index := func(text string) func() error {
		return func() error { return s.putPacked(t.Context(), "p/index", []byte(text)) }
	}
	piece := func(raw []byte) func() error {
		return func() error {
			return errors.Join(index(`{"format":1,"streams":{"stdout":[{"offset":0,"bytes":5}]}}`)(), s.putPacked(t.Context(), "p/stdout/0", raw))
		}
	}
	for name, spoil := range map[string]func() error{
		"not packed":      func() error { return s.Put(t.Context(), "p/index", []byte("{}")) },
		"a bomb":          func() error { return s.putPacked(t.Context(), "p/index", make([]byte, maxLogIndex+1)) },
		"another format":  index(`{"format":2}`),
		"overlapping":     index(`{"format":1,"streams":{"stdout":[{"offset":0,"bytes":5},{"offset":4,"bytes":5}]}}`),
		"negative":        index(`{"format":1,"streams":{"stdout":[{"offset":-5,"bytes":5}]}}`),
		"beyond numbers":  index(`{"format":1,"streams":{"stdout":[{"offset":9223372036854775807,"bytes":5}]}}`),
		"too large":       index(`{"format":1,"streams":{"stdout":[{"offset":0,"bytes":99999999}]}}`),
		"short in itself": index(`{"format":1,"streams":{"stdout":[{"offset":0,"bytes":5,"data":"AAA="}]}}`),
		"no piece":        index(`{"format":1,"streams":{"stdout":[{"offset":7,"bytes":5}]}}`),
		"an empty piece":  piece(nil),
		"another length":  piece([]byte("\x00\x00\x00\x00wor")),
		"many times":      piece([]byte("\xff\xff\xff\xffwords")),
		"a piece's bomb":  piece(make([]byte, 4<<20)),
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := readLog(t, s, "p/", gpuai.LogRequest{Stream: "stdout"}); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
