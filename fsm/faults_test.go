package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// Case 17: an unknown command or a newer version stops the server before it
// applies anything of the entry.
func TestUnknownCommandStopsBeforeApplying(t *testing.T) {
	gap := uint8(1) // the first number that nobody has
	for gap < numTypes && !unknownType(gap) {
		gap++
	}
	for name, cmd := range map[string][]byte{
		"type":    raw(numTypes, 1),
		"version": raw(typeTick, 2),
		"zero":    raw(0, 1),
		"gap":     raw(gap, 1),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t)
			before := r.m.Digest()
			tick := (&Tick{}).Append(nil, Envelope{})
			err := r.m.Apply(1, 1, AppendEntry(nil, Header{Term: 1}, tick, cmd), &Output{})
			if !errors.Is(err, ErrUnknownCommand) || r.m.Digest() != before || r.m.Index() != 0 {
				t.Fatalf("%v, index %d", err, r.m.Index())
			}
		})
	}
}

func raw(typ, version uint8) []byte {
	b, at := wire.BeginCommand(nil, typ, version, "", "", "")
	return wire.EndCommand(b, at)
}

// A damaged entry stops the server; nothing of it is applied.
func TestDamagedEntry(t *testing.T) {
	r := newRegion(t)
	entry := AppendEntry(nil, Header{Term: 1}, (&Tick{}).Append(nil, Envelope{}))
	for i := range entry {
		bad := slices.Clone(entry)
		bad[i] ^= 0x10
		if err := r.m.Apply(1, 1, bad, &Output{}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("a flip in byte %d: %v", i, err)
		}
	}
	if r.m.Index() != 0 {
		t.Fatal("a damaged entry was applied")
	}
}

// Case 18: a committed command that panics is taken back whole, with the same
// result on every replica, and the machine lives.
func TestPanicIsTakenBack(t *testing.T) {
	var digests []Digest
	for range 2 {
		r := newRegion(t)
		r.node("a", 2)
		id := r.submit(jobSpec("j", 2, 1))
		r.check = false
		slot, _ := r.m.jobSlot(id)
		r.m.jobs.Mut(slot).group = 1 << 20 // points nowhere
		r.m.sp.Commit()
		r.index++
		out := &Output{}
		tick := (&Tick{}).Append(nil, Envelope{})
		stop := (&StopJob{Job: id}).Append(nil, Envelope{})
		if err := r.m.Apply(r.index, 1, AppendEntry(nil, Header{Term: 1}, tick, stop, tick), out); err != nil {
			t.Fatal(err)
		}
		codes := []gpuai.Code{out.Results[0].Code, out.Results[1].Code, out.Results[2].Code}
		if !slices.Equal(codes, []gpuai.Code{gpuai.OK, gpuai.Internal, gpuai.OK}) || out.Panics != 1 || out.Panic == "" || len(out.Events) != 0 {
			t.Fatalf("%v, %+v", codes, out)
		}
		if j := r.m.jobs.Get(slot); j.stopping || j.reason != endNone {
			t.Fatal("a command that panicked left something behind")
		}
		digests = append(digests, r.m.Digest())
		if res := r.do(&SubmitJob{ID: r.newID(), Spec: jobSpec("k", 1, 0)}); res.Leased != 1 {
			t.Fatalf("the machine does not go on: %+v", res)
		}
	}
	if digests[0] != digests[1] {
		t.Fatal("two replicas differ")
	}
}

// Case 25: reports that come twice, late or out of order change nothing more.
func TestReportsAreIdempotent(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 1)
	id := r.submit(jobSpec("j", 1, 1))
	l := r.leases(id)[0]
	rep := func(seq uint32, s gpuai.ReportState) *ReportLease {
		return &ReportLease{Node: "a", Report: gpuai.Report{Lease: l.ID, Seq: seq, Incarnation: inc, State: s}}
	}
	r.do(rep(2, gpuai.ReportRunning))
	r.do(rep(1, gpuai.ReportFailed)) // older than what is known
	r.do(rep(2, gpuai.ReportFailed))
	r.status(id, gpuai.JobRunning)
	r.do(rep(3, gpuai.ReportDone))
	r.status(id, gpuai.JobSucceeded)
	r.do(rep(3, gpuai.ReportDone))
	r.refuse(rep(4, gpuai.ReportFailed), gpuai.Conflict)
	r.status(id, gpuai.JobSucceeded)
	stale := rep(9, gpuai.ReportDone)
	stale.Report.Lease++
	r.refuse(stale, gpuai.NotFound)
}

