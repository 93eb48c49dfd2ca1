package server

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

func TestANewSessionReplacesTheOld(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	h := helloOf("n1", 1)
	first := join(t, r.servers[0].Server, h)
	r.submit(jobSpec("j", 1), "")
	first.awaitLeases(1)
	h.Replaces = first.welcome.Incarnation
	for i, s := range []*Server{r.servers[0].Server, r.servers[1].Server, r.servers[2].Server} {
		next := join(t, s, h)
		if err := first.awaitEnd(); err == nil || !strings.Contains(err.Error(), errReplaced.Error()) {
			t.Errorf("session %d ended with: %v", i, err)
		}
		if next.welcome.Incarnation != first.welcome.Incarnation || next.welcome.Session == first.welcome.Session {
			t.Errorf("session %d: %+v after %+v", i, next.welcome, first.welcome)
		}
		next.awaitLeases(1)
		first = next
	}
	eventually(t, "one session in the region", func() bool {
		n := 0
		for _, m := range r.servers {
			n += m.sessions.len()
		}
		return n == 1
	})
}

// Case 34, the server's half: of two hosts with one identity the newer incarnation
// wins, the older is told to fence, and neither gives out or ends what is the other's.
func TestCase34TwoHostsWithOneIdentity(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	first := join(t, r.servers[0].Server, helloOf("n1", 1))
	r.submit(jobSpec("j", 1), "")
	lease := first.awaitLeases(1)[0]
	thief := helloOf("n1", 1)
	thief.BootID, thief.Nonce = "boot-2", "life-2"
	refused := connect(t, r.servers[1].Server, thief)
	current := refused.refusal()
	if x := current; x.Code != gpuai.Conflict || x.Incarnation != first.welcome.Incarnation {
		t.Fatalf("another host without the incarnation: %+v", x)
	}
	thief.Replaces = current.Incarnation // its operator insists
	second := join(t, r.servers[1].Server, thief)
	if x := first.refusal(); x.Code != gpuai.Conflict || x.Incarnation != second.welcome.Incarnation {
		t.Errorf("the older host was told %+v", x)
	}
	if len(second.held()) != 0 || len(second.welcome.Ack.Tokens) != 0 {
		t.Error("the newer host was sent the older one's lease")
	}
	if l, err := r.leader().Lease(lease.Lease.ID, ""); err != nil || l.State == gpuai.LeaseEnded {
		t.Errorf("registering ended the lease: %+v, %v", l, err)
	}
	defer second.keepBeating()()
	lie := lease
	lie.Lease.Incarnation = second.welcome.Incarnation
	if code := second.report(lie, 1, gpuai.ReportDone); code == gpuai.OK {
		t.Error("the newer host has ended the older one's lease")
	}
	if code := second.report(lease, 2, gpuai.ReportFenced); code != gpuai.OK {
		t.Errorf("that the older host has fenced is answered %s", code)
	}
	if again := second.awaitLeases(1)[0].Lease; again.ID == lease.Lease.ID || again.TaskRef != lease.Lease.TaskRef {
		t.Errorf("the task was placed again as %+v", again)
	}
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.servers[0].Server
	a := join(t, s, helloOf("n1", 2))
	r.submit(jobSpec("j", 2), "")
	leases := a.awaitLeases(2)
	a.conn.close()
	h := a.hello
	h.Nonce, h.Replaces = "life-2", a.welcome.Incarnation
	h.Held = []gpuai.HeldLease{
		{Lease: leases[0].Lease.ID, BootID: "boot-1"}, {Lease: leases[1].Lease.ID, BootID: "boot-0"},
	}
	b := join(t, s, h)
	if held := b.awaitLeases(1); held[0].Lease.ID != leases[0].Lease.ID {
		t.Errorf("adopted %s, want the one that was started in this boot", held[0].Lease.ID)
	}
	if !slices.Equal(b.welcome.Ack.Tokens, []gpuai.Token{leases[0].Lease.ID}) {
		t.Errorf("the welcome renews %v", b.welcome.Ack.Tokens)
	}
	// What belongs to the older life is its to report, whoever carries it.
	if code := b.report(leases[1], 1, gpuai.ReportFenced); code != gpuai.OK {
		t.Errorf("the older life's report: %s", code)
	}
}

