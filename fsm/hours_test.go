package fsm

import (
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// monday is a Monday, 00:00 UTC.
const monday = gpuai.WallTime(1_795_996_800_000)

func weekly(t testing.TB, from, to string) gpuai.Schedule {
	t.Helper()
	a, err := gpuai.ParseWeekMinute(from)
	b, err2 := gpuai.ParseWeekMinute(to)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return gpuai.Schedule{Windows: []gpuai.Window{{From: a, To: b}}}
}

// newHoursRegion is a region at Monday, 00:00, with one node of four devices.
func newHoursRegion(t testing.TB) *region {
	r := newRegion(t)
	r.wall = monday
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.node("a", 4)
	return r
}

// pass lets both clocks go on, tick by tick.
func (r *region) pass(d gpuai.Duration) {
	r.t.Helper()
	end := r.time.Add(d)
	for r.time < end {
		next := min(max(r.m.NextDeadline(), r.time+1), end)
		r.wall += gpuai.WallTime(next - r.time)
		r.time = next
		r.apply(&Tick{})
	}
}

func (r *region) open(node string) bool {
	r.t.Helper()
	n, ok := r.m.Node(gpuai.NodeID(node))
	if !ok {
		r.t.Fatalf("no node %s", node)
	}
	return !n.Outside
}

func TestNodeOpensAndClosesByItsSchedule(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 20:00", "tue 08:00")})
	id := r.submit(timed("t", "x", 1, 4, 2*gpuai.Hour))
	if r.open("a") || r.running(id) != 0 {
		t.Fatal("the node is used outside of its schedule")
	}
	if n, _ := r.m.Node("a"); n.ScheduleChanges != monday+20*gpuai.WallTime(gpuai.Hour) {
		t.Errorf("it says that it opens at %d", n.ScheduleChanges)
	}
	if at := r.m.NextDeadline(); at != r.time.Add(20*gpuai.Hour) {
		t.Errorf("the machine wants to be woken at %d", at)
	}
	want := "are outside of their schedule until, the first of them, 20h from now"
	if got := r.why(id, gpuai.OutsideSchedule); !strings.Contains(got, want) {
		t.Errorf("the reason is %q", got)
	}
	r.pass(20*gpuai.Hour - 1)
	if r.running(id) != 0 {
		t.Fatal("it opens too soon")
	}
	r.pass(1)
	if !r.open("a") || r.running(id) != 1 {
		t.Fatal("the node does not open")
	}
	r.finish(id)
	long := r.submit(timed("t", "long", 1, 1, 13*gpuai.Hour))
	endless := r.submit(tenantSpec("t", "endless", 1, 1))
	exact := r.submit(timed("t", "exact", 1, 1, 12*gpuai.Hour))
	if r.running(long)+r.running(endless) != 0 || r.running(exact) != 1 {
		t.Fatalf("of 13 hours, any and 12 there run %d, %d and %d", r.running(long), r.running(endless), r.running(exact))
	}
	if got := r.why(long, gpuai.OutsideSchedule); !strings.Contains(got, "1 close before its run-time limit has passed") {
		t.Errorf("the reason is %q", got)
	}
	r.pass(12 * gpuai.Hour)
	if l := r.leases(exact)[0]; r.open("a") || l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CauseDrained {
		t.Errorf("at its end the lease is %s for %s", l.State, l.Cause)
	}
	m := restored(t, r.m)
	if n, _ := m.Node("a"); !n.Outside || n.Schedule == nil || m.NextDeadline() != r.m.NextDeadline() {
		t.Errorf("restored it is %+v, to be woken at %d, want %d", n.Schedule, m.NextDeadline(), r.m.NextDeadline())
	}
	r.do(&SetNodeSchedule{Node: "a"})
	if n, _ := r.m.Node("a"); n.Outside || n.Schedule != nil || r.running(long) != 1 {
		t.Error("without a schedule the node may not be used")
	}
}

// Jobs that ask for the same and differ in their limits do not wait for each other.
func TestScheduleLetsShortJobsPass(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 00:00", "mon 06:00")})
	long := r.submit(timed("t", "long", 1, 1, 8*gpuai.Hour))
	short := r.submit(timed("t", "short", 1, 1, gpuai.Hour))
	gang := timed("t", "gang", 2, 1, gpuai.Hour)
	gang.Groups[0].Gang = true
	whole := r.submit(gang)
	if r.running(long) != 0 || r.running(short) != 1 || r.running(whole) != 2 {
		t.Fatalf("there run %d, %d and %d tasks", r.running(long), r.running(short), r.running(whole))
	}
}

// Jobs that waited in one bucket before the first schedule go on in it.
func TestFirstScheduleWithAQueue(t *testing.T) {
	r := newHoursRegion(t)
	full := r.submit(timed("t", "full", 1, 4, gpuai.Hour))
	first := r.submit(timed("t", "first", 1, 1, 2*gpuai.Hour))
	second := r.submit(timed("t", "second", 1, 1, 3*gpuai.Hour))
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 00:00", "mon 06:00")})
	third := r.submit(timed("t", "third", 1, 1, 3*gpuai.Hour))
	r.finish(full)
	if r.running(first)+r.running(second)+r.running(third) != 3 {
		t.Fatalf("there run %d, %d and %d tasks", r.running(first), r.running(second), r.running(third))
	}
	restored(t, r.m)
}

// Room that was made for a job is not taken when the node closes before it would end.
func TestScheduleAndPreemption(t *testing.T) {
	r := newHoursRegion(t)
	p := gpuai.DefaultPolicy()
	p.PreemptionProtect = 0
	r.do(&SetPolicy{Policy: p})
	low := timed("t", "low", 1, 4, gpuai.Hour)
	low.Priority, low.Preemptible = 10, some(true)
	id := r.submit(low)
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 00:00", "mon 06:00")})
	r.pass(gpuai.Minute)
	high := timed("t", "high", 1, 4, 6*gpuai.Hour)
	high.Priority = 90
	late := r.submit(high)
	if l := r.leases(id)[0]; l.State == gpuai.LeaseRevoking {
		t.Fatal("one makes room for a job that is too long for the node")
	}
	fits := timed("t", "fits", 1, 4, 5*gpuai.Hour+50*gpuai.Minute)
	fits.Priority = 90
	soon := r.submit(fits)
	l := r.leases(id)[0]
	if l.State != gpuai.LeaseRevoking {
		t.Fatal("nobody makes room for a job that the node has time for")
	}
	r.pass(30 * gpuai.Minute)
	r.report(l, gpuai.ReportDone, 0)
	if r.running(soon)+r.running(late) != 0 {
		t.Error("a job starts on room that was kept until it was too late")
	}
}

// A wall clock that goes back a little opens nothing again; one that was far ahead
// does not keep nodes closed.
func TestScheduleAndWallClock(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 00:00", "mon 06:00")})
	r.wall = monday + 6*gpuai.WallTime(gpuai.Hour)
	r.apply(&Tick{})
	if r.open("a") {
		t.Fatal("it does not close")
	}
	r.wall -= 30 * gpuai.WallTime(gpuai.Minute)
	r.apply(&Tick{})
	if r.open("a") {
		t.Error("a clock half an hour back opens it again")
	}
	r.wall = monday + 400*gpuai.WallTime(gpuai.Day) // a Monday no more
	r.apply(&Tick{})
	r.wall = monday + gpuai.WallTime(gpuai.Hour)
	r.apply(&Tick{})
	if !r.open("a") {
		t.Error("a clock that was a year ahead keeps it closed")
	}
}

func TestScheduleRefusals(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	ok := weekly(t, "mon 20:00", "tue 08:00")
	r.refuse(&SetNodeSchedule{Node: "a", Schedule: ok}, gpuai.InvalidSpec)
	r.refuse(&SetNodeAsk{Node: "a", Price: 1}, gpuai.InvalidSpec)
	p := gpuai.DefaultPolicy()
	p.AskMax = 5
	r.refuse(&SetPolicy{Policy: p}, gpuai.InvalidSpec)
	r.do(&SetFeatureLevel{Level: 3})
	r.refuse(&SetPolicy{Policy: p}, gpuai.InvalidSpec)
	r.do(&SetFeatureLevel{Level: 4})
	r.refuse(&SetNodeSchedule{Node: "b", Schedule: ok}, gpuai.NotFound)
	r.refuse(&SetNodeAsk{Node: "b", Price: 1}, gpuai.NotFound)
	r.refuse(&SetNodeSchedule{Node: "a", Schedule: gpuai.Schedule{UTCOffset: 900}}, gpuai.InvalidSpec)
	r.refuse(&SetNodeSchedule{Node: "a", Schedule: gpuai.Schedule{Windows: []gpuai.Window{{From: 10_080}}}}, gpuai.InvalidSpec)
	r.refuse(&SetNodeSchedule{Node: "a", Schedule: gpuai.Schedule{Windows: make([]gpuai.Window, gpuai.MaxWindows+1)}}, gpuai.InvalidSpec)
	r.refuse(&SetNodeAsk{Node: "a", Price: gpuai.MaxPrice + 1}, gpuai.InvalidSpec)
	// Bytes that are cut or go on are refused whole.
	full := (&SetNodeSchedule{Node: "a", Schedule: ok}).Append(nil, Envelope{})
	for typ, body := range map[uint8][]byte{
		typeSetNodeSchedule: {1, 'a', 0, 0, 1, 0, 0}, typeSetNodeAsk: {1, 'a', 1, 2, 3},
	} {
		out := r.applyEntry(AppendEntry(nil, Header{Term: 1}, appendCommand(nil, typ, Envelope{}, func(b []byte) []byte { return append(b, body...) })))
		if res := out.Results[0]; res.Code != gpuai.InvalidSpec {
			t.Errorf("a cut command of type %d: %s", typ, res.Code)
		}
	}
	if out := r.applyEntry(AppendEntry(nil, Header{Term: 1}, full)); out.Results[0].Code != gpuai.OK {
		t.Errorf("a whole one: %s", out.Results[0].Detail)
	}
}

func TestContributorsPrice(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeOwner{Node: "a", Contributor: "carol"})
	p := gpuai.DefaultPolicy()
	p.AskMin, p.AskMax = 1_000_000, 3_000_000
	r.do(&SetPolicy{Policy: p})
	res := r.refuse(&SetNodeAsk{Node: "a", Price: 3_000_001}, gpuai.InvalidSpec)
	if !strings.Contains(res.Detail, "1 to 3 USD") {
		t.Errorf("the refusal says %q", res.Detail)
	}
	r.h100(9_000_000, 0)
	price := func(want gpuai.Micros) {
		t.Helper()
		id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
		if l := r.leases(id)[0]; l.Price != want || l.Held != want {
			t.Errorf("a lease costs %d and holds %d, want %d", l.Price, l.Held, want)
		}
		r.finish(id)
	}
	price(9_000_000) // of the list
	r.do(&SetNodeAsk{Node: "a", Price: 2_000_000})
	price(2_000_000)
	r.do(&SetNodePrice{Node: "a", Price: 5_000_000}) // an operator's stands before it
	price(5_000_000)
	r.do(&SetNodePrice{Node: "a", Price: -1})
	price(2_000_000)
	s := nodeSpec("a", 4, "H100")
	s.Price = 8_000_000
	r.register(s)
	price(2_000_000)
	r.do(&SetNodeAsk{Node: "a", Price: -1})
	price(3_000_000) // what its agent says, within the bounds
	r.do(&SetNodeOwner{Node: "a"})
	price(8_000_000) // the region's own is bound by nothing
}

