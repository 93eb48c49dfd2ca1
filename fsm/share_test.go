package fsm

import (
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// A contest is a full region of tenants that always have more to run than it has
// room for: jobs of one to eight devices, alone or as gangs over several nodes, of
// random length.
type contest struct {
	*region
	r       *rand.Rand
	names   []gpuai.TenantID
	weights []uint32
	live    []running
	had     []uint64   // device time of leases that have ended, by tenant
	waits   [][]uint32 // jobs that wait, by tenant and kind
	starts  map[gpuai.JobID]*starting
	longest []gpuai.Duration // wait from the submit to the start of the last task, by tenant
	kinds   []jobKind
}

type jobKind struct{ tasks, gpus uint32 }

// A starting is a job of which some tasks have not started.
type starting struct {
	tenant, kind int
	tasks        uint32
	since        gpuai.Instant
}

type running struct {
	gpuai.Lease
	ends gpuai.Instant
}

// longestRun bounds how long a task of a contest runs.
const longestRun = 20 * gpuai.Minute

func newContest(t *testing.T, seed uint64, halfLife gpuai.Duration, weights ...uint32) *contest {
	c := &contest{region: placing(t), r: rand.New(rand.NewPCG(seed, 21)), weights: weights, starts: map[gpuai.JobID]*starting{}}
	c.check = false
	c.do(&SetFeatureLevel{Level: MaxLevel})
	for _, n := range []string{"n0", "n1", "n2", "n3"} {
		c.node(n, 8)
	}
	p := gpuai.DefaultPolicy()
	p.UsageHalfLife = halfLife
	c.do(&SetPolicy{Policy: p})
	c.kinds = []jobKind{{1, 1}, {1, 1}, {1, 1}, {3, 1}, {1, 2}, {1, 4}, {1, 8}, {4, 2}, {2, 8}}
	for i, w := range weights {
		c.names = append(c.names, gpuai.TenantID([]string{"m", "c", "x", "a", "k"}[i]))
		c.do(&SetTenantWeight{Tenant: c.names[i], Weight: w})
	}
	c.longest = make([]gpuai.Duration, len(weights))
	c.had, c.waits = make([]uint64, len(weights)), make([][]uint32, len(weights))
	for i := range c.waits {
		c.waits[i] = make([]uint32, len(c.kinds))
	}
	return c
}

func (c *contest) submitted(tenant, kind int) gpuai.JobID {
	k := c.kinds[kind]
	s := jobSpec("j", k.tasks, k.gpus)
	s.Tenant, s.Groups[0].Gang = c.names[tenant], k.tasks > 1 && c.r.IntN(2) == 0
	s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + c.r.IntN(2))
	id := c.newID()
	c.waits[tenant][kind]++
	c.starts[id] = &starting{tenant: tenant, kind: kind, tasks: k.tasks, since: c.time}
	c.see(c.apply(&SubmitJob{ID: id, Spec: s}))
	return id
}

func (c *contest) see(out *Output) {
	for _, e := range out.Events {
		if e.Kind != gpuai.LeaseGrantedEvent {
			continue
		}
		l, _ := c.m.Lease(e.Lease)
		ends := c.time.Add(gpuai.Minute + gpuai.Duration(c.r.Int64N(int64(longestRun-gpuai.Minute))))
		at, _ := slices.BinarySearchFunc(c.live, ends, func(x running, ends gpuai.Instant) int { return int(x.ends - ends) })
		c.live = slices.Insert(c.live, at, running{l, ends})
		if s := c.starts[l.Job]; s.tasks > 1 {
			s.tasks--
		} else {
			c.waits[s.tenant][s.kind]--
			c.longest[s.tenant] = max(c.longest[s.tenant], gpuai.Duration(c.time-s.since))
			delete(c.starts, l.Job)
		}
	}
}

// end ends the lease that ends next.
func (c *contest) end() {
	l := c.live[0]
	c.live = c.live[1:]
	c.time = max(c.time, l.ends)
	c.had[slices.Index(c.names, l.Tenant)] += uint64(c.time-l.GrantedAt) * uint64(len(l.Devices))
	c.see(c.apply(&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportDone}}))
}

// flood has each tenant have at least n jobs that wait.
func (c *contest) flood(n uint32, tenants ...int) {
	for _, i := range tenants {
		for k := range c.kinds {
			for c.waits[i][k] < n {
				c.submitted(i, k)
			}
		}
	}
}

func TestWeightsAreRespectedByJobsOfAllSizes(t *testing.T) {
	lengthy(t)
	weights := []uint32{100, 200, 400, 800}
	c := newContest(t, 1, gpuai.DefaultHalfLife, weights...)
	for range 10_000 {
		c.flood(2, 0, 1, 2, 3)
		c.end()
	}
	var all uint64
	for _, n := range c.had {
		all += n
	}
	for i, w := range weights {
		got, want := float64(c.had[i])/float64(all), float64(w)/1_500
		t.Logf("tenant %s of weight %d: %.4f of the devices' time, want %.4f", c.names[i], w, got, want)
		if got < want*0.98 || got > want*1.02 {
			t.Errorf("tenant %s of weight %d has %.4f of the devices' time, want %.4f within 2 %%", c.names[i], w, got, want)
		}
	}
	t.Logf("in use: %.3f", float64(all)/float64(c.time)/32)
}

