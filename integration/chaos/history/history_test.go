package history

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const enough = 30 * time.Second

func read(client int, value, call, ret int64) op {
	return op{client: client, value: value, call: call, ret: ret}
}

func wrote(client int, value, call, ret int64) op {
	return op{client: client, write: true, value: value, call: call, ret: ret}
}

func maybe(client int, value, call int64) op {
	return op{client: client, write: true, value: value, call: call, ret: math.MaxInt64, unknown: true}
}

func TestCheck(t *testing.T) {
	cases := []struct {
		name string
		ops  []op
		err  string // "" = linearizable
	}{
		{"nothing", nil, ""},
		{"what was there", []op{read(1, 7, 0, 1)}, ""},
		{"write then read", []op{wrote(1, 8, 0, 5), read(2, 8, 6, 7)}, ""},
		{"read beside the write, old and new", []op{wrote(1, 8, 0, 9), read(2, 7, 1, 2), read(2, 8, 3, 4)}, ""},
		{"stale read", []op{wrote(1, 8, 0, 5), read(2, 7, 6, 8)}, "client 2 read 7"},
		{"new, then old", []op{wrote(1, 8, 0, 9), read(2, 8, 1, 2), read(3, 7, 3, 4)}, "not linearizable"},
		{"a value from nowhere", []op{read(2, 9, 0, 1)}, "nobody had written"},
		{"unknown and never seen", []op{maybe(1, 8, 0), read(2, 7, 5, 6)}, ""},
		{"unknown and seen late", []op{maybe(1, 8, 0), read(2, 7, 5, 6), read(2, 8, 7, 8)}, ""},
		{"unknown, seen, and gone again", []op{maybe(1, 8, 0), read(2, 8, 5, 6), read(2, 7, 7, 8)}, "not linearizable"},
		{"unknown and seen before it began", []op{read(2, 8, 0, 1), maybe(1, 8, 2)}, "not linearizable"},
		{"two orders in one", []op{wrote(1, 8, 0, 9), wrote(2, 9, 0, 9), read(3, 8, 10, 11), read(4, 9, 12, 13)}, "not linearizable"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := New(7)
			l.ops = append(l.ops, c.ops...)
			err := l.Check(enough)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

// TestCheckEndsWithManyUnknowns checks a long history of which a fifth of the
// writes is unknown, and the same with one stale read in it.
func TestCheckEndsWithManyUnknowns(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := New(7)
	at, now := int64(0), int64(7)
	for i := range int64(5000) {
		at += 10
		switch value := 100 + i; rng.IntN(5) {
		case 0: // not known; done or not
			if l.add(maybe(int(i%5), value, at)); rng.IntN(2) == 0 {
				now = value
			}
		case 1:
			l.add(wrote(int(i%5), value, at, at+9))
			now = value
		default:
			l.add(read(int(i%5), now, at, at+9))
		}
	}
	if err := l.Check(enough); err != nil {
		t.Fatal(err)
	}
	l.add(wrote(1, 9_000, at+10, at+11))
	l.add(wrote(1, 9_001, at+12, at+13))
	l.add(read(2, 9_000, at+14, at+15))
	if err := l.Check(enough); err == nil {
		t.Error("a stale read was let pass")
	}
}
