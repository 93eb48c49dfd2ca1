package fsm

import (
	"cmp"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// walk makes random legal and illegal commands against a region.
type walk struct {
	*region
	r    *rand.Rand
	ids  []gpuai.JobID
	incs map[string]gpuai.Incarnation
	// ports is what each node lends: when they run out a gang waits that has
	// its devices.
	ports uint16
	// more and where add to specs and nodes what later feature levels know.
	more  func(s *gpuai.JobSpec)
	where func(n *gpuai.NodeSpec)
	// preempts has jobs of many priorities, at the newest level, under policies
	// by which they displace each other.
	preempts bool
	// says has agents give reasons, and resolve images.
	says bool
	// prepares has tasks be ready behind their barriers, and soon late.
	prepares bool
	// meets has members of gangs tell where others reach them.
	meets bool
	// publishes has tasks publish checkpoints.
	publishes bool
	// extra draws a command of its own, or none.
	extra func() Command
	// opens has operators create tenants and tokens, and say whose nodes are.
	opens bool
	// joins has nodes and servers join and be revoked, and authorities change.
	joins bool
	// hides has tenants set secrets, and jobs that want them.
	hides bool
	// restores is every how manyth entry the machine beside is restored; 0: 20.
	restores int
}

var walkNodes = []string{"a", "b", "c", "d", "e"}

func newWalk(t testing.TB, seed uint64) *walk {
	return &walk{region: newRegion(t), r: rand.New(rand.NewPCG(seed, 5)), incs: map[string]gpuai.Incarnation{}, ports: 64}
}

func (w *walk) spec() *gpuai.JobSpec {
	s := jobSpec([]string{"x", "y", "z"}[w.r.IntN(3)], 1+w.r.Uint32N(5), w.r.Uint32N(4))
	g := &s.Groups[0]
	s.Priority = gpuai.Priority(w.r.IntN(3) * 20)
	if w.preempts {
		s.Priority = gpuai.Priority(1 + w.r.IntN(6)*15)
		if says := w.r.IntN(4); says < 2 {
			yes := says == 1
			s.Preemptible = &yes
		}
	}
	g.Gang = w.r.IntN(3) == 0
	g.Resources.CPU = gpuai.MilliCPU(1 + w.r.IntN(20_000))
	if g.Resources.GPU.Count == 1 && w.r.IntN(2) == 0 {
		g.Resources.GPU.Share.Milli = gpuai.Milli(1 + w.r.IntN(999))
	}
	if g.Resources.GPU.Count > 0 && w.r.IntN(3) == 0 {
		g.Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "MI300X"}, {Vendor: "nvidia", MemoryMin: 1 << 30}}
	}
	if w.r.IntN(4) == 0 {
		g.Constraints = []gpuai.Constraint{{Attribute: "zone", Op: gpuai.In, Values: []string{"z1", "z2"}}}
	}
	if w.r.IntN(4) == 0 {
		s.Limits = gpuai.Limits{QueueTime: gpuai.Duration(w.r.IntN(60_000)), RunTime: gpuai.Duration(w.r.IntN(60_000))}
	}
	if w.r.IntN(4) == 0 {
		g.Restart.On = append(g.Restart.On, gpuai.CauseFailure)
	}
	if w.r.IntN(5) == 0 {
		second := *g
		second.Name, second.Count = "second", 2
		s.Groups = append(s.Groups, second)
	}
	if w.more != nil {
		w.more(s)
	}
	return s
}

func (w *walk) registerCommand() *RegisterNode {
	name := walkNodes[w.r.IntN(len(walkNodes))]
	s := nodeSpec(name, w.r.IntN(6), []string{"H100", "MI300X"}[w.r.IntN(2)])
	s.Zone = []string{"z1", "z2", ""}[w.r.IntN(3)]
	s.PortCount = w.ports
	if w.where != nil {
		w.where(&s)
	}
	c := &RegisterNode{Spec: s, BootID: []string{"b1", "b2"}[w.r.IntN(2)], Nonce: []string{"n1", "n2", "n3"}[w.r.IntN(3)], Replaces: w.incs[name]}
	for _, l := range w.m.LeasesOfNode(gpuai.NodeID(name), 100) {
		if w.r.IntN(2) == 0 {
			c.Held = append(c.Held, gpuai.HeldLease{Lease: l.ID, BootID: c.BootID})
		}
	}
	return c
}

// special returns a command of what only some walks play; nil for another.
func (w *walk) special() Command {
	switch {
	case w.publishes && w.r.IntN(3) == 0:
		return w.publishCommand()
	case w.opens && w.r.IntN(2) == 0:
		return w.accessCommand()
	case w.joins && w.r.IntN(3) == 0:
		return w.joinCommand()
	case w.hides && w.r.IntN(2) == 0:
		return w.secretCommand()
	}
	return nil
}

