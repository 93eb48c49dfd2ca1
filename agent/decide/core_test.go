package decide

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A driver of a core: it keeps time and remembers what was decided.
type rig struct {
	t    *testing.T
	core *Core
	now  int64
	acts []Action // of the last step
	all  []Action
	sess uint64
}

const inc gpuai.Incarnation = 3

func newRig(t *testing.T, held ...Held) *rig {
	return &rig{t: t, now: 100 * second, core: New(Config{
		Identity: Identity{Incarnation: inc, RestoreID: "r"}, Held: held, Policy: gpuai.DefaultPolicy(), Seed: 7,
	})}
}

func (r *rig) step(e Event) []Action {
	r.acts = r.core.Step(r.now, e)
	r.all = append(r.all, r.acts...)
	return r.acts
}

// welcome opens a session whose registration is at index, and names tokens.
func (r *rig) welcome(index uint64, names ...gpuai.Token) {
	r.sess++
	r.step(HelloSent{Session: r.sess, Sent: r.now})
	r.step(Welcomed{Session: r.sess, Welcome: &gpuai.Welcome{
		Incarnation: inc, RestoreID: "r", Index: index, Policy: gpuai.DefaultPolicy(),
		Ack: gpuai.Ack{Sent: r.now, Incarnation: inc, Index: index, Tokens: names},
	}})
}

// beat sends a beat at now; ack answers the newest one, later.
func (r *rig) beat() gpuai.Beat {
	r.t.Helper()
	r.now = max(r.now, r.core.nextBeat)
	for _, a := range r.step(Tick{}) {
		if b, ok := a.(SendBeat); ok {
			return b.Beat
		}
	}
	r.t.Fatalf("no beat at %d: %+v", r.now, r.acts)
	return gpuai.Beat{}
}

func (r *rig) ack(b gpuai.Beat, index uint64, names ...gpuai.Token) []Action {
	return r.step(AckReceived{Session: r.sess, Ack: &gpuai.Ack{Seq: b.Seq, Sent: b.Sent, Incarnation: inc, Index: index, Tokens: names}})
}

func (r *rig) set(index uint64, full bool, leases ...gpuai.Assignment) []Action {
	return r.step(LeasesReceived{Session: r.sess, Set: &gpuai.LeaseSet{Full: full, Incarnation: inc, Index: index, Leases: leases}})
}

func assign(index uint64) gpuai.Assignment {
	return gpuai.Assignment{
		Lease: gpuai.Lease{ID: gpuai.MakeToken(0, index, 0), Incarnation: inc, TTL: 20 * gpuai.Second, Devices: []gpuai.DeviceID{gpuai.DeviceID(fmt.Sprint("GPU-", index))}},
		Task:  gpuai.TaskSpec{StopGrace: 5 * gpuai.Second},
	}
}

// fence is 20 s × (1 − 2 %) − 3 s − 1 s.
const fence = 15_600 * int64(1e6)

func find[A Action](acts []Action) (a A, ok bool) {
	for _, x := range acts {
		if a, ok := x.(A); ok {
			return a, true
		}
	}
	return a, false
}

func mustFind[A Action](t *testing.T, acts []Action) A {
	t.Helper()
	a, ok := find[A](acts)
	if !ok {
		t.Fatalf("no %T among %+v", a, acts)
	}
	return a
}

func mustLack[A Action](t *testing.T, acts []Action) {
	t.Helper()
	if a, ok := find[A](acts); ok {
		t.Fatalf("%T %+v is not wanted", a, a)
	}
}

// running brings one lease, granted at index 20, to run with t_send = start.
func running(t *testing.T) (r *rig, lease gpuai.Token, start int64) {
	t.Helper()
	r = newRig(t)
	r.welcome(10)
	start = r.now
	r.set(10, true)
	a := assign(20)
	mustFind[Start](t, r.set(20, false, a))
	r.step(TaskStarted{Lease: a.Lease.ID})
	return r, a.Lease.ID, start
}

