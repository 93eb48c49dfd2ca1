package liveness

import (
	"testing"

	"github.com/gpuai/gpuai"
)

func TestBreakerThreshold(t *testing.T) {
	p := gpuai.DefaultPolicy() // 50 nodes or 5 %, in 30 s
	tests := []struct {
		nodes, fall int
		open        bool
	}{
		{100, 50, false}, {100, 51, true}, {1_000, 50, false}, {1_000, 51, true},
		{10_000, 500, false}, {10_000, 501, true}, {3, 3, false},
	}
	for _, tt := range tests {
		var b breaker
		for range tt.fall {
			b.fell(1_000)
		}
		n := b.allow(2_000, load{nodes: tt.nodes, due: tt.fall}, &p)
		if b.open != tt.open {
			t.Errorf("%d of %d nodes: open %v", tt.fall, tt.nodes, b.open)
		}
		if want := map[bool]int{false: tt.fall, true: 0}[tt.open]; n != want {
			t.Errorf("%d of %d nodes: %d allowed", tt.fall, tt.nodes, n)
		}
	}
}

func TestBreakerForgetsFallsOutsideItsWindow(t *testing.T) {
	p := gpuai.DefaultPolicy()
	var b breaker
	for i := range int64(200) { // one a second: never more than 31 in 30 s
		b.fell(i * 1_000)
		if b.allow(i*1_000, load{nodes: 200, due: 1}, &p) != 1 {
			t.Fatalf("open after %d falls, one a second", i)
		}
	}
}

func TestBreakerRate(t *testing.T) {
	p := gpuai.DefaultPolicy() // pause 30 s, then 0.1 % a second, at least 1
	for nodes, perSecond := range map[int]int{100: 1, 1_000: 1, 100_000: 100} {
		var b breaker
		for range nodes {
			b.fell(0)
		}
		due, given := nodes, 0
		for now := int64(0); now < 60_000; now += 250 {
			n := b.allow(now, load{nodes: nodes, due: due}, &p)
			if now < 30_000 && n > 0 {
				t.Fatalf("%d nodes: %d allowed after %d ms", nodes, n, now)
			}
			if n > perSecond {
				t.Fatalf("%d nodes: %d at once", nodes, n)
			}
			b.spend(n)
			due, given = due-n, given+n
		}
		if want := 30 * perSecond; given < want-perSecond || given > want {
			t.Errorf("%d nodes: %d in 30 s, want %d", nodes, given, want)
		}
	}
}

func TestBreakerHoldsAStampedeAndLetsGo(t *testing.T) { // case 27, the decisions
	const nodes, gone = 200, 60
	w := newWorld(t)
	var alive []int
	for i := range nodes {
		w.register(nodeID(i), "a")
		if i >= gone {
			alive = append(alive, i)
		}
		w.lease(20_000)
	}
	beat := func() {
		for _, i := range alive {
			w.beat(ref(w, i))
		}
	}
	tripped := Time(0)
	for w.now < 41*second { // silent from 0, suspect at 12 s, due at 25 s
		w.now += second / 4
		beat()
		if d := w.window(); d.Tripped {
			tripped = w.now
		}
	}
	if tripped != 12*second || w.live() != nodes {
		t.Fatalf("tripped at %d s, %d leases at 41 s", tripped/second, w.live())
	}
	var d Decision
	for w.now < 120*second {
		w.now += second / 4
		beat()
		d = w.window()
	}
	if w.live() != nodes-gone || d.Open {
		t.Errorf("after two minutes: %d leases, open %v, held %d", w.live(), d.Open, d.Held)
	}
	// Closed again, one more loss is dealt with at once.
	alive = alive[1:]
	for end := w.now + 26*second; w.now < end; {
		w.now += second / 4
		beat()
		w.window()
	}
	if w.live() != nodes-gone-1 {
		t.Errorf("one more loss: %d leases", w.live())
	}
}
