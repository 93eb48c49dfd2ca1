package fsm

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// The goals for speed at scale: regions of 1,000, 10,000 and 100,000 nodes of 8
// devices in 32 pools, of 1,000 tenants. A full region has ten leases a node (a
// million at 100,000), six of a device and four of half a one, and a million
// tasks that wait. Times are CPU time of the thread that applies, so p50 says
// more than p99, which has page faults and collections in it.
//
//	go test ./fsm -run '^$' -bench Goals -benchtime 2000x
var goalSizes = []int{1_000, 10_000, 100_000}

const goalTenants = 1_000

// A goalRegion is a region under measurement.
type goalRegion struct {
	*region
	b       *testing.B
	nodes   int
	waiting int // tasks submitted that do not fit
	shapes  int // of them
	out     Output
	took    []time.Duration
	down    int // nodes that were expired, from the last
}

func newGoalRegion(b *testing.B, nodes int) *goalRegion {
	g := &goalRegion{region: newRegion(b), b: b, nodes: nodes}
	g.send("", &SetFeatureLevel{Level: MaxLevel}) // what a new region runs at
	var cmds []Command
	for i := range nodes {
		s := nodeSpec(fmt.Sprintf("node-%06d", i), 8, fmt.Sprint("m", i/4%8))
		s.Zone = fmt.Sprint("z", i%4)
		if cmds = append(cmds, &RegisterNode{Spec: s, BootID: "b", Nonce: "n"}); len(cmds) == 50 || i == nodes-1 {
			g.send("", cmds...)
			cmds = cmds[:0]
		}
	}
	return g
}

// entry returns an entry of commands of one tenant.
func (g *goalRegion) entry(tenant string, cmds ...Command) []byte {
	var encoded [][]byte
	for _, c := range cmds {
		encoded = append(encoded, c.Append(nil, Envelope{Tenant: gpuai.TenantID(tenant)}))
	}
	return AppendEntry(nil, Header{Time: g.time, Wall: 1, Term: g.term}, encoded...)
}

// send applies commands as one entry.
func (g *goalRegion) send(tenant string, cmds ...Command) { g.run(g.entry(tenant, cmds...)) }

func (g *goalRegion) run(entry []byte) time.Duration {
	g.index++
	before := threadTime()
	err := g.m.Apply(g.index, g.term, entry, &g.out)
	took := threadTime() - before
	if err != nil || g.out.Panics > 0 || g.out.Results[0].Code != gpuai.OK {
		g.b.Fatal(err, g.out.Panic, g.out.Results)
	}
	return took
}

// events counts the events of a kind of the last entry.
func (g *goalRegion) events(k gpuai.EventKind) (n int) {
	for i := range g.out.Events {
		if g.out.Events[i].Kind == k {
			n++
		}
	}
	return n
}

// timed applies an entry that is measured.
func (g *goalRegion) timed(entry []byte) { g.took = append(g.took, g.run(entry)) }

// begin starts a measurement; what it returns reports it, by so many things
// that each entry did.
func (g *goalRegion) begin(b *testing.B) (report func(per int)) {
	g.b, g.took = b, g.took[:0]
	runtime.LockOSThread()
	b.ResetTimer()
	return func(per int) {
		runtime.UnlockOSThread()
		slices.Sort(g.took)
		b.ReportMetric(float64(g.took[len(g.took)/2])/float64(per), "p50-cpu-ns")
		b.ReportMetric(float64(g.took[len(g.took)*99/100])/float64(per), "p99-cpu-ns")
		b.ReportMetric(0, "ns/op")
	}
}

func tenantOf(i int) string { return fmt.Sprintf("tenant-%03d", i%goalTenants) }

// goalSpec is a job of equal tasks of devices or, when milli is not 0, of a
// share of one.
func goalSpec(tenant string, tasks, gpus uint32, milli gpuai.Milli) *gpuai.JobSpec {
	s := jobSpec("job", tasks, gpus)
	s.Tenant = gpuai.TenantID(tenant)
	s.Groups[0].Resources.GPU.Share.Milli = milli
	return s
}

// fill gives leases until every device is in use.
func (g *goalRegion) fill() {
	tasks := uint32(g.nodes * 10 / goalTenants)
	for i := range goalTenants {
		s := goalSpec(tenantOf(i), tasks, 1, 0)
		if i%10 >= 6 {
			s = goalSpec(tenantOf(i), tasks, 1, 500)
		}
		g.send(tenantOf(i), &SubmitJob{ID: g.newID(), Spec: s})
		g.work()
	}
	if got := int(g.m.Counts().Leases); got != g.nodes*10 {
		g.b.Fatalf("%d leases, want %d", got, g.nodes*10)
	}
}

// work lets the machine do what the budget of an entry left over.
func (g *goalRegion) work() {
	for g.m.NextDeadline() <= g.time {
		g.send("", &Tick{})
	}
}