func TestFirstDeadline(t *testing.T) {
	t.Run("ack below the grant", func(t *testing.T) {
		r := newRig(t)
		r.welcome(10)
		sent := r.now
		r.set(10, true)
		r.now += second
		if s := mustFind[Start](t, r.set(20, false, assign(20))); s.Deadline != sent+fence {
			t.Errorf("deadline %d after t_send", s.Deadline-sent)
		}
	})
	t.Run("waits for the ack that names it", func(t *testing.T) {
		r := newRig(t)
		r.welcome(20)
		a := assign(20)
		mustLack[Start](t, r.set(20, true, a))
		b := r.beat()
		mustLack[Start](t, r.ack(b, 21)) // an ack that does not name it
		b = r.beat()
		r.now += second
		if s := mustFind[Start](t, r.ack(b, 22, a.Lease.ID)); s.Deadline != b.Sent+fence {
			t.Errorf("deadline %d after t_send", s.Deadline-b.Sent)
		}
	})
	t.Run("newest ack names it already", func(t *testing.T) {
		r := newRig(t)
		a := assign(20)
		r.welcome(20, a.Lease.ID)
		sent := r.now
		if s := mustFind[Start](t, r.set(20, true, a)); s.Deadline != sent+fence {
			t.Errorf("deadline %d after t_send", s.Deadline-sent)
		}
	})
	t.Run("ack too old to start with", func(t *testing.T) {
		r := newRig(t)
		r.welcome(10)
		r.set(10, true)
		r.now += fence
		a := assign(20)
		mustLack[Start](t, r.set(20, false, a))
	})
	t.Run("no session, no start", func(t *testing.T) {
		r := newRig(t)
		r.step(HelloSent{Session: 1, Sent: r.now})
		r.sess = 1
		mustLack[Start](t, r.set(20, true, assign(20)))
	})
	t.Run("other incarnation", func(t *testing.T) {
		r := newRig(t)
		r.welcome(10)
		r.set(10, true)
		a := assign(20)
		a.Lease.Incarnation--
		mustLack[Start](t, r.set(20, false, a))
	})
}

func TestRenewalCountsFromSend(t *testing.T) {
	r, lease, start := running(t)
	b := r.beat()
	r.now += 2*second - 1 // the answer is slow
	e := mustFind[Extend](t, r.ack(b, 30, lease))
	if e.Deadline != b.Sent+fence || b.Sent <= start {
		t.Errorf("extended to %d after t_send", e.Deadline-b.Sent)
	}
	mustLack[Extend](t, r.ack(b, 31, lease)) // answered already
}

func TestEchoedSendTimeIsNotTrusted(t *testing.T) {
	r, lease, _ := running(t)
	b := r.beat()
	forged := b
	forged.Sent += 1000 * second
	if e := mustFind[Extend](t, r.ack(forged, 30, lease)); e.Deadline != b.Sent+fence {
		t.Error("a server's clock moved the fence")
	}
}

func TestAckThatDoesNotNameALease(t *testing.T) {
	r, lease, _ := running(t)
	younger := assign(40)
	mustFind[Start](t, r.set(40, false, younger))
	b := r.beat()
	acts := r.ack(b, 39)
	if k := mustFind[Kill](t, acts); k.Lease != lease || k.Budget != 3*gpuai.Second {
		t.Errorf("killed %+v", k)
	}
	for _, v := range r.core.Views() {
		if v.Lease == younger.Lease.ID && v.Phase != Starting {
			t.Errorf("a lease granted after the ack's index is %s", v.Phase)
		}
	}
}

