package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// Bounds of what is tried for one explanation. A trial is a fork and an entry.
const (
	maxTrials   = 24
	maxHelps    = 8
	aheadListed = 5
)

// Ask is Explain with what takes trials: what would let a waiting task start
// now, who is ahead in the queue and why, and when it would start. Each trial is
// made on a fork of m, which stays as it is but for its shared pages.
func (m *Machine) Ask(id gpuai.JobID) (gpuai.Explanation, bool) {
	x, ok := m.Explain(id)
	if !ok || len(x.Groups) == 0 {
		return x, ok
	}
	x.Ahead = m.preferred(id, x.Position)
	m.explainShare(&x)
	est := m.Fork().EstimateStart(id)
	x.Estimate = &est
	slot, _ := m.jobSlot(id)
	h := helper{m: m, id: id, spec: m.job(slot, true).Spec, whole: m.jobs.Get(slot).live == 0}
	if h.spec != nil {
		x.Helps = h.all(&x)
	}
	return x, true
}

// preferred returns the first in the queue, as far as they are before a
// position.
func (m *Machine) preferred(id gpuai.JobID, position uint32) (out []gpuai.Preferred) {
	slot, ok := m.jobSlot(id)
	if !ok {
		return nil
	}
	mine := m.jobs.Get(slot)
	for _, e := range m.QueueEntries(0, aheadListed) {
		if e.Job == id || e.Position >= position {
			break
		}
		other, _ := m.jobSlot(e.Job)
		p := gpuai.Preferred{QueueEntry: e, Why: m.whyBefore(m.jobs.Get(other), mine)}
		m.discreet(&p.QueueEntry)
		out = append(out, p)
	}
	return out
}

// whyBefore says why a job is before another in the queue.
func (m *Machine) whyBefore(a, b *jobRec) string {
	level := m.Level() >= LevelPlacement
	switch {
	case a.priority > b.priority:
		return fmt.Sprintf("priority %d is above %d", a.priority, b.priority)
	case level && m.aged(a) > m.aged(b):
		return "its priority has risen above by waiting"
	case level && a.tenant != b.tenant && m.claimOf(a.tenant).compare(m.claimOf(b.tenant)) < 0:
		return "its tenant has had less of its share"
	case a.seq < b.seq:
		return "it was submitted before"
	default:
		return "it has its place from before"
	}
}

// A helper looks for what would let a job's waiting tasks start.
type helper struct {
	m      *Machine
	id     gpuai.JobID
	spec   *gpuai.JobSpec
	whole  bool // none of its tasks has a lease: it could be stopped and submitted anew
	trials int
	prefix string   // of changes: the group, when there are several
	tried  []string // changes, of which two rules may suggest the same
	helps  []gpuai.Helpful
}

func (h *helper) all(x *gpuai.Explanation) []gpuai.Helpful {
	slot, _ := h.m.jobSlot(h.id)
	for g := h.m.jobs.Get(slot).group; g != 0; g = h.m.groups.Get(g.slot()).next {
		r := h.m.groups.Get(g.slot())
		if r.ended || r.ready() == 0 || int(r.idx) >= len(h.spec.Groups) {
			continue
		}
		for i := range x.Groups {
			if x.Groups[i].Group == h.spec.Groups[r.idx].Name {
				h.group(g.slot(), &x.Groups[i])
			}
		}
	}
	h.wait(x.Estimate)
	return h.helps
}

// group tries changes of one group, those of its rules first.
func (h *helper) group(slot uint32, why *gpuai.GroupWhy) {
	r := *h.m.groups.Get(slot)
	base := h.spec.Groups[r.idx]
	base.Count = r.ready()
	if h.tried, h.prefix = nil, ""; len(h.spec.Groups) > 1 {
		h.prefix = base.Name + ": "
	}
	for i := range why.Rules {
		h.rule(base, &why.Rules[i], why)
	}
	h.fewer(base, r.shape, why)
	h.priority(base)
}

