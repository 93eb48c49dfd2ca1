package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gpuai/gpuai"
)

func TestEveryAnswerHasItsHeaders(t *testing.T) {
	b := newTwin()
	b.status.LastContact = 7
	s := serve(t, b)
	for _, path := range []string{"/v1/jobs", "/v1/nodes/gpu-0", "/healthz", "/metrics", "/nope", "/v1/jobs?x=1"} {
		resp, _ := ask(t, s, "GET", path, "", "X-Request-Id: mine-1")
		h := resp.Header
		if h.Get(headerIndex) != "10" || h.Get(headerLastContact) != "7" || h.Get(headerLeader) != "true" ||
			h.Get(headerRequestID) != "mine-1" || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, h)
		}
	}
	resp, _ := ask(t, s, "GET", "/healthz", "", "X-Request-Id: no spaces please")
	if id := resp.Header.Get(headerRequestID); id == "" || strings.Contains(id, " ") {
		t.Errorf("a bad request ID became %q", id)
	}
	resp, _ = ask(t, s, "GET", "/v1/nodes/gpu-0", "")
	if resp.Header.Get("ETag") != `"2"` {
		t.Errorf("ETag %q is not the modify index", resp.Header.Get("ETag"))
	}
	resp, _ = ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	if resp.Header.Get("Location") == "" || resp.Header.Get(headerIndex) != "11" {
		t.Errorf("a submit's headers: %v", resp.Header)
	}
	resp, _ = ask(t, s, "DELETE", "/v1/jobs", "")
	if resp.Header.Get("Allow") != "GET, POST" {
		t.Errorf("Allow: %q", resp.Header.Get("Allow"))
	}
	if resp, body := ask(t, s, "HEAD", "/healthz", ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
}

// Every code has a status and a title, and 5xx and 429 say when to come again.
func TestCodesAndStatuses(t *testing.T) {
	want := map[gpuai.Code]int{
		gpuai.InvalidSpec: 400, gpuai.NotFound: 404, gpuai.Conflict: 409, gpuai.PreconditionFailed: 412,
		gpuai.Unauthenticated: 401, gpuai.Forbidden: 403, gpuai.QuotaExceeded: 429, gpuai.BudgetExceeded: 402,
		gpuai.Unschedulable: 422, gpuai.IdempotencyMismatch: 422, gpuai.RateLimited: 429, gpuai.NoLeader: 503,
		gpuai.OutcomeUnknown: 504, gpuai.TooLarge: 413, gpuai.Internal: 500, gpuai.DiskLow: 503,
	}
	b := newTwin()
	s, doc := serve(t, b), newContract(t)
	for code, status := range want {
		b.fail = &gpuai.Error{Code: code, Detail: "said why", Index: 5, RetryAfter: 1500}
		resp, body := ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
		doc.checkProblem(t, resp, body)
		if p := object(t, body); resp.StatusCode != status || p["code"] != code.String() || p["detail"] != "said why" || p["index"] != float64(5) {
			t.Errorf("%s: %d %s", code, resp.StatusCode, body)
		}
		if got := resp.Header.Get("Retry-After"); got != "2" {
			t.Errorf("%s: Retry-After %q", code, got)
		}
	}
	if len(want) != len(answers)-1 {
		t.Errorf("%d codes are tested, there are %d", len(want), len(answers)-1)
	}
	b.fail = errors.New("the password is swordfish")
	resp, body := ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	if resp.StatusCode != 500 || strings.Contains(body, "swordfish") {
		t.Errorf("an internal error told too much: %d %s", resp.StatusCode, body)
	}
	b.fail = &gpuai.Error{Code: gpuai.Conflict, Detail: "no \xff UTF-8"}
	if resp, body := ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1)); resp.StatusCode != 409 || object(t, body)["code"] != "conflict" {
		t.Errorf("a detail that is no UTF-8: %d %s", resp.StatusCode, body)
	}
}