// Whatever event wakes a late agent, the fence is looked at first.
func TestLateEventFencesFirst(t *testing.T) {
	for name, event := range map[string]func(r *rig, lease gpuai.Token, b gpuai.Beat) Event{
		"tick": func(*rig, gpuai.Token, gpuai.Beat) Event { return Tick{} },
		"ack": func(r *rig, lease gpuai.Token, b gpuai.Beat) Event {
			return AckReceived{r.sess, &gpuai.Ack{Seq: b.Seq, Incarnation: inc, Index: 50, Tokens: []gpuai.Token{lease}}}
		},
		"set": func(r *rig, _ gpuai.Token, _ gpuai.Beat) Event { return LeasesReceived{r.sess, &gpuai.LeaseSet{}} },
		"report": func(r *rig, l gpuai.Token, _ gpuai.Beat) Event {
			return ReportAnswered{r.sess, gpuai.Reported{Lease: l, Seq: 1}}
		},
		"loss": func(r *rig, _ gpuai.Token, _ gpuai.Beat) Event { return Disconnected{r.sess} },
	} {
		t.Run(name, func(t *testing.T) {
			r, lease, start := running(t)
			b := r.beat()
			r.now = start + fence
			acts := r.step(event(r, lease, b))
			if k, ok := acts[0].(Kill); !ok || k.Lease != lease {
				t.Fatalf("first was %+v", acts)
			}
			mustLack[Extend](t, acts)
			r.step(TaskEnded{Lease: lease, By: ByKill, Code: 137})
			mustFind[Release](t, r.acts)
			if s := mustFind[SendReport](t, r.step(Released{Lease: lease})); s.Report.State != gpuai.ReportFenced || s.Report.Seq != 2 {
				t.Errorf("reported %+v", s.Report)
			}
		})
	}
}

func TestNoFenceBeforeItsTime(t *testing.T) {
	r, _, start := running(t)
	r.now = start + fence - 1
	mustLack[Kill](t, r.step(Tick{}))
	if w := r.core.NextWake(); w > start+fence {
		t.Errorf("it wants to wake %d too late", w-start-fence)
	}
}

func TestSetsOfThePastAreDropped(t *testing.T) {
	r, lease, _ := running(t)
	mustLack[Kill](t, r.set(19, true)) // below the newest
	mustLack[Kill](t, r.step(LeasesReceived{Session: r.sess + 1, Set: &gpuai.LeaseSet{Full: true, Incarnation: inc, Index: 99}}))
	mustLack[Kill](t, r.step(LeasesReceived{Session: r.sess, Set: &gpuai.LeaseSet{Full: true, Incarnation: inc - 1, Index: 99}}))
	mustLack[Kill](t, r.step(LeasesReceived{Session: r.sess, Set: &gpuai.LeaseSet{Full: true, Epoch: 1, Incarnation: inc, Index: 99}}))
	b := r.beat()
	r.ack(b, 60, lease)
	r.welcome(70, lease)
	mustLack[Kill](t, r.set(69, true)) // below what the session before has seen
	mustFind[Kill](t, r.set(70, true)) // and this one says that it ended
}

func TestDiffNeedsAFullSet(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	mustLack[Start](t, r.set(20, false, assign(20)))
}

func TestFinishedLeaseNeverStartsAgain(t *testing.T) {
	r, lease, _ := running(t)
	r.step(TaskEnded{Lease: lease})
	last := mustFind[SendReport](t, r.step(Released{Lease: lease})).Report
	if last.State != gpuai.ReportDone {
		t.Fatalf("reported %+v", last)
	}
	mustFind[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: last.Seq}}))
	mustLack[Start](t, r.set(21, false, assign(20))) // a late set
	b := r.beat()
	mustLack[Start](t, r.ack(b, 22, lease)) // a late ack
	mustLack[Start](t, r.set(23, true, assign(20)))
}

func TestNoAckTurnsToAnotherServer(t *testing.T) {
	r, _, _ := running(t)
	b := r.beat()
	r.now = b.Sent + ackTimeout - 1
	mustLack[Reconnect](t, r.step(Tick{}))
	r.now = b.Sent + ackTimeout
	mustFind[Reconnect](t, r.step(Tick{}))
	if r.core.Connected() {
		t.Error("it thinks it is connected")
	}
	r.sess++
	r.step(HelloSent{Session: r.sess, Sent: r.now})
	r.now += ackTimeout
	mustFind[Reconnect](t, r.step(Tick{}))
}

