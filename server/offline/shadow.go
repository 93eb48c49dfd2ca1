package offline

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A Diff compares what a region did with what it would have done under another
// policy. Control is the recorded policy, simulated as the shadow is: what it
// differs from Recorded in is the simulation, what Shadow differs from it in is
// the policy.
type Diff struct {
	From     uint64  `json:"from_index"`
	To       uint64  `json:"to_index"`
	Recorded Outcome `json:"recorded"`
	Control  Outcome `json:"control"`
	Shadow   Outcome `json:"shadow"`
	// Jobs are those whose wait differs most between control and shadow.
	Jobs []JobDiff `json:"jobs"`
}

// maxDiffJobs bounds the jobs that a Diff lists.
const maxDiffJobs = 20

// An Outcome is what a run came to, over the region time of the recording.
type Outcome struct {
	Jobs      uint32 `json:"jobs"`    // submitted within it
	Started   uint32 `json:"started"` // of them
	Ended     uint32 `json:"ended"`
	Leases    uint32 `json:"leases"` // granted
	Preempted uint32 `json:"preempted"`
	Lost      uint32 `json:"lost"` // leases that ended by other faults than the task's
	// Waits are from submit to first lease; a job that has not started counts
	// with what it has waited until the end.
	WaitP50 gpuai.Duration `json:"wait_p50_ms"`
	WaitP90 gpuai.Duration `json:"wait_p90_ms"`
	WaitMax gpuai.Duration `json:"wait_max_ms"`
	// Utilisation is the time average of what leases hold of the devices that
	// there are, in millionths.
	Utilisation uint64 `json:"utilisation_ppm"`
	Digest      string `json:"digest"` // of the last state
}

// A JobDiff is one job's wait in both.
type JobDiff struct {
	Job     gpuai.JobID    `json:"job"`
	Name    string         `json:"name"`
	Control gpuai.Duration `json:"control_wait_ms"`
	Shadow  gpuai.Duration `json:"shadow_wait_ms"`
}

// A tally sums up a run.
type tally struct {
	out      Outcome
	submit   map[gpuai.JobID]gpuai.Instant
	wait     map[gpuai.JobID]gpuai.Duration
	last     gpuai.Instant
	held     uint64 // now
	capacity uint64 // now, thousandths of devices
	used, of float64
}

func newTally(m *fsm.Machine) *tally {
	c := m.Counts()
	return &tally{
		submit: map[gpuai.JobID]gpuai.Instant{}, wait: map[gpuai.JobID]gpuai.Duration{},
		last: m.Time(), held: c.GPUMilliUsed, capacity: uint64(c.GPUs) * uint64(gpuai.WholeDevice),
	}
}

// saw takes an output in.
func (t *tally) saw(m *fsm.Machine, out *fsm.Output) {
	span := float64(out.Time - t.last)
	t.used, t.of, t.last = t.used+span*float64(t.held), t.of+span*float64(t.capacity), out.Time
	t.held = out.GPUMilli
	for i := range out.Events {
		e := &out.Events[i]
		switch e.Kind {
		case gpuai.JobSubmitted:
			t.submit[e.Job] = e.At
		case gpuai.JobEnded:
			t.out.Ended++
		case gpuai.NodeRegistered, gpuai.NodeChanged:
			t.capacity = uint64(m.Counts().GPUs) * uint64(gpuai.WholeDevice)
		case gpuai.LeaseGrantedEvent:
			t.out.Leases++
			if at, ok := t.submit[e.Job]; ok {
				if _, started := t.wait[e.Job]; !started {
					t.wait[e.Job] = gpuai.Duration(e.At - at)
				}
			}
		case gpuai.LeaseEndedEvent:
			switch e.Cause {
			case gpuai.CausePreempted:
				t.out.Preempted++
			case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted, gpuai.CauseGPU:
				t.out.Lost++
			}
		}
	}
}

// sum completes the outcome.
func (t *tally) sum(m *fsm.Machine) Outcome {
	o := &t.out
	o.Jobs, o.Started = uint32(len(t.submit)), uint32(len(t.wait))
	waits := make([]gpuai.Duration, 0, len(t.submit))
	for id, at := range t.submit {
		w, ok := t.wait[id]
		if !ok {
			w = gpuai.Duration(t.last - at)
			t.wait[id] = w
		}
		waits = append(waits, w)
	}
	slices.Sort(waits)
	if n := len(waits); n > 0 {
		o.WaitP50, o.WaitP90, o.WaitMax = waits[n/2], waits[n*9/10], waits[n-1]
	}
	if t.of > 0 {
		o.Utilisation = uint64(t.used / t.of * 1e6)
	}
	o.Digest = m.Digest().String()
	return *o
}

