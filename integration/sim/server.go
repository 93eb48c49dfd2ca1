package main

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/liveness"
)

// A server is the model of one member of the region around the real machine:
// its raft, its proposer, its duties while it leads, its sessions.
type server struct {
	proc
	id    int
	clock clock
	raft  raft
	m     *fsm.Machine
	out   fsm.Output

	proposer  proposer
	reign     *reign
	collector collector
	sessions  map[gpuai.NodeID]*session
	waiters   []waiter
	ready     bool
	readyAt   uint64 // it is ready once it has applied as far; 0: not known

	kept *liveness.Tracker // of the variant that keeps old timers
}

// waiter is woken when an index is applied.
type waiter struct {
	index uint64
	f     func()
}

func newServer(w *world, id int) *server {
	s := &server{proc: proc{w: w}, id: id}
	s.clock = clock{off: w.between(0, 1000*sec), ppm: w.skew()}
	s.raft = raft{s: s, voted: -1}
	s.proposer.s, s.collector.s = s, s
	return s
}

// skew is a rate error within the bound that the policy states.
func (w *world) skew() int64 {
	if w.chance(w.prof.skewed) {
		return pick(w, []int64{-maxSkew, maxSkew})
	}
	return w.between(-maxSkew, maxSkew)
}

// maxSkew is ρ in ppm.
const maxSkew = 10_000

// boot starts a life of the server.
func (s *server) boot() {
	s.start()
	s.m = s.raft.machine()
	s.sessions, s.waiters = map[gpuai.NodeID]*session{}, nil
	s.ready, s.readyAt, s.reign = false, 0, nil
	s.proposer.reset()
	s.collector.reset()
	s.raft.boot()
	s.w.tracef("server %d starts at index %d", s.id, s.raft.applied)
}

// die ends it without notice; its connections break.
func (s *server) die() {
	s.w.tracef("server %d crashes", s.id)
	s.crash()
	s.raft.crash()
	for _, c := range slices.Clone(s.w.net.conns) {
		if c.server == s {
			c.close()
		}
	}
}

func (s *server) mono() liveness.Time { return liveness.Time(s.clock.read(s.w.now)) }

func (s *server) leads() bool { return s.raft.role == leader && s.proposer.term != 0 }

// leaderServer is who this server thinks leads; nil when it does not know.
func (s *server) leaderServer() *server {
	if s.raft.leader < 0 {
		return nil
	}
	return s.w.servers[s.raft.leader]
}

// fsync is how long a write takes to be durable.
func (s *server) fsync() int64 {
	w := s.w
	if !w.healed && w.chance(w.prof.slowDisk) {
		return w.between(50*ms, 800*ms)
	}
	return w.between(ms/5, 3*ms)
}

// slowness is how late committed entries are applied.
func (s *server) slowness() int64 {
	w := s.w
	if !w.healed && w.chance(w.prof.slowApply) {
		return w.between(20*ms, 2*sec)
	}
	return w.between(0, ms)
}

// heardCommit notes how far the leader is: a server that starts serves once it
// has applied what was committed when it asked.
func (s *server) heardCommit(commit uint64) {
	if s.readyAt == 0 {
		s.readyAt = max(commit, 1)
	}
	s.judgeReady()
}

func (s *server) judgeReady() {
	s.ready = s.ready || s.readyAt > 0 && s.raft.applied >= s.readyAt
}

// restore replaces the machine by the raft's snapshot.
func (s *server) restore() {
	s.m = s.raft.machine()
	s.w.check.restored(s)
	for _, n := range sortedKeys(s.sessions) {
		se := s.sessions[n]
		se.full, se.dirty = true, nil
		se.wake()
	}
	s.wakeWaiters()
}

// apply applies one committed entry, and tells whoever waits.
func (s *server) apply(index uint64, e *logEntry) {
	if e.data == nil {
		if s.raft.role == leader && e.term == s.raft.term && s.proposer.term != e.term {
			s.lead(e.term)
		}
		s.proposer.applied(index, e.term, nil)
	} else {
		if err := s.m.Apply(index, e.term, e.data, &s.out); err != nil {
			s.w.check.fail("apply", fmt.Sprintf("server %d, index %d: %v", s.id, index, err))
			return
		}
		s.w.check.applied(s, e.term, &s.out)
		s.route(&s.out)
		s.proposer.applied(index, e.term, &s.out)
		if s.reign != nil {
			s.reign.observe(&s.out)
		}
	}
	s.judgeReady()
	s.wakeWaiters()
}

// route tells the sessions of what concerns their nodes.
func (s *server) route(out *fsm.Output) {
	for i := range out.Events {
		if se := s.sessions[out.Events[i].Node]; se != nil {
			se.offer(&out.Events[i])
		}
	}
}

// whenApplied has f happen once index is applied here.
func (s *server) whenApplied(index uint64, f func()) {
	if s.raft.applied >= index {
		f()
		return
	}
	s.waiters = append(s.waiters, waiter{index, f})
}

func (s *server) wakeWaiters() {
	var due []func()
	kept := s.waiters[:0]
	for _, x := range s.waiters {
		if x.index <= s.raft.applied {
			due = append(due, x.f)
		} else {
			kept = append(kept, x)
		}
	}
	s.waiters = kept
	for _, f := range due {
		f()
	}
}

// lead begins a reign: the term's own barrier was applied.
func (s *server) lead(term uint64) {
	s.w.tracef("server %d reigns in term %d", s.id, term)
	s.w.check.led(s.id, term)
	s.heardCommit(s.raft.commit)
	s.proposer.open(term)
	s.reign = newReign(s, term)
	s.reign.run()
}

func (s *server) lostLeadership() {
	if s.reign != nil {
		s.w.tracef("server %d ends its reign of term %d", s.id, s.reign.term)
		s.reign.end()
		s.reign = nil
	}
	s.proposer.close()
}

// propose has encoded commands applied in order, here or at the leader. Each
// outcome that is known has an index.
func (s *server) propose(cmds [][]byte, done func(out []applied, code gpuai.Code)) {
	if s.leads() {
		s.proposer.propose(&call{cmds: cmds, done: done})
		return
	}
	to := s.leaderServer()
	if to == nil || to == s {
		done(make([]applied, len(cmds)), gpuai.NoLeader)
		return
	}
	type answer struct {
		out  []applied
		code gpuai.Code
	}
	s.w.ask(s, to, laneTimeout, func(reply func(any)) {
		if !to.leads() {
			reply(answer{make([]applied, len(cmds)), gpuai.NoLeader})
			return
		}
		to.proposer.propose(&call{cmds: cmds, done: func(out []applied, code gpuai.Code) { reply(answer{out, code}) }})
	}, func(v any) {
		a, ok := v.(answer)
		if !ok {
			a = answer{make([]applied, len(cmds)), gpuai.OutcomeUnknown}
		}
		done(a.out, a.code)
	})
}

// laneTimeout bounds a message of commands to the leader.
const laneTimeout = 15 * sec