func TestBeatsComeWithinTheirPeriod(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	seen := map[int64]bool{}
	for last, i := r.now, 0; i < 200; i++ {
		b := r.beat()
		gap := b.Sent - last
		if last = b.Sent; gap > 4*second || gap < 4*second*8/10 {
			t.Fatalf("a beat came after %d ms", gap/1e6)
		}
		seen[gap] = true
		r.ack(b, uint64(100+i))
	}
	if len(seen) < 100 {
		t.Errorf("only %d gaps differ", len(seen))
	}
}

func TestStrangeLeaseAsksForTheFullSet(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	r.set(10, true)
	unknown := gpuai.MakeToken(0, 12, 0)
	mustLack[Reconnect](t, r.ack(r.beat(), 12, unknown))
	mustFind[Reconnect](t, r.ack(r.beat(), 13, unknown))
}

func TestServersNotToBeTrusted(t *testing.T) {
	for name, test := range map[string]struct {
		w    gpuai.Welcome
		good bool
	}{
		"same":              {gpuai.Welcome{RestoreID: "r", Incarnation: inc}, true},
		"older incarnation": {gpuai.Welcome{RestoreID: "r", Incarnation: inc - 1}, false},
		"other restore":     {gpuai.Welcome{RestoreID: "x", Incarnation: inc}, false},
		"newer epoch":       {gpuai.Welcome{RestoreID: "x", Epoch: 1, Incarnation: gpuai.MakeIncarnation(1, 1)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.sess = 1
			r.step(HelloSent{Session: 1, Sent: r.now})
			test.w.Policy, test.w.Ack = gpuai.DefaultPolicy(), gpuai.Ack{Epoch: test.w.Epoch, Incarnation: test.w.Incarnation}
			r.step(Welcomed{1, &test.w})
			if r.core.Connected() != test.good {
				t.Errorf("connected: %v", r.core.Connected())
			}
			if !test.good {
				mustFind[Alarm](t, r.acts)
			}
		})
	}
	r := newRig(t)
	r.core.id.Epoch = 2
	r.welcome(10)
	if r.core.Connected() {
		t.Error("an older epoch was taken")
	}
}

// After a restore every lease of the older epoch is void.
func TestNewEpochFencesTheOld(t *testing.T) {
	r, lease, _ := running(t)
	r.step(HelloSent{Session: 9, Sent: r.now})
	newer := gpuai.MakeIncarnation(1, 4)
	r.step(Welcomed{9, &gpuai.Welcome{RestoreID: "x", Epoch: 1, Incarnation: newer, Index: 2, Policy: gpuai.DefaultPolicy(),
		Ack: gpuai.Ack{Epoch: 1, Incarnation: newer, Index: 2}}})
	if k := mustFind[Kill](t, r.acts); k.Lease != lease {
		t.Errorf("killed %+v", k)
	}
	if m := mustFind[Remember](t, r.acts); m.Identity != (Identity{newer, 1, "x"}) {
		t.Errorf("remembers %+v", m)
	}
}