// queue submits tasks that do not fit: a million, then more of new shapes until
// there are so many.
func (g *goalRegion) queue(shapes int) {
	for i := 0; g.waiting < 1_000_000; i++ {
		g.queueOne(i, i%shapes, 100)
	}
	for g.shapes = max(g.shapes, min(shapes, 63)); g.shapes < shapes; g.shapes++ {
		g.queueOne(g.shapes, g.shapes, 10)
	}
}

func (g *goalRegion) queueOne(i, shape int, tasks uint32) {
	tenant := tenantOf(i)
	s := goalSpec(tenant, tasks, []uint32{1, 1, 1, 2, 4, 8}[shape%6], 0)
	r := &s.Groups[0].Resources
	r.CPU = gpuai.MilliCPU(1_000 + shape)
	if shape%2 == 1 {
		r.GPU.Any = []gpuai.GPUAlternative{{Model: fmt.Sprint("m", shape%8)}, {Model: fmt.Sprint("m", (shape+3)%8)}}
	}
	g.send(tenant, &SubmitJob{ID: g.newID(), Spec: s})
	g.waiting += int(tasks)
	g.work()
}

// done returns the report that a task with a whole device has ended, of nodes
// from all over the region in turn.
func (g *goalRegion) done() Command {
	for i := uint32(0); ; i++ {
		n := g.m.nodes.Get((uint32(g.index)*7_919 + i) % uint32(g.nodes-g.down))
		for l := n.first; l != 0; l = g.m.leases.Get(l.slot()).next {
			if r := g.m.leases.Get(l.slot()); r.share == 0 {
				return &ReportLease{Node: gpuai.NodeID(g.m.strs.Get(n.name)), Report: gpuai.Report{
					Lease: r.token, Seq: 9, Incarnation: r.incarnation, State: gpuai.ReportDone,
				}}
			}
		}
	}
}

// BenchmarkGoals measures a full region: the end of a task and the start of the
// next, nodes that go down, the collector, forks and a restore.
func BenchmarkGoals(b *testing.B) {
	for _, nodes := range goalSizes {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			g := newGoalRegion(b, nodes)
			g.fill()
			for _, shapes := range []int{63, 877, 9_451} {
				g.queue(shapes)
				b.Run(fmt.Sprint("release-and-next/shapes=", shapes), g.release)
			}
			b.Run("after-fork", g.afterFork)
			b.Run("collect", g.collect)
			b.Run("restore", g.restore)
			b.Run("node-down", g.nodeDown)
			b.Run("1000-nodes-down", g.nodesDown)
		})
	}
}

// release ends one task an entry; another starts in it.
func (g *goalRegion) release(b *testing.B) {
	report := g.begin(b)
	started := 0
	for range b.N {
		g.timed(g.entry("", g.done()))
		started += g.events(gpuai.LeaseGrantedEvent)
	}
	report(1)
	b.ReportMetric(float64(started)/float64(b.N), "started/op")
}

// afterFork measures the fork of a snapshot, and what Apply does next on pages
// that the fork shares.
func (g *goalRegion) afterFork(b *testing.B) {
	runtime.LockOSThread()
	before := threadTime()
	f := g.m.Fork()
	forked := threadTime() - before
	runtime.UnlockOSThread()
	g.release(b)
	b.ReportMetric(float64(forked.Microseconds()), "fork-cpu-us")
	runtime.KeepAlive(f)
}

// nextDown returns the command that expires one node more.
func (g *goalRegion) nextDown() Command {
	g.down++
	node := gpuai.NodeID(fmt.Sprintf("node-%06d", g.nodes-g.down))
	n, ok := g.m.Node(node)
	if !ok {
		g.b.Fatal("no node ", node)
	}
	return &ExpireLeases{Node: node, Incarnation: n.Incarnation, SilentFor: gpuai.Hour, Term: g.term}
}

// nodeDown expires the ten leases of one node an entry; their tasks wait again.
func (g *goalRegion) nodeDown(b *testing.B) {
	report := g.begin(b)
	ended := 0
	for range min(b.N, g.nodes/4) {
		g.timed(g.entry("", g.nextDown()))
		ended += g.events(gpuai.LeaseEndedEvent)
	}
	report(1)
	b.ReportMetric(float64(ended)/float64(len(g.took)), "leases/op")
}

// nodesDown expires 1,000 nodes in one entry (all that are left of 1,000).
func (g *goalRegion) nodesDown(b *testing.B) {
	report := g.begin(b)
	n := min(1_000, (g.nodes-g.down)/2) // of 1,000 nodes, what is left
	for range min(b.N, 5) {
		if g.nodes-g.down <= n {
			break
		}
		var cmds []Command
		for range n {
			cmds = append(cmds, g.nextDown())
		}
		g.timed(g.entry("", cmds...))
	}
	report(1)
	b.ReportMetric(float64(n), "nodes/op")
}

