package main

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// resumeAllowance is for how long after a suspended host's resume a task of it
// may overlap with the next runner: the watchdog's wake-up latency. DESIGN.md
// names it as a known limit.
const resumeAllowance = 200 * ms

// A violation is a promise that was broken.
type violation struct {
	Check string `json:"check"`
	Text  string `json:"text"`
	At    int64  `json:"at_ns"`
}

// checker judges from outside: from what ran on which host at what true time,
// what clients were answered, and what each replica said of each index.
type checker struct {
	w          *world
	violations []violation

	live    map[gpuai.TaskRef][]*runner
	newest  map[gpuai.TaskRef]gpuai.Token // of the runners there were
	granted map[gpuai.TaskRef]gpuai.Token
	runners map[gpuai.Token]*runner

	digests map[uint64]fsm.Digest
	seen    uint64 // the highest index whose events were looked at
	leaders map[uint64]int
	applies int

	acked  []ackedJob
	byKey  map[string]gpuai.JobID
	stops  []ackedJob
	starts int
	books  *books
}

// ackedJob is a job that a client was told of.
type ackedJob struct {
	key   string
	job   gpuai.JobID
	index uint64
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, live: map[gpuai.TaskRef][]*runner{}, newest: map[gpuai.TaskRef]gpuai.Token{},
		granted: map[gpuai.TaskRef]gpuai.Token{}, runners: map[gpuai.Token]*runner{},
		digests: map[uint64]fsm.Digest{}, leaders: map[uint64]int{}, byKey: map[string]gpuai.JobID{}, books: newBooks(w),
	}
}

func (c *checker) failed() bool { return len(c.violations) > 0 }

func (c *checker) fail(check, text string) {
	if len(c.violations) < 5 {
		c.violations = append(c.violations, violation{check, text, c.w.now})
		c.w.tracef("VIOLATION %s: %s", check, text)
	}
}

// started looks at a task that was forked.
func (c *checker) started(r *runner) {
	c.starts++
	if n := c.newest[r.task]; r.token <= n {
		c.fail("tokens", fmt.Sprintf("%s starts with token %s on %s after a runner with token %s", taskName(r.task), r.token, r.h.name, n))
	}
	c.newest[r.task] = max(c.newest[r.task], r.token)
	c.runners[r.token] = r
	c.live[r.task] = append(c.live[r.task], r)
	c.overlaps(r)
	for _, d := range r.devices {
		used := gpuai.Milli(0)
		for _, o := range r.h.runners {
			if slices.Contains(o.devices, d) {
				used += o.share
			}
		}
		if used > gpuai.WholeDevice {
			c.fail("capacity", fmt.Sprintf("device %s of %s has runners for %d milli, the newest with token %s", d, r.h.name, used, r.token))
		}
	}
}

// overlaps looks for another authorised runner of r's task that runs now.
func (c *checker) overlaps(r *runner) {
	for _, o := range c.live[r.task] {
		if o == r || !o.h.active() || !r.h.active() {
			continue
		}
		until := max(o.h.resumedAt, r.h.resumedAt) + resumeAllowance
		if o.h.resumedAt == 0 && r.h.resumedAt == 0 || c.w.now >= until {
			c.twoRunners(r, o)
			return
		}
		c.w.at(until, func() {
			if slices.Contains(c.live[r.task], r) && slices.Contains(c.live[r.task], o) && o.h.active() && r.h.active() {
				c.twoRunners(r, o)
			}
		})
	}
}

func (c *checker) twoRunners(r, o *runner) {
	c.fail("two runners", fmt.Sprintf("%s runs on %s with token %s and on %s with token %s", taskName(r.task), o.h.name, o.token, r.h.name, r.token))
}

// ended looks at a task that is gone, or no authorised runner any more.
func (c *checker) ended(r *runner) {
	left := slices.DeleteFunc(c.live[r.task], func(o *runner) bool { return o == r })
	if len(left) == 0 {
		delete(c.live, r.task)
	} else {
		c.live[r.task] = left
	}
}

// resumed looks at the tasks of a host that was suspended.
func (c *checker) resumed(h *host) {
	for _, r := range h.runners {
		if !r.zombie {
			c.overlaps(r)
		}
	}
}

func (c *checker) led(server int, term uint64) {
	if o, ok := c.leaders[term]; ok && o != server {
		c.fail("log", fmt.Sprintf("servers %d and %d lead in term %d: the model of Raft is wrong", o, server, term))
	}
	c.leaders[term] = server
}

