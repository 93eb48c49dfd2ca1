package main

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/liveness"
)

// A variant is a protocol that lacks one of the rules of the real one. The
// production code is the same: what it says is changed on its way.
type variant uint8

const (
	sound            variant = iota
	ackUnconfirmed           // a server acks a beat without asking the leader
	ackOvertakes             // a beat is confirmed beside the queue in which expiries wait
	noTermCheck              // the machine's check of the term always passes
	currentTerm              // commands carry the Raft's term, not the tracker's
	fromReceipt              // a renewal counts from when its ack came
	ackAll                   // an ack renews what is held, whatever it names
	noFirstDeadline          // a lease starts as soon as it is told of
	revokingFrees            // a lease that is being revoked is free at once
	registeringFrees         // a registration frees what older incarnations hold
	expiryAcross             // an expiry ends the leases of every incarnation
	oldTimers                // a leader goes on with the timers of its former reign
	noWatchdog               // nobody but the agent holds deadlines
	noMargins                // G = S = 0
	restoreSameEpoch         // a restore begins no epoch
	restoreNotQuiet          // a restored region grants at once
	numVariants
)

var variantNames = [numVariants]string{
	"", "ack-unconfirmed", "ack-overtakes", "no-term-check", "current-term", "from-receipt",
	"ack-all", "no-first-deadline", "revoking-frees", "registering-frees", "expiry-across",
	"old-timers", "no-watchdog", "no-margins", "restore-same-epoch", "restore-not-quiet",
}

// String returns the variant's name; "" is the real protocol.
func (v variant) String() string { return variantNames[v] }

func variantNamed(name string) (variant, bool) {
	i := slices.Index(variantNames[:], name)
	return variant(max(i, 0)), i >= 0
}

// region is what a tracker reads of the machine.
func (s *server) region() liveness.Region {
	if s.w.weak == noMargins {
		return noGrace{s.m}
	}
	return s.m
}

// noGrace is a machine whose leases have no grace.
type noGrace struct{ *fsm.Machine }

func (n noGrace) graceOf(end gpuai.Duration) gpuai.Duration { return end - n.Policy().Grace }

// LeaseTTLs implements liveness.Region.
func (n noGrace) LeaseTTLs(id gpuai.NodeID, inc gpuai.Incarnation) (gpuai.Duration, int) {
	end, live := n.Machine.LeaseTTLs(id, inc)
	return n.graceOf(end), live
}

// SupersededLeases implements liveness.Region.
func (n noGrace) SupersededLeases(id gpuai.NodeID, f func(gpuai.Incarnation, gpuai.Duration)) {
	n.Machine.SupersededLeases(id, func(inc gpuai.Incarnation, end gpuai.Duration) { f(inc, n.graceOf(end)) })
}

// weaken changes a window's decision.
func (s *server) weaken(d *liveness.Decision, term uint64) {
	switch s.w.weak {
	case noMargins:
		for i := range d.Expire {
			d.Expire[i].SilentFor += s.m.Policy().Grace
		}
	case oldTimers:
		d.Term = term
		for i := range d.Expire {
			d.Expire[i].Term = term
		}
	case expiryAcross:
		for _, e := range slices.Clone(d.Expire) {
			for _, l := range s.m.LeasesOfNode(e.Node, 1_000) {
				if l.Incarnation != e.Incarnation {
					e.Incarnation = l.Incarnation
					d.Expire = append(d.Expire, e)
				}
			}
		}
	}
}

// overtake confirms beats by a barrier, which does not wait in the proposer's
// queue.
func (r *reign) overtake(c confirmation, done func(confirmation)) {
	if r.s.raft.role != leader {
		done(confirmation{})
		return
	}
	c.index = r.s.raft.append(nil)
	r.s.whenApplied(c.index, func() { done(c) })
	r.kick()
}

// freeSuperseded reports the leases of older incarnations as lost.
func (r *reign) freeSuperseded(e *gpuai.Event) {
	for _, l := range r.s.m.LeasesOfNode(e.Node, 1_000) {
		if l.Incarnation != e.Incarnation {
			r.forge(&l, gpuai.ReportLost)
		}
	}
}