// rule tries the group without one rule, or with a weaker one.
func (h *helper) rule(g gpuai.Group, r *gpuai.Rule, why *gpuai.GroupWhy) {
	switch r.Name {
	case "node.state":
		h.undrain(g)
	case "gpu.vendor":
		h.without(g, "gpu.vendor any", func(a *gpuai.GPUAlternative) { a.Vendor, a.Model = "", "" })
	case "gpu.model":
		h.without(g, "gpu.model any", func(a *gpuai.GPUAlternative) { a.Model = "" })
	case "gpu.memory":
		h.lessGPUMemory(g)
	case "gpu.free", "gpu.count":
		h.fewerGPUs(g, why)
	case "cpu":
		h.smaller(g, "cpu", int64(g.Resources.CPU), 500, func(r *gpuai.Resources, v int64) { r.CPU = gpuai.MilliCPU(v) })
	case "memory":
		h.smaller(g, "memory", int64(g.Resources.Memory), 256<<20, func(r *gpuai.Resources, v int64) { r.Memory = gpuai.Bytes(v) })
	case "gpu.health":
	default: // a constraint, by its attribute
		cs := g.Constraints
		g.Constraints = slices.DeleteFunc(slices.Clone(cs), func(c gpuai.Constraint) bool { return c.Attribute == r.Name })
		if len(g.Constraints) < len(cs) {
			h.tryGroup("without "+r.Name, g)
		}
	}
}

// without tries the group with every alternative changed.
func (h *helper) without(g gpuai.Group, change string, f func(*gpuai.GPUAlternative)) {
	g.Resources.GPU.Any = slices.Clone(g.Resources.GPU.Any)
	for i := range g.Resources.GPU.Any {
		f(&g.Resources.GPU.Any[i])
	}
	h.tryGroup(change, g)
}

// lessGPUMemory tries the sizes that devices have below those asked for, the
// largest first.
func (h *helper) lessGPUMemory(g gpuai.Group) {
	least := gpuai.Bytes(1<<63 - 1)
	for _, a := range g.Resources.GPU.Any {
		least = min(least, a.MemoryMin)
	}
	var sizes []gpuai.Bytes
	for _, k := range h.m.sched.Models() {
		if k.MemoryMin < least && !slices.Contains(sizes, k.MemoryMin) {
			sizes = append(sizes, k.MemoryMin)
		}
	}
	slices.SortFunc(sizes, func(a, b gpuai.Bytes) int { return cmp.Compare(b, a) })
	for _, size := range sizes[:min(4, len(sizes))] {
		n := len(h.helps)
		h.without(g, "gpu.memory "+sizeText(int64(size))+"..", func(a *gpuai.GPUAlternative) { a.MemoryMin = min(a.MemoryMin, size) })
		if len(h.helps) > n {
			return
		}
	}
}

// fewerGPUs tries as many devices as one node has free.
func (h *helper) fewerGPUs(g gpuai.Group, why *gpuai.GroupWhy) {
	if n := why.LargestOn; n > 0 && n < g.Resources.GPU.Count && g.Resources.GPU.Share.Milli == 0 {
		g.Resources.GPU.Count = n
		h.tryGroup("gpu.count "+strconv.FormatUint(uint64(n), 10), g)
	}
}

