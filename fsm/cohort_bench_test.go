package fsm

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// A tenantry is tenants that fill a region of 8,000 devices and all have more waiting.
type tenantry struct {
	name             string
	tenants, cohorts int
	bounded          bool
}

var tenantries = []tenantry{
	{"one", 1, 0, false}, {"tenants", 1_000, 0, false}, {"quotas", 1_000, 0, true}, {"cohorts", 1_000, 50, true},
}

func (c *tenantry) quota(i, gpus int) *SetQuota {
	q := gpuai.Quota{GPUs: some(uint32(gpus)), CPU: some(gpuai.MilliCPU(1_000 * (gpus + 8))), Models: []gpuai.ModelQuota{{Model: "H100", GPUs: uint32(gpus)}}}
	if c.cohorts > 0 {
		q.Cohort = fmt.Sprint("c", i%c.cohorts)
	}
	return &SetQuota{Tenant: gpuai.TenantID(tenantOf(i)), Quota: q}
}

// region is a region that the tenantry fills, with the queue behind it at rest. Each
// tenant has two kinds of requests waiting, 50 jobs of each.
func (c *tenantry) region(b *testing.B) *goalRegion {
	r := filled(b, 1_000)
	g := &goalRegion{region: r, b: b, nodes: 1_000}
	g.send("", &SetFeatureLevel{Level: MaxLevel})
	yes, each := true, 8_000/c.tenants
	for i := range c.tenants {
		if c.bounded {
			g.send("", c.quota(i, each))
		}
	}
	for kind := range 3 {
		for i := range c.tenants {
			s := goalSpec(tenantOf(i), uint32(each), 1, 0)
			if s.Preemptible = &yes; kind > 0 {
				s.Groups[0].Count, s.Groups[0].Resources.CPU = 1, gpuai.MilliCPU(1_000+kind)
			}
			for range max(50_000/c.tenants, 1) {
				if g.send(tenantOf(i), &SubmitJob{ID: g.newID(), Spec: s}); kind == 0 {
					break
				}
			}
		}
		g.work()
	}
	if n := g.m.Counts(); n.Leases != 8_000 || n.TasksPending != 100_000 {
		b.Fatalf("%+v", n)
	}
	return g
}

// BenchmarkTenantsInCohorts measures what tenants, quotas and cohorts cost an entry
// while all 1,000 tenants wait: a submit that is placed at once, the end of a lease with
// the start of the next, and another quota of one tenant with all entries that follow of
// it. Beside the CPU time of the thread that applies it gives the ratio to the same of
// one tenant without a quota (of quotas: to tenants in no cohort), measured before in the same run.
//
//	go test ./fsm -run '^$' -bench TenantsInCohorts -benchtime 4000x
func BenchmarkTenantsInCohorts(b *testing.B) {
	base := map[string]float64{}
	for _, c := range tenantries {
		g := c.region(b)
		for _, op := range []struct {
			name string
			do   func(g *goalRegion, c *tenantry, i int)
		}{{"submit", submitOne}, {"release", releaseOne}, {"quota", setOne}} {
			if op.name == "quota" && !c.bounded {
				continue
			}
			b.Run(op.name+"/"+c.name, func(b *testing.B) {
				x := &goalRegion{region: &region{t: b, m: g.m.Fork(), index: g.index, term: g.term, time: g.time, jobs: g.jobs}, b: b, nodes: g.nodes}
				done := x.begin(b)
				for i := range b.N {
					op.do(x, &c, i)
				}
				done(1)
				p50 := float64(x.took[len(x.took)/2])
				if c.name == "one" || base[op.name] == 0 || op.name == "quota" && !(c.cohorts > 0) {
					base[op.name] = p50
				}
				b.ReportMetric(p50/base[op.name], "ratio")
				if x.m.Counts().Leases < 7_900 {
					b.Fatalf("%d leases", x.m.Counts().Leases)
				}
			})
		}
		runtime.GC()
	}
}

// submitOne submits a job that has room, of a tenant whose others wait, and ends it.
func submitOne(g *goalRegion, c *tenantry, i int) {
	of := tenantOf(i % c.tenants)
	id := g.newID()
	g.timed(g.entry(of, &SubmitJob{ID: id, Spec: goalSpec(of, 1, 0, 0)}))
	if g.out.Results[0].Leased != 1 {
		g.b.Fatal(g.out.Results[0])
	}
	l := g.leases(id)[0]
	g.send("", doneBy(&l))
	g.work()
}

func doneBy(l *gpuai.Lease) *ReportLease {
	return &ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportDone}}
}

// releaseOne ends a lease; the next in the queue starts in its place.
func releaseOne(g *goalRegion, _ *tenantry, i int) {
	l := g.m.lease(g.m.liveLeases1(uint32(i * 7_919 % 8_000)))
	g.time += 10
	g.timed(g.entry("", doneBy(&l)))
	g.work()
}

// liveLeases1 returns a live lease from a slot on.
func (m *Machine) liveLeases1(from uint32) uint32 {
	for s, ok := m.leaseSlots.Next(from); ok; s, ok = m.leaseSlots.Next(s + 1) {
		if m.leases.Get(s).state < gpuai.LeaseRevoking {
			return s
		}
	}
	return m.liveLeases1(0)
}

// setOne gives a tenant a device more, or less, of its own, and lets the machine come to
// rest.
func setOne(g *goalRegion, c *tenantry, i int) {
	before := len(g.took)
	g.timed(g.entry("", c.quota(i/2*37%c.tenants, 8+i%2)))
	for g.m.NextDeadline() <= g.time {
		g.timed(g.entry("", &Tick{}))
	}
	sum := time.Duration(0)
	for _, d := range g.took[before:] {
		sum += d
	}
	g.took = append(g.took[:before], sum)
}
