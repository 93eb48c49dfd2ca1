package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/cable"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/integration/oracle"
)

// deathToElsewhere says what the times of agents' deaths are from and to.
const deathToElsewhere = "from the fault to the task's first beat elsewhere, less TTL and grace"

// The policy of regions with real agents: the shortest TTL that is allowed, and
// the shortest grace.
const (
	testTTL       = gpuai.MinLeaseTTL
	testGrace     = 2 * gpuai.Second
	testBeatEvery = gpuai.Second
	// away bounds the time from a fault to its tasks running elsewhere. The
	// goal is TTL + G + 1 s; what is beyond TTL + G is in the report.
	away = time.Duration(testTTL+testGrace)*time.Millisecond + patience
	// standstill is how long a task may seem not to beat while its agent is
	// away: the machine may be busy.
	standstill = 5 * time.Second
)

// A host is an agent with simulated devices, that may be killed and started
// again.
type host struct {
	id   string
	argv []string
	env  []string // with its join token, which it needs once
	proc *nursery.Process
}

// A field is a region with real agents and tasks that beat.
type field struct {
	*region
	beats   string // directory of the traces
	tasks   []*tracked
	watcher *oracle.Watcher
	over    context.CancelFunc // ends the watcher
}

// A tracked task is one that is looked at around a fault.
type tracked struct {
	job   gpuai.JobID
	host  string
	first gpuai.Task // as it ran before the fault
	next  gpuai.Task // as it runs after it, where it was placed again
}

// newField starts three servers with short leases.
func (s *scene) newField(name string) (*field, error) { return s.newFieldOf(name, certificateTTL) }

// newFieldOf is newField with certificates of another time.
func (s *scene) newFieldOf(name, certTTL string) (*field, error) {
	r, err := s.newRegion(3, nil)
	if err != nil {
		return nil, err
	}
	r.certTTL = certTTL
	if err := r.startAll(); err != nil {
		return nil, err
	}
	f := &field{region: r, beats: filepath.Join(s.dir, "beats-"+name), watcher: oracle.NewWatcher()}
	if err := os.MkdirAll(f.beats, 0o755); err != nil {
		return nil, err
	}
	err = r.setPolicy(func(p *gpuai.Policy) {
		p.TTLInference, p.TTLTraining, p.TTLFinetune, p.TTLBatch = testTTL, testTTL, testTTL, testTTL
		p.Grace, p.BeatEvery = testGrace, testBeatEvery
	})
	ctx, over := context.WithCancel(s)
	f.over = over
	go func() {
		if err := f.watcher.Follow(ctx, r.api, 0); ctx.Err() == nil {
			s.failOpen(fmt.Errorf("the stream of events ended: %w", err))
		}
	}()
	return f, err
}

// startHost starts an agent with so many devices that reaches the servers at
// addrs, and waits until its node is ready. wrap may be nil.
func (f *field) startHost(id string, gpus int, wrap, addrs []string) (*host, error) {
	config := filepath.Join(f.beats, id+".json")
	src := fmt.Sprintf(`{"seed":%q,"devices":[{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":%d,"count":%d}]}`, id, 80<<30, gpus)
	if err := os.WriteFile(config, []byte(src), 0o600); err != nil {
		return nil, err
	}
	argv := []string{
		f.run.program("gpuai"), "agent", "run", "--id", id, "--data", filepath.Join(f.beats, "host-"+id),
		"--servers", strings.Join(f.urlsOf(addrs), ","), "--label", "name=" + id,
		"--driver", "sim=" + f.run.program("gpuai-driver-sim") + "," + config, "--watchdog", f.run.program("gpuai-watchdog"),
		"--cpu", "16", "--memory", "8GiB", "--allow-process-runtime",
	}
	h := &host{id: id, argv: append(slices.Clone(wrap), argv...)}
	var err error
	if h.env, err = f.nodeEnv(); err != nil {
		return nil, err
	}
	return h, f.startAgain(h)
}