func TestSuperseded(t *testing.T) {
	for name, event := range map[string]Event{
		"refused": Refused{1, &gpuai.SessionError{Code: gpuai.Conflict, Incarnation: inc + 1}},
		"ack":     AckReceived{1, &gpuai.Ack{Seq: 1, Incarnation: inc + 1, Index: 99}},
		"set":     LeasesReceived{1, &gpuai.LeaseSet{Incarnation: inc + 1, Index: 99}},
	} {
		t.Run(name, func(t *testing.T) {
			r, lease, _ := running(t)
			r.step(event)
			mustFind[Halt](t, r.acts)
			if k := mustFind[Kill](t, r.acts); k.Lease != lease || r.core.Idle() {
				t.Errorf("killed %+v, idle %v", k, r.core.Idle())
			}
			r.step(HelloSent{Session: 5, Sent: r.now})
			if r.core.open {
				t.Error("it opened another session")
			}
			r.step(TaskEnded{Lease: lease, By: ByKill})
			if !r.core.Idle() {
				t.Error("not idle")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		code    gpuai.Code
		halt    bool
		welcome bool
	}{{gpuai.NoLeader, false, false}, {gpuai.InvalidSpec, true, false}, {gpuai.InvalidSpec, false, true}, {gpuai.RateLimited, false, true}} {
		r := newRig(t)
		if test.welcome {
			r.welcome(10)
		}
		r.sess++
		r.step(HelloSent{Session: r.sess, Sent: r.now})
		r.step(Refused{r.sess, &gpuai.SessionError{Code: test.code, RetryAfter: 250}})
		if _, halted := find[Halt](r.acts); halted != test.halt {
			t.Errorf("%s: halted %v", test.code, halted)
		}
		if rec, ok := find[Reconnect](r.acts); !test.halt && (!ok || rec.After != 250) {
			t.Errorf("%s: %+v", test.code, r.acts)
		}
	}
}

func TestEndings(t *testing.T) {
	for name, test := range map[string]struct {
		before Event
		end    Event
		want   gpuai.ReportState
	}{
		"done":          {nil, TaskEnded{}, gpuai.ReportDone},
		"failed":        {nil, TaskEnded{Code: 3}, gpuai.ReportFailed},
		"watchdog":      {nil, TaskEnded{By: ByDeadline, Code: 137}, gpuai.ReportFenced},
		"lost":          {nil, TaskEnded{By: ByLoss}, gpuai.ReportLost},
		"stopped":       {StopAll{}, TaskEnded{By: ByStop, Code: 143}, gpuai.ReportStopped},
		"first to end":  {StopAll{}, TaskEnded{}, gpuai.ReportDone},
		"device":        {DeviceFailed{Reason: "xid"}, TaskEnded{By: ByKill}, gpuai.ReportGPUError},
		"disk":          {DiskOverrun{Reason: "full"}, TaskEnded{By: ByKill}, gpuai.ReportFailed},
		"killed before": {nil, TaskEnded{By: ByKill}, gpuai.ReportFenced},
	} {
		t.Run(name, func(t *testing.T) {
			r, lease, _ := running(t)
			if d, ok := test.before.(DeviceFailed); ok {
				d.Lease = lease
				test.before = d
			}
			if d, ok := test.before.(DiskOverrun); ok {
				d.Lease = lease
				test.before = d
			}
			if test.before != nil {
				r.step(test.before)
			}
			end := test.end.(TaskEnded)
			end.Lease = lease
			r.step(end)
			s := mustFind[SendReport](t, r.step(Released{Lease: lease, Unclean: []gpuai.DeviceID{"GPU-1"}, Reason: "held"}))
			if s.Report.State != test.want || len(s.Report.Unclean) != 1 || s.Report.Incarnation != inc {
				t.Errorf("reported %+v", s.Report)
			}
		})
	}
}

func TestUnkillable(t *testing.T) {
	r, lease, start := running(t)
	r.now = start + fence
	r.step(Tick{})
	s := mustFind[SendReport](t, r.step(TaskUnkillable{Lease: lease, Reason: "stuck"}))
	if s.Report.State != gpuai.ReportUnkillable || !slices.Equal(s.Report.Unclean, []gpuai.DeviceID{"GPU-20"}) {
		t.Errorf("reported %+v", s.Report)
	}
	mustLack[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: s.Report.Seq}}))
	if r.core.Idle() {
		t.Error("it may still run")
	}
	mustFind[Release](t, r.step(TaskEnded{Lease: lease, By: ByKill}))
	r.step(Released{Lease: lease})
	mustLack[SendReport](t, r.acts)
	mustFind[Forget](t, r.acts)
}