func TestHellosThatAreRefused(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	tests := []struct {
		name   string
		change func(*gpuai.Hello)
		want   gpuai.Code
	}{
		{"bad name", func(h *gpuai.Hello) { h.Node.ID = "N 1" }, gpuai.InvalidSpec},
		{"no boot ID", func(h *gpuai.Hello) { h.BootID = "" }, gpuai.InvalidSpec},
		{"too many leases", func(h *gpuai.Hello) { h.Held = make([]gpuai.HeldLease, fsm.MaxNodeLeases+1) }, gpuai.InvalidSpec},
		{"a later epoch", func(h *gpuai.Hello) { h.Epoch = 9 }, gpuai.PreconditionFailed},
		{"another history", func(h *gpuai.Hello) { h.RestoreID = "other" }, gpuai.PreconditionFailed},
	}
	for _, tt := range tests {
		h := helloOf("n1", 1)
		tt.change(&h)
		a := connect(t, r.servers[0].Server, h)
		if x := a.refusal(); x.Code != tt.want || x.Detail == "" {
			t.Errorf("%s: %+v", tt.name, x)
		}
	}
	a := &testAgent{t: t, conn: newPipe(), ended: make(chan error, 1)}
	go func() { a.ended <- r.servers[0].Agent(context.Background(), a.conn) }()
	go a.read()
	a.send(gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &gpuai.Beat{Seq: 1}})
	if x := a.refusal(); x.Code != gpuai.InvalidSpec {
		t.Errorf("a session without a hello: %+v", x)
	}
	b := join(t, r.servers[0].Server, helloOf("n2", 1))
	b.send(gpuai.Frame{Kind: gpuai.FrameWelcome})
	if x := b.refusal(); x.Code != gpuai.InvalidSpec {
		t.Errorf("a frame of the wrong direction: %+v", x)
	}
}

func TestAServerThatIsNotReadyServesNoAgents(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	r.halt(r.servers[0])
	r.halt(r.servers[1])
	m := r.servers[2]
	eventually(t, "server without a leader", func() bool { return !m.Status().Ready })
	a := connect(t, m.Server, helloOf("n1", 1))
	if x := a.refusal(); x.Code != gpuai.NoLeader || x.RetryAfter == 0 {
		t.Errorf("without a leader: %+v", x)
	}
	if _, err := m.Forward(t.Context()); !isCode(err, gpuai.NoLeader) {
		t.Errorf("forwarding without a leader: %v", err)
	}
}

func TestAcksNameWhatIsLive(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	for _, m := range []*member{r.leader(), r.followers()[0]} {
		a := join(t, m.Server, helloOf("on-"+string(m.cfg.ID), 2))
		job := r.submit(jobSpec("j-"+string(m.cfg.ID), 2), "").Job
		held := a.awaitLeases(2)
		ack := a.beatUntilAcked()
		if len(ack.Tokens) != 2 || ack.Incarnation != a.welcome.Incarnation || ack.Index < held[0].Lease.ModifyIndex {
			t.Errorf("ack %+v for leases %v", ack, held)
		}
		if ack.Policy != nil {
			t.Error("an ack repeats a policy that did not change")
		}
		if code := a.report(held[0], 1, gpuai.ReportDone); code != gpuai.OK {
			t.Fatal(code)
		}
		if ack = a.beatUntilAcked(); !slices.Equal(ack.Tokens, []gpuai.Token{held[1].Lease.ID}) {
			t.Errorf("after one lease ended the ack names %v", ack.Tokens)
		}
		r.write(func(m *member) error {
			_, err := m.StopJob(t.Context(), job.ID.String(), "")
			return err
		})
		eventually(t, "order to stop", func() bool {
			h := a.held()
			return len(h) == 1 && h[0].Lease.State == gpuai.LeaseRevoking
		})
		a.report(held[1], 1, gpuai.ReportStopped)
		a.awaitLeases(0)
		p := r.leader().Policy()
		p.FlapLimit++
		r.write(func(m *member) error { return m.SetPolicy(t.Context(), p) })
		if ack = a.beatUntilAcked(); ack.Policy == nil || ack.Policy.FlapLimit != p.FlapLimit {
			t.Errorf("the ack after a change of policy has %+v", ack.Policy)
		}
		r.write(func(m *member) error { // the next job goes to the other node
			_, err := m.SetDrained(t.Context(), a.hello.Node.ID, true)
			return err
		})
	}
}

func TestDevicesAreUpdated(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 2))
	devices := slices.Clone(a.hello.Node.Devices)
	devices[1].Health, devices[1].HealthCode = gpuai.DeviceUnhealthy, "xid:79"
	a.send(gpuai.Frame{Kind: gpuai.FrameDevices, Devices: devices})
	eventually(t, "unhealthy device", func() bool {
		n, err := r.leader().Node("n1", "")
		return err == nil && n.FreeGPUs == 1 && n.Devices[1].HealthCode == "xid:79"
	})
}