func (f *field) startAgain(h *host) (err error) {
	if h.proc, err = f.nursery.Start("agent-"+h.id, h.env, h.argv...); err != nil {
		return err
	}
	return f.nodeReady(h)
}

func (f *field) nodeReady(h *host) error {
	return f.until(patience, "node "+h.id+" to be ready", func(ctx context.Context) error {
		n, err := f.api.Node(ctx, gpuai.NodeID(h.id))
		if err == nil && n.State != gpuai.NodeReady {
			err = fmt.Errorf("it is %s", n.State)
		}
		return err
	})
}

// beatOn submits a task that beats until it is stopped, on one of some hosts,
// and waits until it runs.
func (f *field) beatOn(w *row, name string, on ...string) (*tracked, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	sub, err := f.api.Submit(f, client.SubmitRequest{Spec: &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Resources:   gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 500, Memory: 64 << 20},
		Restart:     gpuai.Restart{Attempts: 5, Backoff: 100 * gpuai.Millisecond, On: []gpuai.RestartCause{gpuai.CauseNodeLost}},
		Task:        gpuai.TaskSpec{Command: []string{self}, Env: map[string]string{oracle.EnvTask: oracle.TaskBeat, beat.EnvDir: f.beats}},
		Constraints: []gpuai.Constraint{{Attribute: "label.name", Op: gpuai.In, Values: on}},
	}}}})
	if err != nil {
		return nil, fmt.Errorf("submit %s: %w", name, err)
	}
	w.Acknowledged++
	w.Leases += len(sub.Leases)
	t := &tracked{job: sub.Job.ID, host: on[0]}
	f.tasks = append(f.tasks, t)
	t.first, err = f.running(t, 0, patience)
	return t, err
}

// running waits until a task runs and beats under a lease other than not.
func (f *field) running(t *tracked, not gpuai.Token, within time.Duration) (got gpuai.Task, err error) {
	err = f.until(within, fmt.Sprintf("job %s to run under another lease than %s", t.job, not), func(ctx context.Context) error {
		tasks, _, err := f.api.Tasks(ctx, t.job.String(), client.Page{Limit: 1})
		if err != nil {
			return err
		}
		if got = tasks[0]; got.Status != gpuai.TaskRunning || got.Lease == not {
			return fmt.Errorf("its task is %s under lease %s", got.Status, got.Lease)
		}
		return f.beating(got.Lease, 3)
	})
	return got, err
}

// beating is an error until a lease's task has beaten n times.
func (f *field) beating(lease gpuai.Token, n int) error {
	runs, err := beat.ReadRuns(f.beats)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.Token == lease && r.Beats >= n {
			return nil
		}
	}
	return fmt.Errorf("lease %s has not beaten %d times", lease, n)
}

// beatsOn waits until a task that is to go on has beaten after a time.
func (f *field) beatsOn(t gpuai.Task, after int64) error {
	return f.until(standstill, fmt.Sprintf("a beat of lease %s on %s", t.Lease, t.Node), func(context.Context) error {
		r, err := f.runOf(t.Lease)
		if err == nil && r.Last <= after {
			err = errors.New("the last one was before")
		}
		return err
	})
}

func (f *field) runOf(lease gpuai.Token) (beat.Run, error) {
	runs, err := beat.ReadRuns(f.beats)
	if err != nil {
		return beat.Run{}, err
	}
	i := slices.IndexFunc(runs, func(r beat.Run) bool { return r.Token == lease })
	if i < 0 {
		return beat.Run{}, fmt.Errorf("lease %s has left no beat", lease)
	}
	return runs[i], nil
}

