package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// wallBegin is Monday, 30 November 2026, 11:59:50 UTC: the wall clock at time zero. A
// minute ends 10 s later.
const wallBegin gpuai.WallTime = 1_796_039_990_000

// The tenants, owners and models of regions with terms.
var (
	termTenants = []gpuai.TenantID{gpuai.DefaultTenant, "blue", "green"}
	termOwners  = []gpuai.ContributorID{"", "ann", "bob"}
)

// terms are the users who say what nodes cost and when they may be used, whose they
// are, and what tenants may have and spend. They draw from a source of their own, so
// that seeds without them have the course that they had.
type terms struct {
	u     *users
	rnd   *rand.Rand
	on    bool
	count int // of commands
	// wallRate is how fast wall clocks run beside true time, and wallOff bounds by how
	// much the servers' differ, in ms.
	wallRate int64
	wallOff  int64
}

func newTerms(u *users, seed uint64) *terms {
	t := &terms{u: u, rnd: rand.New(rand.NewPCG(seed, 0x7465726d73)), wallRate: 1}
	t.on = t.rnd.IntN(2) == 0
	t.count = 5 + t.rnd.IntN(40)
	if t.rnd.IntN(3) == 0 {
		t.wallRate = 10
	}
	if t.rnd.IntN(3) == 0 {
		t.wallOff = t.rnd.Int64N(20_000)
	}
	return t
}

// wall is the wall clock of a server.
func (t *terms) wall(s *server) gpuai.WallTime {
	off := int64(0)
	if t.wallOff > 0 { // one of them is right, one fast, one slow
		off = int64(s.id%3-1) * t.wallOff
	}
	return wallBegin + gpuai.WallTime(t.u.w.now/ms*t.wallRate+off)
}

// begin spreads the commands over the time of the faults.
func (t *terms) begin() {
	w := t.u.w
	if !t.on {
		return
	}
	for range t.count {
		w.at(w.now+t.rnd.Int64N(max(w.prof.chaos-w.now, sec)), t.change)
	}
}

// clear takes every bound back, so that all that waits can end.
func (t *terms) clear() {
	if !t.on {
		return
	}
	for i := range t.u.w.prof.nodes {
		t.say(&fsm.SetNodeSchedule{Node: nodeName(i)}, nil)
	}
	for _, tenant := range termTenants {
		t.say(&fsm.SetQuota{Tenant: tenant}, nil)
		t.say(&fsm.SetBudget{Tenant: tenant}, nil)
	}
}

// change makes up one command.
func (t *terms) change() {
	if t.u.w.healed {
		return
	}
	t.u.w.count(termChanged)
	node := nodeName(t.rnd.IntN(t.u.w.prof.nodes))
	tenant := termTenants[t.rnd.IntN(len(termTenants))]
	switch n := t.rnd.IntN(20); {
	case n < 8:
		t.say(&fsm.SetNodeSchedule{Node: node, Schedule: t.schedule()}, &fsm.SetNodeSchedule{Node: node})
	case n < 11:
		t.say(&fsm.SetNodeOwner{Node: node, Contributor: termOwners[t.rnd.IntN(len(termOwners))]}, nil)
	case n < 13:
		t.say(&fsm.SetNodeAsk{Node: node, Price: t.price()}, nil)
	case n < 14:
		t.say(&fsm.SetNodePrice{Node: node, Price: t.price()}, nil)
	case n < 15:
		t.say(&fsm.SetPrices{Prices: gpuai.Prices{FeeBps: t.rnd.Uint32N(3_000), Models: []gpuai.ModelPrice{{Model: "X", Price: max(t.price(), 0)}}}}, nil)
	case n < 18:
		t.say(&fsm.SetQuota{Tenant: tenant, Quota: t.quota()}, &fsm.SetQuota{Tenant: tenant})
	default:
		t.say(&fsm.SetBudget{Tenant: tenant, Budget: t.budget()}, &fsm.SetBudget{Tenant: tenant})
	}
}

// say has a command applied; after the heal the other one, if there is one. The
// checker is told of both, to know them in the log.
func (t *terms) say(c, later fsm.Command) {
	if later == nil {
		later = c
	}
	t.u.pending++
	t.u.call(func() []byte {
		what := c
		if t.u.w.healed {
			what = later
		}
		b := what.Append(nil, fsm.Envelope{Actor: "operator"})
		t.u.w.check.books.know(b, what)
		return b
	}, func(a applied, _ bool) {
		if t.u.w.tr != nil {
			text, _ := json.Marshal(c) // %v would print addresses, which differ
			t.u.w.tracef("%T %s: %s", c, text, a.res.Code)
		}
	})
}

// price is a price of a device and hour, or none.
func (t *terms) price() gpuai.Micros { return gpuai.Micros(t.rnd.Int64N(40_000_000) - 5_000_000) }

// schedule opens and closes within the minutes that the run takes.
func (t *terms) schedule() (s gpuai.Schedule) {
	now := minuteOf(t.wall(t.u.w.servers[0]))
	s.UTCOffset = int16([]int{0, 0, 60, -90}[t.rnd.IntN(4)])
	for range t.rnd.IntN(4) {
		from := now + t.rnd.Int64N(6) - 3 + int64(s.UTCOffset)
		to := from + t.rnd.Int64N(5) // 0: the whole week
		s.Windows = append(s.Windows, gpuai.Window{From: weekMinute(from), To: weekMinute(to)})
	}
	return s
}

func minuteOf(t gpuai.WallTime) int64 { return int64(t) / 60_000 }

// weekMinute is a minute since 1970, which began on a Thursday, within its week.
func weekMinute(minute int64) gpuai.WeekMinute {
	const week = 7 * 24 * 60
	return gpuai.WeekMinute(((minute+3*24*60)%week + week) % week)
}

func (t *terms) some(most int) *uint32 {
	if t.rnd.IntN(2) == 0 {
		return nil
	}
	n := uint32(t.rnd.IntN(most))
	return &n
}

func (t *terms) quota() gpuai.Quota {
	q := gpuai.Quota{GPUs: t.some(6), RunningJobs: t.some(5)}
	if q.GPUs != nil && t.rnd.IntN(2) == 0 {
		q.Cohort, q.BorrowGPUs = "pool", t.some(4)
	}
	if n := t.some(5); n != nil && t.rnd.IntN(3) == 0 {
		q.Models = []gpuai.ModelQuota{{Model: "X", GPUs: *n}}
	}
	return q
}

func (t *terms) budget() (b gpuai.Budget) {
	for _, l := range []*gpuai.BudgetLimit{&b.Day, &b.Total} {
		if t.rnd.IntN(2) == 0 {
			n := gpuai.Micros(t.rnd.Int64N(100_000_000))
			l.Money = &n
		}
		if t.rnd.IntN(4) == 0 {
			l.GPUHours = t.some(12)
		}
	}
	return b
}

// of gives a job to a tenant, and mostly a run-time limit: without one it starts on no
// node whose hours end.
func (t *terms) of(s *gpuai.JobSpec) {
	if !t.on {
		return
	}
	s.Tenant = termTenants[t.rnd.IntN(len(termTenants))]
	if t.rnd.IntN(3) > 0 {
		s.Limits.RunTime = gpuai.Duration(3_000 + t.rnd.Int64N(90_000))
	}
}

// String says what the run's terms are, for the trace.
func (t *terms) String() string {
	return fmt.Sprintf("terms %v: %d commands, wall clocks at %d times, up to %d ms apart", t.on, t.count, t.wallRate, 2*t.wallOff)
}
