package decide

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// held is the assignment of a gang's member that waits for the others.
func held(index uint64) gpuai.Assignment {
	a := assign(index)
	a.Gang = &gpuai.GangInfo{Rank: 1, Size: 2, Hold: true}
	return a
}

// prepared returns a rig whose lease is ready and waits for its gang, and t_send
// of the beat that its deadline counts from.
func prepared(t *testing.T) (*rig, gpuai.Token, int64) {
	r := newRig(t)
	a := held(20)
	r.welcome(10)
	start := r.now
	r.set(10, true)
	if s := mustFind[Start](t, r.set(20, false, a)); !s.Hold {
		t.Fatalf("%+v", s)
	}
	rep := mustFind[SendReport](t, r.step(TaskPrepared{Lease: a.Lease.ID}))
	if rep.Report.State != gpuai.ReportPrepared || rep.Report.Seq != 1 {
		t.Fatalf("%+v", rep)
	}
	mustLack[Forget](t, r.step(ReportAnswered{r.sess, gpuai.Reported{Lease: a.Lease.ID, Seq: 1}}))
	return r, a.Lease.ID, start
}

// lifted is the assignment of a member whose gang is ready.
func lifted(index uint64) gpuai.Assignment {
	a := held(index)
	a.Gang.Hold = false
	return a
}

func TestHeldTaskStartsWithItsGang(t *testing.T) {
	r, lease, _ := prepared(t)
	mustLack[Launch](t, r.set(25, false, held(20)))
	if l := mustFind[Launch](t, r.set(30, false, lifted(20))); l.Lease != lease {
		t.Fatalf("%+v", l)
	}
	mustLack[Launch](t, r.set(31, false, lifted(20)))
	if rep := mustFind[SendReport](t, r.step(TaskStarted{Lease: lease})); rep.Report.State != gpuai.ReportRunning || rep.Report.Seq != 2 {
		t.Fatalf("%+v", rep)
	}
}

// The gang may be ready before this agent has said so: a member counts as ready
// too when it runs.
func TestHeldTaskStartsAtOnceWhenItsGangIsReady(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	r.set(10, true)
	r.set(20, false, held(20))
	mustLack[Launch](t, r.set(30, false, lifted(20)))
	mustFind[Launch](t, r.step(TaskPrepared{Lease: lifted(20).Lease.ID}))
}

// What was sent of a gang that is ready, or of a lease that is to end, may be
// lost: two acks that do not know the task to wait bring a full set.
func TestHeldTaskIsDoubted(t *testing.T) {
	r, lease, _ := prepared(t)
	ack := func(held ...gpuai.Token) []Action {
		b := r.beat()
		return r.step(AckReceived{Session: r.sess, Ack: &gpuai.Ack{
			Seq: b.Seq, Sent: b.Sent, Incarnation: inc, Index: b.Seq + 20, Tokens: []gpuai.Token{lease}, Held: held,
		}})
	}
	mustLack[Reconnect](t, ack(lease))
	mustLack[Reconnect](t, ack())
	mustLack[Reconnect](t, ack(lease))
	mustLack[Reconnect](t, ack())
	mustFind[Reconnect](t, ack())
	r.welcome(60, lease)
	mustFind[Launch](t, r.set(60, true, lifted(20)))
}

// What is held has a deadline, is renewed, stopped and fenced as what runs.
func TestHeldTaskEndsAsOneThatRuns(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*rig, int64) []Action
		want gpuai.ReportState
	}{
		"revoked": {func(r *rig, _ int64) []Action {
			a := held(20)
			a.Lease.State, a.Lease.Cause = gpuai.LeaseRevoking, gpuai.CauseGang
			return r.set(30, false, a)
		}, gpuai.ReportStopped},
		"revoked, its gang ready": {func(r *rig, _ int64) []Action {
			a := lifted(20)
			a.Lease.State = gpuai.LeaseRevoking
			return r.set(30, false, a)
		}, gpuai.ReportStopped},
		"fenced": {func(r *rig, start int64) []Action {
			r.now = start + fence
			return r.step(Tick{})
		}, gpuai.ReportFenced},
		"ended":         {func(r *rig, _ int64) []Action { return r.set(30, true) }, gpuai.ReportFenced},
		"device failed": {func(r *rig, _ int64) []Action { return r.step(DeviceFailed{Lease: held(20).Lease.ID}) }, gpuai.ReportGPUError},
		"agent ends":    {func(r *rig, _ int64) []Action { return r.step(StopAll{}) }, gpuai.ReportStopped},
	} {
		t.Run(name, func(t *testing.T) {
			r, lease, start := prepared(t)
			acts := test.end(r, start)
			mustLack[Launch](t, acts)
			if endingOf(acts) != lease {
				t.Fatalf("nothing ends it: %+v", acts)
			}
			mustLack[Launch](t, r.set(40, false, lifted(20)))
			mustFind[Release](t, r.step(TaskNotStarted{Lease: lease, State: gpuai.ReportStopped}))
			if rep := mustFind[SendReport](t, r.step(Released{Lease: lease})); rep.Report.State != test.want {
				t.Errorf("reported %+v", rep)
			}
		})
	}
}

