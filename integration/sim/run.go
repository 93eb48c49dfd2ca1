package main

import (
	"math/rand/v2"
	"strconv"

	"github.com/gpuai/gpuai"
)

// healLimit is how long after the heal everything must have ended.
const healLimit = 900 * sec

// A result is what a seed came to.
type result struct {
	Seed       uint64      `json:"seed"`
	Violations []violation `json:"violations,omitempty"`
	Events     int         `json:"events"`
	Runs       int         `json:"task_runs"`
	Acked      int         `json:"acknowledged"`
	Nodes      int         `json:"nodes"`
	SimulatedS float64     `json:"simulated_s"`
	faults     [numFaults]int
}

// A plan says what is run: a seed, with faults that lean towards a variant, of
// the real protocol or of a variant.
type plan struct {
	seed       uint64
	bias, weak variant
	nodes      int // 0: as the seed says
}

// newWorld makes the world of a plan, at time zero.
func newWorld(p plan, tr *tracer) *world {
	w := &world{seed: p.seed, rnd: rand.New(rand.NewPCG(p.seed, 0x67707561)), weak: p.weak, tr: tr}
	w.prof = w.draw(p.nodes)
	p.bias.bias(w, &w.prof)
	w.net = &network{w: w, cuts: map[link]int{}}
	w.check = newChecker(w)
	w.users = &users{w: w}
	for i := range w.prof.servers {
		w.servers = append(w.servers, newServer(w, i))
	}
	w.prof.gpus = 0
	for i := range w.prof.nodes {
		devices := w.devices()
		w.prof.gpus += len(devices)
		newHost(w, nodeName(i), devices)
	}
	return w
}

// simulate runs a plan to its end or its first violation.
func simulate(p plan, tr *tracer) result {
	w := newWorld(p, tr)
	for _, s := range w.servers {
		s.boot()
	}
	w.users.policy()
	for _, h := range w.hosts {
		w.at(w.between(0, 3*sec), h.powerOn)
	}
	w.users.begin()
	w.at(3*sec, w.inject)
	w.everySecond()
	w.runUntil(w.prof.chaos)
	if !w.check.failed() {
		w.heal()
	}
	for end := w.now + healLimit; w.now < end && !w.check.failed() && !w.settled(); {
		w.runUntil(w.now + sec)
	}
	if !w.check.failed() {
		w.check.end()
	}
	return result{
		Seed: p.seed, Violations: w.check.violations, Events: w.events, Runs: w.check.starts,
		Acked: len(w.check.acked), Nodes: w.prof.nodes, SimulatedS: float64(w.now) / float64(sec), faults: w.faults,
	}
}

// everySecond looks at what is to be seen on some replica.
func (w *world) everySecond() {
	if s := pick(w, w.servers); s.up {
		w.check.acknowledged(s)
	}
	if w.healed {
		w.operate()
	}
	w.after(sec, w.everySecond)
}

// settled reports whether all that was asked for has ended, everywhere.
func (w *world) settled() bool {
	if w.users.pending > 0 {
		return false
	}
	first := w.servers[0]
	for _, s := range w.servers {
		if n := s.m.Counts(); n.Leases > 0 || n.JobsPending > 0 || n.JobsRunning > 0 || s.raft.applied != first.raft.applied {
			return false
		}
	}
	for _, h := range w.hosts {
		if len(h.runners) > 0 {
			return false
		}
	}
	return true
}

func (w *world) devices() (out []gpuai.Device) {
	for i := range w.between(1, 4) {
		out = append(out, gpuai.Device{
			ID: gpuai.DeviceID("gpu-" + string(rune('0'+i))), Vendor: "sim", Model: "X", Memory: 80 << 30,
			DevicePlace: gpuai.DevicePlace{NUMA: gpuai.NUMAOf(int32(i % 2)), LinkIsland: uint8(i/2 + 1)},
		})
	}
	return out
}

func nodeName(i int) gpuai.NodeID { return gpuai.NodeID("n" + strconv.Itoa(i)) }