// freeRevoking reports a lease as stopped that is to be stopped.
func (r *reign) freeRevoking(e *gpuai.Event) {
	if l, ok := r.s.m.Lease(e.Lease); ok {
		r.forge(&l, gpuai.ReportStopped)
	}
}

func (r *reign) forge(l *gpuai.Lease, state gpuai.ReportState) {
	c := fsm.ReportLease{Node: l.Node, Report: gpuai.Report{
		Lease: l.ID, Seq: 1 << 30, Incarnation: l.Incarnation, State: state,
	}}
	cmd := c.Append(nil, fsm.Envelope{})
	r.s.after(0, func() {
		r.s.proposer.propose(&call{cmds: [][]byte{cmd}, done: func([]applied, gpuai.Code) {}})
	})
}

// weakenFrame changes what an agent is told.
func (a *agent) weakenFrame(f *gpuai.Frame) {
	switch a.w.weak {
	case ackAll:
		switch f.Kind {
		case gpuai.FrameAck:
			ack := *f.Ack
			ack.Tokens = a.named(ack.Tokens)
			f.Ack = &ack
		case gpuai.FrameWelcome:
			w := *f.Welcome
			w.Ack.Tokens = a.named(w.Ack.Tokens)
			f.Welcome = &w
		}
	case noMargins:
		if f.Kind == gpuai.FrameWelcome {
			w := *f.Welcome
			w.Policy.Slack = 0
			f.Welcome = &w
		}
		if f.Kind == gpuai.FrameAck && f.Ack.Policy != nil {
			ack, p := *f.Ack, *f.Ack.Policy
			p.Slack = 0
			ack.Policy = &p
			f.Ack = &ack
		}
	}
}

// named adds what the agent holds to an ack's tokens.
func (a *agent) named(tokens []gpuai.Token) []gpuai.Token {
	out := slices.Clone(tokens)
	for _, v := range a.core.Views() {
		if !slices.Contains(out, v.Lease) {
			out = append(out, v.Lease)
		}
	}
	return out
}

// shifted is the deadline that the watchdog is given.
func (a *agent) shifted(l *gpuai.Lease, deadline int64) int64 {
	if a.w.weak != fromReceipt {
		return deadline
	}
	p := a.core.Policy()
	sent := deadline - int64(p.FenceAfter(l.TTL))*ms
	return deadline + max(0, a.h.boottime()-sent)
}

// killLater is how long the agent's own fence waits for the shifted one.
func (a *agent) killLater(wt *wdTask) int64 {
	if a.w.weak != fromReceipt {
		return 0
	}
	for _, v := range a.core.Views() {
		if v.Lease == wt.token && v.Deadline < wt.deadline && a.h.boottime() < wt.deadline {
			return a.h.clock.when(wt.deadline) - a.w.now
		}
	}
	return 0
}

// startAtOnce starts what an agent was told of, before any ack names it.
func (a *agent) startAtOnce(set *gpuai.LeaseSet) {
	if a.w.weak != noFirstDeadline {
		return
	}
	for _, v := range a.core.Views() {
		if v.Phase != decide.Waiting || a.h.wd == nil || a.h.wd.tasks[v.Lease] != nil {
			continue
		}
		for i := range set.Leases {
			if l := &set.Leases[i].Lease; l.ID == v.Lease && a.h.reserve(l) {
				p := a.core.Policy()
				a.h.wd.start(&set.Leases[i], a.h.boottime()+int64(p.FenceAfter(l.TTL))*ms, int64(p.KillBudget)*ms)
			}
		}
	}
}

// rogues ends what was started at once and is not the agent's any more.
func (a *agent) rogues() {
	if a.w.weak != noFirstDeadline || a.h.wd == nil {
		return
	}
	known := a.core.Views()
	for _, t := range sortedKeys(a.h.wd.tasks) {
		wt := a.h.wd.tasks[t]
		switch {
		case slices.ContainsFunc(known, func(v decide.View) bool { return v.Lease == t }) || a.h.journal.records[t] != nil:
		case wt.state == wdExited:
			a.h.release(t)
			a.h.wd.forget(t)
		default:
			a.h.wd.end(wt, byKill)
		}
	}
}
