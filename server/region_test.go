package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

func TestAJobRunsFromSubmitToSuccess(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		r := startRegion(t, n)
		s := r.servers[n-1].Server // a follower, most often
		a := join(t, s, helloOf("n1", 4))
		sent := time.Now()
		sub := r.submit(jobSpec("train", 2), "")
		if len(sub.Leases) != 2 || sub.Job.Status != gpuai.JobRunning {
			t.Fatalf("%d servers: the job has status %s and %d leases", n, sub.Job.Status, len(sub.Leases))
		}
		held := a.awaitLeases(2)
		t.Logf("%d servers: leases reached the session %s after the submit call", n, time.Since(sent))
		for _, l := range held {
			if code := a.report(l, 1, gpuai.ReportRunning); code != gpuai.OK {
				t.Errorf("running: %s", code)
			}
		}
		for _, l := range held {
			if code := a.report(l, 2, gpuai.ReportDone); code != gpuai.OK {
				t.Errorf("done: %s", code)
			}
		}
		a.awaitLeases(0)
		job, err := s.Job("train", false)
		if err != nil || job.Status != gpuai.JobSucceeded || job.Counts.Succeeded != 2 {
			t.Errorf("%d servers: the job ended as %+v, %v", n, job, err)
		}
		r.equalDigests()
	}
}

func TestReportsAreIdempotent(t *testing.T) { // case 25, the server's half
	t.Parallel()
	r := startRegion(t, 1)
	a := join(t, r.servers[0].Server, helloOf("n1", 1))
	r.submit(jobSpec("j", 1), "")
	l := a.awaitLeases(1)[0]
	for _, step := range []struct {
		name  string
		seq   uint32
		state gpuai.ReportState
		want  gpuai.Code
	}{
		{"running", 1, gpuai.ReportRunning, gpuai.OK},
		{"running, repeated", 1, gpuai.ReportRunning, gpuai.OK},
		{"done", 3, gpuai.ReportDone, gpuai.OK},
		{"done, repeated", 3, gpuai.ReportDone, gpuai.OK},
		{"running, delayed", 2, gpuai.ReportRunning, gpuai.OK},
		{"failed, after the end", 4, gpuai.ReportFailed, gpuai.Conflict},
		{"no such state", 5, gpuai.ReportState(200), gpuai.InvalidSpec},
	} {
		if code := a.report(l, step.seq, step.state); code != step.want {
			t.Errorf("%s: %s, want %s", step.name, code, step.want)
		}
	}
	stale := l
	stale.Lease.Incarnation++
	if code := a.report(stale, 9, gpuai.ReportFailed); code != gpuai.Conflict {
		t.Errorf("another incarnation's report: %s", code)
	}
	unknown := l
	unknown.Lease.ID++
	if code := a.report(unknown, 1, gpuai.ReportDone); code != gpuai.NotFound {
		t.Errorf("a report of no lease: %s", code)
	}
	if job, _ := r.servers[0].Job("j", false); job.Status != gpuai.JobSucceeded {
		t.Errorf("the job is %s", job.Status)
	}
}