// command returns the next random command.
func (w *walk) command() Command {
	if w.extra != nil {
		if c := w.extra(); c != nil {
			return c
		}
	}
	if c := w.special(); c != nil {
		return c
	}
	name := walkNodes[w.r.IntN(len(walkNodes))]
	inc, _, _ := w.m.NodeLive(gpuai.NodeID(name))
	switch w.r.IntN(20) {
	case 0, 1:
		return w.registerCommand()
	case 2, 3, 4, 5:
		id := w.newID()
		w.ids = append(w.ids, id)
		return &SubmitJob{ID: id, Spec: w.spec(), HoldAnyway: w.r.IntN(2) == 0}
	case 6:
		if len(w.ids) > 0 {
			return &StopJob{Job: w.ids[w.r.IntN(len(w.ids))]}
		}
	case 7:
		return &SetNodeEligibility{Node: gpuai.NodeID(name), Drained: w.r.IntN(3) == 0}
	case 8:
		return &ExpireLeases{Node: gpuai.NodeID(name), Incarnation: inc, SilentFor: gpuai.Duration(w.r.IntN(60_000)), Term: w.term - w.r.Uint64N(2)}
	case 9:
		return &ConfirmBeats{Term: w.term, Suspect: []NodeRef{{gpuai.NodeID(name), inc}}}
	case 10:
		return &ConfirmBeats{Term: w.term, Ready: []NodeRef{{gpuai.NodeID(name), inc}}}
	case 11:
		n, _ := w.m.Node(gpuai.NodeID(name))
		devices := slices.Clone(n.Devices)
		for i := range devices {
			devices[i].Health = gpuai.DeviceHealth(w.r.IntN(3))
		}
		slices.SortFunc(devices, func(a, b gpuai.Device) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) })
		return &UpdateDevices{Node: n.ID, Incarnation: inc, Devices: devices}
	case 12:
		var retire []gpuai.JobID
		for _, id := range w.ids {
			if w.r.IntN(4) == 0 {
				retire = append(retire, id)
			}
		}
		return &RetireJobs{Jobs: retire}
	case 13:
		return w.policyCommand()
	case 14:
		if w.r.IntN(4) == 0 {
			id := gpuai.ServerID([]string{"s1", "s2", "s3", "No"}[w.r.IntN(4)])
			if w.r.IntN(2) == 0 {
				return &MoveServer{Server: id, Address: []string{"h:1", "h:2", ""}[w.r.IntN(3)]}
			}
			return &RetireServer{Server: id}
		}
		return &Checkpoint{Index: w.index, Digest: w.m.Digest()}
	default:
		if ls, _ := w.m.Leases(w.r.Uint32N(20), 20, true); len(ls) > 0 {
			return w.reportCommand(ls[w.r.IntN(len(ls))])
		}
	}
	return &Tick{}
}

func (w *walk) policyCommand() *SetPolicy {
	p := gpuai.DefaultPolicy()
	p.TTLBatch = gpuai.Duration(w.r.IntN(60)) * gpuai.Second
	if w.preempts {
		p.TTLBatch = gpuai.Minute
		w.preemptBy(&p)
	}
	if w.prepares {
		p.GangReadyMax = gpuai.Duration(w.r.IntN(20)) * gpuai.Second
	}
	return &SetPolicy{Policy: p}
}

func (w *walk) reportCommand(l gpuai.Lease) *ReportLease {
	slot, _ := w.m.leaseSlot(l.ID)
	rep := gpuai.Report{
		Lease: l.ID, Seq: w.m.leases.Get(slot).seq + w.r.Uint32N(3), Incarnation: l.Incarnation,
		State: gpuai.ReportState(1 + w.r.IntN(int(gpuai.ReportGPUError))), ExitCode: int32(w.r.IntN(3)),
	}
	if w.says {
		w.say(&rep)
	}
	if w.prepares && w.r.IntN(2) == 0 {
		rep.State, rep.EndCode, rep.Image = gpuai.ReportPrepared, gpuai.EndOther, ""
	}
	if w.meets && w.r.IntN(2) == 0 {
		rep.State, rep.EndCode = gpuai.ReportPrepared, gpuai.EndOther
		rep.Mesh = &gpuai.MeshPoint{Key: gpuai.MeshKey{byte(1 + w.r.IntN(3))}, Port: uint16(1 + w.r.IntN(2))}
	}
	if w.r.IntN(8) == 0 {
		rep.Unclean = l.Devices
	}
	return &ReportLease{Node: l.Node, Report: rep}
}

// say has a report say more than its state, within what there may be or not.
func (w *walk) say(rep *gpuai.Report) {
	rep.EndCode = gpuai.EndCode(w.r.IntN(gpuai.NumEndCodes))
	rep.Reason = []string{"", "exit code 1", strings.Repeat("no ", 150), "cut\xe2\x82"}[w.r.IntN(4)]
	if w.r.IntN(3) == 0 {
		rep.State, rep.EndCode = gpuai.ReportResolved, gpuai.EndOther
		rep.Image = []string{"sha256:" + strings.Repeat("0a", 32), "sha256:" + strings.Repeat("b7", 32), "sha256:", ""}[w.r.IntN(4)]
	}
}

