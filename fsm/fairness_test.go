package fsm

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// usageOf sums a tenant's usage millisecond by millisecond.
type usageOf struct {
	usage *big.Int
	held  int64
}

func (u *usageOf) pass(from, to gpuai.Instant, step int64) {
	for t := from; t < to; t++ {
		u.usage.Add(u.usage, big.NewInt(u.held))
		if int64(t+1)%step == 0 {
			u.usage.Rsh(u.usage.Mul(u.usage, big.NewInt(decay)), 32)
		}
	}
}

// Usage that is computed when it is asked for is what a sum over every
// millisecond gives, exactly, whenever it was asked for before.
func TestUsageIsExact(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 9))
		half := gpuai.Duration(1 + r.IntN(3_000))
		step := int64(max(half/decaySteps, 1))
		rec, want := tenantRec{at: gpuai.Instant(r.IntN(5_000))}, usageOf{usage: new(big.Int)}
		now := rec.at
		for range 60 {
			next := now.Add(gpuai.Duration(r.IntN(500) * r.IntN(10)))
			want.pass(now, next, step)
			now = next
			if got := rec.usageAt(now, half); new(big.Int).SetUint64(got).Cmp(want.usage) != 0 {
				t.Fatalf("seed %d, half-life %d, at %d: usage %d, want %d", seed, half, now, got, want.usage)
			}
			if r.IntN(2) == 0 { // a lease begins or ends
				rec.usage, rec.at = rec.usageAt(now, half), now
				want.held = r.Int64N(64_000)
				rec.held = uint64(want.held)
			}
		}
	}
}

func TestUsageFallsByHalf(t *testing.T) {
	r := tenantRec{usage: 1 << 40}
	if got := r.usageAt(gpuai.Instant(gpuai.Day), gpuai.Day); got < 1<<39-1<<18 || got > 1<<39+1<<18 {
		t.Fatalf("after a half-life %d of 2^40 is left", got)
	}
	r.held = 1 << 40 // more than any region has: it stops at the greatest number
	if got := r.usageAt(gpuai.MaxInstant, gpuai.Day*30); got == 0 {
		t.Fatal("usage wrapped around")
	}
}

func TestClaimsCompareIn128Bits(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		a := claim{r.Uint64() >> r.IntN(64), 1 + r.Uint32N(gpuai.MaxTenantWeight)}
		b := claim{a.usage + r.Uint64N(3), 1 + r.Uint32N(gpuai.MaxTenantWeight)}
		if r.IntN(2) == 0 {
			b.usage, b.weight = r.Uint64(), a.weight
		}
		x := new(big.Int).Mul(new(big.Int).SetUint64(a.usage), big.NewInt(int64(b.weight)))
		y := new(big.Int).Mul(new(big.Int).SetUint64(b.usage), big.NewInt(int64(a.weight)))
		if a.compare(b) != x.Cmp(y) || b.compare(a) != -x.Cmp(y) {
			t.Fatalf("%v against %v: %d, want %d", a, b, a.compare(b), x.Cmp(y))
		}
	}
}

// crowd is a full region whose tenants always have more to run.
type crowd struct {
	*region
	r      *rand.Rand
	names  []string
	placed map[gpuai.TenantID]uint64 // milliseconds of leases that have ended
	live   []gpuai.Lease
	trace  []string // placements by the tenants' places in names
}

func newCrowd(t *testing.T, seed uint64, names []string, weights []uint32) *crowd {
	c := &crowd{region: placing(t), r: rand.New(rand.NewPCG(seed, 3)), names: names, placed: map[gpuai.TenantID]uint64{}}
	c.check = false
	c.node("a", 8)
	p := gpuai.DefaultPolicy()
	p.UsageHalfLife = 4 * gpuai.Hour
	c.do(&SetPolicy{Policy: p})
	for i, n := range names {
		c.do(&SetTenantWeight{Tenant: gpuai.TenantID(n), Weight: weights[i]})
	}
	for i := range names {
		c.more(i, 4)
	}
	return c
}

func (c *crowd) more(tenant int, tasks uint32) {
	s := jobSpec("j", tasks, 1)
	s.Tenant = gpuai.TenantID(c.names[tenant])
	s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + c.r.IntN(3))
	c.see(c.apply(&SubmitJob{ID: c.newID(), Spec: s}))
}

func (c *crowd) see(out *Output) {
	for _, e := range out.Events {
		if e.Kind != gpuai.LeaseGrantedEvent {
			continue
		}
		l, _ := c.m.Lease(e.Lease)
		c.live = append(c.live, l)
		c.trace = append(c.trace, fmt.Sprint(slices.Index(c.names, string(l.Tenant)), l.Devices))
		c.more(slices.Index(c.names, string(l.Tenant)), 1)
	}
}