// A run is how long a task ran, and how it ended.
type run struct {
	length gpuai.Duration
	end    *gpuai.Report
}

// learner notes how long recorded tasks ran.
type learner struct {
	began   gpuai.Instant
	held    []ending // leases from before the recording that ended within it
	granted map[gpuai.Token]gpuai.Event
	runs    map[gpuai.TaskRef][]run // by attempt
}

// saw takes an entry in, whose commands ended leases.
func (l *learner) saw(out *fsm.Output, cmds []fsm.Recorded) {
	for i := range out.Events {
		switch e := &out.Events[i]; e.Kind {
		case gpuai.LeaseGrantedEvent:
			l.granted[e.Lease] = *e
		case gpuai.LeaseEndedEvent:
			g, ok := l.granted[e.Lease]
			delete(l.granted, e.Lease)
			rep := reportOf(cmds, e.Lease)
			if rep == nil || e.Cause != gpuai.CauseDone && e.Cause != gpuai.CauseFailed {
				continue
			}
			if !ok {
				g.At = l.began
				l.held = append(l.held, ending{e.At, *e, *rep})
			}
			ref := gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}
			l.runs[ref] = append(l.runs[ref], run{gpuai.Duration(e.At - g.At), rep})
		}
	}
}

func reportOf(cmds []fsm.Recorded, t gpuai.Token) *gpuai.Report {
	for i := range cmds {
		if r := cmds[i].Report; r != nil && r.Report.Lease == t {
			return &r.Report
		}
	}
	return nil
}

// Diff replays a range of the recording under the policy with changed settings,
// by their names in JSON: the same commands, but for what agents reported of
// leases, which a shadow does not grant alike. There each task runs as long as it
// was recorded to run, from its lease on, and ends as it did then; one whose end
// was not recorded, or was no end of its own, runs on. Leases from before the
// range end when they did. Nodes come, go and fall silent as they did.
func (r *Recording) Diff(ctx context.Context, span gpuai.IndexRange, settings map[string]any, progress func(string, uint64, uint64)) (Diff, error) {
	d := Diff{From: span.From, To: span.To, Jobs: []JobDiff{}}
	m, err := r.MachineAt(ctx, span.From, progress)
	if err != nil {
		return d, err
	}
	t, learn := newTally(m), learner{began: m.Time(), granted: map[gpuai.Token]gpuai.Event{}, runs: map[gpuai.TaskRef][]run{}}
	err = r.apply(ctx, m, gpuai.IndexRange{From: span.From + 1, To: span.To}, progress, func(a *applied) error {
		t.saw(m, &a.out)
		_, cmds, err := fsm.ReadEntry(a.entry.Data)
		learn.saw(&a.out, cmds)
		return err
	})
	if err != nil {
		return d, err
	}
	d.Recorded = t.sum(m)
	control, err := r.shadow(ctx, span, &learn, nil)
	if err != nil {
		return d, err
	}
	shadow, err := r.shadow(ctx, span, &learn, settings)
	if err != nil {
		return d, err
	}
	d.Control, d.Shadow = control.t.sum(control.m), shadow.t.sum(shadow.m)
	for id, w := range control.t.wait {
		if s := shadow.t.wait[id]; s != w {
			j, _ := shadow.m.Job(id, false)
			d.Jobs = append(d.Jobs, JobDiff{id, j.Name, w, s})
		}
	}
	slices.SortFunc(d.Jobs, func(a, b JobDiff) int {
		return cmp.Or(cmp.Compare(abs(b.Shadow-b.Control), abs(a.Shadow-a.Control)), a.Job.Compare(b.Job))
	})
	d.Jobs = d.Jobs[:min(len(d.Jobs), maxDiffJobs)]
	return d, nil
}

func abs(d gpuai.Duration) gpuai.Duration { return max(d, -d) }

// An ending is a task's end in a shadow.
type ending struct {
	at    gpuai.Instant
	lease gpuai.Event
	as    gpuai.Report
}

type endings []ending

func (e endings) Len() int { return len(e) }
func (e endings) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].lease.Lease, e[j].lease.Lease)) < 0
}
func (e endings) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *endings) Push(x any)   { *e = append(*e, x.(ending)) }
func (e *endings) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// A shadow is a machine that is told what a recorded one was.
type shadow struct {
	m        *fsm.Machine
	t        *tally
	learn    *learner
	settings map[string]any
	used     map[gpuai.TaskRef]int // attempts
	ends     endings
	next     [][]byte // reports that follow from the last entry
	term     uint64
	wall     gpuai.WallTime
	out      fsm.Output
}