func TestEarningsGoToTheOwner(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeOwner{Node: "a", Contributor: "carol"})
	r.h100(2_000_000, 1_000)
	id := r.submit(timed("t", "x", 1, 4, 4*gpuai.Hour))
	r.pass(gpuai.Hour)
	r.do(&SetNodeOwner{Node: "a", Contributor: "dave"}) // what ran so far is carol's
	earned := func(of string, day, total gpuai.Micros) {
		t.Helper()
		c, _ := r.m.Contributor(gpuai.ContributorID(of))
		if c.Day != day || c.Total != total {
			t.Errorf("%s earned %d today and %d in all, want %d and %d", of, c.Day, c.Total, day, total)
		}
	}
	earned("carol", 8_000_000, 8_000_000)
	r.pass(gpuai.Hour)
	r.finish(id)
	earned("carol", 8_000_000, 8_000_000)
	earned("dave", 8_000_000, 8_000_000)
	if n, _ := r.m.Node("a"); n.Earned != 8_000_000 {
		t.Errorf("the node earned its present owner %d", n.Earned)
	}
	if w := r.m.money.Get(); w.provider.Balance() != 0 || w.fee.Balance() != 1_600_000 || w.world.Balance() != -17_600_000 {
		t.Errorf("the accounts are %+v, %+v, %+v", w.world, w.fee, w.provider)
	}
	r.pass(gpuai.Day)
	earned("dave", 0, 8_000_000)
	m := restored(t, r.m)
	if c, _ := m.Contributor("dave"); c.Total != 8_000_000 || c.Month != 0 { // December began
		t.Errorf("restored it is %+v", c)
	}
	if all, next := r.m.Contributors(0, 1); len(all) != 1 || next != 1 || all[0].Contributor != "carol" {
		t.Errorf("the first page is %+v, then %d", all, next)
	}
}