// smaller looks for the most of a resource, in steps, with which the task fits.
func (h *helper) smaller(g gpuai.Group, name string, want, step int64, set func(*gpuai.Resources, int64)) {
	f := h.m.Fork()
	fits := func(v int64) bool {
		res := g.Resources
		set(&res, v)
		id, code := f.sched.AddShape(wire.AppendShape(nil, &res, g.Constraints), res, g.Constraints)
		if code != gpuai.OK {
			return false
		}
		_, ok := f.sched.Find(id)
		return ok
	}
	lo, hi := int64(0), (want-1)/step // in steps: lo fits, if that does
	if hi <= 0 || !fits(step) {
		return
	}
	for lo = 1; lo < hi; {
		if mid := lo + (hi-lo+1)/2; fits(mid * step) {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	set(&g.Resources, lo*step)
	text := sizeText(lo * step)
	if name == "cpu" {
		text = milliText(lo * step)
	}
	h.tryGroup(name+" "+text, g)
}

// fewer tries as few tasks of a gang as there is room for.
func (h *helper) fewer(g gpuai.Group, shape scheduler.ShapeID, why *gpuai.GroupWhy) {
	if !g.Gang || why.Feasible == 0 {
		return
	}
	if room := h.m.Fork().sched.Capacity(shape, g.Count); room > 0 && room < g.Count {
		g.Count = room
		h.tryGroup("count "+strconv.FormatUint(uint64(room), 10), g)
	}
}

// priority tries the highest priority.
func (h *helper) priority(g gpuai.Group) {
	slot, _ := h.m.jobSlot(h.id)
	if h.m.jobs.Get(slot).priority >= gpuai.MaxPriority {
		return
	}
	spec := h.with(g)
	spec.Priority = gpuai.MaxPriority
	h.submit("priority "+strconv.Itoa(int(gpuai.MaxPriority)), spec)
}

// undrain tries drained nodes, the first ones.
func (h *helper) undrain(g gpuai.Group) {
	for s, n := uint32(0), 0; s < h.m.nodes.Len() && n < 4; s++ {
		if r := h.m.nodes.Get(s); r.drained && r.state == gpuai.NodeReady {
			n++
			name := h.m.nodeName(s)
			c := &SetNodeEligibility{Node: name}
			if h.try("undrain "+string(name), h.id, c) {
				return
			}
		}
	}
}

// wait says which end lets the first task start: that of the estimate, or else
// of a task without a run-time limit, if one alone would do.
func (h *helper) wait(est *gpuai.StartEstimate) {
	if est.Known {
		in := est.In - est.In%gpuai.Second
		effect := "starts in about " + in.String() + " (estimate)"
		if est.Behind != nil {
			effect = fmt.Sprintf("when %s[%d] ends, in about %s (estimate)", est.Name, est.Behind.Task, in)
			if est.Name == anothers {
				effect = fmt.Sprintf("when a task of another tenant ends, in about %s (estimate)", in)
			}
		}
		h.add("wait", effect)
		return
	}
	for at, n := uint32(0), 0; n < MaxScan; n++ {
		slot, ok := h.m.leaseSlots.Next(at)
		if !ok {
			return
		}
		at = slot + 1
		l := h.m.leases.Get(slot)
		if !l.live() || h.trials >= maxTrials {
			continue
		}
		ref := h.m.leaseEvent(gpuai.LeaseEndedEvent, slot)
		if ref.Job == h.id || !h.wouldFit(l) {
			continue
		}
		if f, _ := h.fork(h.m.endReport(slot, gpuai.ReportDone)); f != nil && f.liveOf(h.id) > h.m.liveOf(h.id) {
			j, _ := h.m.Job(ref.Job, false)
			effect := fmt.Sprintf("when %s[%d] ends", j.Name, ref.Task)
			if !h.m.tells(ref.Job) {
				effect = "when a task of another tenant ends"
			}
			h.add("wait", effect)
			return
		}
	}
}

// wouldFit reports whether a node could take a waiting task if it had a lease's
// room too, as far as that is seen without a trial.
func (h *helper) wouldFit(l *leaseRec) bool {
	slot, _ := h.m.jobSlot(h.id)
	for g := h.m.jobs.Get(slot).group; g != 0; g = h.m.groups.Get(g.slot()).next {
		r := h.m.groups.Get(g.slot())
		if r.ended || r.ready() == 0 {
			continue
		}
		mark := h.m.sp.Mark()
		h.m.giveRoom(l)
		_, ok := h.m.sched.FitsOn(r.shape, l.node)
		h.m.sp.RollbackTo(mark)
		if ok {
			return true
		}
	}
	return false
}

// with returns the job's spec with one group only.
func (h *helper) with(g gpuai.Group) *gpuai.JobSpec {
	spec := *h.spec
	spec.Groups, spec.Array = []gpuai.Group{g}, gpuai.Array{}
	return &spec
}

func (h *helper) tryGroup(change string, g gpuai.Group) { h.submit(change, h.with(g)) }

// submit tries a spec in place of the waiting tasks.
func (h *helper) submit(change string, spec *gpuai.JobSpec) {
	id := h.id
	for id[15]++; h.m.HasJob(id); id[15]++ { // at most 256 jobs differ in nothing else
		if id == h.id {
			return
		}
	}
	c := &SubmitJob{ID: id, Spec: spec}
	change = h.prefix + change
	if h.whole {
		h.try(change, id, &StopJob{h.id}, c)
	} else {
		h.try(change, id, c)
	}
}

// try applies commands on a fork, and notes the change when tasks of a job start
// by it.
func (h *helper) try(change string, id gpuai.JobID, cmds ...Command) bool {
	if h.trials >= maxTrials || len(h.helps) >= maxHelps || slices.Contains(h.tried, change) {
		return false
	}
	h.tried = append(h.tried, change)
	var encoded [][]byte
	for _, c := range cmds {
		encoded = append(encoded, c.Append(nil, Envelope{Tenant: h.spec.Tenant}))
	}
	f, revoked := h.fork(encoded...)
	if f == nil {
		return false
	}
	now := f.liveOf(id)
	if id == h.id {
		now -= min(now, h.m.liveOf(id))
	}
	var on []gpuai.NodeID
	for _, l := range f.LeasesOfJob(id, 0, 100) {
		if l.State == gpuai.LeaseGranted && l.ID.Index() > h.m.Index() && !slices.Contains(on, l.Node) {
			on = append(on, l.Node)
		}
	}
	job, _ := f.Job(id, false)
	switch {
	case now > 0 && job.Counts.Pending == 0:
		h.add(change, "starts now on "+nodesText(on))
	case now > 0:
		h.add(change, fmt.Sprintf("%d of %d tasks start now on %s", now, now+job.Counts.Pending, nodesText(on)))
	case revoked > 0:
		h.add(change, fmt.Sprintf("starts once %d running tasks of others, which it would displace, have ended", revoked))
	default:
		return false
	}
	return true
}

func (h *helper) add(change, effect string) {
	h.helps = append(h.helps, gpuai.Helpful{Change: change, Effect: effect})
}

// fork applies commands as one entry to a fork, and works off the backlog; nil
// when it cannot. revoked counts leases of others that are revoked by it.
func (h *helper) fork(cmds ...[]byte) (f *Machine, revoked int) {
	h.trials++
	f = h.m.Fork()
	var out Output
	for n := 0; n < 4 && (n == 0 || f.backlog()); n++ {
		if f.Apply(f.Index()+1, f.Term(), AppendEntry(nil, f.asBefore(f.Time()), cmds...), &out) != nil {
			return nil, 0
		}
		for i := range out.Events {
			if e := &out.Events[i]; e.Kind == gpuai.LeaseRevokingEvent && e.Job != h.id {
				revoked++
			}
		}
		cmds = [][]byte{(&Tick{}).Append(nil, Envelope{})}
	}
	return f, revoked
}

// asBefore returns the header of a further entry: of the newest one's term and
// wall time.
func (m *Machine) asBefore(at gpuai.Instant) Header {
	r := m.meta.Get()
	return Header{Time: at, Wall: r.wall, Term: r.term}
}

// liveOf returns how many of a job's tasks have a lease.
func (m *Machine) liveOf(id gpuai.JobID) uint32 {
	slot, ok := m.jobSlot(id)
	if !ok {
		return 0
	}
	return m.jobs.Get(slot).live
}

// nodesText names the first nodes.
func nodesText(on []gpuai.NodeID) string {
	out := ""
	for i, id := range on {
		if i == 3 {
			return fmt.Sprintf("%s and %d more", out, len(on)-i)
		}
		if i > 0 {
			out += ", "
		}
		out += string(id)
	}
	return out
}

// sizeText returns an amount of memory in its largest whole unit.
func sizeText(b int64) string {
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; i < len(units)-1 && b >= 1024 && b%1024 == 0; i++ {
		b /= 1024
	}
	return strconv.FormatInt(b, 10) + units[i]
}

// milliText returns thousandths as a decimal number.
func milliText(v int64) string {
	if v%1000 == 0 {
		return strconv.FormatInt(v/1000, 10)
	}
	return fmt.Sprintf("%d.%d", v/1000, v%1000/100)
}