// moved waits until a task runs elsewhere, and checks from its beats that it was
// dead in time and placed again no sooner than it may. since is CLOCK_BOOTTIME
// of the fault; fast is the rate of the servers' clock, 1 for true.
func (f *field) moved(w *row, t *tracked, since int64, fast float64) (err error) {
	if t.next, err = f.running(t, t.first.Lease, away); err != nil {
		return err
	}
	old, err := f.runOf(t.first.Lease)
	if err != nil {
		return err
	}
	now, err := f.runOf(t.next.Lease)
	if err != nil {
		return err
	}
	ms := func(ns int64) float64 { return float64(ns) / 1e6 }
	free := float64(testTTL+testGrace) / fast
	w.recovered(time.Duration((ms(now.First-since) - free) * 1e6))
	if string(t.next.Node) == t.host {
		w.fail("the task of %s was placed on the same host again", t.host)
	}
	// Every renewal was sent before the fault, and none longer before it than
	// two beats.
	if at := ms(old.Last - since); at > float64(testTTL) {
		w.fail("the task on %s beat for %.0f ms after the fault, its TTL is %s", t.host, at, testTTL)
	}
	if at, least := ms(now.First-since), free-2*float64(testBeatEvery); at < least {
		w.fail("the task of %s ran elsewhere %.0f ms after the fault, before %.0f ms", t.host, at, least)
	}
	return nil
}

// oneRunner judges all beats: no task had two runners at once.
func (f *field) oneRunner(w *row) {
	runs, err := beat.ReadRuns(f.beats)
	if err != nil {
		w.fail("%v", err)
	}
	seen, wrong := oracle.Judge(runs)
	w.note("%d beats of %d runs of %d tasks were checked", seen.Beats, seen.Runs, seen.Tasks)
	w.DoubleRunners += len(wrong)
	for _, err := range wrong {
		w.fail("%v", err)
	}
}

// unchanged checks, after the host's return, that what its agent reports of the
// old lease changes nothing.
func (f *field) unchanged(w *row, t *tracked) error {
	tasks, _, err := f.api.Tasks(f, t.job.String(), client.Page{Limit: 1})
	if err != nil {
		return err
	}
	if tasks[0].Lease != t.next.Lease || tasks[0].Status != gpuai.TaskRunning {
		w.fail("a late report changed the task from %+v to %+v", t.next, tasks[0])
	}
	ended := f.watcher.All(func(l *oracle.Lease) bool { return l.Token == t.first.Lease && l.Ended != 0 })
	if len(ended) != 1 || ended[0].Cause != gpuai.CauseExpired {
		w.fail("the events tell of the old lease's end, because it expired, not so: %+v", ended)
	}
	return nil
}