// hoursCommand is a random command about a contributor's node, or nothing.
func (w *walk) hoursCommand() Command {
	node := gpuai.NodeID(walkNodes[w.r.IntN(len(walkNodes))])
	switch w.r.IntN(24) {
	case 0, 1:
		s := gpuai.Schedule{UTCOffset: int16(w.r.IntN(1_700) - 850)}
		for range w.r.IntN(4) {
			s.Windows = append(s.Windows, gpuai.Window{From: gpuai.WeekMinute(w.r.IntN(168) * 60), To: gpuai.WeekMinute(w.r.IntN(168) * 60)})
		}
		return &SetNodeSchedule{Node: node, Schedule: s}
	case 2:
		return &SetNodeAsk{Node: node, Price: gpuai.Micros(w.r.IntN(4_000_000) - 1_000_000)}
	case 3:
		return &SetNodeOwner{Node: node, Contributor: gpuai.ContributorID([]string{"carol", "dave", ""}[w.r.IntN(3)])}
	case 4:
		p := gpuai.DefaultPolicy()
		p.AskMin, p.AskMax = gpuai.Micros(w.r.IntN(500_000)), gpuai.Micros(w.r.IntN(2)*2_000_000)
		w.preemptBy(&p)
		if p.Validate() == nil {
			return &SetPolicy{Policy: p}
		}
	}
	return nil
}