func TestReportsAreRepeated(t *testing.T) {
	r, lease, _ := running(t)
	r.step(TaskEnded{Lease: lease})
	r.step(Released{Lease: lease})
	resent := func() (seqs []uint32) {
		for _, a := range r.acts {
			if s, ok := a.(SendReport); ok && !s.First {
				seqs = append(seqs, s.Report.Seq)
			}
		}
		return seqs
	}
	r.welcome(30, lease)
	if got := resent(); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("a new session was sent %v", got)
	}
	r.now += reportAgain
	r.core.beats = nil
	r.step(Tick{})
	if got := resent(); !slices.Equal(got, []uint32{1, 2}) {
		t.Errorf("then %v", got)
	}
	r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: 1, Code: gpuai.Conflict}})
	mustFind[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: 2, Code: gpuai.Conflict}}))
	r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: 2}}) // again
	if len(r.acts) > 0 {
		t.Errorf("a second answer did %+v", r.acts)
	}
}

func TestConflictAboutARunningTaskFencesIt(t *testing.T) {
	r, lease, _ := running(t)
	if k := mustFind[Kill](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: lease, Seq: 1, Code: gpuai.Conflict}})); k.Lease != lease {
		t.Errorf("killed %+v", k)
	}
}

func TestDrain(t *testing.T) {
	r, lease, _ := running(t)
	r.step(Drain{Reason: "journal"})
	s := mustFind[SendReport](t, r.set(40, false, assign(40)))
	if s.Report.State != gpuai.ReportLost || s.Report.Reason != "journal" {
		t.Errorf("reported %+v", s.Report)
	}
	mustFind[Extend](t, r.ack(r.beat(), 50, lease)) // what runs goes on
}

// The region may give a device to the next lease before the task of the one that
// it ended is gone from here: the next waits for the release.
func TestNextLeaseWaitsForItsDevices(t *testing.T) {
	for name, test := range map[string]struct {
		share gpuai.Milli
		waits bool
	}{"whole": {0, true}, "too much": {600, true}, "both fit": {500, false}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.welcome(10)
			r.set(10, true)
			old, next := assign(20), assign(30)
			old.Lease.Share, next.Lease.Share = test.share, test.share
			next.Lease.Devices = old.Lease.Devices
			r.set(20, false, old)
			r.step(TaskStarted{Lease: old.Lease.ID})
			r.step(LeasesReceived{r.sess, &gpuai.LeaseSet{Incarnation: inc, Index: 30, Leases: []gpuai.Assignment{next}, Ended: []gpuai.Token{old.Lease.ID}}})
			if _, started := find[Start](r.acts); started == test.waits {
				t.Fatalf("did %+v", r.acts)
			}
			if !test.waits {
				return
			}
			mustLack[Start](t, r.step(TaskEnded{Lease: old.Lease.ID, By: ByKill}))
			if s := mustFind[Start](t, r.step(Released{Lease: old.Lease.ID})); s.Assignment.Lease.ID != next.Lease.ID {
				t.Errorf("started %s", s.Assignment.Lease.ID)
			}
		})
	}
}

func TestAdopted(t *testing.T) {
	a := assign(5)
	held := Held{Assignment: a, Running: true, Deadline: 110 * second, Seq: 4, Unsent: []gpuai.Report{{Lease: a.Lease.ID, Seq: 4, State: gpuai.ReportRunning}}}
	r := newRig(t, held)
	if got := r.core.Running(); len(got) != 1 || r.core.NextWake() != held.Deadline {
		t.Errorf("offers %v, wakes at %d", got, r.core.NextWake())
	}
	r.welcome(10, a.Lease.ID)
	mustFind[Extend](t, r.acts)
	mustFind[SendReport](t, r.acts)
	r.step(TaskEnded{Lease: a.Lease.ID})
	if s := mustFind[SendReport](t, r.step(Released{Lease: a.Lease.ID})); s.Report.Seq != 5 {
		t.Errorf("seq goes on with %d", s.Report.Seq)
	}
	r = newRig(t, held)
	r.now = 110 * second
	mustFind[Kill](t, r.step(Tick{}))
	r = newRig(t, held)
	r.welcome(10)
	mustFind[Kill](t, r.acts) // not named: not adopted
}