func endingOf(acts []Action) gpuai.Token {
	for _, act := range acts {
		switch act := act.(type) {
		case Stop:
			return act.Lease
		case Kill:
			return act.Lease
		}
	}
	return 0
}

// across is the assignment of a member of a gang that has others at these ports of
// other nodes.
func across(hold bool, ports ...uint16) gpuai.Assignment {
	a := held(20)
	a.Gang.Hold, a.Gang.Spread = hold, true
	for i, p := range ports {
		a.Gang.Peers = append(a.Gang.Peers, gpuai.MeshPeer{
			Address: "10.0.0.1", MeshPoint: gpuai.MeshPoint{Key: gpuai.MeshKey{byte(p)}, Port: p}, Ranks: []uint32{uint32(2 + i)},
		})
	}
	return a
}

// A member tells where it is reached, is told where the others are before its task
// starts, and of those that come later.
func TestMemberMeetsOthersBeforeItStarts(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	r.set(10, true)
	r.set(20, false, across(true))
	lease := across(true).Lease.ID
	at := &gpuai.MeshPoint{Key: gpuai.MeshKey{1}, Port: 7}
	if rep := mustFind[SendReport](t, r.step(TaskPrepared{Lease: lease, Mesh: at})); rep.Report.State != gpuai.ReportPrepared || rep.Report.Mesh != at {
		t.Fatalf("%+v", rep)
	}
	mustLack[Meet](t, r.set(25, false, across(true)))
	acts := r.set(30, false, across(false, 8, 9))
	if m, ok := acts[0].(Meet); !ok || m.Lease != lease || m.Index != 30 || len(m.Peers) != 2 {
		t.Fatalf("before the launch: %+v", acts)
	}
	mustFind[Launch](t, acts[1:])
	r.step(TaskStarted{Lease: lease})
	mustLack[Meet](t, r.set(31, false, across(false, 8, 9)))
	acts = r.set(32, false, across(false, 8, 10))
	mustLack[Launch](t, acts)
	if m := mustFind[Meet](t, acts); m.Index != 32 || m.Peers[1].Port != 10 {
		t.Errorf("one that moved: %+v", m)
	}
	if k := mustFind[Kill](t, r.step(NetworkFailed{Lease: lease, Reason: "gone"})); k.Why != "gone" {
		t.Errorf("%+v", k)
	}
	r.step(TaskEnded{Lease: lease, By: ByKill, Code: 137})
	if rep := mustFind[SendReport](t, r.step(Released{Lease: lease})); rep.Report.State != gpuai.ReportLost || rep.Report.Reason != "gone" {
		t.Errorf("without its network: %+v", rep)
	}
}

// One that joins a gang which runs tells where it is, and waits for nobody.
func TestLateMemberTellsWhereItIs(t *testing.T) {
	r := newRig(t)
	r.welcome(10)
	r.set(10, true)
	r.set(20, false, across(false, 8))
	lease := across(false).Lease.ID
	acts := r.step(TaskPrepared{Lease: lease, Mesh: &gpuai.MeshPoint{Port: 7}})
	if rep := mustFind[SendReport](t, acts); rep.Report.Mesh == nil {
		t.Errorf("%+v", rep)
	}
	if m := mustFind[Meet](t, acts); m.Index != 20 || len(m.Peers) != 1 {
		t.Errorf("%+v", m)
	}
	mustFind[Launch](t, acts)
	r.step(TaskStarted{Lease: lease})
	mustLack[Meet](t, r.set(20, false, across(false, 8)))
}