// playAgents cuts an agent off, stops one and kills two, at once, while their
// tasks run.
func playAgents(s *scene) error {
	const elsewhere = "its tasks are fenced within their TTL, run elsewhere no sooner than TTL + grace, and never twice at once; what it reports later changes nothing"
	rows := []*row{
		s.row("21", "an agent cut off from all servers, then connected again", elsewhere),
		s.row("22", "an agent stopped beyond the TTL, then continued", elsewhere),
		s.row("23", "an agent killed with -9, started again when its tasks run elsewhere", elsewhere),
		s.row("23", "an agent killed with -9, started again at once", "its tasks go on under their leases, in the same processes; nothing is placed twice"),
	}
	for _, w := range rows[:3] {
		w.Recovered = deathToElsewhere
	}
	for i := range s.counts.agentRounds {
		if err := s.agentRound(rows, i); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	for _, w := range rows {
		s.end(w)
	}
	return nil
}

const tasksPerHost = 2

func (s *scene) agentRound(rows []*row, round int) error {
	f, err := s.newField(fmt.Sprint(round))
	if err != nil {
		return err
	}
	hosts, cables, err := f.victims(rows)
	if err != nil {
		return err
	}
	_, term, err := f.leader()
	if err != nil {
		return err
	}
	since := beat.Boottime()
	for _, c := range cables {
		c.Set(true)
	}
	err = errors.Join(hosts[1].proc.Poke(syscall.SIGSTOP), hosts[2].proc.Kill(), hosts[3].proc.Kill(), f.startAgain(hosts[3]))
	if err != nil {
		return err
	}
	for _, w := range rows {
		w.Injected++
	}
	s.say("round %d: one agent cut off, one stopped, two killed of which one is back", round+1)
	back := beat.Boottime()
	for i, t := range f.tasks {
		w := rows[i/tasksPerHost]
		if w == rows[3] {
			err = f.stayed(w, t, back)
		} else {
			err = f.moved(w, t, since, 1)
		}
		if err != nil {
			w.fail("round %d: %v", round+1, err)
		}
	}
	if _, now, err := f.leader(); err != nil || now != term {
		rows[0].note("round %d: another server led in the end, in term %d and not %d (%v): it counts the silence of nodes from its own election", round+1, now, term, err)
	}
	s.say("round %d: all tasks of three agents run elsewhere after %.1f s", round+1, float64(beat.Boottime()-since)/1e9)
	return f.heal(rows, hosts, cables)
}

// victims starts four hosts with tasks, and then two that could take them. The
// first host's agent reaches the servers over cables.
func (f *field) victims(rows []*row) (hosts []*host, cables []*cable.Cable, err error) {
	var over []string
	for _, m := range f.members {
		c, err := cable.To(m.http)
		if err != nil {
			return nil, nil, err
		}
		f.cleanup(func() error { c.Close(); return nil })
		cables, over = append(cables, c), append(over, c.Addr)
	}
	for i, id := range []string{"cut", "stopped", "killed", "back"} {
		addrs := f.addrs()
		if i == 0 {
			addrs = over
		}
		h, err := f.startHost(id, tasksPerHost, nil, addrs)
		if err != nil {
			return nil, nil, err
		}
		hosts = append(hosts, h)
		for k := range tasksPerHost {
			if _, err := f.beatOn(rows[i], fmt.Sprintf("%s-%d", id, k), id, "spare-1", "spare-2"); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, id := range []string{"spare-1", "spare-2"} {
		if _, err := f.startHost(id, 2*tasksPerHost, nil, f.addrs()); err != nil {
			return nil, nil, err
		}
	}
	return hosts, cables, nil
}

// stayed checks a task whose agent came back at once.
func (f *field) stayed(w *row, t *tracked, back int64) error {
	if err := f.beatsOn(t.first, back); err != nil {
		return err
	}
	tasks, _, err := f.api.Tasks(f, t.job.String(), client.Page{Limit: 1})
	if err != nil {
		return err
	}
	if now := tasks[0]; now.Lease != t.first.Lease || now.Attempts != 0 {
		w.fail("the task was %+v and is %+v", t.first, now)
	}
	t.next = t.first
	return nil
}

// heal brings the agents back, and looks at everything once more.
func (f *field) heal(rows []*row, hosts []*host, cables []*cable.Cable) error {
	for _, c := range cables {
		c.Set(false)
	}
	if err := errors.Join(hosts[1].proc.Poke(syscall.SIGCONT), f.startAgain(hosts[2])); err != nil {
		return err
	}
	for i, h := range hosts {
		if err := f.nodeReady(h); err != nil {
			rows[i].fail("%v", err)
		}
	}
	since := beat.Boottime()
	for i, t := range f.tasks {
		w := rows[i/tasksPerHost]
		if err := f.beatsOn(t.next, since); err != nil {
			w.fail("%v", err)
		}
		if w == rows[3] {
			continue
		}
		if err := f.unchanged(w, t); err != nil {
			return err
		}
	}
	for i, w := range rows {
		if i == 0 {
			f.oneRunner(w)
		}
		if err := f.digests(w, 0); err != nil {
			return err
		}
	}
	return f.killAllOf()
}

// killAllOf ends the field: its processes are not needed any more.
func (f *field) killAllOf() error {
	f.over()
	f.nursery.Deaf()
	defer f.nursery.Hear()
	return errors.Join(nursery.KillNaming(f.beats, patience), f.stop())
}