func TestIdempotencyKeys(t *testing.T) { // case 32
	t.Parallel()
	r := startRegion(t, 3)
	join(t, r.servers[0].Server, helloOf("n1", 8))
	const calls = 8
	var wg sync.WaitGroup
	ids := make([]gpuai.JobID, calls)
	for i := range calls {
		wg.Go(func() { ids[i] = r.submit(jobSpec("same", 1), "key").Job.ID })
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id.IsZero() {
			t.Fatalf("concurrent submits under one key made jobs %v", ids)
		}
	}
	first := r.submit(jobSpec("same", 1), "key")
	if err := r.leader().node.TransferLeadership(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := r.submit(jobSpec("same", 1), "key")
	if after.Job.ID != ids[0] || after.Index != first.Index || len(after.Leases) != 1 || after.Leases[0].ID != first.Leases[0].ID {
		t.Errorf("after a failover the key answered job %s at index %d, not %s at %d", after.Job.ID, after.Index, ids[0], first.Index)
	}
	_, err := r.leader().Submit(t.Context(), httpd.SubmitRequest{Spec: jobSpec("other", 2), Key: "key"})
	if !isCode(err, gpuai.IdempotencyMismatch) {
		t.Errorf("another body under the same key: %v", err)
	}
	if jobs, _, _ := r.leader().Jobs(httpd.JobQuery{}); len(jobs) != 1 {
		t.Errorf("there are %d jobs", len(jobs))
	}
}

func TestBatches(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	join(t, s.Server, helloOf("n1", 8))
	batch := func() []*gpuai.JobSpec {
		specs := []*gpuai.JobSpec{jobSpec("a", 1), jobSpec("b", 2), jobSpec("c", 1)}
		specs[2].Groups[0].Resources.GPU.Count = 60 // no node has as many
		return specs
	}
	first, err := s.SubmitBatch(t.Context(), batch(), "k")
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.SubmitBatch(t.Context(), batch(), "k")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		code   gpuai.Code
		leased uint32
	}{{gpuai.OK, 1}, {gpuai.OK, 2}, {gpuai.Unschedulable, 0}} {
		if first[i].Code != want.code || first[i].Leased != want.leased {
			t.Errorf("job %d: %+v", i, first[i])
		}
		if again[i].Job != first[i].Job || again[i].Code != first[i].Code || again[i].Index != first[i].Index {
			t.Errorf("job %d under the same key: %+v, then %+v", i, first[i], again[i])
		}
	}
}

func TestALeaderChangeDeclaresNobodyDead(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	var agents []*testAgent
	for i, m := range r.servers {
		a := join(t, m.Server, helloOf("n"+string(rune('1'+i)), 2))
		agents = append(agents, a)
	}
	r.submit(jobSpec("array", 6), "")
	for _, a := range agents {
		a.awaitLeases(2)
		a.keepBeating()
	}
	old := r.leader()
	stopped := agents[0]
	for i, m := range r.servers {
		if m == old {
			stopped = agents[i]
		}
	}
	r.halt(old) // its agent goes to another server, as agents do
	if x := stopped.refusal(); x.Code != gpuai.NoLeader {
		t.Errorf("the agent of a server that stops was told %+v", x)
	}
	next := r.leader()
	h := stopped.hello
	h.Replaces = stopped.welcome.Incarnation
	moved := join(t, next.Server, h)
	moved.keepBeating()
	if moved.welcome.Incarnation != stopped.welcome.Incarnation {
		t.Errorf("moving to another server made incarnation %d of %d", moved.welcome.Incarnation, stopped.welcome.Incarnation)
	}
	moved.awaitLeases(2)
	ack := moved.beatUntilAcked()
	if len(ack.Tokens) != 2 {
		t.Errorf("the new leader's ack names %d leases", len(ack.Tokens))
	}
	var c fsm.Counts
	next.node.View(func(m *fsm.Machine) { c = m.Counts() })
	if c.Leases != 6 || c.Nodes[gpuai.NodeReady] != 3 {
		t.Errorf("after the change of leaders: %d leases, nodes %v", c.Leases, c.Nodes)
	}
	r.restart(old)
	r.equalDigests()
}

