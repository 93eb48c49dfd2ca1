package liveness

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func ref(w *world, i int) fsm.NodeRef {
	inc, _, _ := w.m.NodeLive(nodeID(i))
	return fsm.NodeRef{Node: nodeID(i), Incarnation: inc}
}

// A walk is one seeded run of lives that beat over a network with delays, and
// of leaders that come and go. Of each acknowledged beat it keeps what that
// promised: no lease it named ends before TTL + grace after the leader got it.
type walk struct {
	*world
	r     *rand.Rand
	lives []*lifeline
	queue []proposal // at the proposer, in order
	batch []flight   // touched, and waiting for a window
	air   []flight
	acked int
	ended int
}

// lifeline is one life of a node and what it was promised.
type lifeline struct {
	fsm.NodeRef
	node     int
	deadline map[gpuai.Token]Time
	mute     bool
	next     Time // beat
}

// flight is a beat on its way; at is when it arrives, or arrived.
type flight struct {
	life *lifeline
	at   Time
}

// proposal is a window's commands and the beats that they confirm.
type proposal struct {
	at    Time
	term  uint64
	cmds  [][]byte
	beats []flight
}

const step = 20 * millisecond

func TestNoLeaseEndsBeforeItsDeadline(t *testing.T) {
	seeds := uint64(12)
	if s, err := strconv.ParseUint(os.Getenv("GPUAI_SEEDS"), 10, 64); err == nil {
		seeds = s
	}
	for seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { runWalk(t, seed) })
	}
}

func runWalk(t *testing.T, seed uint64) {
	const nodes = 6
	w := &walk{world: newWorld(t), r: rand.New(rand.NewPCG(seed, 1))}
	for i := range nodes {
		w.begin(i, nil)
	}
	for i := range nodes {
		w.lease(gpuai.Duration(15_000 + 5_000*(i%3)))
	}
	for w.now < 150*second {
		w.step()
	}
	// All fall silent, the network and the leader are well: all leases end.
	for _, l := range w.lives {
		l.mute = true
	}
	w.air = nil
	for end := w.now + 45*second; w.now < end; {
		w.now += second / 4
		w.propose()
		w.applyUpTo(w.now + 10*second)
	}
	t.Logf("%d beats acknowledged, %d named leases ended, term %d", w.acked, w.ended, w.term)
	if w.live() != 0 {
		t.Errorf("seed %d: %d leases outlived all their nodes", seed, w.live())
	}
}

func (w *walk) chance(n int) bool { return w.r.IntN(n) == 0 }

// begin starts a new life of a node, which takes over the running tasks of the
// one before when that ended, or none when it runs on somewhere.
func (w *walk) begin(node int, takes *lifeline) {
	l := &lifeline{node: node, deadline: make(map[gpuai.Token]Time), next: w.now}
	var held []gpuai.HeldLease
	if takes != nil {
		for token := range takes.deadline {
			held = append(held, gpuai.HeldLease{Lease: token, BootID: "boot"})
		}
		l.deadline, takes.deadline = takes.deadline, nil
	}
	l.NodeRef = w.register(nodeID(node), strconv.Itoa(len(w.lives)), held...)
	w.lives = append(w.lives, l)
}

func (w *walk) step() {
	w.now += step
	if w.chance(1_500) {
		w.fail()
	}
	if w.chance(1_000) {
		old := w.lives[len(w.lives)-1-w.r.IntN(min(3, len(w.lives)))]
		if w.current(old) {
			if w.chance(2) {
				old.mute = true
				w.begin(old.node, old)
			} else {
				w.begin(old.node, nil) // two hosts with one identity
			}
		}
	}
	for _, l := range w.lives {
		if w.chance(2_000) {
			l.mute = !l.mute
		}
		if !l.mute && w.now >= l.next {
			l.next = w.now + 4*second
			w.air = append(w.air, flight{life: l, at: w.now + Time(w.r.IntN(1_500))*millisecond})
		}
	}
	w.land()
	if w.now%(second/4) < step {
		w.propose()
	}
	w.applyUpTo(w.now)
}

func (w *walk) current(l *lifeline) bool {
	inc, _, _ := w.m.NodeLive(l.Node)
	return inc == l.Incarnation
}

// fail ends the term: what its leader had queued is lost from some place on.
func (w *walk) fail() {
	for _, p := range w.queue[:w.r.IntN(len(w.queue)+1)] {
		w.carryOut(p, false)
	}
	w.queue, w.batch = nil, nil
	w.elect()
}

// land delivers what has flown long enough, in any order.
func (w *walk) land() {
	var left []flight
	for _, f := range w.air {
		if f.at > w.now {
			left = append(left, f)
			continue
		}
		if f.at = w.now; w.beat(f.life.NodeRef)[0] {
			w.batch = append(w.batch, f)
		}
	}
	w.air = left
}

// renew notes what the ack of a beat promises.
func (w *walk) renew(f flight) {
	if f.life.deadline == nil {
		return // this life has handed its tasks over
	}
	for _, token := range w.m.AppendTokens(nil, f.life.Node) {
		if l, ok := w.m.Lease(token); ok {
			until := f.at + Time(l.TTL+l.Grace)*millisecond
			f.life.deadline[token] = max(f.life.deadline[token], until)
		}
	}
}

func (w *walk) propose() {
	d := w.decide()
	batch := w.batch
	w.batch = nil
	if cmds := d.Commands(len(batch) > 0); len(cmds) > 0 {
		at := w.now + Time(w.r.IntN(2_000))*millisecond
		if n := len(w.queue); n > 0 {
			at = max(at, w.queue[n-1].at) // one log
		}
		w.queue = append(w.queue, proposal{at: at, term: w.term, cmds: cmds, beats: batch})
	}
}

func (w *walk) applyUpTo(at Time) {
	for len(w.queue) > 0 && w.queue[0].at <= at {
		w.carryOut(w.queue[0], true)
		w.queue = w.queue[1:]
	}
}

// carryOut applies a window's commands, checks what they ended, and answers
// the beats if the leader is still there to do it.
func (w *walk) carryOut(p proposal, answer bool) {
	for _, cmd := range p.cmds {
		w.apply(cmd)
		w.check()
	}
	if !answer {
		return
	}
	for _, f := range p.beats {
		if inc, state, _ := w.m.NodeLive(f.life.Node); inc != f.life.Incarnation || state == gpuai.NodeSilent {
			continue
		}
		w.renew(f)
		w.acked++
	}
}

// check compares the leases that have ended with the deadlines.
func (w *walk) check() {
	w.t.Helper()
	for _, l := range w.lives {
		for token, until := range l.deadline {
			lease, ok := w.m.Lease(token)
			if ok && lease.State != gpuai.LeaseEnded {
				continue
			}
			if w.now < until {
				w.t.Fatalf("at %d ms lease %s of node %s in incarnation %d ended; an ack said not before %d ms",
					w.now/millisecond, token, l.Node, l.Incarnation, until/millisecond)
			}
			delete(l.deadline, token)
			w.ended++
		}
	}
}
