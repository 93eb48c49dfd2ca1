package main

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const callTimeout = 5 * sec

// users are the clients: they submit and stop jobs with idempotency keys and
// repeat what was not answered; operators drain nodes.
type users struct {
	w       *world
	keys    int
	pending int // calls that have no final answer yet
	running []gpuai.JobID
	raised  bool // the region has the newest feature level, and keeps it
}

// begin spreads the submits over the time of the faults.
func (u *users) begin() {
	w := u.w
	for range w.prof.jobs {
		w.at(w.between(sec, w.prof.chaos*8/10), u.submit)
	}
	for range w.prof.stops {
		w.at(w.between(5*sec, w.prof.chaos), u.stop)
	}
	for range w.prof.drains {
		w.at(w.between(5*sec, w.prof.chaos), u.drain)
	}
	w.at(w.between(0, w.prof.chaos), u.raise)
}

func (u *users) key(kind string) string {
	u.keys++
	return fmt.Sprintf("%s-%d", kind, u.keys)
}

func (u *users) submit() {
	key, spec := u.key("job"), u.spec()
	spec.Name = key
	u.pending++
	u.call(func() []byte {
		var id gpuai.JobID // minted anew by whoever takes the request
		binary.BigEndian.PutUint64(id[:], u.w.rnd.Uint64()>>1)
		binary.BigEndian.PutUint64(id[8:], u.w.rnd.Uint64()|1)
		c := fsm.SubmitJob{ID: id, Spec: spec}
		return c.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant, Actor: "user", Key: key})
	}, func(a applied, again bool) {
		if a.res.Code != gpuai.OK {
			u.w.tracef("submit %s: %s %s", key, a.res.Code, a.res.Detail)
			return
		}
		u.w.tracef("submit %s: job %s, %d of %d leased", key, a.res.Job, a.res.Leased, a.res.Tasks)
		u.w.check.submitted(key, a.res.Job, a.res.Index)
		if !again {
			u.running = append(u.running, a.res.Job)
		}
	})
}

func (u *users) stop() {
	if len(u.running) == 0 {
		return
	}
	job, key := pick(u.w, u.running), u.key("stop")
	u.pending++
	u.call(func() []byte {
		return (&fsm.StopJob{Job: job}).Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant, Actor: "user", Key: key})
	}, func(a applied, _ bool) {
		switch {
		case a.res.Code == gpuai.OK:
			u.w.check.stopped(job, a.res.Index)
		case u.w.check.holds(job):
			u.w.check.fail("lost acknowledgement", fmt.Sprintf("job %s was acknowledged, and a stop says %s", job, a.res.Code))
		}
	})
}

func (u *users) drain() {
	node := pick(u.w, u.w.hosts).node
	u.w.count(nodeDrained)
	u.eligibility(node, true)
	u.w.after(u.w.between(sec, 40*sec), func() { u.eligibility(node, false) })
}

func (u *users) eligibility(node gpuai.NodeID, drained bool) {
	u.pending++
	u.call(func() []byte {
		return (&fsm.SetNodeEligibility{Node: node, Drained: drained && !u.w.healed}).Append(nil, fsm.Envelope{Actor: "operator"})
	}, func(applied, bool) {})
}

// raise has the region take the newest feature level, as its leader does once
// all servers know it.
func (u *users) raise() {
	u.pending++
	u.call(func() []byte {
		return (&fsm.SetFeatureLevel{Level: fsm.MaxLevel}).Append(nil, fsm.Envelope{})
	}, func(a applied, again bool) {
		if again || a.res.Code != gpuai.OK {
			return
		}
		// A region that is put back from a backup may have the old level again.
		u.raised = u.w.prof.backups == 0
		if u.w.prof.preempts {
			u.displace()
		}
	})
}

// displace has the region's jobs take room from one another.
func (u *users) displace() {
	p := u.w.prof.policy
	p.PreemptionGap = uint32([]int{1, 10, 30}[u.w.rnd.IntN(3)])
	p.PreemptionProtect = gpuai.Duration(u.w.between(0, 10_000))
	p.CheckpointMax = gpuai.Duration(u.w.between(0, 10_000))
	u.pending++
	u.call(func() []byte { return (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{Actor: "operator"}) }, func(applied, bool) {})
}

// policy has the region take the profile's policy.
func (u *users) policy() {
	p := u.w.prof.policy
	u.pending++
	u.call(func() []byte { return (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{Actor: "operator"}) }, func(a applied, _ bool) {
		if a.res.Code != gpuai.OK {
			u.w.check.fail("policy", a.res.Detail)
		}
	})
}

