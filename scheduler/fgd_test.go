package scheduler

import (
	"math"
	"testing"

	"github.com/gpuai/gpuai"
)

// The table is the sigmoid of the reference, rounded down to whole percents.
func TestSigmoidTable(t *testing.T) {
	w := newWorld(t, 1)
	for range 20_000 {
		fall := int64(w.r.NormFloat64() * (2 << weightBits))
		want := int64(100 / (1 + math.Exp(-float64(fall)/(1<<weightBits))))
		got := int64(0)
		for _, x := range sigmoid {
			if fall >= x {
				got++
			}
		}
		if got != want {
			t.Fatalf("a fall of %v scores %d, want %d", float64(fall)/(1<<weightBits), got, want)
		}
	}
}

// naiveFGD is the definition: over the most popular classes, weight × idle that
// the class cannot use, memory aside.
func (w packWorld) naiveFGD(t packState, classes []frozenClass) (sum int64) {
	for _, c := range classes {
		sum += c.weight * naiveLost(t, c.need, w.s.passesAny(w.s.shapes.Get(c.shape.id()), uint32(t.pool)))
	}
	return sum
}

// FGD is what looking at every node and device says.
func TestFGDAgainstBruteForce(t *testing.T) {
	for seed := range seeds(6) {
		w := steady(t, seed)
		w.s.SetPacking(gpuai.PackingFGD)
		for !w.s.PackingSettled() {
			w.s.PackStep(1_000)
			w.check()
		}
		c := packScratch{}
		for i, ok := w.s.demandSlots.Next(0); ok; i, ok = w.s.demandSlots.Next(i + 1) {
			d := w.s.demand.Get(i)
			c.classes = append(c.classes, frozenClass{w.s.shapes.Get(d.shape.id()).needOf(), int64(d.weight), d.shape, i})
		}
		all := len(c.classes)
		if c.popular(); len(c.classes) >= all {
			t.Fatalf("all %d classes are popular", all)
		}
		for i := range 300 {
			w.fgdStep(c.classes, 2+i/40%2)
			w.check()
			w.sp.Commit()
		}
	}
}

// fgdStep ends a task, or compares a placement and takes it.
func (w packWorld) fgdStep(classes []frozenClass, of int) {
	w.t.Helper()
	if len(w.leases) > 0 && w.r.IntN(of) == 0 {
		l := w.leases[0]
		w.s.Give(l.fit.Node, l.fit.Devices, l.fit.Share, l.cpu, l.mem)
		w.nodes[l.fit.Node].move(l, 1)
		w.leases = w.leases[1:]
		return
	}
	sh := &w.shapes[w.r.IntN(len(w.shapes))]
	r := w.s.shapes.Get(uint32(sh.id))
	n := r.needOf()
	var want Fit
	best, found := 0, false
	for slot := range uint32(14) {
		if w.nodes[slot] == nil {
			continue
		}
		from, ok := w.fineState(slot)
		if !ok || !from.room(&n) || !from.serves(&n) || !w.s.passesAny(r, uint32(from.pool)) {
			continue
		}
		for _, f := range w.devicesFGD(slot, n) {
			x := w.nodes[slot]
			l := sh.lease(f)
			x.move(l, -1)
			to, _ := w.fineState(slot)
			x.move(l, 1)
			fall := (w.naiveFGD(from, classes) - w.naiveFGD(to, classes)) / 1000
			if score := int(100 / (1 + math.Exp(-float64(fall)/(1<<weightBits)))); !found || score > best {
				best, want, found = score, f, true
			}
		}
	}
	got, ok := w.s.Place(sh.id)
	if got != want || ok != found {
		w.t.Fatalf("Place(%+v) = %+v %v, want %+v %v", sh.needs, got, ok, want, found)
	}
	if ok {
		w.s.Take(got, sh.id)
		l := sh.lease(got)
		w.nodes[got.Node].move(l, -1)
		w.leases = append(w.leases, l)
	}
}

// fineState is the state of a node on FGD's grid.
func (w packWorld) fineState(slot uint32) (packState, bool) {
	t, ok := w.stateOf(slot)
	t.cpu, t.mem = uint32(w.nodes[slot].cpu), uint32(w.nodes[slot].mem>>20)
	return t, ok
}

// devicesFGD returns where on a node a task could go: a share on each device in
// turn.
func (w packWorld) devicesFGD(slot uint32, n packNeed) (out []Fit) {
	if n.share == 0 {
		return []Fit{w.fitOf(slot, n, 0, 0)}
	}
	for d, free := range w.nodes[slot].free {
		if free >= int(n.share) {
			out = append(out, Fit{Node: slot, Devices: 1 << d, Share: n.share})
		}
	}
	return out
}
