package fsm

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
)

// spent applies commands as one entry, as far as they fit into one, and returns
// the units of work that it counted.
func (r *region) spent(cmds ...Command) int64 {
	r.t.Helper()
	r.log = r.log[:0]
	r.apply(cmds[:min(len(cmds), MaxCommands)]...)
	return WorkPerEntry - r.m.now.work
}

// catchUp ticks until there is no backlog and no timer due, and returns the
// entries that took and the most work of one.
func (r *region) catchUp() (entries int, most int64) {
	r.t.Helper()
	for ; r.m.NextDeadline() <= r.time; entries++ {
		if entries > 1_000 {
			r.t.Fatal("the backlog does not end")
		}
		most = max(most, r.spent(&Tick{}))
	}
	return entries, most
}

// large returns a region of n nodes with 8 devices each at the newest level.
func large(t *testing.T, n int) *region {
	r := filled(t, n)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	return r
}

func (r *region) submits(jobs int, spec *gpuai.JobSpec) (cmds []Command, ids []gpuai.JobID) {
	for range jobs {
		ids = append(ids, r.newID())
		cmds = append(cmds, &SubmitJob{ID: ids[len(ids)-1], Spec: spec, HoldAnyway: true})
	}
	return cmds, ids
}

// within fails when an entry's work was beyond a bound, in units.
func within(t *testing.T, what string, got, bound int64) {
	t.Helper()
	t.Logf("%s: %d units, %.1f budgets", what, got, float64(got)/WorkPerEntry)
	if got > bound {
		t.Errorf("%s: %d units of work, the bound is %d", what, got, bound)
	}
}

// perCommand is what 1,000 commands that do little count beside the budget.
const perCommand = 1_000 * (workCommand + workEnd + 2*workLook)

// Placing keeps to the budget, whatever is submitted: what is left over is
// backlog.
func TestWorkOfSubmits(t *testing.T) {
	lengthy(t)
	r := large(t, 10_000)
	gang := func(n, gpus uint32) *gpuai.JobSpec {
		s := jobSpec("gang", n, gpus)
		s.Groups[0].Gang = true
		return s
	}
	many := jobSpec("groups", 1, 1)
	for i := range gpuai.MaxGroups - 1 {
		g := many.Groups[0]
		g.Name, g.Count, g.Resources.CPU = fmt.Sprint("g", i), 40, gpuai.MilliCPU(1000+i)
		many.Groups = append(many.Groups, g)
	}
	many.Groups[0].Name = "first"
	for _, k := range []struct {
		what string
		jobs int
		spec *gpuai.JobSpec
	}{
		{"a batch of 1,000 jobs of 43 tasks", 1_000, jobSpec("batch", 43, 1)},
		{"a job of 100,000 tasks", 1, jobSpec("large", gpuai.MaxTasks, 1)},
		{"jobs of 16 groups", 60, many},
		{"gangs of 4,096", 40, gang(gpuai.MaxGangTasks, 1)},
		{"gangs of 4,096 with whole nodes", 40, gang(gpuai.MaxGangTasks, 8)},
	} {
		x := *r // a region of its own
		x.m = r.m.Fork()
		cmds, _ := x.submits(k.jobs, k.spec)
		// One gang is placed whole: it may begin with little left.
		bound := int64(WorkPerEntry + perCommand + gpuai.MaxGangTasks*2*workPlace)
		within(t, k.what, x.spent(cmds...), bound)
		_, most := x.catchUp()
		within(t, k.what+", the backlog", most, bound)
	}
	// Gangs that find devices and no port are rolled back.
	ports := newRegion(t)
	ports.check = false
	for i := range 600 {
		s := nodeSpec(fmt.Sprintf("n-%03d", i), 8, "H100")
		s.PortCount = 1
		ports.register(s)
	}
	ports.do(&SetFeatureLevel{Level: MaxLevel})
	for range 600 { // a gang of 2 on each node takes its port
		ports.spent(&SubmitJob{ID: ports.newID(), Spec: gang(2, 1)})
	}
	cmds, _ := ports.submits(1_000, gang(600, 1))
	within(t, "gangs that are rolled back", ports.spent(cmds...), WorkPerEntry+perCommand+600*4*workPlace)
}

func (m *Machine) liveLeases() (out []uint32) {
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		if m.leases.Get(s).live() {
			out = append(out, s)
		}
	}
	return out
}

