package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// throng is a full region of few nodes, and many tenants with many needs and
// priorities who wait for it.
type throng struct{ *walk }

func newThrong(t testing.TB, seed uint64) *throng {
	c := &throng{newWalk(t, seed)}
	c.do(&SetFeatureLevel{Level: MaxLevel})
	for i := range 4 {
		c.node(fmt.Sprint("n", i), 8)
	}
	for i := range 150 {
		if i == 60 {
			c.policy()
		}
		if i%3 == 0 {
			c.do(&SetTenantWeight{Tenant: c.tenant(), Weight: 1 + c.r.Uint32N(400)})
		}
		c.submit(c.spec())
	}
	return c
}

func (c *throng) tenant() gpuai.TenantID { return gpuai.TenantID(fmt.Sprint("t", c.r.IntN(60))) }

func (c *throng) spec() *gpuai.JobSpec {
	s := jobSpec("j", 1+c.r.Uint32N(3), []uint32{0, 1, 1, 1, 2, 4}[c.r.IntN(6)])
	s.Tenant, s.Priority = c.tenant(), gpuai.Priority(10*(1+c.r.IntN(3)))
	s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + c.r.IntN(6_000))
	if s.Groups[0].Gang = c.r.IntN(8) == 0 && s.Groups[0].Count > 1; s.Groups[0].Gang {
		s.Groups[0].MinCount = 1
	}
	return s
}

func (c *throng) policy() {
	p := gpuai.DefaultPolicy()
	p.AgingEvery = gpuai.Duration(c.r.IntN(3)) * 20 * gpuai.Second
	p.UsageHalfLife = []gpuai.Duration{gpuai.Minute, gpuai.Hour, gpuai.Day}[c.r.IntN(3)]
	c.do(&SetPolicy{Policy: p})
}

// step lets time pass, one or two leases end, and others wait.
func (c *throng) step() {
	c.time = c.time.Add(gpuai.Duration(c.r.IntN(20_000)))
	live, _ := c.m.Leases(0, 1_000, true)
	for range min(len(live), 1+c.r.IntN(2)) {
		l := live[c.r.IntN(len(live))]
		c.apply(&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportDone}})
	}
	switch c.r.IntN(12) {
	case 0:
		c.policy()
	case 1:
		c.do(&SetTenantWeight{Tenant: c.tenant(), Weight: 1 + c.r.Uint32N(400)})
	case 2, 3, 4:
		c.submit(c.spec())
	}
}

// turnsOf returns the turns in the order in which serve takes them from the bands,
// and the budget that it cost.
func turnsOf(m *Machine, room scheduler.Need) (turns []uint32, work int64) {
	m.now, m.out = entryState{index: m.Index() + 1, work: WorkPerEntry, time: m.Time()}, &Output{}
	m.cands = m.cands[:0]
	m.arrange()
	m.enterBands(0, &room)
	for len(m.cands) > 0 {
		switch c := m.take(); {
		case c.opens:
			m.enterBands(bandOf(c.base, c.grows), &room)
		case c.below != 0:
			m.descend(&c, &room)
		default:
			t, _ := m.turns.find(c.base, c.grows, c.of)
			turns = append(turns, t)
		}
	}
	return turns, WorkPerEntry - m.now.work
}

// sortedTurns returns the turns as a look at all of them gives.
func sortedTurns(m *Machine, room scheduler.Need) (turns []uint32) {
	m.cands = m.cands[:0]
	for t, ok := m.turns.slots.Next(0); ok; t, ok = m.turns.slots.Next(t + 1) {
		r := m.turns.recs.Get(t)
		switch {
		case r.buckets == 0 || !room.Covers(&m.turns.leafs.Get(r.root.slot()).least):
		case m.policy.Get().AgingEvery > 0:
			m.advance(t, queueKey{}, &room)
		default:
			m.push(candidate{
				base: r.priority, priority: r.priority, grows: r.grows, of: r.tenant, claim: m.claimOf(r.tenant),
				seq: r.first.place, idx: r.first.idx,
			})
		}
	}
	all := slices.Clone(m.cands)
	slices.SortFunc(all, func(a, b candidate) int {
		if a.before(&b) {
			return -1
		}
		return 1
	})
	for _, c := range all {
		t, _ := m.turns.find(c.base, c.grows, c.of)
		turns = append(turns, t)
	}
	return turns
}

// Bands give the turns in the order of the queue, whatever ended, was granted,
// weighed or aged since they were looked at, to any room. A machine that was
// restored gives the same, and is charged the same for it.
func TestBandsGiveTurnsInOrder(t *testing.T) {
	t.Parallel()
	seeds, most := uint64(9), 0
	if brief() {
		seeds = 3
	}
	for seed := range seeds {
		c := newThrong(t, 7_000+seed)
		for step := range 40 {
			c.step()
			other := c.m
			if step%4 == 0 {
				other = restored(t, c.m)
			}
			for range 4 {
				room := scheduler.Need{CPU: c.r.Int64N(8_000), Memory: 1 << 40, Pools: 1<<63 - 1, Size: uint8(c.r.IntN(6))}
				got, work := turnsOf(c.m.Fork(), room)
				want := sortedTurns(c.m.Fork(), room)
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d, step %d, room %+v: turns\n%v, sorted\n%v", seed, step, room, got, want)
				}
				again, spent := turnsOf(other.Fork(), room)
				if len(again) != len(got) || spent != work {
					t.Fatalf("seed %d, step %d: %d turns for %d units, restored %d for %d", seed, step, len(got), work, len(again), spent)
				}
				most = max(most, len(got))
			}
			if c.r.IntN(2) == 0 { // trees that were looked at, and will be touched
				turnsOf(c.m, scheduler.Need{CPU: 1 << 40, Memory: 1 << 40, Pools: 1<<63 - 1, Size: 9})
				c.m.sp.Commit()
			}
			if err := c.m.Check(); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
	}
	if most < 50 {
		t.Errorf("no more than %d turns were in order", most)
	}
}

// A line is not above another before the instant that crosses names.
func TestLinesCross(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	crossed := 0
	for range 20_000 {
		now := gpuai.Instant(r.Int64N(50))
		draw := func() line {
			return line{usage: r.Uint64N(3_000), held: r.Uint64N(60), weight: 1 + r.Uint32N(30), at: now - gpuai.Instant(r.Int64N(int64(now)+1))}
		}
		a, b := draw(), draw()
		x, y := a.claimAt(now), b.claimAt(now)
		if x.compare(y) > 0 {
			a, b = b, a
		}
		until := a.crosses(&b, now)
		if until <= now {
			t.Fatalf("%+v crosses %+v at %d, which is not behind %d", a, b, until, now)
		}
		for at := now; at < min(until, now+400); at++ {
			x, y := a.claimAt(at), b.claimAt(at)
			if c := x.compare(y); c > 0 || at > now && c == 0 && x.usage > 0 && a.held*uint64(b.weight) > b.held*uint64(a.weight) {
				t.Fatalf("%+v crosses %+v at %d, not %d", a, b, at, until)
			}
		}
		if until < now+400 {
			crossed++
		}
	}
	if crossed < 1_000 {
		t.Errorf("%d of the lines cross", crossed)
	}
	huge := line{usage: 1 << 62, held: 1 << 60, weight: 1}
	if at := huge.crosses(&line{usage: 1 << 63, held: 1, weight: 1 << 20}, 5); at != 6 {
		t.Errorf("products beyond 64 bits are good until %d, want the next instant only", at)
	}
}
