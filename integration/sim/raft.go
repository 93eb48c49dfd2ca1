package main

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai/fsm"
)

const (
	electionMin = 500 * ms
	heartbeat   = 100 * ms
	leaderLease = 500 * ms
	maxAppend   = 64 // entries of one message
)

type role uint8

const (
	follower role = iota
	candidate
	leader
)

// logEntry is an entry of the log; data is nil for a barrier.
type logEntry struct {
	term uint64
	data []byte
}

// raft is the model of a consensus module: terms, votes, a replicated log with
// fsync, snapshots. It stands in for hashicorp/raft and our proposer's use of
// it; the machine that it feeds is the real one.
type raft struct {
	s *server

	// Durable.
	term     uint64
	voted    int // -1: nobody
	log      []logEntry
	base     uint64 // index of the last entry before log
	baseTerm uint64
	snap     []byte // state at base, or behind it
	snapAt   uint64
	snapTerm uint64
	synced   uint64 // what a crash leaves for sure

	// Lost in a crash.
	role            role
	leader          int // -1: not known
	commit, applied uint64
	votes           uint64 // who voted for us, by bit
	preTerm         uint64 // the term that a pre-vote is asked for
	next, match     []uint64
	heard           []int64 // from each follower
	contact         int64   // from the leader
	electionAt      int64
	applying        bool
}

func (r *raft) last() uint64 { return r.base + uint64(len(r.log)) }

func (r *raft) termAt(i uint64) uint64 {
	if i == r.base {
		return r.baseTerm
	}
	return r.log[i-r.base-1].term
}

// boot begins a life with what is durable.
func (r *raft) boot() {
	n := len(r.s.w.servers)
	r.role, r.leader, r.commit, r.applied, r.applying = follower, -1, r.snapAt, r.snapAt, false
	r.next, r.match, r.heard = make([]uint64, n), make([]uint64, n), make([]int64, n)
	r.contact = -electionMin
	r.armElection()
	r.s.after(r.electionAt-r.s.w.now, r.electionDue)
}

// crash loses what was not fsynced, or not all of it.
func (r *raft) crash() {
	w := r.s.w
	if keep := max(r.synced, r.snapAt); r.last() > keep {
		keep += uint64(w.rnd.Int64N(int64(r.last()-keep) + 1))
		r.log = r.log[:keep-r.base]
		r.synced = keep
	}
}

func (r *raft) armElection() {
	w := r.s.w
	r.electionAt = w.now + w.between(electionMin, 2*electionMin)
}

func (r *raft) electionDue() {
	w := r.s.w
	switch {
	case r.role == leader:
		r.armElection()
	case w.now >= r.electionAt:
		r.preCampaign()
	}
	r.s.after(max(r.electionAt-w.now, 10*ms), r.electionDue)
}

// preCampaign asks whether a campaign would be won, without a term of its own:
// a server that was cut off disturbs nobody.
func (r *raft) preCampaign() {
	r.armElection()
	r.preTerm, r.votes = r.term+1, 1<<r.s.id
	term, last, lastTerm := r.preTerm, r.last(), r.termAt(r.last())
	for _, o := range r.s.w.servers {
		if o != r.s {
			r.send(o, func() {
				if !o.raft.content(r.s) && term >= o.raft.term && o.raft.behind(last, lastTerm) {
					id := o.id
					o.raft.send(r.s, func() { r.preVoted(id, term) })
				}
			})
		}
	}
}

func (r *raft) preVoted(by int, term uint64) {
	if r.role == leader || r.preTerm != term || r.term >= term {
		return
	}
	if r.votes |= 1 << by; r.majority() {
		r.campaign()
	}
}

func (r *raft) majority() bool { return bits.OnesCount64(r.votes) > len(r.s.w.servers)/2 }

// content reports whether a server has heard a leader other than from lately.
func (r *raft) content(from *server) bool {
	return r.role == leader || r.leader >= 0 && r.leader != from.id && r.s.w.now-r.contact < electionMin
}

// behind reports whether a log that ends so is no older than ours.
func (r *raft) behind(last, lastTerm uint64) bool {
	mine := r.termAt(r.last())
	return lastTerm > mine || lastTerm == mine && last >= r.last()
}

func (r *raft) campaign() {
	w := r.s.w
	r.term++
	r.role, r.voted, r.leader, r.votes, r.preTerm = candidate, r.s.id, -1, 1<<r.s.id, 0
	r.armElection()
	w.tracef("server %d campaigns in term %d", r.s.id, r.term)
	term, last, lastTerm := r.term, r.last(), r.termAt(r.last())
	for _, o := range w.servers {
		if o != r.s {
			r.send(o, func() { o.raft.voteAsked(r.s, term, last, lastTerm) })
		}
	}
	r.won(term)
}

// send carries a message to another server's raft.
func (r *raft) send(o *server, f func()) {
	life := o.life
	r.s.w.net.datagram(r.s.id, o.id, func() { o.run(life, f) })
}