// Ends of leases cost what they are, not what waits or what else is in a gang.
func TestWorkOfEnds(t *testing.T) {
	lengthy(t)
	r := large(t, 5_000)
	spec := jobSpec("gang", gpuai.MaxGangTasks, 1)
	spec.Groups[0].Gang = true
	cmds, _ := r.submits(1, spec)
	r.spent(cmds...)
	r.catchUp()
	cmds = nil
	for _, s := range r.m.liveLeases() {
		l := r.m.leases.Get(s)
		cmds = append(cmds, &ReportLease{Node: r.m.nodeName(l.node), Report: gpuai.Report{
			Lease: l.token, Incarnation: l.incarnation, Seq: 1, State: gpuai.ReportFailed,
		}})
	}
	if len(cmds) != gpuai.MaxGangTasks {
		t.Fatalf("%d leases", len(cmds))
	}
	// The first has the others revoked.
	within(t, "1,000 members of a gang fail", r.spent(cmds...), perCommand+1_000*2*workEnd+gpuai.MaxGangTasks*(workEnd+workLook))
	within(t, "1,000 more", r.spent(cmds[1_000:]...), perCommand+1_000*2*workEnd)

	r = large(t, 5_000)
	cmds, ids := r.submits(1, jobSpec("all", 40_000, 1))
	r.spent(cmds...)
	r.catchUp()
	live := int64(r.m.Counts().Leases)
	if live != 40_000 {
		t.Fatalf("%d leases", live)
	}
	drains := make([]Command, 0, 1_000)
	for i := range 1_000 {
		drains = append(drains, &SetNodeEligibility{Node: gpuai.NodeID(fmt.Sprintf("node-%06d", i)), Drained: true})
	}
	within(t, "1,000 nodes are drained", r.spent(drains...), perCommand+8_000*workEnd)
	// A stop goes on in the entries that follow.
	within(t, "a job of 40,000 leases is stopped", r.spent(&StopJob{Job: ids[0]}), WorkPerEntry+2*workEnd)
	for _, g := range []int{1, 2} { // again: it is being stopped
		within(t, fmt.Sprint("stop ", g, " of a stopping job"), r.spent(&StopJob{Job: ids[0]}), WorkPerEntry/2+perCommand)
	}
	entries, most := r.catchUp()
	within(t, "it is stopped on", most, WorkPerEntry/2+perCommand)
	if got := int64(r.m.Counts().Revoking); got != live || entries < 2 {
		t.Errorf("%d of %d leases are revoked after %d entries", got, live, entries)
	}
}

// Tasks that lose their nodes all at once find their places among those that
// wait, in the order of their jobs, without a walk through the queue.
func TestWorkOfALostRack(t *testing.T) {
	lengthy(t)
	const nodes, jobs = 2_500, 20_000
	r := large(t, nodes)
	for range jobs / 500 {
		cmds, _ := r.submits(500, jobSpec("one", 1, 1))
		r.spent(cmds...)
	}
	r.catchUp()
	if got := r.m.Counts().Leases; got != jobs {
		t.Fatalf("%d leases", got)
	}
	order := rand.New(rand.NewPCG(7, 7)).Perm(nodes)
	for len(order) > 0 {
		var cmds []Command
		n := min(len(order), 500)
		for _, i := range order[:n] {
			slot, _ := r.m.nodeSlot(gpuai.NodeID(fmt.Sprintf("node-%06d", i)))
			cmds = append(cmds, &ExpireLeases{Node: r.m.nodeName(slot), Incarnation: r.m.nodes.Get(slot).incarnation, SilentFor: gpuai.Hour, Term: r.term})
		}
		order = order[n:]
		r.time = r.time.Add(gpuai.Second)
		r.spent(cmds...)
	}
	r.catchUp() // the first have waited for long enough
	r.time = r.time.Add(gpuai.Hour)
	entries, most := r.catchUp()
	within(t, "the back-offs end", most, WorkPerEntry+1_000)
	if got := r.m.Counts().TasksPending; got != jobs || entries > 40 {
		t.Errorf("%d tasks wait after %d entries; walks through the queue would be %d", got, entries, jobs*jobs/4/WorkPerEntry)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
	// A restored machine has the same lanes.
	if err := restored(t, r.m).Check(); err != nil {
		t.Error(err)
	}
	if fork := r.m.Fork(); fork.Check() != nil {
		t.Errorf("a fork: %v", fork.Check())
	}
}

// Leases of one node that are no longer safe all at once are listed once.
func TestWorkOfRipening(t *testing.T) {
	lengthy(t)
	r := newest(t, func(p *gpuai.Policy) { p.PreemptionProtect = gpuai.Minute })
	s := nodeSpec("a", 1, "H100")
	r.register(s)
	r.check = false
	low := jobSpec("low", 1_000, 0)
	low.Groups[0].Resources.CPU, low.Groups[0].Resources.Memory = 60, 1<<20
	r.submit(low)
	r.catchUp()
	high := at(jobSpec("high", 1, 0), 60)
	high.Groups[0].Resources.CPU = 30_000
	r.submit(high)
	r.time = r.time.Add(2 * gpuai.Minute)
	within(t, "1,000 leases of a node ripen, and half of them go", r.spent(&Tick{}), 150_000)
	if n := r.m.Counts().Revoking; n < 400 {
		t.Errorf("%d leases are being revoked", n)
	}
	if err := r.m.Check(); err != nil {
		t.Error(err)
	}
}
