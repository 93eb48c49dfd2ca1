package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gpuai/gpuai"
)

// serve starts a server that answers with f.
func serve(t *testing.T, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL
}

func open(t *testing.T, addrs ...string) *Client {
	t.Helper()
	c, err := New(Config{Addrs: addrs})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func refuse(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"about:blank","title":"x","status":%d,"code":%q,"detail":%q,"request_id":"r1","added_later":1}`, status, code, detail)
}

func TestSubmitKeepsItsKeyOverServers(t *testing.T) {
	var keys []string
	down := httptest.NewServer(nil)
	down.Close() // nobody listens there any more
	first := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		refuse(w, http.StatusServiceUnavailable, "no_leader", "an election is under way")
	})
	second := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) < 4 {
			refuse(w, http.StatusGatewayTimeout, "outcome_unknown", "retry with the same key")
			return
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"job":{"name":"j"},"leases":[],"index":7,"added_later":true}`)
	})
	c := open(t, down.URL, first, second)
	got, err := c.Submit(t.Context(), SubmitRequest{Spec: &gpuai.JobSpec{Name: "j"}})
	if err != nil || got.Index != 7 || got.Job.Name != "j" {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, k := range keys {
		if k == "" || k != keys[0] {
			t.Fatalf("the keys of one submit differ: %q", keys)
		}
	}
}

func TestErrorsComeWhole(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"code":"invalid_spec","detail":"no","errors":[{"pointer":"/name","detail":"bad"}],"reasons":[{"code":"NoNodes","message":"m"}],"request_id":"r9","index":4}`)
	})
	_, err := open(t, addr).Job(t.Context(), "x")
	var api *gpuai.Error
	if !errors.As(err, &api) || api.Code != gpuai.InvalidSpec || api.Fields[0].Pointer != "/name" ||
		api.Reasons[0].Code != gpuai.NoNodes || api.RequestID != "r9" || api.Index != 4 || api.RetryAfter != 3*gpuai.Second {
		t.Fatalf("%+v", err)
	}
}

func TestForeignAnswersAreTold(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<html>proxy</html>", http.StatusBadGateway)
	})
	if _, err := open(t, addr).Queue(t.Context()); err == nil || !strings.Contains(err.Error(), "502") {
		t.Fatal(err)
	}
}

func TestRetriesEndWithTheContext(t *testing.T) {
	var tries atomic.Int32
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		tries.Add(1)
		refuse(w, http.StatusServiceUnavailable, "no_leader", "an election is under way")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	_, err := open(t, addr).Policy(ctx)
	if !errors.Is(err, gpuai.NewError(gpuai.NoLeader, "")) || tries.Load() < 2 {
		t.Fatalf("%v after %d tries", err, tries.Load())
	}
}

func TestBadAddresses(t *testing.T) {
	for _, addrs := range [][]string{nil, {""}, {"http://"}, {"://x"}} {
		if _, err := New(Config{Addrs: addrs}); err == nil {
			t.Errorf("%q was taken", addrs)
		}
	}
}

func TestListsAndPaths(t *testing.T) {
	var asked []string
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI)
		io.WriteString(w, `{"jobs":[{"name":"a"}],"leases":[],"nodes":[],"pending":[],"tasks":[],"next_cursor":"c2","index":1}`)
	})
	c, ctx := open(t, addr), t.Context()
	running := gpuai.JobRunning
	jobs, next, err := c.Jobs(ctx, JobQuery{Page: Page{Limit: 5, Cursor: "c1"}, Status: &running})
	if err != nil || len(jobs) != 1 || next != "c2" {
		t.Fatalf("%v %q %v", jobs, next, err)
	}
	c.Tasks(ctx, "a/b", Page{})
	c.Leases(ctx, LeaseQuery{Node: "n1", Live: true})
	c.SetDrained(ctx, "n1", true)
	c.Digest(ctx, 9)
	want := []string{
		"GET /v1/jobs?cursor=c1&limit=5&status=running", "GET /v1/jobs/a%2Fb/tasks",
		"GET /v1/leases?live=true&node=n1", "POST /v1/nodes/n1/drain", "GET /v1/operator/digest?index=9",
	}
	if fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Fatalf("asked\n%v\nwant\n%v", asked, want)
	}
}

// A stream that breaks in the middle of an index gives that index again, and
// nothing is lost; a reset ends it.
func TestEventsResume(t *testing.T) {
	var from []string
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		from = append(from, r.URL.Query().Get("index"))
		w.Header().Set("X-GPUAI-Index", "4")
		switch len(from) {
		case 1:
			io.WriteString(w, "{\"index\":5,\"ordinal\":0,\"kind\":\"job_submitted\",\"at_ms\":0}\n\n{\"index\":6,\"ordinal\":0,\"kind\":\"job_ended\",\"at_ms\":0}\n{\"index\":6,\"ord")
		case 2:
			io.WriteString(w, "{\"index\":6,\"ordinal\":0,\"kind\":\"job_ended\",\"at_ms\":0}\n{\"index\":6,\"ordinal\":1,\"kind\":\"job_ended\",\"at_ms\":0}\n")
		default:
			io.WriteString(w, "{\"kind\":\"reset\",\"index\":90}\n")
		}
	})
	var got []string
	err := open(t, addr).Events(t.Context(), EventQuery{}, func(es []gpuai.Event, index uint64) error {
		for _, e := range es {
			got = append(got, fmt.Sprintf("%d.%d", e.Index, e.Ordinal))
		}
		return nil
	})
	if !errors.Is(err, ErrReset) || fmt.Sprint(got) != "[5.0 6.0 6.0 6.1]" || fmt.Sprint(from) != "[ 5 5]" {
		t.Fatalf("%v: events %v from %q", err, got, from)
	}
}

func TestSession(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{gpuai.SessionProtocol}})
		if err != nil {
			return
		}
		typ, b, err := ws.Read(r.Context())
		if err == nil {
			ws.Write(r.Context(), typ, b)
		}
		ws.Close(websocket.StatusNormalClosure, "")
	})
	c := open(t, addr)
	s, err := c.DialSession(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sent := gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &gpuai.Beat{Seq: 1 << 60, Sent: -5}}
	if err := s.Send(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Recv(t.Context()); err != nil || f.Kind != gpuai.FrameBeat || *f.Beat != *sent.Beat {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := s.Recv(t.Context()); err == nil {
		t.Fatal("a closed session gave a frame")
	}
	other := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, http.StatusForbidden, "forbidden", "no") })
	if _, err := c.DialSession(t.Context(), other); !errors.Is(err, gpuai.NewError(gpuai.Forbidden, "")) {
		t.Fatal(err)
	}
}