// Case 22: reports of a superseded or expired runner change nothing, but a
// superseded one may still say that it fenced.
func TestStaleRunnersReports(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 1)
	r.node("b", 1)
	id := r.submit(jobSpec("j", 1, 1))
	l := r.leases(id)[0]
	spec := nodeSpec(string(l.Node), 1, "H100")
	again := r.do(&RegisterNode{Spec: spec, BootID: "boot-2", Nonce: "n", Replaces: inc}).Incarnation
	if again != inc+1 {
		t.Fatalf("incarnation %d after %d", again, inc)
	}
	wrong := &ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: again, State: gpuai.ReportDone}}
	r.refuse(wrong, gpuai.Conflict)
	r.expire(string(l.Node), again) // the new life has no leases
	r.status(id, gpuai.JobRunning)
	wrong.Report.Incarnation, wrong.Report.State = inc, gpuai.ReportFenced
	r.do(wrong)
	r.status(id, gpuai.JobPending)
	r.wait(gpuai.Second)
	r.status(id, gpuai.JobRunning)
	wrong.Report.Seq = 2
	r.refuse(wrong, gpuai.NotFound)
}

// Case 32: one key is one job, whatever repeats it, and another body is told.
func TestIdempotencyKeys(t *testing.T) {
	r := newRegion(t)
	r.node("a", 4)
	env := Envelope{Tenant: "default", Key: "key"}
	first := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("j", 2, 1)}).Results[0]
	again := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("j", 2, 1)}).Results[0]
	if !again.Repeated || again.Job != first.Job || again.Index != first.Index || again.Leased != 2 {
		t.Fatalf("%+v, then %+v", first, again)
	}
	if res := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("j", 3, 1)}).Results[0]; res.Code != gpuai.IdempotencyMismatch {
		t.Fatalf("%+v", res)
	}
	// Two in one entry, and after a restore.
	env.Key = "both"
	out := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("k", 1, 1)}, &SubmitJob{ID: r.newID(), Spec: jobSpec("k", 1, 1)})
	if out.Results[0].Job != out.Results[1].Job {
		t.Fatalf("%+v", out.Results)
	}
	r.m = restored(t, r.m)
	if res := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("k", 1, 1)}).Results[0]; res.Job != out.Results[0].Job {
		t.Fatalf("after a restore: %+v", res)
	}
	// Other tenants and other commands have keys of their own.
	if res := r.applyAs(Envelope{Tenant: "other", Key: "both"}, &Tick{}).Results[0]; res.Repeated {
		t.Fatal("a key was taken for another tenant's")
	}
	// The answer is forgotten after the policy's time.
	r.wait(11 * gpuai.Minute)
	if res := r.applyAs(env, &SubmitJob{ID: r.newID(), Spec: jobSpec("k", 1, 1)}).Results[0]; res.Repeated {
		t.Fatalf("%+v", res)
	}
	if n := r.m.resultSlots.Len(); n != 1 {
		t.Fatalf("%d answers are kept", n)
	}
}

func TestRegisterIsCompareAndSet(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 2)
	if again := r.node("a", 2); again != inc {
		t.Fatalf("the same life is incarnation %d, then %d", inc, again)
	}
	other := &RegisterNode{Spec: nodeSpec("a", 2, "H100"), BootID: "b", Nonce: "other"}
	if res := r.refuse(other, gpuai.Conflict); res.Incarnation != inc {
		t.Fatalf("%+v", res)
	}
	id := r.submit(jobSpec("j", 2, 1))
	ls := r.leases(id)
	other.Replaces = inc
	other.BootID = "boot-1"
	other.Held = []gpuai.HeldLease{{Lease: ls[0].ID, BootID: "boot-1"}, {Lease: ls[1].ID, BootID: "boot-0"}}
	next := r.do(other).Incarnation
	got := r.leases(id)
	if got[0].Incarnation != next || got[1].Incarnation != inc || got[1].State != gpuai.LeaseGranted {
		t.Fatalf("adopted: %+v", got)
	}
	if tokens := r.m.AppendTokens(nil, "a"); !slices.Equal(tokens, []gpuai.Token{ls[0].ID}) {
		t.Fatalf("tokens of the new life: %v", tokens)
	}
	r.expire("a", inc) // the old life's silence ends what was not adopted
	if got := r.leases(id); got[0].State != gpuai.LeaseGranted || got[1].State != gpuai.LeaseEnded {
		t.Fatalf("%+v", got)
	}
}

func TestExpiryHonoursTermAndTime(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 2)
	id := r.submit(jobSpec("j", 1, 1))
	r.refuse(&ExpireLeases{Node: "a", Incarnation: inc, SilentFor: gpuai.Hour, Term: 7}, gpuai.PreconditionFailed)
	r.do(&ExpireLeases{Node: "a", Incarnation: inc, SilentFor: 25*gpuai.Second - 1, Term: 1})
	r.status(id, gpuai.JobRunning)
	r.do(&ExpireLeases{Node: "a", Incarnation: inc, SilentFor: 25 * gpuai.Second, Term: 1})
	if n, _ := r.m.Node("a"); n.State != gpuai.NodeSilent {
		t.Fatalf("%s", n.State)
	}
	if l := r.leases(id)[0]; l.Cause != gpuai.CauseExpired {
		t.Fatalf("%+v", l)
	}
}