func TestASilentNodeLosesItsLeasesOnlyAfterTheirTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a lease's TTL and grace: 17 s")
	}
	t.Parallel()
	r := startRegion(t, 3)
	p := gpuai.DefaultPolicy()
	p.TTLBatch, p.Grace, p.SuspectAfter, p.BeatEvery = gpuai.MinLeaseTTL, 2*gpuai.Second, 5*gpuai.Second, gpuai.Second
	r.write(func(m *member) error { return m.SetPolicy(t.Context(), p) })
	f := r.followers()
	dead := join(t, f[0].Server, helloOf("dead", 1))
	r.submit(jobSpec("j", 1), "")
	lease := dead.awaitLeases(1)[0]
	dead.report(lease, 1, gpuai.ReportRunning)
	sent := time.Now() // before the beat: the lease lasts at least from here
	dead.beatUntilAcked()
	dead.conn.close()
	alive := join(t, f[1].Server, helloOf("alive", 1))
	alive.keepBeating()
	placed := alive.awaitLeases(1)[0]
	took := placed.Lease.GrantedAt - lease.Lease.GrantedAt
	if wait := alive.arrived[placed.Lease.ID].Sub(sent); wait < 17*time.Second || wait > 22*time.Second {
		t.Errorf("the task was placed again after %s (%d ms of region time), want 17 s and a little", wait, took)
	}
	if placed.Lease.ID <= lease.Lease.ID {
		t.Errorf("the later lease has token %s, the earlier %s", placed.Lease.ID, lease.Lease.ID)
	}
	// The old runner comes back: what it says counts no more.
	h := dead.hello
	h.Replaces = dead.welcome.Incarnation
	back := join(t, f[0].Server, h)
	if code := back.report(lease, 2, gpuai.ReportDone); code != gpuai.Conflict && code != gpuai.NotFound {
		t.Errorf("the report of an expired lease: %s", code)
	}
	if n, err := r.leader().Node("dead", ""); err != nil || n.State != gpuai.NodeReady {
		t.Errorf("the node that came back is %s, %v", n.State, err)
	}
	r.equalDigests()
}

func TestWritesAreForwardedToTheLeader(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	f := r.followers()[0]
	a := join(t, f.Server, helloOf("n1", 2))
	body, err := json.Marshal(jobSpec("forwarded", 2))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{http.StatusCreated, http.StatusCreated} { // the second by its key
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+f.HTTPAddr()+"/v1/jobs", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "once")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("submit %d through a follower: %s: %s", i, resp.Status, answer)
		}
	}
	a.awaitLeases(2)
	if jobs, _, _ := r.leader().Jobs(httpd.JobQuery{}); len(jobs) != 1 {
		t.Errorf("there are %d jobs", len(jobs))
	}
	if rt, err := r.leader().Forward(t.Context()); rt != nil || err != nil {
		t.Errorf("the leader forwards: %v, %v", rt, err)
	}
	if err := f.ReadIndex(t.Context()); !isCode(err, gpuai.NoLeader) {
		t.Errorf("a follower answered a linearizable read: %v", err)
	}
	if _, err := f.Submit(t.Context(), httpd.SubmitRequest{Spec: jobSpec("x", 1)}); !isCode(err, gpuai.NoLeader) {
		t.Errorf("a follower took a write: %v", err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	taken := listen(t)
	defer taken.Close()
	r := startRegion(t, 1)
	used := r.servers[0].cfg
	good := func() Config {
		return Config{ID: "x", DataDir: t.TempDir(), HTTPAddr: "127.0.0.1:0", RaftAddr: "127.0.0.1:0", Bootstrap: true}
	}
	foreign := t.TempDir()
	for _, id := range []gpuai.ServerID{"y"} {
		c := good()
		c.ID, c.DataDir = id, foreign
		s, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"port in use", func(c *Config) { c.HTTPAddr = taken.Addr().String() }, "is in use by another process"},
		{"data directory in use", func(c *Config) { c.DataDir = used.DataDir }, "is already in use by process"},
		{"another server's directory", func(c *Config) { c.DataDir = foreign }, "belongs to server y"},
		{"not loopback", func(c *Config) { c.HTTPAddr = "0.0.0.0:0" }, "--insecure-plaintext"},
		{"no name", func(c *Config) { c.ID = "No Name" }, "is not a name"},
		{"no directory", func(c *Config) { c.DataDir = "" }, "--data"},
	}
	for _, tt := range tests {
		c := good()
		tt.change(&c)
		s, err := Open(c)
		if err == nil {
			t.Errorf("%s: opened", tt.name)
			s.Close()
			continue
		}
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q does not say %q in one line", tt.name, err, tt.want)
		}
	}
	c := good()
	c.HTTPAddr, c.InsecurePlaintext = "0.0.0.0:0", true
	s, err := Open(c)
	if err != nil {
		t.Fatalf("with --insecure-plaintext: %v", err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}
