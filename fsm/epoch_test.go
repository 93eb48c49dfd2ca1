package fsm

import (
	"cmp"
	"errors"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

var testEpoch = NewEpoch{Epoch: 1, RestoreID: [16]byte{7}, MaxTTL: gpuai.MinLeaseTTL}

// restore begins an epoch on a backup of the region, and goes on with it.
func (r *region) restore(e NewEpoch) {
	r.t.Helper()
	m := restored(r.t, r.m)
	if _, err := m.BeginEpoch(e); err != nil {
		r.t.Fatal(err)
	}
	r.m = restored(r.t, m)
	r.index = r.m.Index()
}

// Case 38, the machine's half: after a restore every lease is void, nothing is
// granted in the quiet time, tokens grow, and a node registers anew whatever
// incarnation its agent has.
func TestCase38RestoreVoidsEveryLease(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 4)
	plain := r.submit(jobSpec("plain", 2, 1))
	gang := jobSpec("gang", 2, 1)
	gang.Groups[0].Gang = true
	both := r.submit(gang)
	old := slices.Concat(r.leases(plain), r.leases(both))
	if len(old) != 4 {
		t.Fatalf("%d leases", len(old))
	}
	r.report(old[0], gpuai.ReportRunning, 0)
	r.restore(testEpoch)

	if r.m.Level() != LevelRestore || r.m.Epoch() != 1 || r.m.RestoreID() != Digest(testEpoch.RestoreID).String() {
		t.Fatalf("level %d, epoch %d, restore %s", r.m.Level(), r.m.Epoch(), r.m.RestoreID())
	}
	for _, id := range []gpuai.JobID{plain, both} {
		r.status(id, gpuai.JobPending)
		if j := r.job(id); j.Restarts != 0 || j.Counts.Pending != 2 {
			t.Errorf("a restore cost an attempt: %+v", j)
		}
		for _, l := range r.leases(id) {
			if l.State != gpuai.LeaseEnded || l.Cause != gpuai.CauseRestored {
				t.Errorf("%+v", l)
			}
		}
	}
	for _, l := range old {
		for seq, s := range []gpuai.ReportState{gpuai.ReportDone, gpuai.ReportFenced} {
			r.refuse(&ReportLease{Node: "a", Report: gpuai.Report{Lease: l.ID, Seq: 100 + uint32(seq), Incarnation: inc, State: s}}, gpuai.Conflict)
		}
	}
	// The agent has lived through more than the backup knows.
	again := r.do(&RegisterNode{
		Spec: nodeSpec("a", 4, "H100"), BootID: "boot-1", Nonce: "nonce-1", Replaces: inc + 5,
		Held: []gpuai.HeldLease{{Lease: old[0].ID, BootID: "boot-1"}},
	}).Incarnation
	if again.Epoch() != 1 || again <= inc+5 {
		t.Fatalf("incarnation %s after %s", again, inc)
	}
	if n, _ := r.m.Node("a"); n.State != gpuai.NodeReady || n.Leases != 0 {
		t.Fatalf("%+v", n)
	}
	quiet := testEpoch.MaxTTL + 5*gpuai.Second
	if r.m.QuietUntil() != r.time.Add(quiet) || r.m.NextDeadline() != r.m.QuietUntil() {
		t.Fatalf("quiet until %d, next deadline %d", r.m.QuietUntil(), r.m.NextDeadline())
	}
	if x, _ := r.m.Explain(plain); len(x.Reasons) == 0 || x.Reasons[0].Code != gpuai.Quiet {
		t.Errorf("%+v", x.Reasons)
	}
	r.wait(quiet - 1)
	if ls, _ := r.m.Leases(0, 100, true); len(ls) != 0 {
		t.Fatalf("granted in the quiet time: %+v", ls)
	}
	r.wait(1)
	for _, id := range []gpuai.JobID{plain, both} {
		r.status(id, gpuai.JobRunning)
		for _, l := range r.leases(id) {
			if l.ID <= slices.MaxFunc(old, func(a, b gpuai.Lease) int { return cmp.Compare(a.ID, b.ID) }).ID || l.ID.Epoch() != 1 || l.Incarnation != again {
				t.Errorf("%+v", l)
			}
		}
	}
}