func (r *raft) voteAsked(from *server, term, last, lastTerm uint64) {
	if r.content(from) {
		return
	}
	r.sees(term)
	if term < r.term || !r.behind(last, lastTerm) || r.voted >= 0 && r.voted != from.id {
		return
	}
	r.voted = from.id
	r.armElection()
	id := r.s.id
	r.send(from, func() { from.raft.votedFor(id, term) })
}

func (r *raft) votedFor(by int, term uint64) {
	if r.role == candidate && r.term == term {
		r.votes |= 1 << by
		r.won(term)
	}
}

func (r *raft) won(term uint64) {
	w := r.s.w
	if r.role != candidate || !r.majority() {
		return
	}
	w.tracef("server %d is elected in term %d", r.s.id, term)
	r.role, r.leader = leader, r.s.id
	for i := range r.next {
		r.next[i], r.match[i], r.heard[i] = r.last()+1, 0, w.now
	}
	r.append(nil) // the term's own barrier
	r.beat(term)
}

// beat keeps followers and looks whether enough of them answer.
func (r *raft) beat(term uint64) {
	w := r.s.w
	if r.role != leader || r.term != term {
		return
	}
	if heard := slices.Sorted(slices.Values(r.heardNow())); w.now-heard[len(heard)/2] > leaderLease {
		w.tracef("server %d steps down in term %d: it hears no majority", r.s.id, r.term)
		r.follow()
		return
	}
	for _, o := range w.servers {
		if o != r.s {
			if r.match[o.id] < r.last() { // what was sent may have been lost
				r.next[o.id] = r.match[o.id] + 1
			}
			r.replicate(o)
		}
	}
	r.s.after(heartbeat, func() { r.beat(term) })
}

// heardNow is when each server was heard, ourselves now.
func (r *raft) heardNow() []int64 {
	r.heard[r.s.id] = r.s.w.now
	return r.heard
}

// sees takes note of a term.
func (r *raft) sees(term uint64) {
	if term > r.term {
		r.term, r.voted = term, -1
		r.follow()
	}
}

func (r *raft) follow() {
	was := r.role
	r.role, r.leader = follower, -1
	r.armElection()
	if was == leader {
		r.s.lostLeadership()
	}
}

// append adds an entry as the leader and returns its index.
func (r *raft) append(data []byte) uint64 {
	r.log = append(r.log, logEntry{r.term, data})
	i, term := r.last(), r.term
	r.s.after(r.s.fsync(), func() { r.wrote(i, term) })
	for _, o := range r.s.w.servers {
		if o != r.s && r.next[o.id] == i {
			r.replicate(o)
		}
	}
	return i
}

// wrote notes that the log is durable up to i, if that is still there.
func (r *raft) wrote(i, term uint64) {
	if i > r.base && i <= r.last() && r.termAt(i) == term {
		r.synced = max(r.synced, i)
	}
	if r.role == leader && r.term == term {
		r.advance()
	}
}

// appendMsg is what a leader tells a follower.
type appendMsg struct {
	from           *server
	term           uint64
	prev, prevTerm uint64
	entries        []logEntry
	commit         uint64
}

func (r *raft) replicate(o *server) {
	if r.next[o.id] <= r.base {
		r.install(o)
		return
	}
	m := appendMsg{from: r.s, term: r.term, prev: r.next[o.id] - 1, commit: r.commit}
	m.prevTerm = r.termAt(m.prev)
	at := m.prev - r.base
	m.entries = slices.Clone(r.log[at:min(at+maxAppend, uint64(len(r.log)))])
	r.next[o.id] += uint64(len(m.entries))
	r.send(o, func() { o.raft.appended(&m) })
}

// install sends a snapshot.
func (r *raft) install(o *server) {
	r.next[o.id] = r.snapAt + 1
	term, snap, at, atTerm := r.term, r.snap, r.snapAt, r.snapTerm
	r.send(o, func() { o.raft.installed(r.s, term, snap, at, atTerm) })
}

// heardLeader takes a message of a leader, unless it is of a former one.
func (r *raft) heardLeader(from *server, term uint64) bool {
	if term < r.term {
		t := r.term
		r.send(from, func() { from.raft.sees(t) })
		return false
	}
	r.sees(term)
	if r.role == candidate {
		r.role = follower
	}
	r.leader, r.contact = from.id, r.s.w.now
	r.armElection()
	return true
}

func (r *raft) installed(from *server, term uint64, snap []byte, at, atTerm uint64) {
	if !r.heardLeader(from, term) {
		return
	}
	if at > r.applied {
		r.s.w.count(snapshotInstalled)
		r.s.w.tracef("server %d installs the snapshot of index %d", r.s.id, at)
		if at < r.last() && at > r.base && r.termAt(at) == atTerm {
			r.log = slices.Clone(r.log[at-r.base:])
		} else {
			r.log = nil
		}
		r.base, r.baseTerm = at, atTerm
		r.snap, r.snapAt, r.snapTerm = snap, at, atTerm
		r.synced, r.commit, r.applied = max(at, min(r.synced, r.last())), max(at, r.commit), at
		r.s.restore()
	}
	r.answer(from, term, at)
}