// applied looks at what an entry did on a replica.
func (c *checker) applied(s *server, term uint64, out *fsm.Output) {
	c.sameDigest(s)
	if out.Panics > 0 {
		c.fail("panic", fmt.Sprintf("server %d, index %d: %s", s.id, out.Index, out.Panic))
	}
	if out.Diverged {
		c.fail("checkpoint", fmt.Sprintf("server %d has another digest than the leader, index %d", s.id, out.Index))
	}
	if c.applies++; c.applies%c.w.prof.checkEvery == 0 {
		c.invariants(s)
	}
	if out.Index <= c.seen {
		return
	}
	c.seen = out.Index
	c.books.take(s, term, out)
	for i := range out.Events {
		c.event(&out.Events[i])
		c.preempted(s, &out.Events[i])
	}
}

func (c *checker) invariants(s *server) {
	if err := s.m.Check(); err != nil {
		c.fail("invariants", fmt.Sprintf("server %d, index %d: %v", s.id, s.m.Index(), err))
	}
}

// sameDigest compares a replica with whoever applied the index first.
func (c *checker) sameDigest(s *server) {
	i, d := s.m.Index(), s.m.Digest()
	if first, ok := c.digests[i]; !ok {
		c.digests[i] = d
	} else if first != d {
		c.fail("digests", fmt.Sprintf("server %d has digest %s at index %d, another had %s", s.id, d, i, first))
	}
}

// restored looks at a replica that took over a snapshot.
func (c *checker) restored(s *server) { c.sameDigest(s) }

func (c *checker) event(e *gpuai.Event) {
	switch task := (gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}); e.Kind {
	case gpuai.LeaseGrantedEvent:
		if e.Lease <= c.granted[task] {
			c.fail("tokens", fmt.Sprintf("%s is granted token %s after token %s", taskName(task), e.Lease, c.granted[task]))
		}
		c.granted[task] = e.Lease
		c.w.tracef("index %d: %s gets token %s on node %s", e.Index, taskName(task), e.Lease, e.Node)
	case gpuai.LeaseEndedEvent:
		c.w.tracef("index %d: token %s of %s on node %s ends: %s", e.Index, e.Lease, taskName(task), e.Node, e.Cause)
		if r := c.runners[e.Lease]; e.Cause == gpuai.CauseDone && (r == nil || !r.over || !r.byItself || r.exit != 0) {
			c.fail("stale effect", fmt.Sprintf("token %s of %s is done in the region, and no such task has ended well", e.Lease, taskName(task)))
		}
	case gpuai.LeaseRevokingEvent:
		c.w.tracef("index %d: token %s of %s on node %s is revoked: %s", e.Index, e.Lease, taskName(task), e.Node, e.Cause)
	case gpuai.LeaseAdopted:
		c.w.tracef("index %d: token %s is adopted by incarnation %s of node %s", e.Index, e.Lease, e.Incarnation, e.Node)
	case gpuai.NodeRegistered:
		c.w.tracef("index %d: node %s registers as incarnation %s", e.Index, e.Node, e.Incarnation)
	case gpuai.TaskRequeued, gpuai.JobEnded:
		c.w.tracef("index %d: %s %s %s", e.Index, e.Kind, taskName(task), e.JobStatus)
	}
}

// preempted looks whether who has to make room is of lower priority than whom it
// makes room for.
func (c *checker) preempted(s *server, e *gpuai.Event) {
	if e.Kind != gpuai.LeaseRevokingEvent || e.Cause != gpuai.CausePreempted {
		return
	}
	c.w.count(taskPreempted)
	victim, _ := s.m.Job(e.Job, false)
	by, known := s.m.Job(e.By, false)
	if (!known || by.Priority <= victim.Priority) && !c.books.reclaims(victim.Tenant, by.Tenant) {
		c.fail("preemption", fmt.Sprintf("index %d: token %s of job %s of priority %d makes room for job %s of priority %d", e.Index, e.Lease, e.Job, victim.Priority, e.By, by.Priority))
	}
}

// submitted looks at the answer to a submit: a key has one answer for ever.
func (c *checker) submitted(key string, job gpuai.JobID, index uint64) {
	if first, ok := c.byKey[key]; !ok {
		c.byKey[key] = job
		c.acked = append(c.acked, ackedJob{key, job, index})
	} else if first != job {
		c.fail("idempotency", fmt.Sprintf("key %s was answered with job %s and with job %s", key, first, job))
	}
}