// ofOwners has nodes belong to contributors, who say when they may be used.
func (w *walk) ofOwners() {
	w.ofTenants(true)
	of, pays := w.more, w.extra
	w.more = func(s *gpuai.JobSpec) {
		of(s)
		if w.r.IntN(3) > 0 {
			s.Limits.RunTime = gpuai.Duration(1+w.r.IntN(30)) * gpuai.Hour
		}
	}
	w.extra = func() Command {
		if w.r.IntN(10) == 0 {
			step := gpuai.Duration(w.r.IntN(300)) * gpuai.Minute
			w.time = w.time.Add(step)
			w.wall += gpuai.WallTime(step)
		}
		if w.r.IntN(200) == 0 {
			w.wall = max(w.wall-gpuai.WallTime(w.r.IntN(72))*gpuai.WallTime(gpuai.Hour), 1)
		}
		if c := w.hoursCommand(); c != nil {
			return c
		}
		return pays()
	}
}

// Machines whose nodes have hours and owners, and that apply one log, are equal,
// restored and forked or not, and nothing waits that could start.
func TestRandomHours(t *testing.T) {
	t.Parallel()
	outside, closing := 0, 0
	for seed := range few(4, 2) {
		w := newQuotaWalk(t, 900+seed)
		w.ofOwners()
		w.wall = monday
		other := New(w.m.opts)
		for i, entry := range w.log {
			if err := other.Apply(uint64(i+1), w.term, entry, &Output{}); err != nil {
				t.Fatal(err)
			}
		}
		w.beside(seed, other, 150)
		for range 50 {
			w.step()
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
				w.wantKept(seed, b)
			}
			w.withinHours(seed)
		}
		for s := range w.m.nodes.Len() {
			n := w.m.nodes.Get(s)
			outside, closing = outside+int(bool8(n.outside)), closing+int(bool8(n.closes != 0))
		}
	}
	if outside == 0 || closing == 0 {
		t.Errorf("%d nodes were outside of their schedules, %d were to close", outside, closing)
	}
}