func TestQueriesAreStrict(t *testing.T) {
	s := serve(t, newTwin())
	for _, path := range []string{
		"/v1/jobs?limt=5", "/v1/jobs?limit=0", "/v1/jobs?limit=1&limit=2", "/v1/jobs?limit=%zz", "/v1/jobs?consistency=maybe",
		"/v1/jobs?wait=30s", "/v1/jobs?index=1&wait=6m", "/v1/jobs?index=-1", "/v1/jobs?index=1&wait=x", "/v1/jobs?fields=id,nope",
		"/v1/jobs?filter=status+%3D%3D", "/v1/jobs?filter=" + strings.Repeat("a", maxFilter+1), "/v1/jobs?cursor=" + strings.Repeat("1", maxCursor+1),
		"/v1/nodes/gpu-0?fields=id", "/v1/events?index=x", "/v1/leases?live=1", "/v1/jobs?archived=1", "/v1/operator/digest?index=x",
		"/v1/jobs/a/logs?limit=0", "/v1/jobs/a/logs?offset=x", "/v1/jobs/a/logs?wait=2m", "/v1/jobs/a/logs?group=70000", "/v1/jobs/a/logs?follow=maybe",
	} {
		if resp, body := ask(t, s, "GET", path, ""); resp.StatusCode != 400 || !strings.Contains(body, "invalid_spec") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

func TestEncodedPaths(t *testing.T) {
	s := serve(t, newTwin())
	ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	for path, status := range map[string]int{
		"/v1/jobs/%61": 200, "/v1/jobs/a%2Ftasks": 404, "/v1/jobs//": 404, "/v1/jobs/": 404, "/v1//jobs": 404,
		"/v1/jobs/../nodes": 404, "/v1/jobs/" + strings.Repeat("a", 300): 404,
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
		req.URL.Opaque = "//" + s.Listener.Addr().String() + path
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, status)
		}
	}
}

func TestReadyz(t *testing.T) {
	b := newTwin()
	b.status.Ready, b.status.NotReady = false, "it has applied index 3 of 9"
	s := serve(t, b)
	resp, body := ask(t, s, "GET", "/readyz", "")
	newContract(t).checkProblem(t, resp, body)
	if resp.StatusCode != 503 || !strings.Contains(body, "index 3 of 9") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := ask(t, s, "GET", "/healthz", ""); resp.StatusCode != 200 {
		t.Errorf("healthz of a server that is not ready: %d", resp.StatusCode)
	}
}

func TestOtherSitesAreRefused(t *testing.T) {
	s := serve(t, newTwin())
	resp, body := ask(t, s, "POST", "/v1/nodes/gpu-0/drain", "", "Sec-Fetch-Site: cross-site")
	if resp.StatusCode != 403 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := ask(t, s, "GET", "/v1/nodes", "", "Sec-Fetch-Site: cross-site"); resp.StatusCode != 200 {
		t.Errorf("a read: %d", resp.StatusCode)
	}
}

// panicky panics where a backend never should.
type panicky struct{ *twin }

func (panicky) Queue(gpuai.TenantID) gpuai.QueueStatus { panic("two leases on one device") }

