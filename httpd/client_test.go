package httpd

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// connect returns a client of servers at urls.
func connect(t *testing.T, urls ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addrs: urls, HTTP: &http.Client{Transport: &http.Transport{}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check fails the test on an error.
func check[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wireSpec(name string, gpus uint32) *gpuai.JobSpec {
	return &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: gpus}}, Task: gpuai.TaskSpec{Command: []string{"true"}},
	}}}
}

// The client and the API agree on every route.
func TestClientSpeaksTheAPI(t *testing.T) {
	b := newTwin()
	b.output, b.ended = []byte("hello\n"), true
	c, ctx := connect(t, serve(t, b).URL), t.Context()
	sub := check[gpuai.Submitted](t)(c.Submit(ctx, client.SubmitRequest{Spec: wireSpec("a", 1), Key: "k"}))
	again := check[gpuai.Submitted](t)(c.Submit(ctx, client.SubmitRequest{Spec: wireSpec("a", 1), Key: "k"}))
	if sub.Job.ID != again.Job.ID || len(sub.Leases) != 1 || len(b.jobs) != 1 {
		t.Errorf("%+v, then %+v", sub, again)
	}
	if _, err := c.Submit(ctx, client.SubmitRequest{Spec: wireSpec("big", 9)}); !is(err, gpuai.Unschedulable) {
		t.Error(err)
	}
	check[gpuai.Submitted](t)(c.Submit(ctx, client.SubmitRequest{Spec: wireSpec("big", 9), HoldAnyway: true}))
	check[gpuai.Submitted](t)(c.Plan(ctx, wireSpec("b", 1)))
	if rs := check[[]gpuai.BatchResult](t)(c.SubmitBatch(ctx, []gpuai.JobSpec{*wireSpec("b1", 1), *wireSpec("b2", 9)}, "bk")); len(rs) != 2 || rs[1].Code != gpuai.Unschedulable {
		t.Errorf("%+v", rs)
	}
	body := mustJSON(t, &gpuai.BatchRequest{Jobs: []gpuai.JobSpec{*wireSpec("b3", 1)}})
	if rs := check[[]gpuai.BatchResult](t)(c.SubmitEncoded(ctx, body, "")); rs[0].Code != gpuai.OK || b.batch[1] == "" {
		t.Errorf("%+v under the key %q", rs, b.batch[1])
	}
	if j := check[gpuai.Job](t)(c.Job(ctx, "a")); j.ID != sub.Job.ID || j.Spec == nil || j.Spec.Class != gpuai.ClassBatch {
		t.Errorf("%+v", j)
	}
	jobs, next, err := c.Jobs(ctx, client.JobQuery{Page: client.Page{Limit: 1, Filter: `name == a`, Fields: []string{"name"}}})
	if err != nil || len(jobs) != 1 || jobs[0].Name != "a" || next != "" {
		t.Errorf("%+v %q %v", jobs, next, err)
	}
	if _, _, err := c.Tasks(ctx, "a", client.Page{}); err != nil {
		t.Error(err)
	}
	askEverything(t, c)
	leases, _, err := c.Leases(ctx, client.LeaseQuery{Job: "a", Node: "gpu-0", Live: true})
	if err != nil || len(leases) != 1 {
		t.Errorf("%+v %v", leases, err)
	}
	if l := check[gpuai.Lease](t)(c.Lease(ctx, leases[0].ID)); l.ID != sub.Leases[0].ID {
		t.Errorf("%+v", l)
	}
	if nodes, _, err := c.Nodes(ctx, client.Page{Read: client.Read{Stale: true}}); err != nil || len(nodes) != 3 {
		t.Errorf("%+v %v", nodes, err)
	}
	if n := check[gpuai.Node](t)(c.SetDrained(ctx, "gpu-1", true)); !n.Drained {
		t.Error("not drained")
	}
	check[gpuai.Node](t)(c.Node(ctx, "gpu-1"))
	check[gpuai.QueueStatus](t)(c.Queue(ctx))
	if _, _, err := c.Pending(ctx, client.Page{}); err != nil {
		t.Error(err)
	}
	checkTenants(t, c)
	p := check[gpuai.Policy](t)(c.Policy(ctx))
	p.FlapLimit++
	if err := c.SetPolicy(ctx, p); err != nil || b.policy != p {
		t.Error(err)
	}
	check[gpuai.RaftStatus](t)(c.Raft(ctx))
	check[gpuai.DigestAt](t)(c.Digest(ctx, 3))
	var snapshot bytes.Buffer
	if err := c.Snapshot(ctx, &snapshot); err != nil || snapshot.Len() != 800_000 {
		t.Errorf("%d bytes, %v", snapshot.Len(), err)
	}
	if chunk := check[gpuai.LogChunk](t)(c.Logs(ctx, client.LogQuery{Job: "a", Offset: -3})); string(chunk.Data) != "lo\n" || !chunk.EOF {
		t.Errorf("%+v", chunk)
	}
	check[gpuai.Job](t)(c.StopJob(ctx, "a", ""))
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
}