// withinHours holds that what was granted in the newest entry ends, by its limit,
// before the hours of its node do.
func (w *walk) withinHours(seed uint64) {
	w.t.Helper()
	for s, ok := w.m.leaseSlots.Next(0); ok; s, ok = w.m.leaseSlots.Next(s + 1) {
		l := w.m.leases.Get(s)
		if l.token.Index() != w.index || l.state >= gpuai.LeaseRevoking {
			continue
		}
		n := w.m.nodes.Get(l.node)
		j := w.m.jobs.Get(w.m.groups.Get(w.m.tasks.Get(l.task.slot()).group.slot()).job.slot())
		if ends := w.wall + gpuai.WallTime(j.runTime); n.closes != 0 && (j.runTime == 0 || ends > gpuai.WallTime(n.closes)*gpuai.WallTime(gpuai.Minute)) {
			w.t.Fatalf("seed %d, entry %d: a task of %s was granted a place until minute %d at %d", seed, w.index, j.runTime, n.closes, w.wall)
		}
	}
}

// A node whose hours are changed, to others in which it is closed now, is outside of
// them, and not out of order, also for what would have ended in the hours that it had.
func TestChangedScheduleIsTheReason(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 00:00", "mon 06:00")})
	r.do(&SetNodeSchedule{Node: "a", Schedule: weekly(t, "mon 04:00", "mon 05:00")})
	id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
	if r.open("a") || r.running(id) != 0 {
		t.Fatal("the node is used outside of its schedule")
	}
	want := "are outside of their schedule until, the first of them, 4h from now"
	if got := r.why(id, gpuai.OutsideSchedule); !strings.Contains(got, want) {
		t.Errorf("the reason is %q", got)
	}
	r.pass(4 * gpuai.Hour)
	if !r.open("a") || r.running(id) != 1 {
		t.Error("the node does not open")
	}
	restored(t, r.m)
}

// What hours and asks would lead to is planned, and nothing is changed.
func TestPlanOfHoursAndAsks(t *testing.T) {
	r := newHoursRegion(t)
	r.do(&SetNodeOwner{Node: "a", Contributor: "carol"})
	id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
	p := r.plan(&gpuai.PlanRequest{
		NodeAsks:  []gpuai.NodePrice{{Node: "a", Price: 2_000_000}},
		Schedules: []gpuai.NodeSchedule{{Node: "a", Schedule: weekly(t, "mon 20:00", "tue 08:00")}},
	})
	if p.Blast.Waits != 1 || p.After.NodesOpen != 0 {
		t.Errorf("out of its hours: %+v, %+v", p.Blast, p.After)
	}
	p = r.plan(&gpuai.PlanRequest{NodeAsks: []gpuai.NodePrice{{Node: "a", Price: 2_000_000}}, Submit: []gpuai.JobSpec{*timed("t", "y", 1, 1, gpuai.Hour)}})
	if p.Jobs[0].Cost.Hourly != 2_000_000 {
		t.Errorf("a job would cost %+v an hour, want what is asked", p.Jobs[0].Cost)
	}
	if n, _ := r.m.Node("a"); n.Ask != nil || n.Outside || r.running(id) != 1 {
		t.Errorf("the plan changed %+v", n)
	}
	none := &gpuai.PlanRequest{Schedules: []gpuai.NodeSchedule{{Node: "none"}}}
	var wrong *gpuai.Error
	if _, err := r.tryPlan(none); !errors.As(err, &wrong) || wrong.Code != gpuai.NotFound || wrong.Fields[0].Pointer != "/node_schedules/0/node" {
		t.Errorf("of a node that there is not: %v", err)
	}
}