// An update that was sent before another one and comes behind it is not the last
// word.
func TestLateUpdateOfDevicesIsCorrected(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 2))
	n, err := r.leader().Node("n1", "")
	if err != nil {
		t.Fatal(err)
	}
	late := slices.Clone(a.hello.Node.Devices)
	late[1].Health = gpuai.DeviceUnhealthy
	c := fsm.UpdateDevices{Node: "n1", Incarnation: n.Incarnation, Devices: late}
	if out, err := r.leader().propose(t.Context(), c.Append(nil, fsm.Envelope{})); err != nil || out[0].Code != gpuai.OK {
		t.Fatal(out, err)
	}
	eventually(t, "what the agent said last", func() bool {
		n, err := r.leader().Node("n1", "")
		return err == nil && n.FreeGPUs == 2 && n.ModifyIndex > n.RegisterIndex
	})
}

func TestLogsAreReadThroughAnyServer(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.servers[0].Server, helloOf("n1", 1))
	asked := make(chan gpuai.LogRequest, 8)
	a.logs = func(q gpuai.LogRequest) gpuai.LogChunk {
		asked <- q
		return gpuai.LogChunk{Offset: q.Offset, Data: []byte("hello"), EOF: true}
	}
	r.submit(jobSpec("j", 1), "")
	lease := a.awaitLeases(1)[0].Lease.ID
	for _, m := range r.servers {
		eventually(t, "lease on server "+string(m.cfg.ID), func() bool { _, err := m.Lease(lease, ""); return err == nil })
		c, err := m.Logs(t.Context(), httpd.LogQuery{Job: "j", Offset: 3, Limit: 100})
		if err != nil || string(c.Data) != "hello" || !c.EOF || c.Offset != 3 {
			t.Errorf("server %s: %+v, %v", m.cfg.ID, c, err)
			continue
		}
		if q := <-asked; q.Lease != lease || q.Stream != "stdout" || q.Limit != 100 {
			t.Errorf("the agent was asked %+v", q)
		}
	}
	for name, q := range map[string]httpd.LogQuery{
		"no job": {Job: "nobody"}, "no task": {Job: "j", Task: 1}, "no group": {Job: "j", Group: 1}, "no lease": {Lease: 1},
	} {
		if _, err := r.servers[0].Logs(t.Context(), q); !isCode(err, gpuai.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a.conn.close()
	a.awaitEnd()
	for _, m := range r.servers {
		if _, err := m.Logs(t.Context(), httpd.LogQuery{Job: "j"}); !isCode(err, gpuai.NotFound) {
			t.Errorf("server %s, without the agent: %v", m.cfg.ID, err)
		}
	}
}

// A follower is asked for the output of a lease that the leader has just
// granted and told of.
func TestLogsOfALeaseJustGranted(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.leader().Server, helloOf("n1", 8))
	a.logs = func(q gpuai.LogRequest) gpuai.LogChunk { return gpuai.LogChunk{Data: []byte("hello"), EOF: true} }
	for range 8 {
		out := r.submit(jobSpec("j", 1), "")
		for _, m := range r.followers() {
			if _, err := m.Logs(t.Context(), httpd.LogQuery{Lease: out.Leases[0].ID, Limit: 100}); err != nil {
				t.Fatalf("server %s: %v", m.cfg.ID, err)
			}
		}
	}
}

func TestAStuckAgentIsCut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the bound on one frame: 5 s")
	}
	t.Parallel()
	r := startRegion(t, 1)
	stuck := &testAgent{t: t, conn: newPipe(), ended: make(chan error, 1)}
	h := helloOf("n1", 1)
	go func() { stuck.ended <- r.servers[0].Agent(context.Background(), stuck.conn) }()
	stuck.send(gpuai.Frame{Kind: gpuai.FrameHello, Hello: &h}) // and reads nothing
	if err := stuck.awaitEnd(); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
		t.Errorf("the session ended with: %v", err)
	}
	if n := r.servers[0].sessions.len(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

func TestARestoredStateIsSentWhole(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.servers[0].Server
	a := join(t, s, helloOf("n1", 2))
	r.submit(jobSpec("j", 2), "")
	a.awaitLeases(2)
	a.mu.Lock()
	clear(a.leases) // as if the diffs had been missed
	a.mu.Unlock()
	s.restored()
	a.awaitLeases(2)
	if _, err := s.hub.Subscribe(hubAll, 0); err == nil {
		t.Error("events before a restore are offered")
	}
}

func TestPushLatency(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 60))
	var took []time.Duration
	for i := range 50 {
		sent := time.Now()
		sub := r.submit(jobSpec("j", 1), "")
		a.awaitLeases(i + 1)
		a.mu.Lock()
		took = append(took, a.arrived[sub.Leases[0].ID].Sub(sent))
		a.mu.Unlock()
	}
	slices.Sort(took)
	t.Logf("from the submit call to a follower's session: p50 %s, worst %s", took[25], took[49])
	if took[25] > 500*time.Millisecond { // 10 ms on a quiet machine: the bench says
		t.Errorf("half of the pushes took more than %s", took[25])
	}
}
