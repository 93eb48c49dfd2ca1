package main

import (
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

// TestWhoHasConnected finds the process that holds the other end of a connection, so
// that two servers' packets can be told apart.
func TestWhoHasConnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	socket, err := socketOf(far.RemoteAddr())
	if err != nil {
		t.Fatal(err)
	}
	if !holds(os.Getpid(), socket) {
		t.Errorf("this process does not hold %s", socket)
	}
	if holds(1, "socket:[0]") {
		t.Error("another process holds a socket that does not exist")
	}
}

// TestLatenessIsOfAWay holds what one server sends another, and nothing else, and
// counts it.
func TestLatenessIsOfAWay(t *testing.T) {
	l := &lines{rng: rand.New(rand.NewPCG(1, 1))}
	w := window{50 * time.Millisecond, 90 * time.Millisecond}
	l.set(func(from, to int) window {
		if from == 1 && to == 2 {
			return w
		}
		return window{}
	})
	for range 100 {
		if d := l.hold(1, 2); d < w.least || d > w.most {
			t.Fatalf("a piece is %s late, and is to be %v", d, w)
		}
	}
	if d := l.hold(2, 1) + l.hold(stranger, 2); d != 0 {
		t.Errorf("other pieces are %s late", d)
	}
	l.set(nil)
	if d := l.hold(1, 2); d != 0 {
		t.Errorf("once it is over a piece is %s late", d)
	}
	if n, mean, _ := l.take(); n != 100 || mean < w.least || mean > w.most {
		t.Errorf("%d pieces were late, by %s in the mean", n, mean)
	}
}