func TestPanicsAreAnswered(t *testing.T) {
	s := serve(t, panicky{newTwin()})
	for range 3 {
		if resp, body := ask(t, s, "GET", "/v1/queue", ""); resp.StatusCode != 500 || strings.Contains(body, "device") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestDefaultReadsAreLinearizable(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	reads := []string{"/v1/jobs", "/v1/jobs/a", "/v1/jobs/a/tasks", "/v1/jobs/a/checkpoints", "/v1/jobs/a/explain", "/v1/leases", "/v1/nodes", "/v1/nodes/gpu-0", "/v1/queue", "/v1/queue/pending", "/v1/tenants", "/v1/operator/policy", "/v1/operator/demand"}
	for i, path := range reads {
		ask(t, s, "GET", path, "")
		if b.barriers != i+1 {
			t.Fatalf("%s made no linearizable point", path)
		}
	}
	for _, path := range reads {
		ask(t, s, "GET", path+"?consistency=stale", "")
	}
	for _, path := range []string{"/healthz", "/readyz", "/v1/operator/raft", "/v1/operator/digest", "/metrics", "/v1/jobs/a/logs"} {
		ask(t, s, "GET", path, "")
	}
	if b.barriers != len(reads) {
		t.Errorf("%d points for %d reads", b.barriers, len(reads))
	}
	b.fail = context.DeadlineExceeded
	if resp, body := ask(t, s, "GET", "/v1/jobs", ""); resp.StatusCode != 503 {
		t.Errorf("no majority: %d %s", resp.StatusCode, body)
	}
}

func TestLists(t *testing.T) {
	b := newTwin()
	b.free = 3
	s := serve(t, b)
	for i := range 7 {
		ask(t, s, "POST", "/v1/jobs", spec("job-"+strconv.Itoa(i), 1, 1))
	}
	names := func(query string) (out []string, next string) {
		resp, body := ask(t, s, "GET", "/v1/jobs?"+query, "")
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", query, resp.StatusCode, body)
		}
		v := object(t, body)
		for _, j := range v["jobs"].([]any) {
			name, _ := j.(map[string]any)["name"].(string)
			out = append(out, strings.TrimPrefix(name, "job-"))
		}
		next, _ = v["next_cursor"].(string)
		return out, next
	}
	for _, c := range []struct{ query, names, next string }{
		{"", "6543210", ""},
		{"limit=3", "654", "3"},
		{"limit=3&cursor=3", "321", "6"},
		{"limit=3&cursor=6", "0", ""},
		{"status=pending", "6543", ""},
		{"filter=status+==+running", "210", ""},
		{"limit=2&filter=status+==+running", "21", "6"},
		{"filter=status+!=+running+and+counts.pending+==+1+and+name+matches+%22[46]$%22", "64", ""},
		{"filter=restarts+==+0+and+class+==+batch+and+region+==+local", "6543210", ""},
		{"filter=id+contains+%22Z%22", "", ""},
	} {
		got, next := names(c.query)
		if strings.Join(got, "") != c.names || next != c.next {
			t.Errorf("%s: %v, next %q; want %s, next %q", c.query, got, next, c.names, c.next)
		}
	}
	_, body := ask(t, s, "GET", "/v1/jobs?limit=1&fields=status,name", "")
	if !strings.HasPrefix(body, `{"jobs":[{"name":"job-6","status":"pending"}],"next_cursor":"1","index":`) {
		t.Errorf("fields: %s", body)
	}
	for _, filter := range []string{"nope == 1", "name == 1 or nope is empty", "name is empty == 3", "priority == abc", "name matches \"(\""} {
		req, _ := http.NewRequest("GET", "/v1/jobs", nil)
		q := req.URL.Query()
		q.Set("filter", filter)
		if resp, body := ask(t, s, "GET", "/v1/jobs?"+q.Encode(), ""); resp.StatusCode != 400 {
			t.Errorf("filter %s: %d %s", filter, resp.StatusCode, body)
		}
	}
	_, body = ask(t, s, "GET", `/v1/nodes?filter=labels.rack+==+r1+and+%22sim%22+in+zone+or+devices.0.model+==+H100`, "")
	if n := len(object(t, body)["nodes"].([]any)); n != 3 {
		t.Errorf("%d nodes: %s", n, body)
	}
}

// A filter cannot keep the parser busy.
func TestFilterIsBounded(t *testing.T) {
	for _, f := range []string{strings.Repeat("(", 1000), strings.Repeat("not ", 250) + "a", strings.Repeat("a == 1 or ", 100) + "a == 1"} {
		start := time.Now()
		_, _ = parseFilter(f)
		if d := time.Since(start); d > time.Second {
			t.Errorf("%.20s… took %s", f, d)
		}
	}
}

// callHandler makes one request to h without a network, for virtual time.
func callHandler(ctx context.Context, h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", path, nil))
	return w
}

func TestBlockingQueries(t *testing.T) {
	for _, c := range []struct {
		name, path string
		status     int
		waits      time.Duration // less a recheck
	}{
		{"passed already", "/v1/jobs?index=9&wait=30s", 200, 0},
		{"list sees any change", "/v1/nodes?index=11&wait=30s", 200, time.Second},
		{"job sees its own only", "/v1/jobs/a?index=11&wait=30s", 200, 2 * time.Second},
		{"another job's change is not its", "/v1/nodes/gpu-1?index=11&wait=30s", 200, 30 * time.Second},
		{"the default wait", "/v1/nodes/gpu-1?index=11", 200, 30 * time.Second},
		{"no wait at all", "/v1/nodes/gpu-1?index=11&wait=0s", 200, 0},
		{"what is not there", "/v1/jobs/nope?index=10", 404, 0},
		{"queue", "/v1/queue?index=11&wait=500ms", 200, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTwin()
				h := New(testConfig(b))
				spec := gpuai.JobSpec{Name: "a", Groups: make([]gpuai.Group, 1)}
				spec.Defaults()
				if _, err := b.Submit(t.Context(), SubmitRequest{Spec: &spec}); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(time.Second) // virtual
					_, _ = b.SetDrained(t.Context(), "gpu-0", true)
					time.Sleep(time.Second)
					_, _ = b.StopJob(t.Context(), "a", "")
				})
				start := time.Now()
				w := callHandler(t.Context(), h, c.path)
				if d := time.Since(start); w.Code != c.status || d < c.waits || d > c.waits+recheckEvery {
					t.Errorf("%d after %s, want %s: %s", w.Code, d, c.waits, w.Body)
				}
				wg.Wait()
			})
		})
	}
}

func TestBlockingQueryEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(testConfig(newTwin()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		callHandler(ctx, h, "/v1/jobs?index=99&wait=5m")
		if d := time.Since(start); d > time.Second {
			t.Errorf("it went on for %s", d)
		}
	})
}

// full keeps every request of a class under way until released.
type full struct {
	*twin
	entered chan struct{}
	release chan struct{}
}

func (f full) Submit(ctx context.Context, r SubmitRequest) (gpuai.Submitted, error) {
	f.entered <- struct{}{}
	<-f.release
	return f.twin.Submit(ctx, r)
}

func (f full) ReadIndex(context.Context) error {
	f.entered <- struct{}{}
	<-f.release
	return nil
}

// When the server is full, submits are refused first, then reads, and status
// is answered still.
func TestOrderOfService(t *testing.T) {
	f := full{newTwin(), make(chan struct{}), make(chan struct{})}
	s := serve(t, f, func(c *Config) { c.MaxInFlight = 8 })
	var wg sync.WaitGroup
	hold := func(n int, method, path, body string) {
		for range n {
			wg.Go(func() {
				if resp, text := ask(t, s, method, path, body); resp.StatusCode >= 300 {
					t.Errorf("%s %s was admitted and answered %d %s", method, path, resp.StatusCode, text)
				}
			})
			<-f.entered
		}
	}
	refused := func(method, path, body string, want bool) {
		t.Helper()
		if resp, text := ask(t, s, method, path, body); (resp.StatusCode == 429) != want {
			t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, text)
		}
	}
	hold(4, "POST", "/v1/jobs", spec("a", 1, 1))
	refused("POST", "/v1/jobs", spec("a", 1, 1), true)
	hold(3, "GET", "/v1/jobs", "")
	refused("GET", "/v1/jobs", "", true)
	refused("GET", "/healthz", "", false)
	refused("GET", "/v1/operator/raft", "", false)
	close(f.release)
	go func() {
		for range f.entered {
		}
	}()
	wg.Wait()
	refused("POST", "/v1/jobs", spec("a", 1, 1), false)
	close(f.entered)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := serve(t, newTwin(), func(c *Config) { c.Registry = reg })
	for _, path := range []string{"/v1/nodes/gpu-0", "/v1/nodes/gpu-1", "/v1/nodes/nope", "/a", "/b"} {
		ask(t, s, "GET", path, "")
	}
	ask(t, s, "BREW", "/v1/jobs", "")
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	if n := testutil.CollectAndCount(reg, "gpuai_http_request_duration_seconds"); n != 4 {
		t.Errorf("%d series for 2 statuses of one route, and unknown paths and methods", n)
	}
}