// A task ends after the agent said that it holds it and before it is told of the
// adoption: its report names the old incarnation and is refused. The end must be
// told again under the new one, or the lease is held for ever. Found by the
// simulation, seed 2550.
func TestEndBesideTheAdoption(t *testing.T) {
	a := assign(5)
	a.Lease.Incarnation = inc - 1
	done := []gpuai.Report{
		{Lease: a.Lease.ID, Seq: 4, Incarnation: inc - 1, State: gpuai.ReportRunning},
		{Lease: a.Lease.ID, Seq: 5, Incarnation: inc - 1, State: gpuai.ReportDone},
	}
	told := func(acts []Action) (out []gpuai.Report) {
		for _, act := range acts {
			if s, ok := act.(SendReport); ok && s.Report.Incarnation == inc {
				out = append(out, s.Report)
			}
		}
		return out
	}
	named := a
	named.Lease.Incarnation = inc
	for name, adoption := range map[string]func(r *rig) []Action{
		"by the welcome": func(r *rig) []Action { r.welcome(10, a.Lease.ID); return r.acts },
		"by the set":     func(r *rig) []Action { r.welcome(10); return r.set(10, true, named) },
	} {
		r := newRig(t, Held{Assignment: a, Seq: 5, Unsent: slices.Clone(done)})
		again := told(adoption(r))
		if len(again) != 1 || again[0].State != gpuai.ReportDone || again[0].Seq != 6 {
			t.Fatalf("%s: told again: %+v", name, again)
		}
		for seq := uint32(4); seq <= 5; seq++ {
			mustLack[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: a.Lease.ID, Seq: seq, Code: gpuai.Conflict}}))
		}
		mustFind[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: a.Lease.ID, Seq: 6}}))
	}
}

func TestJudgeIsTotalAndSafe(t *testing.T) {
	for a := AssignedUnknown; a <= AssignedEnded; a++ {
		for rec := RecordedNot; rec <= RecordedOtherBoot; rec++ {
			for seen := SeenAsRecorded; seen <= SeenNot; seen++ {
				s := Sight{a, rec, seen}
				m, at := Judge(s), fmt.Sprintf("%+v", s)
				if m == MoveTake && (rec != RecordedNot || a != AssignedLive || seen != SeenAsRecorded) {
					t.Error(at, "is taken up")
				}
				if seen == SeenRunning && m != MoveAdopt && m != MoveKill {
					t.Error(at, "leaves a task running that nobody has")
				}
				if m == MoveAdopt && rec != RecordedRunning && rec != RecordedStopping {
					t.Error(at, "is adopted")
				}
				if seen == SeenAsRecorded && a == AssignedEnded && rec == RecordedRunning && m != MoveFence {
					t.Error(at, "goes on")
				}
			}
		}
	}
}

// A task that runs on elsewhere later may save its work first, for as long as the
// region allows; whatever ends it then counts as stopped.
func TestRevokedTaskSavesItsWork(t *testing.T) {
	ask := gpuai.Checkpoint{Signal: gpuai.SIGUSR2, Grace: gpuai.Minute}
	for name, c := range map[string]struct {
		cause gpuai.LeaseCause
		ask   gpuai.Checkpoint
		most  gpuai.Duration
		want  gpuai.Checkpoint
	}{
		"preempted":           {gpuai.CausePreempted, ask, gpuai.Hour, ask},
		"drained":             {gpuai.CauseDrained, ask, gpuai.Hour, ask},
		"bounded":             {gpuai.CausePreempted, ask, 7 * gpuai.Second, gpuai.Checkpoint{Signal: gpuai.SIGUSR2, Grace: 7 * gpuai.Second}},
		"not allowed":         {gpuai.CausePreempted, ask, 0, gpuai.Checkpoint{}},
		"not asked for":       {gpuai.CausePreempted, gpuai.Checkpoint{}, gpuai.Hour, gpuai.Checkpoint{}},
		"stopped by its user": {gpuai.CauseStopped, ask, gpuai.Hour, gpuai.Checkpoint{}},
		"out of time":         {gpuai.CauseRunTime, ask, gpuai.Hour, ask},
		"of a gang that ends": {gpuai.CauseGang, ask, gpuai.Hour, gpuai.Checkpoint{}},
	} {
		t.Run(name, func(t *testing.T) {
			r, lease, _ := running(t)
			r.core.policy.CheckpointMax = c.most
			r.core.leases[lease].a.Task.Checkpoint = c.ask
			a := assign(20)
			a.Lease.State, a.Lease.Cause = gpuai.LeaseRevoking, c.cause
			if stop := mustFind[Stop](t, r.set(30, false, a)); stop.Save != c.want || stop.Grace != 5*gpuai.Second {
				t.Fatalf("%+v, want to save by %+v", stop, c.want)
			}
			mustLack[Stop](t, r.set(31, false, a)) // told again
			a.Lease.Cause = gpuai.CauseStopped
			acts := r.set(32, false, a) // now its user has no use for it
			if c.want == (gpuai.Checkpoint{}) {
				mustLack[Stop](t, acts)
			} else if stop := mustFind[Stop](t, acts); stop.Save != (gpuai.Checkpoint{}) {
				t.Fatalf("%+v", stop)
			}
			r.step(TaskEnded{Lease: lease, By: ByStop, Code: 0})
			if rep := mustFind[SendReport](t, r.step(Released{Lease: lease})); rep.Report.State != gpuai.ReportStopped {
				t.Fatalf("%+v", rep)
			}
		})
	}
}