// collect measures the CPU time of one cycle of the collector, and what is live.
func (g *goalRegion) collect(b *testing.B) {
	bytes := heap()
	before := cpuTime(b)
	const cycles = 3
	for range cycles {
		runtime.GC()
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/cycles/1e3, "cpu-ms/cycle")
	b.ReportMetric(float64(bytes)/(1<<20), "heap-MiB")
	b.ReportMetric(float64(g.m.blobs.Len())*blockBytes/(1<<20), "text-MiB")
	b.ReportMetric(float64(g.m.Counts().Leases), "leases")
	b.ReportMetric(float64(g.m.Counts().TasksPending), "waiting")
	b.ReportMetric(0, "ns/op")
}

// restore writes the region and reads it back.
func (g *goalRegion) restore(b *testing.B) {
	var snap bytes.Buffer
	if err := g.m.WriteSnapshot(&snap); err != nil {
		b.Fatal(err)
	}
	before := cpuTime(b)
	m, err := Restore(&snap, Options{})
	used := cpuTime(b) - before
	if err != nil || m.Digest() != g.m.Digest() {
		b.Fatal(err)
	}
	b.ReportMetric(float64(used.Milliseconds()), "cpu-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkGoalsPlace measures what is placed in a region with room: jobs of a
// task, gangs, and gangs that cannot start.
func BenchmarkGoalsPlace(b *testing.B) {
	for _, nodes := range goalSizes {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			g := newGoalRegion(b, nodes)
			b.Run("gang-of-64-devices", func(b *testing.B) { g.gang(b, 8, 1_000) })
			b.Run("gang-of-512-devices", func(b *testing.B) { g.gang(b, 64, 1_000) })
			b.Run("submit", g.submit)
			g = newGoalRegion(b, nodes)
			g.narrow()
			b.Run("gang-without-the-nodes", func(b *testing.B) { g.gang(b, 128, 1_000) })
			b.Run("gang-without-the-last-node", func(b *testing.B) { g.gang(b, 64, 8_000) })
		})
	}
}

// submit places jobs of one task of 1,000 tenants, 100 an entry, until nine of
// ten devices are in use.
func (g *goalRegion) submit(b *testing.B) {
	report := g.begin(b)
	const batch = 100
	room := g.nodes*8*9/10 - int(g.m.Counts().Leases)
	for done := 0; done < min(b.N, room); done += batch {
		var cmds [][]byte
		for i := range batch {
			tenant := tenantOf(done + i)
			cmds = append(cmds, (&SubmitJob{ID: g.newID(), Spec: goalSpec(tenant, 1, 1, 0)}).Append(nil, Envelope{Tenant: gpuai.TenantID(tenant)}))
		}
		g.timed(AppendEntry(nil, Header{Term: 1}, cmds...))
	}
	report(batch)
}

// narrow leaves 127 nodes that take tasks, of all pools alike. All devices of
// them are free, but 64 have no CPU for a task that needs 8: that there are too
// few nodes is seen only when the last of 64 is looked for.
func (g *goalRegion) narrow() {
	drain := func(drained bool, of func(i int) bool) {
		for i := range g.nodes {
			if of(i) {
				g.send("", &SetNodeEligibility{Node: gpuai.NodeID(fmt.Sprintf("node-%06d", i)), Drained: drained})
			}
		}
	}
	drain(true, func(i int) bool { return i >= 128 || i/32%2 == 1 })
	s := goalSpec("busy", 64, 0, 0)
	s.Groups[0].Resources.CPU = 60_000
	g.send("busy", &SubmitJob{ID: g.newID(), Spec: s})
	if got := g.m.Counts().Leases; got != 64 {
		g.b.Fatalf("%d leases, want 64", got)
	}
	drain(false, func(i int) bool { return i < 127 && i/32%2 == 1 })
}

// gang submits gangs whose tasks take all devices of a node, one an entry, and
// has them ended again.
func (g *goalRegion) gang(b *testing.B, tasks, cpu uint32) {
	report := g.begin(b)
	started := 0
	for i := range b.N {
		s := goalSpec(tenantOf(i), tasks, 8, 0)
		s.Groups[0].Gang = true
		s.Groups[0].Resources.CPU = gpuai.MilliCPU(cpu)
		id := g.newID()
		g.timed(g.entry(tenantOf(i), &SubmitJob{ID: id, Spec: s}))
		if started += g.events(gpuai.LeaseGrantedEvent); g.m.backlog() {
			b.Fatal("the budget cut it short")
		}
		g.send("", &StopJob{Job: id})
		var ends []Command
		for _, l := range g.m.LeasesOfJob(id, 0, int(tasks)) {
			ends = append(ends, &ReportLease{Node: l.Node, Report: gpuai.Report{
				Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportStopped,
			}})
		}
		if len(ends) > 0 {
			g.send("", ends...)
		}
	}
	report(1)
	b.ReportMetric(float64(started)/float64(b.N), "leases/op")
}