// A follower passes whole requests on, once, and answers for itself what is
// about itself.
func TestForwarding(t *testing.T) {
	lead, follow := newTwin(), newTwin()
	lead.index = 500
	ls := serve(t, lead)
	follow.status = Status{Server: "s2", Leader: "s1", Ready: true, LastContact: 12}
	follow.leader = toServer{ls.Listener.Addr().String()}
	fs, doc := serve(t, follow), newContract(t)

	resp, body := ask(t, fs, "POST", "/v1/jobs", spec("a", 1, 1), "Idempotency-Key: k", "X-Request-Id: r-1")
	if resp.StatusCode != 201 || resp.Header.Get(headerIndex) != "501" || len(resp.Header.Values(headerIndex)) != 1 || resp.Header.Get(headerRequestID) != "r-1" {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	if len(lead.jobs) != 1 || len(follow.jobs) != 0 || lead.keys["k"].Index != 501 {
		t.Error("the submit did not reach the leader whole")
	}
	for path, want := range map[string]string{
		"/v1/jobs/a": "501", "/v1/jobs?consistency=stale": "10", "/v1/operator/raft": "10", "/v1/operator/digest": "10", "/healthz": "10",
	} {
		resp, body := ask(t, fs, "GET", path, "")
		if resp.StatusCode != 200 || resp.Header.Get(headerIndex) != want {
			t.Errorf("%s: %d at %s, want %s: %s", path, resp.StatusCode, resp.Header.Get(headerIndex), want, body)
		}
	}
	resp, body = ask(t, fs, "GET", "/v1/jobs/nope", "")
	doc.checkProblem(t, resp, body)
	if resp, body := ask(t, fs, "GET", "/v1/operator/snapshot", ""); resp.StatusCode != 200 || len(body) != 800_000 {
		t.Errorf("a snapshot through a follower: %d, %d bytes", resp.StatusCode, len(body))
	}
	resp, body = ask(t, fs, "POST", "/v1/jobs", spec("b", 1, 1), headerForwarded+": 1")
	doc.checkProblem(t, resp, body)
	if resp.StatusCode != 503 {
		t.Errorf("a request was forwarded twice: %d", resp.StatusCode)
	}
	resp, body = ask(t, fs, "POST", "/v1/jobs", `{"name":"`+strings.Repeat("a", 2<<20)+`"}`)
	if resp.StatusCode != 413 {
		t.Errorf("a large body through a follower: %d %s", resp.StatusCode, body)
	}
	resp, body = ask(t, fs, "POST", "/v1/jobs:batch", `{"x":"`+strings.Repeat("a", 9<<20)+`"}`)
	if resp.StatusCode != 413 {
		t.Errorf("a larger body: %d %s", resp.StatusCode, body)
	}
}

// brokenLeader loses the answer, after or before it was reached.
type brokenLeader struct{ err error }

func (b brokenLeader) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return nil, b.err
}

// Who writes through a follower finds there what it has written: the answer
// comes once the follower has applied it.
func TestForwardedWriteIsThere(t *testing.T) {
	lead, follow := newTwin(), newTwin()
	ls := serve(t, lead)
	follow.status = Status{Server: "s2", Leader: "s1", Ready: true}
	follow.leader = toServer{ls.Listener.Addr().String()}
	fs := serve(t, follow)
	done := make(chan uint64, 1)
	go func() {
		ask(t, fs, "POST", "/v1/jobs", spec("a", 1, 1))
		done <- follow.Status().Index
	}()
	for { // until the leader has it
		lead.mu.Lock()
		n := len(lead.jobs)
		lead.mu.Unlock()
		if n == 1 {
			break
		}
		runtime.Gosched()
	}
	follow.mu.Lock()
	follow.commit(gpuai.Event{Kind: gpuai.JobSubmitted})
	follow.mu.Unlock()
	if at := <-done; at != 11 {
		t.Errorf("the answer came at index %d of the follower, want 11", at)
	}
}