// Nobody starves beside tenants that flood the region, at one priority:
//   - One whose jobs follow each other waits for its share to make up for what its last
//     job had beyond it, then for what runs, and for what the reservation was for
//     before: two longest runs.
//   - One that floods waits for as many longest runs as there are jobs that wait and need
//     the reservation.
func TestNobodyStarves(t *testing.T) {
	t.Parallel()
	const devices, largest, weight, all = 32, 16, 100, 800
	for seed := range few(3, 1) {
		c := newContest(t, 40+seed, 4*gpuai.Hour, weight, 400, 300)
		for range 1_500 {
			c.flood(2, 1, 2)
			if len(c.starts) == 2*2*len(c.kinds) { // it has none that waits
				c.submitted(0, c.r.IntN(len(c.kinds)))
			}
			c.end()
		}
		for id, s := range c.starts { // what waits still counts as what has started now
			if j, ok := c.m.Job(id, false); !ok || j.Counts.Pending > 0 {
				c.longest[s.tenant] = max(c.longest[s.tenant], gpuai.Duration(c.time-s.since))
			}
		}
		big := gpuai.Duration(2*2*6 + 1)
		for i, bound := range []gpuai.Duration{2*longestRun + longestRun*largest*all/(devices*weight), big * longestRun, big * longestRun} {
			t.Logf("seed %d: tenant %d waited for %s at most, bound %s", seed, i, c.longest[i], bound)
			if c.longest[i] > bound || c.longest[i] == 0 {
				t.Errorf("seed %d: a job of tenant %d waited for %s, more than %s", seed, i, c.longest[i], bound)
			}
		}
	}
}

// A tenant that has had the whole region for long waits, when others flood it, until
// it has had less for its weight than they, who have all meanwhile: for
// log2(1 + their weights/its own) half-lives, here 3, and then for what runs.
func TestDebtIsForgottenInHalfLives(t *testing.T) {
	t.Parallel()
	const halfLife = 2 * gpuai.Hour
	c := newContest(t, 77, halfLife, 100, 300, 400)
	for c.time < gpuai.Instant(8*halfLife) {
		c.flood(4, 0)
		c.end()
	}
	for len(c.starts) > 0 {
		c.end()
	}
	c.flood(2, 1, 2)
	since := c.time
	id := c.submitted(0, 0)
	for c.job(id).Status == gpuai.JobPending {
		if c.flood(2, 1, 2); gpuai.Duration(c.time-since) > 3*halfLife+2*longestRun {
			t.Fatalf("it waits after %s", gpuai.Duration(c.time-since))
		}
		c.end()
	}
	if waited := gpuai.Duration(c.time - since); waited < 2*halfLife {
		t.Errorf("it started after %s already, its debt of 8 half-lives notwithstanding", waited)
	}
	t.Logf("started after %s of %s", gpuai.Duration(c.time-since), 3*halfLife)
}

// At each step of the half-life usage is multiplied by decay and rounded down, so 32
// steps on it is what the formula says to the unit; and decay is the number of 32 bits
// whose 32nd power is nearest to one half.
func TestHalfLifeIsTheFormula(t *testing.T) {
	for _, halfLife := range []gpuai.Duration{gpuai.Minute, gpuai.Day, 30 * gpuai.Day} {
		for _, usage := range []uint64{1, 1_000, 1 << 40, 987_654_321_987} {
			want := usage
			for range decaySteps {
				want = uint64((new(big.Int).Rsh(new(big.Int).Mul(new(big.Int).SetUint64(want), big.NewInt(decay)), 32)).Uint64())
			}
			rec := tenantRec{usage: usage, at: gpuai.Instant(halfLife)}
			if got := rec.usageAt(gpuai.Instant(2*halfLife), halfLife); got != want || got > usage/2 || got+decaySteps+usage>>24 < usage/2 {
				t.Errorf("%d is %d after %s, want %d, near %d", usage, got, halfLife, want, usage/2)
			}
		}
	}
	power := func(x int64) *big.Int { return new(big.Int).Exp(big.NewInt(x), big.NewInt(decaySteps), nil) }
	half := new(big.Int).Lsh(big.NewInt(1), 32*decaySteps-1)
	off := func(x int64) *big.Int { d := new(big.Int).Sub(power(x), half); return d.Abs(d) }
	if off(decay).Cmp(off(decay-1)) > 0 || off(decay).Cmp(off(decay+1)) > 0 {
		t.Errorf("%d^32 is not nearest to one half", int64(decay))
	}
}

// An explanation says where the tenant of a job that waits stands.
func TestExplainTellsTheShare(t *testing.T) {
	r := placing(t)
	r.node("a", 4)
	of := func(tenant gpuai.TenantID, gpus uint32) gpuai.JobID {
		s := jobSpec("j", 1, gpus)
		s.Tenant = tenant
		return r.submit(s)
	}
	r.do(&SetTenantWeight{Tenant: "rich", Weight: 300})
	of("rich", 3)
	of("other", 1)
	r.wait(gpuai.Hour)
	rich, poor := of("rich", 1), of("new", 1)
	x := r.ask(rich)
	if s := x.Share; s == nil || s.Tenant != "rich" || s.Weight != 300 || s.Place != 2 || s.Tenants != 2 || s.SharePermille < 749 || s.SharePermille > 750 ||
		s.DuePermille != 600 || s.UsageMilliHours < 2_900 || s.UsageMilliHours > 3_000 {
		t.Errorf("%+v", x.Share)
	}
	if !slices.ContainsFunc(x.Reasons, func(r gpuai.Reason) bool {
		return strings.HasPrefix(r.Message, "tenant rich is number 2 of 2") && strings.Contains(r.Message, "due 60.0 %")
	}) {
		t.Errorf("%+v", x.Reasons)
	}
	if len(x.Ahead) != 1 || x.Ahead[0].Why != "its tenant has had less of its share" {
		t.Errorf("%+v", x.Ahead)
	}
	if s := r.ask(poor).Share; s == nil || s.Place != 1 || s.UsageMilliHours != 0 || s.Weight != DefaultWeight || s.DuePermille != 200 {
		t.Errorf("%+v", s)
	}
}