// step ends a random lease some time later.
func (c *crowd) step() {
	c.time = c.time.Add(gpuai.Duration(c.r.IntN(60_000)))
	i := c.r.IntN(len(c.live))
	l := c.live[i]
	c.live = slices.Delete(c.live, i, i+1)
	c.placed[l.Tenant] += uint64(c.time - l.GrantedAt)
	c.see(c.apply(&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportDone}}))
}

// Over a long time tenants get devices in proportion to their weights.
func TestWeightsAreRespected(t *testing.T) {
	lengthy(t)
	weights := []uint32{100, 200, 300, 50}
	c := newCrowd(t, 7, []string{"a", "b", "c", "d"}, weights)
	for range 6_000 {
		c.step()
	}
	if err := c.m.Check(); err != nil {
		t.Fatal(err)
	}
	var all uint64
	for _, n := range c.placed {
		all += n
	}
	for i, n := range c.names {
		got, want := float64(c.placed[gpuai.TenantID(n)])/float64(all), float64(weights[i])/650
		t.Logf("tenant %s of weight %d: %.4f of the devices' time, want %.4f", n, weights[i], got, want)
		if got < want*0.98 || got > want*1.02 {
			t.Errorf("tenant %s of weight %d has %.4f of the devices' time, want %.4f within 2 %%", n, weights[i], got, want)
		}
	}
}

// Names of tenants decide nothing: the same commands with other names place the
// same tasks on the same devices.
func TestRenamedTenantsGetTheSame(t *testing.T) {
	run := func(names ...string) string {
		c := newCrowd(t, 5, names, []uint32{100, 100, 300})
		for range 400 {
			c.step()
		}
		return strings.Join(c.trace, "\n")
	}
	if a, b := run("a", "b", "c"), run("zz", "m", "aa"); a != b {
		t.Error("other names, other placements")
	}
}

// A tenant without usage goes before one that has had much, whose job is older.
func TestLessUsageGoesFirst(t *testing.T) {
	r := placing(t)
	r.node("a", 1)
	job := func(tenant gpuai.TenantID, priority gpuai.Priority) gpuai.JobID {
		s := jobSpec("j", 1, 1)
		s.Tenant, s.Priority = tenant, priority
		return r.submit(s)
	}
	first := job("rich", 0)
	rich, poor, high := job("rich", 0), job("poor", 0), job("rich", 90)
	r.wait(gpuai.Hour)
	r.m = restored(t, r.m)
	for _, id := range []gpuai.JobID{first, high, poor, rich} {
		r.status(id, gpuai.JobRunning)
		if q := r.m.QueueEntries(0, 10); len(q) > 1 && q[0].Job == rich {
			t.Fatalf("the queue shows %+v", q)
		}
		r.report(r.leases(id)[0], gpuai.ReportDone, 0)
	}
}

func TestSetTenantWeight(t *testing.T) {
	r := newRegion(t)
	r.refuse(&SetTenantWeight{Tenant: "a", Weight: 5}, gpuai.PreconditionFailed)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	for _, w := range []uint32{0, gpuai.MaxTenantWeight + 1} {
		r.refuse(&SetTenantWeight{Tenant: "a", Weight: w}, gpuai.InvalidSpec)
	}
	r.refuse(&SetTenantWeight{Tenant: "No", Weight: 5}, gpuai.InvalidSpec)
	r.do(&SetTenantWeight{Tenant: "a", Weight: 5})
	if ts, next := r.m.Tenants(0, 10); len(ts) != 1 || ts[0].Weight != 5 || ts[0].ID != "a" || next != 0 {
		t.Fatalf("%+v", ts)
	}
}

// Leases from before the level are not in the held of their tenants, and their
// ends take nothing from it.
func TestLeasesFromBeforeTheLevel(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	old, waits := r.submit(jobSpec("old", 1, 1)), r.submit(jobSpec("waits", 3, 1))
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.report(r.leases(old)[0], gpuai.ReportDone, 0)
	if ts, _ := r.m.Tenants(0, 10); len(ts) != 1 || ts[0].HeldMilli != 1_000 {
		t.Fatalf("%+v", ts)
	}
	for _, l := range r.leases(waits) {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(waits, gpuai.JobRunning)
	r.m = restored(t, r.m)
	if ts, _ := r.m.Tenants(0, 10); ts[0].HeldMilli != 1_000 {
		t.Fatalf("%+v", ts)
	}
}

// aged raises what waits, and only that.
func TestAging(t *testing.T) {
	r := placing(t)
	p := gpuai.DefaultPolicy()
	p.AgingEvery = gpuai.Minute
	r.do(&SetPolicy{Policy: p})
	r.node("a", 1)
	job := func(priority gpuai.Priority) gpuai.JobID {
		s := jobSpec("j", 1, 1)
		s.Priority = priority
		return r.submit(s)
	}
	first := job(50)
	old := job(30)
	r.wait(11 * gpuai.Minute)
	young, high := job(40), job(42)
	for _, id := range []gpuai.JobID{first, high, old, young} {
		r.status(id, gpuai.JobRunning)
		r.report(r.leases(id)[0], gpuai.ReportDone, 0)
	}
}