// call asks one server after the other until one gives a final answer. Rarely
// it asks once more although it was answered.
func (u *users) call(cmd func() []byte, done func(a applied, again bool)) {
	w := u.w
	over := false
	var try func()
	answered := func(a applied, known bool) {
		switch {
		case over:
			return
		case !known || a.res.Code == gpuai.RateLimited || a.res.Code == gpuai.Internal:
			w.after(w.between(50*ms, 2*sec), try)
			return
		}
		over = true
		u.pending--
		done(a, false)
		if w.chance(0.2) {
			w.after(w.between(0, 20*sec), func() {
				u.ask(cmd(), func(a applied, known bool) {
					if known {
						done(a, true)
					}
				})
			})
		}
	}
	try = func() {
		if !over {
			u.ask(cmd(), answered)
		}
	}
	try()
}

// ask sends one request to some server; the answer may be lost.
func (u *users) ask(cmd []byte, done func(a applied, known bool)) {
	w := u.w
	s := pick(w, w.servers)
	over := false
	end := func(a applied, known bool) {
		if !over {
			over = true
			done(a, known)
		}
	}
	w.after(callTimeout, func() { end(applied{}, false) })
	life, restores := s.life, w.restores
	w.after(w.net.latency(), func() {
		s.run(life, func() {
			s.propose([][]byte{cmd}, func(out []applied, code gpuai.Code) {
				if !w.healed && w.chance(w.prof.loseAnswer) {
					w.count(answerLost)
					return
				}
				a := out[0]
				// What a region answered that was lost since is no answer.
				w.after(w.net.latency(), func() { end(a, code == gpuai.OK && a.index != 0 && restores == w.restores) })
			})
		})
	})
}

// spec makes up a job.
func (u *users) spec() *gpuai.JobSpec {
	w := u.w
	g := gpuai.Group{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}},
		Task:      gpuai.TaskSpec{Command: []string{"work"}, StopGrace: gpuai.Duration(w.between(200, 5_000))},
	}
	s := &gpuai.JobSpec{}
	switch n := w.rnd.IntN(10); {
	case w.prof.singles:
	case n < 4, w.prof.gpus < 2 && n >= 7:
	case n < 7:
		s.Array.Size = uint32(w.between(2, 8))
	default:
		g.Gang, g.Count = true, uint32(w.between(2, int64(max(2, min(4, w.prof.gpus/2)))))
	}
	if w.chance(0.3) {
		s.Type = gpuai.Train
	}
	switch w.rnd.IntN(4) {
	case 0:
		g.Restart.On = []gpuai.RestartCause{}
	case 1:
		g.Restart.On = []gpuai.RestartCause{gpuai.CauseFailure, gpuai.CauseNodeLost, gpuai.CauseGPUError}
	}
	if w.prof.alwaysRestart {
		g.Restart.On = nil
	}
	if g.Restart.On == nil || len(g.Restart.On) > 0 {
		g.Restart.Attempts = uint32(w.between(1, 8))
		g.Restart.Backoff = gpuai.Duration(w.between(100, 3_000))
	}
	if w.prof.alwaysRestart {
		g.Restart.Attempts, g.Restart.Backoff = 100, 1
	}
	if w.chance(0.15) && !g.Gang {
		g.Resources.GPU.Share.Milli = 500
	}
	if w.chance(0.1) {
		s.Limits.RunTime = gpuai.Duration(w.between(3_000, 30_000))
	}
	if w.chance(0.05) {
		s.Limits.QueueTime = gpuai.Duration(w.between(1_000, 60_000))
	}
	if w.chance(0.2) {
		s.Priority = gpuai.Priority(w.between(1, 100))
	}
	if w.prof.preempts && w.chance(0.5) {
		s.Priority = gpuai.Priority(w.between(1, 100))
	}
	if u.raised && w.chance(0.3) {
		if g.Gang {
			g.MinCount = uint32(w.between(1, int64(g.Count)))
		}
		g.Task.Checkpoint = gpuai.Checkpoint{Signal: gpuai.SIGUSR1, Grace: gpuai.Duration(w.between(100, 8_000))}
	}
	if !g.Gang && w.chance(0.2) { // any host could hold one such task
		g.Constraints = []gpuai.Constraint{{Attribute: gpuai.LabelPrefix + gpuai.LabelScratch, Op: gpuai.AtLeast, Values: []string{strconv.Itoa(int(w.between(30, 90)))}}}
	}
	s.Groups = []gpuai.Group{g}
	if u.raised && g.Gang && w.chance(0.3) {
		s.Groups, s.Together = together(g), true
	}
	s.Defaults()
	return s
}

// together has the last task of a gang be a group of its own that starts with the
// others, which need no more than the gang did.
func together(g gpuai.Group) []gpuai.Group {
	last := g
	last.Name, last.Gang, last.Count, last.MinCount = "last", false, 1, 0
	if g.Count--; g.MinCount > g.Count {
		g.MinCount = g.Count
	}
	return []gpuai.Group{g, last}
}

// runTime is how long a task works.
func (w *world) runTime(*gpuai.Assignment) int64 {
	switch {
	case w.healed:
		return w.between(100*ms, 2*sec)
	case w.chance(w.prof.longTasks):
		return w.between(20*sec, 90*sec)
	default:
		return w.between(500*ms, 10*sec)
	}
}