// The fence stands while a task saves its work.
func TestFenceComesBeforeTheSaving(t *testing.T) {
	r, lease, start := running(t)
	r.core.policy.CheckpointMax = gpuai.Hour
	r.core.leases[lease].a.Task.Checkpoint = gpuai.Checkpoint{Signal: gpuai.SIGUSR1, Grace: gpuai.Hour}
	a := assign(20)
	a.Lease.State, a.Lease.Cause = gpuai.LeaseRevoking, gpuai.CausePreempted
	mustFind[Stop](t, r.set(30, false, a))
	r.now = start + fence
	if kill := mustFind[Kill](t, r.step(Tick{})); kill.Lease != lease {
		t.Fatalf("%+v", kill)
	}
}

// A start that told its image's digest goes on with the region's, once; what was
// told is journaled as no end, and another life of the agent does not take it for one.
func TestImageIsAgreed(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	r.set(10, true)
	a := assign(11)
	r.set(11, false, a)
	if _, ok := find[Start](r.all); !ok {
		t.Fatalf("not started: %+v", r.all)
	}
	told, ok := find[SendReport](r.step(ImageResolved{a.Lease.ID, "sha256:mine"}))
	if !ok || told.Report.State != gpuai.ReportResolved || told.Report.Image != "sha256:mine" {
		t.Fatalf("told %+v", r.acts)
	}
	answer := ReportAnswered{r.sess, gpuai.Reported{Lease: a.Lease.ID, Seq: told.Report.Seq, Image: "sha256:theirs"}}
	if use, ok := find[UseImage](r.step(answer)); !ok || use.Digest != "sha256:theirs" {
		t.Errorf("answered: %+v", r.acts)
	}
	if _, again := find[UseImage](r.step(answer)); again {
		t.Error("an answer counts twice")
	}
	for _, none := range []gpuai.Reported{{Code: gpuai.RateLimited}, {Code: gpuai.OK}, {Code: gpuai.RateLimited, Image: "sha256:mine"}} {
		again, _ := find[SendReport](r.step(ImageResolved{a.Lease.ID, "sha256:mine"}))
		none.Lease, none.Seq = a.Lease.ID, again.Report.Seq
		if use, ok := find[UseImage](r.step(ReportAnswered{r.sess, none})); !ok || use.Digest != "" {
			t.Errorf("answered %+v it runs what it found: %+v", none, r.acts)
		}
	}
	held := Held{Assignment: a, Seq: 1, Unsent: []gpuai.Report{told.Report}}
	if v := newRig(t, held).core.Views(); len(v) != 1 || v[0].Phase == Reported {
		t.Errorf("the next life takes it for an end: %+v", v)
	}
}