func is(err error, code gpuai.Code) bool {
	var e *gpuai.Error
	return errors.As(err, &e) && e.Code == code
}

func TestClientSeesWhatIsWrong(t *testing.T) {
	b := newTwin()
	b.status.Ready, b.status.NotReady = false, "it is starting"
	c := connect(t, serve(t, b).URL)
	if err := c.Ready(t.Context()); !is(err, gpuai.NoLeader) || !strings.Contains(err.Error(), "it is starting") {
		t.Error(err)
	}
	_, err := c.Submit(t.Context(), client.SubmitRequest{Spec: &gpuai.JobSpec{Name: "-"}})
	var e *gpuai.Error
	if !errors.As(err, &e) || e.Code != gpuai.InvalidSpec || e.Fields[0].Pointer != "/name" || e.RequestID == "" {
		t.Errorf("%+v", err)
	}
}

func TestClientWatches(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	c := connect(t, s.URL)
	sub := check[gpuai.Submitted](t)(c.Submit(t.Context(), client.SubmitRequest{Spec: wireSpec("a", 1)}))
	go func() {
		<-entered(s.Config.Handler.(*api), classStream)
		_, _ = c.StopJob(context.Background(), "a", "")
	}()
	job, index, err := c.WatchJob(t.Context(), "a", client.Read{After: sub.Index, Wait: 30 * gpuai.Second})
	if err != nil || job.Status != gpuai.JobStopped || index <= sub.Index {
		t.Errorf("%+v at %d, %v", job, index, err)
	}
}

// Events go over from a server that stops to the next, and none is lost.
func TestClientFollowsEventsOverServers(t *testing.T) {
	b := newTwin()
	first, second := serve(t, b), serve(t, b)
	c := connect(t, first.URL, second.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := errors.New("done")
	seen := map[uint64]bool{}
	_, _ = b.SetDrained(ctx, "gpu-0", true)
	err := c.Events(ctx, client.EventQuery{From: 10}, func(es []gpuai.Event, _ uint64) error {
		for _, e := range es {
			seen[e.Index] = true
		}
		if len(seen) == 5 {
			return done
		}
		if len(seen) == 2 {
			first.CloseClientConnections()
			first.Close()
		}
		_, err := b.SetDrained(ctx, "gpu-0", len(seen)%2 == 0)
		return err
	})
	if !errors.Is(err, done) {
		t.Errorf("%v after %v", err, seen)
	}
	for i := uint64(11); i < 16; i++ {
		if !seen[i] {
			t.Errorf("the event at %d was lost: %v", i, seen)
		}
	}
}

// A session's frames pass unchanged both ways.
func TestClientSession(t *testing.T) {
	s := serve(t, newTwin())
	session, err := connect(t, s.URL).DialSession(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	sent := gpuai.Frame{Kind: gpuai.FrameLog, Log: &gpuai.LogChunk{ID: 1, Data: bytes.Repeat([]byte{0xff}, 100_000)}}
	if err := session.Send(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	got, err := session.Recv(t.Context())
	if err != nil || !bytes.Equal(mustJSON(t, &got), mustJSON(t, &sent)) {
		t.Errorf("%v %+v", err, got.Kind)
	}
}

// askEverything asks what is answered on copies of the state.
func askEverything(t *testing.T, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	check[gpuai.Explanation](t)(c.Explain(ctx, "a", 0))
	check[gpuai.Explanation](t)(c.Explain(ctx, "a", 1))
	if p := check[gpuai.Plan](t)(c.Suppose(ctx, &client.PlanRequest{
		Drain: []gpuai.NodeID{"gpu-1"}, Submit: []*gpuai.JobSpec{wireSpec("p", 1)}, Policy: map[string]any{"flap_limit": 4},
	})); len(p.Jobs) != 1 || len(p.Changes) != 1 || p.Changes[0].Change != gpuai.PlanMoves {
		t.Errorf("%+v", p)
	}
	if j, est, err := c.JobAndStart(ctx, "big"); err != nil || (est != nil) != (j.Counts.Pending > 0) {
		t.Errorf("%+v %+v %v", j, est, err)
	}
}

func checkTenants(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.SetTenantWeight(t.Context(), "a", 7); err != nil {
		t.Error(err)
	}
	if ts, _, err := c.Tenants(t.Context(), client.Page{}); err != nil || len(ts) != 1 || ts[0].Weight != 7 {
		t.Error(ts, err)
	}
}