func TestFlappingNodeIsQuarantined(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 1)
	for range 5 {
		id := r.submit(jobSpec("j", 1, 1))
		if r.job(id).Status != gpuai.JobRunning {
			break
		}
		r.expire("a", inc)
		r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{"a", inc}}})
		r.do(&StopJob{Job: id})
	}
	n, _ := r.m.Node("a")
	if n.State != gpuai.NodeQuarantined {
		t.Fatalf("%+v", n)
	}
	r.wait(2 * gpuai.Minute)
	if n, _ := r.m.Node("a"); n.State != gpuai.NodeReady {
		t.Fatalf("after the quarantine: %s", n.State)
	}
}

func TestUnkillableTaskQuarantinesItsDevices(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 1)
	s := jobSpec("j", 1, 1)
	s.Groups[0].Restart.On = []gpuai.RestartCause{}
	id := r.submit(s)
	r.report(r.leases(id)[0], gpuai.ReportUnkillable, 0)
	n, _ := r.m.Node("a")
	if n.Devices[0].Health != gpuai.DeviceQuarantined || n.FreeGPUs != 0 {
		t.Fatalf("%+v", n)
	}
	next := r.submit(jobSpec("next", 1, 1))
	r.status(next, gpuai.JobPending)
	r.do(&UpdateDevices{Node: "a", Incarnation: inc, Devices: nodeSpec("a", 1, "H100").Devices})
	r.status(next, gpuai.JobRunning)
}

// Snapshots that are cut off, flipped or of another kind are refused whole.
func TestDamagedSnapshots(t *testing.T) {
	w := newWalk(t, 3)
	for range 40 {
		w.step()
	}
	var b bytes.Buffer
	if err := w.m.Fork().WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	info, err := InspectSnapshot(bytes.NewReader(b.Bytes()))
	if err != nil || info.Digest != w.m.Digest().String() || info.Index != w.index {
		t.Fatalf("%+v, %v", info, err)
	}
	good := b.Bytes()
	for i := 0; i < len(good); i += 1 + len(good)/300 {
		bad := slices.Clone(good)
		bad[i] ^= 4
		if _, err := Restore(bytes.NewReader(bad), w.m.opts); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("a flip in byte %d: %v", i, err)
		}
		if _, err := Restore(bytes.NewReader(good[:i]), w.m.opts); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
	if _, err := Restore(bytes.NewReader(good), Options{Region: "elsewhere"}); !errors.Is(err, ErrSnapshot) {
		t.Fatal(err)
	}
}

// The budget of an entry bounds its work; ticks do the rest, and the outcome is
// that of enough budget.
func TestBacklogIsWorkedOff(t *testing.T) {
	r := newRegion(t)
	r.check = false
	for i := range 200 {
		s := nodeSpec(fmt.Sprint("n", i), 64, "H100")
		s.CPU, s.Memory = 1<<20, 1<<40
		r.register(s)
	}
	id := r.newID()
	res := r.do(&SubmitJob{ID: id, Spec: jobSpec("big", 12_000, 1)})
	if res.Leased == 0 || res.Leased == 12_000 {
		t.Fatalf("%d leases in the first entry", res.Leased)
	}
	for ticks := 0; r.m.NextDeadline() <= r.time; ticks++ {
		if ticks > 100 {
			t.Fatal("the backlog does not end")
		}
		r.apply(&Tick{})
	}
	if c := r.job(id).Counts; c.Leased != 12_000 {
		t.Fatalf("%+v", c)
	}
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
}

// Apply is total: whatever the bytes, it answers and keeps its invariants.
func FuzzApply(f *testing.F) {
	w := newQuotaWalk(f, 9)
	w.ofOwners()
	for range 30 {
		w.step()
		f.Add(w.log[len(w.log)-1])
	}
	seedTerms(f)
	base := w.m
	f.Fuzz(func(t *testing.T, body []byte) {
		m, out := base.Fork(), &Output{}
		var cmds [][]byte
		if e, err := wire.OpenEntry(body); err == nil {
			_ = m.Apply(m.Index()+1, 2, body, out)
			_ = e
		} else if len(body) > 1 { // a hostile body behind a good envelope
			c, at := wire.BeginCommand(nil, 1+body[0]%(numTypes-1), 1, "default", "", "")
			cmds = append(cmds, wire.EndCommand(append(c, body[1:]...), at))
			_ = m.Apply(m.Index()+1, 2, AppendEntry(nil, Header{Term: 2}, cmds...), out)
		}
		if out.Panics > 0 {
			t.Fatal(out.Panic)
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