func (r *raft) appended(m *appendMsg) {
	if !r.heardLeader(m.from, m.term) {
		return
	}
	if m.prev < r.base { // what a snapshot holds is committed
		skip := min(r.base-m.prev, uint64(len(m.entries)))
		m.entries, m.prev = m.entries[skip:], m.prev+skip
		if m.prev < r.base {
			r.answer(m.from, m.term, 0)
			return
		}
		m.prevTerm = r.termAt(m.prev)
	}
	if m.prev > r.last() || r.termAt(m.prev) != m.prevTerm {
		hint := min(r.last(), m.prev-1)
		from, term := m.from, m.term
		r.send(from, func() { from.raft.refused(r.s.id, term, hint) })
		return
	}
	wrote := false
	for i, e := range m.entries {
		at := m.prev + uint64(i) + 1
		if at <= r.last() && r.termAt(at) == e.term {
			continue
		}
		if at <= r.last() {
			if at <= r.commit {
				r.s.w.check.fail("log", fmt.Sprintf("server %d was to overwrite the committed entry %d: the model of Raft is wrong", r.s.id, at))
				return
			}
			r.log = slices.Clone(r.log[:at-r.base-1])
			r.synced = min(r.synced, r.last())
		}
		r.log = append(r.log, e)
		wrote = true
	}
	upTo := m.prev + uint64(len(m.entries))
	if c := min(m.commit, upTo); c > r.commit {
		r.commit = c
		r.applySoon()
	}
	r.s.heardCommit(m.commit)
	if !wrote {
		r.answer(m.from, m.term, min(upTo, max(r.synced, r.base)))
		return
	}
	from, term, wt := m.from, m.term, r.termAt(upTo)
	r.s.after(r.s.fsync(), func() {
		r.wrote(upTo, wt)
		if r.term == term {
			r.answer(from, term, upTo)
		}
	})
}

func (r *raft) answer(to *server, term, match uint64) {
	id := r.s.id
	r.send(to, func() { to.raft.matched(id, term, match) })
}

func (r *raft) refused(id int, term, hint uint64) {
	if r.role != leader || r.term != term {
		return
	}
	r.heard[id] = r.s.w.now
	r.next[id] = max(hint, r.match[id]) + 1
	r.replicate(r.s.w.servers[id])
}

func (r *raft) matched(id int, term, match uint64) {
	if r.role != leader || r.term != term {
		return
	}
	r.heard[id] = r.s.w.now
	if match > r.match[id] {
		r.match[id] = match
		r.advance()
	}
	r.next[id] = max(r.next[id], r.match[id]+1)
	if r.next[id] <= r.last() && r.match[id]+1 == r.next[id] {
		r.replicate(r.s.w.servers[id])
	}
}

// advance commits what a majority has, of this term.
func (r *raft) advance() {
	r.match[r.s.id] = r.synced
	m := slices.Sorted(slices.Values(r.match))
	n := m[(len(m)-1)/2]
	if n > r.commit && n > r.base && r.termAt(n) == r.term {
		r.commit = n
		r.applySoon()
		for _, o := range r.s.w.servers {
			if o != r.s && r.next[o.id] > r.last() {
				r.replicate(o) // followers learn of it at once
			}
		}
	}
}

// applySoon has what is committed applied by the machine's own goroutine.
func (r *raft) applySoon() {
	if r.applying {
		return
	}
	r.applying = true
	r.s.after(r.s.slowness(), func() {
		r.applying = false
		for r.applied < r.commit {
			r.applied++
			r.s.apply(r.applied, &r.log[r.applied-r.base-1])
		}
		r.snapshot()
	})
}

// snapshot takes one when enough was applied, and drops most of the log before.
func (r *raft) snapshot() {
	p := &r.s.w.prof
	if r.applied < r.snapAt+p.snapshotEvery {
		return
	}
	var b bytes.Buffer
	if err := r.s.m.Fork().WriteSnapshot(&b); err != nil {
		r.s.w.check.fail("snapshot", err.Error())
		return
	}
	r.snap, r.snapAt, r.snapTerm = b.Bytes(), r.applied, r.termAt(r.applied)
	r.s.w.count(snapshotTaken)
	if keep := r.applied - min(r.applied, p.trailing); keep > r.base {
		r.baseTerm = r.termAt(keep)
		r.log = slices.Clone(r.log[keep-r.base:])
		r.base = keep
	}
}

// machine builds the machine that a snapshot holds.
func (r *raft) machine() *fsm.Machine {
	o := fsm.Options{Region: "sim"}
	if r.snap == nil {
		return fsm.New(o)
	}
	m, err := fsm.Restore(bytes.NewReader(r.snap), o)
	if err != nil {
		r.s.w.check.fail("snapshot", fmt.Sprintf("server %d cannot restore its snapshot of index %d: %v", r.s.id, r.snapAt, err))
		return fsm.New(o)
	}
	return m
}