// preemptBy draws the rules of preemption.
func (w *walk) preemptBy(p *gpuai.Policy) {
	p.PreemptionGap = uint32([]int{0, 1, 15, 30}[w.r.IntN(4)])
	p.PreemptionProtect = gpuai.Duration(w.r.IntN(3)*w.r.IntN(20)) * gpuai.Second
}

// step applies one entry of random commands at a later region time.
func (w *walk) step() *Output {
	w.t.Helper()
	cmds := w.later(w.command)
	env := Envelope{Tenant: "default"}
	if w.r.IntN(5) == 0 {
		env.Key = []string{"k1", "k2", "k3"}[w.r.IntN(3)]
	}
	out := w.applyAs(env, cmds...)
	w.see()
	return out
}

// later lets region time pass, and draws the commands of an entry.
func (w *walk) later(draw func() Command) (cmds []Command) {
	w.time = w.time.Add(gpuai.Duration(w.r.IntN(3_000)))
	if w.r.IntN(30) == 0 {
		w.term++
	}
	for range 1 + w.r.IntN(4) {
		cmds = append(cmds, draw())
	}
	return cmds
}

// see remembers the incarnations that the nodes have.
func (w *walk) see() {
	for _, n := range walkNodes {
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
}

// Two machines that apply one log, one of them snapshotted and restored at
// random points, are equal in digest, and so is a fork that goes on alone.
func TestRandomLogs(t *testing.T) {
	t.Parallel()
	seeds := uint64(30)
	if brief() {
		seeds = 10
	}
	for seed := range seeds {
		w := newWalk(t, seed)
		w.ports = uint16(seed % 4)
		other := New(w.m.opts)
		w.preempts, w.says, w.joins = seed%4 == 3, seed%8 >= 4, seed%10 == 9
		w.opens, w.hides = seed%8 == 5, seed%10 == 7
		if seed%2 == 1 {
			w.do(&SetFeatureLevel{Level: MaxLevel})
			if err := other.Apply(w.index, w.term, w.log[0], &Output{}); err != nil {
				t.Fatal(err)
			}
		}
		w.beside(seed, other, 150)
	}
}

// beside takes steps of which other, which is equal, applies the log, forked and
// restored at random points.
func (w *walk) beside(seed uint64, other *Machine, steps int) {
	t := w.t
	t.Helper()
	for range steps {
		told := w.step()
		entry := w.log[len(w.log)-1]
		out := &Output{}
		if w.r.IntN(cmp.Or(w.restores, 20)) == 0 {
			other = restored(t, other)
		}
		if w.r.IntN(20) == 0 {
			fork := other.Fork()
			if err := other.Apply(w.index, w.term, entry, out); err != nil {
				t.Fatal(err)
			}
			other = fork
		}
		if err := other.Apply(w.index, w.term, entry, out); err != nil {
			t.Fatal(err)
		}
		if other.Digest() != w.m.Digest() {
			t.Fatalf("seed %d, entry %d: digests differ: %s and %s", seed, w.index, w.m.Digest(), other.Digest())
		}
		if i := differAt(told.Events, out.Events); i >= 0 || !reflect.DeepEqual(told.Results, out.Results) {
			t.Fatalf("seed %d, entry %d: the machines tell something else: event %d of\n%+v\n%+v", seed, w.index, i, told.Events, out.Events)
		}
		if out.Diverged {
			t.Fatalf("seed %d, entry %d: a checkpoint tells a divergence", seed, w.index)
		}
	}
	if err := other.Check(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

// differAt returns where two lists of events differ; -1: nowhere.
func differAt(a, b []gpuai.Event) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || !reflect.DeepEqual(a[i], b[i]) {
			return i
		}
	}
	return -1
}

// Whenever there is no backlog, nothing that could start waits.
func TestWorkConservation(t *testing.T) {
	t.Parallel()
	for seed := range few(10, 1) {
		w := newWalk(t, 1000+seed)
		for range 120 {
			w.step()
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
				r := w.m.buckets.Get(b)
				if fork := w.m.Fork(); r.gang > 0 {
					fork.now, fork.out = entryState{index: w.index + 1, work: WorkPerEntry}, &Output{}
					if placed, _ := fork.placeGang(r.first.slot()); placed {
						t.Fatalf("seed %d, entry %d: a gang of %d waits that could start", seed, w.index, r.gang)
					}
				} else if _, fits := w.m.sched.Find(r.shape); fits {
					t.Fatalf("seed %d, entry %d: a task waits that could start", seed, w.index)
				}
			}
		}
	}
}
