package netns

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"
)

const port = 7471

// reaches reports whether server a can connect to server b.
func reaches(t *testing.T, w *Network, a, b int) bool {
	t.Helper()
	var conn net.Conn
	var refused error
	err := within(w.ns(a), func() {
		conn, refused = net.DialTimeout("tcp4", net.JoinHostPort(w.Peer(b), strconv.Itoa(port)), 300*time.Millisecond)
	})
	if err != nil {
		t.Fatal(err)
	}
	if conn != nil {
		conn.Close()
	}
	return refused == nil
}

// listen makes server i take connections.
func listen(t *testing.T, w *Network, i int) {
	t.Helper()
	var l net.Listener
	var err error
	if in := within(w.ns(i), func() { l, err = net.Listen("tcp4", net.JoinHostPort(w.Peer(i), strconv.Itoa(port))) }); in != nil || err != nil {
		t.Fatal(in, err)
	}
	t.Cleanup(func() { l.Close() })
}

// TestCuts makes every cut once, and sees what gets through.
func TestCuts(t *testing.T) {
	if err := Available(); err != nil {
		t.Skip(err)
	}
	w, err := New(fmt.Sprintf("gpuai-chaos-test%d", os.Getpid()), 3)
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		listen(t, w, i)
	}
	cases := []struct {
		name string
		cut  func() error
		want [3]bool // 0-1, 0-2, 1-2
	}{
		{"whole", func() error { return nil }, [3]bool{true, true, true}},
		{"link down", func() error { return w.Down(0, true) }, [3]bool{false, false, true}},
		{"second bridge", func() error { return w.Aside(2, true) }, [3]bool{true, false, false}},
		{"isolated ports", func() error {
			if err := w.Isolate(0, true); err != nil {
				return err
			}
			return w.Isolate(1, true)
		}, [3]bool{false, true, true}},
		{"one way", func() error { return w.Drop([][2]int{{1, 2}}) }, [3]bool{true, true, false}},
		{"healed", func() error { return nil }, [3]bool{true, true, true}},
	}
	for _, c := range cases {
		if err := c.cut(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		// A link that comes up again takes a moment.
		var got [3]bool
		for deadline := time.Now().Add(10 * time.Second); got != c.want && time.Now().Before(deadline); {
			got = [3]bool{reaches(t, w, 0, 1), reaches(t, w, 0, 2), reaches(t, w, 1, 2)}
		}
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if err := w.Heal(); err != nil {
			t.Fatal(err)
		}
	}
}