// After a restore the first to register has the node; anybody else is told, as
// ever.
func TestRestoredNodeIsCompareAndSet(t *testing.T) {
	r := newRegion(t)
	inc := r.node("a", 1)
	r.restore(testEpoch)
	again := r.node("a", 1) // the same life: not answered again, but new
	if again != gpuai.MakeIncarnation(1, inc.Counter()+1) {
		t.Fatalf("incarnation %s", again)
	}
	if same := r.node("a", 1); same != again {
		t.Fatalf("the same life is %s, then %s", again, same)
	}
	other := &RegisterNode{Spec: nodeSpec("a", 1, "H100"), BootID: "b", Nonce: "other", Replaces: inc}
	if res := r.refuse(other, gpuai.Conflict); res.Incarnation != again {
		t.Fatalf("%+v", res)
	}
	r.refuse(&UpdateDevices{Node: "a", Incarnation: inc}, gpuai.Conflict)
}

// What a restart policy forbids to run again after the loss of a node is lost,
// and what was being stopped is stopped.
func TestRestoreHonoursPolicyAndStops(t *testing.T) {
	r := newRegion(t)
	r.node("a", 4)
	once := jobSpec("once", 1, 1)
	once.Groups[0].Restart.On = []gpuai.RestartCause{}
	first := r.submit(once)
	stopped := r.submit(jobSpec("stopped", 1, 1))
	r.do(&StopJob{Job: stopped})
	timed := jobSpec("timed", 1, 1)
	timed.Limits.RunTime = gpuai.Second
	over := r.submit(timed)
	r.report(r.leases(over)[0], gpuai.ReportRunning, 0)
	r.wait(2 * gpuai.Second)
	r.restore(testEpoch)
	if j := r.job(first); j.Status != gpuai.JobFailed || j.Counts.Lost != 1 {
		t.Errorf("%+v", j)
	}
	r.status(stopped, gpuai.JobStopped)
	r.status(over, gpuai.JobFailed)
}

func TestBeginEpochRefuses(t *testing.T) {
	r := newRegion(t)
	r.restore(NewEpoch{Epoch: 4, RestoreID: [16]byte{1}, MaxTTL: gpuai.MaxLeaseTTL})
	for name, e := range map[string]NewEpoch{
		"the same epoch": {Epoch: 4, RestoreID: [16]byte{2}, MaxTTL: gpuai.MaxLeaseTTL},
		"no ID":          {Epoch: 5, MaxTTL: gpuai.MaxLeaseTTL},
		"short":          {Epoch: 5, RestoreID: [16]byte{2}, MaxTTL: gpuai.MinLeaseTTL - 1},
		"long":           {Epoch: 5, RestoreID: [16]byte{2}, MaxTTL: gpuai.MaxLeaseTTL + 1},
	} {
		if _, err := restored(t, r.m).BeginEpoch(e); !errors.Is(err, ErrEpoch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	old := New(Options{Region: "test", MaxLevel: 1})
	if _, err := old.BeginEpoch(testEpoch); !errors.Is(err, ErrEpoch) {
		t.Errorf("at level 1: %v", err)
	}
}

// Whatever the state, a restore keeps the invariants, ends every lease, is the
// same on every server, and the region goes on from it.
func TestRestoreOfRandomStates(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		w := newWalk(t, 500+seed)
		for range 60 {
			w.step()
		}
		twin := restored(t, w.m)
		if _, err := twin.BeginEpoch(testEpoch); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		before := w.m.Digest()
		w.restore(testEpoch)
		if w.m.Digest() != twin.Digest() || w.m.Digest() == before {
			t.Fatalf("seed %d: two servers restored to %s and %s from %s", seed, w.m.Digest(), twin.Digest(), before)
		}
		if c := w.m.Counts(); c.Leases != 0 || c.GPUMilliUsed != 0 || c.Nodes[gpuai.NodeReady] != 0 {
			t.Fatalf("seed %d: %+v", seed, c)
		}
		for range 60 {
			w.step()
			if ls, _ := w.m.Leases(0, 100, true); len(ls) > 0 && w.m.QuietUntil() > 0 {
				t.Fatalf("seed %d: granted in the quiet time", seed)
			}
		}
	}
}