// shadow runs a range with changed settings; none for the recorded policy.
func (r *Recording) shadow(ctx context.Context, span gpuai.IndexRange, learn *learner, settings map[string]any) (*shadow, error) {
	m, err := r.MachineAt(ctx, span.From, nil)
	if err != nil {
		return nil, err
	}
	s := &shadow{m: m, t: newTally(m), learn: learn, settings: settings, used: map[gpuai.TaskRef]int{}, term: m.Term()}
	for _, e := range learn.held {
		heap.Push(&s.ends, e)
	}
	if len(settings) > 0 {
		set, err := s.policy(m.Policy())
		if err != nil {
			return nil, err
		}
		if err := s.apply(m.Time(), set); err != nil {
			return nil, err
		}
	}
	for i := span.From + 1; i <= span.To; i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := r.read(i)
		if err != nil {
			return nil, fmt.Errorf("read entry %d: %w", i, err)
		}
		if e.Command {
			if err := s.entry(e.Data); err != nil {
				return nil, fmt.Errorf("entry %d in the shadow: %w", i, err)
			}
		}
	}
	return s, nil
}

// policy returns the command that sets a policy with the changed settings.
func (s *shadow) policy(p gpuai.Policy) ([]byte, error) {
	raw, err := json.Marshal(s.settings)
	if err == nil {
		err = json.Unmarshal(raw, &p, json.RejectUnknownMembers(true))
	}
	if err != nil {
		return nil, gpuai.NewError(gpuai.InvalidSpec, "the policy does not fit this build: "+err.Error())
	}
	if wrong := p.Validate(); len(wrong) > 0 {
		return nil, &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the policy would be invalid", Fields: wrong}
	}
	return (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{}), nil
}

// entry lets the time of a recorded entry come, and applies what of it a shadow
// can be told.
func (s *shadow) entry(data []byte) error {
	h, cmds, err := fsm.ReadEntry(data)
	if err != nil {
		return err
	}
	for len(s.ends) > 0 && s.ends[0].at <= h.Time {
		e := heap.Pop(&s.ends).(ending)
		if err := s.apply(e.at, s.report(&e.lease, e.as.State, e.as.ExitCode)); err != nil {
			return err
		}
	}
	var keep [][]byte
	for i := range cmds {
		c := &cmds[i]
		switch {
		case c.Policy != nil && len(s.settings) > 0:
			set, err := s.policy(*c.Policy)
			if err != nil {
				return err
			}
			keep = append(keep, set)
		case c.Report == nil && c.Decides:
			keep = append(keep, c.Encoded)
		}
	}
	s.term, s.wall = h.Term, h.Wall
	return s.apply(h.Time, keep...)
}

// report returns the next report of a lease.
func (s *shadow) report(e *gpuai.Event, state gpuai.ReportState, exit int32) []byte {
	l, ok := s.m.Lease(e.Lease)
	inc := e.Incarnation
	if ok {
		inc = l.Incarnation
	}
	rep := gpuai.Report{Lease: e.Lease, Seq: s.m.Seq(e.Lease) + 1, Incarnation: inc, State: state, ExitCode: exit}
	return (&fsm.ReportLease{Node: e.Node, Report: rep}).Append(nil, fsm.Envelope{})
}

// apply applies commands as one entry at a region time, then what agents would
// report at once.
func (s *shadow) apply(at gpuai.Instant, cmds ...[]byte) error {
	for {
		entry := fsm.AppendEntry(nil, fsm.Header{Time: at, Wall: s.wall, Term: s.term}, cmds...)
		if err := s.m.Apply(s.m.Index()+1, s.term, entry, &s.out); err != nil {
			return err
		}
		s.t.saw(s.m, &s.out)
		s.follow()
		if len(s.next) == 0 {
			return nil
		}
		n := min(len(s.next), fsm.MaxCommands)
		cmds, s.next = s.next[:n:n], s.next[n:]
	}
}

// follow has granted tasks start and revoked ones stop.
func (s *shadow) follow() {
	for i := range s.out.Events {
		e := s.out.Events[i]
		switch e.Kind {
		case gpuai.LeaseRevokingEvent:
			s.next = append(s.next, s.report(&e, gpuai.ReportStopped, 0))
		case gpuai.LeaseGrantedEvent:
			s.next = append(s.next, s.report(&e, gpuai.ReportRunning, 0))
			ref := gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}
			if runs := s.learn.runs[ref]; len(runs) > 0 {
				r := runs[min(s.used[ref], len(runs)-1)]
				s.used[ref]++
				heap.Push(&s.ends, ending{e.At.Add(r.length), e, *r.end})
			}
		}
	}
}