// A follower that cannot apply, as on a full disk, holds no answer back for it,
// and serves nothing that is always read here: what was just written through it
// is not there. A stale read says how old it is.
func TestCase7ForwardedByAStalledServer(t *testing.T) {
	lead, follow := newTwin(), newTwin()
	lead.index = 500
	ls := serve(t, lead)
	follow.status = Status{Server: "s2", Leader: "s1", Stalled: "a write of server s2's log has been waiting for its disk for 3s", LastContact: 3000}
	follow.leader = toServer{ls.Listener.Addr().String()}
	fs, doc := serve(t, follow), newContract(t)

	began := time.Now()
	for i := range 5 { // each would wait for a second
		resp, body := ask(t, fs, "POST", "/v1/jobs", spec("a"+strconv.Itoa(i), 1, 1))
		if resp.StatusCode/100 != 2 || resp.Header.Get(headerIndex) != strconv.Itoa(501+i) {
			t.Errorf("a submit: %d at %s: %s", resp.StatusCode, resp.Header.Get(headerIndex), body)
		}
	}
	if d := time.Since(began); d > 4*writeSettles {
		t.Errorf("5 submits took %v", d)
	}
	for _, path := range []string{"/v1/jobs/a0/logs", "/v1/events"} {
		resp, body := ask(t, fs, "GET", path, "")
		doc.checkProblem(t, resp, body)
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(body), "ask another server") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, _ := ask(t, fs, "GET", "/v1/jobs/a0", ""); resp.StatusCode != 200 {
		t.Errorf("a read through it: %d", resp.StatusCode)
	}
	resp, _ := ask(t, fs, "GET", "/v1/jobs?consistency=stale", "")
	if resp.StatusCode != 200 || resp.Header.Get(headerIndex) != "10" || resp.Header.Get(headerLastContact) != "3000" {
		t.Errorf("a stale read: %d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := ask(t, fs, "GET", "/v1/operator/server", ""); resp.StatusCode != 200 {
		t.Errorf("how it is: %d", resp.StatusCode)
	}
}

func TestForwardingFails(t *testing.T) {
	follow := newTwin()
	follow.status = Status{Server: "s2", Ready: true}
	s, doc := serve(t, follow), newContract(t)
	nobody := toServer{"127.0.0.1:1"}
	for _, c := range []struct {
		name         string
		leader       http.RoundTripper
		method, path string
		status       int
	}{
		{"no leader", nil, "POST", "/v1/jobs", 503},
		{"no leader, a read", nil, "GET", "/v1/jobs", 503},
		{"leader not reached", nobody, "POST", "/v1/jobs", 503},
		{"leader not reached, a read", nobody, "GET", "/v1/jobs", 503},
		{"answer lost", brokenLeader{io.ErrUnexpectedEOF}, "POST", "/v1/jobs", 504},
		{"answer lost, a read", brokenLeader{io.ErrUnexpectedEOF}, "GET", "/v1/jobs", 503},
		{"told why", brokenLeader{gpuai.NewError(gpuai.NoLeader, "it moved")}, "POST", "/v1/jobs", 503},
	} {
		follow.leader = c.leader
		text := ""
		if c.method == "POST" {
			text = spec("a", 1, 1)
		}
		resp, body := ask(t, s, c.method, c.path, text)
		doc.checkProblem(t, resp, body)
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, resp.StatusCode, c.status, body)
		}
	}
	if resp, _ := ask(t, s, "GET", "/v1/jobs?consistency=stale", ""); resp.StatusCode != 200 || resp.Header.Get(headerLeader) != "false" {
		t.Errorf("a stale read without a leader: %d", resp.StatusCode)
	}
}