// stopped looks at the answer to a stop.
func (c *checker) stopped(job gpuai.JobID, index uint64) {
	c.stops = append(c.stops, ackedJob{job: job, index: index})
}

// acknowledged looks whether a replica has every job that was acknowledged at
// an index that it has applied.
func (c *checker) acknowledged(s *server) {
	for i := range c.acked {
		if a := &c.acked[i]; a.index <= s.raft.applied {
			if _, ok := s.m.Job(a.job, false); !ok {
				c.fail("lost acknowledgement", fmt.Sprintf("server %d, index %d: job %s of key %s was acknowledged at index %d and is not there", s.id, s.raft.applied, a.job, a.key, a.index))
				return
			}
		}
	}
}

// end judges the whole after the heal: replicas are alike, all jobs are there
// once and have ended, no lease is left.
func (c *checker) end() {
	w := c.w
	first := w.servers[0]
	for _, s := range w.servers {
		if !s.up || s.raft.applied != first.raft.applied || s.m.Digest() != first.m.Digest() {
			c.fail("digests", fmt.Sprintf("after the heal server %d is at index %d with digest %s, server 0 at %d with %s", s.id, s.raft.applied, s.m.Digest(), first.raft.applied, first.m.Digest()))
			return
		}
		c.invariants(s)
		c.acknowledged(s)
	}
	if w.users.terms.on {
		c.books.compare(first)
	}
	names := map[string]gpuai.JobID{}
	for _, j := range allJobs(first.m) {
		if o, ok := names[j.Name]; ok {
			c.fail("idempotency", fmt.Sprintf("key %s made job %s and job %s", j.Name, o, j.ID))
		}
		names[j.Name] = j.ID
		if !j.Status.Final() {
			c.fail("stuck job", fmt.Sprintf("job %s (%s) is still %s %s after the heal: %s", j.Name, j.ID, j.Status, describe(&j), why(first.m, j.ID)))
		}
	}
	for _, x := range c.stops {
		if j, ok := first.m.Job(x.job, false); ok && !j.Status.Final() {
			c.fail("lost acknowledgement", fmt.Sprintf("job %s was stopped at index %d and is %s", j.ID, x.index, j.Status))
		}
	}
	if c.failed() {
		for _, n := range nodesOf(first.m) {
			w.tracef("node %s", n)
		}
		for _, h := range w.hosts {
			w.tracef("%s: up %v, agent up %v, halted %q, retired %v", h.name, h.up, h.agent.up, h.agent.halted, h.retired)
		}
	}
	if n := first.m.Counts(); n.Leases > 0 {
		c.fail("stuck lease", fmt.Sprintf("%d leases are left after the heal", n.Leases))
	}
	for _, h := range w.hosts {
		for _, r := range h.runners {
			c.fail("stuck runner", fmt.Sprintf("%s runs %s with token %s, of which the region knows nothing", h.name, taskName(r.task), r.token))
		}
	}
}

func describe(j *gpuai.Job) string {
	n := j.Counts
	return fmt.Sprintf("(%d pending, %d leased, %d running of %d)", n.Pending, n.Leased, n.Running, j.Tasks)
}

// why is the first reason for a job to wait.
func why(m *fsm.Machine, id gpuai.JobID) string {
	for _, t := range m.Tasks(id, 0, 1_000) {
		if t.Status < gpuai.TaskSucceeded {
			return fmt.Sprintf("task %d is %s, lease %s on node %s, retry at %d, region time is %d", t.Task, t.Status, t.Lease, t.Node, t.RetryAt, m.Time())
		}
	}
	return "no task is left"
}

// nodesOf says how the region sees its nodes.
func nodesOf(m *fsm.Machine) (out []string) {
	for _, n := range m.Nodes("", 20) {
		s := fmt.Sprintf("%s %s, incarnation %s, drained %v, %d leases, free:", n.ID, n.State, n.Incarnation, n.Drained, n.Leases)
		for _, d := range n.Devices {
			s += fmt.Sprintf(" %s %s %d", d.ID, d.Health, d.Free)
		}
		out = append(out, s)
	}
	return out
}

func allJobs(m *fsm.Machine) (all []gpuai.Job) {
	for after := (fsm.JobCursor{}); ; {
		page, last := m.Jobs(after, 1_000, nil)
		all = append(all, page...)
		if last == (fsm.JobCursor{}) {
			return all
		}
		after = last
	}
}
