package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

func is(err error, code gpuai.Code) bool {
	var e *gpuai.Error
	return errors.As(err, &e) && e.Code == code
}

// hang answers nothing until its caller goes.
func hang(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the caller go
	<-r.Context().Done()
}

// cut closes the connection without an answer.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func submitted(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"job":{"name":"j"},"leases":[],"index":7}`)
}

// A server that hangs costs one attempt's time, once: then the next is asked
// first.
func TestAHungServerIsPassedOver(t *testing.T) {
	var asked atomic.Int32
	slow := serve(t, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); hang(w, r) })
	c, err := New(Config{Addrs: []string{slow, serve(t, submitted)}, AttemptTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Submit(t.Context(), SubmitRequest{Spec: &gpuai.JobSpec{}}); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("the server that hangs was asked %d times", asked.Load())
	}
}

// An answer that is held at the caller's wish is no hung server.
func TestWaitsLengthenTheAttempt(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(300 * time.Millisecond): // the server's own hold
			_, _ = io.WriteString(w, `{"id":0,"offset":0}`)
		case <-r.Context().Done():
		}
	})
	c, err := New(Config{Addrs: []string{addr}, AttemptTimeout: 50 * time.Millisecond, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Logs(t.Context(), LogQuery{Job: "a", Wait: 10 * gpuai.Second}); err != nil {
		t.Error(err)
	}
	if _, err := c.Logs(t.Context(), LogQuery{Job: "a"}); !is(err, gpuai.NoLeader) {
		t.Error(err)
	}
}

// What is known of a request that nobody answered.
func TestUnanswered(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	for _, c := range []struct {
		name, addr string
		call       func(context.Context, *Client) error
		code       gpuai.Code
	}{
		{"a write that was cut", serve(t, cut), submitOne, gpuai.OutcomeUnknown},
		{"a write that reached nobody", down.URL, submitOne, gpuai.NoLeader},
		{"a read that was cut", serve(t, cut), readOne, gpuai.NoLeader},
		{"a read that reached nobody", down.URL, readOne, gpuai.NoLeader},
		{"an answer that is cut short", serve(t, half), submitOne, gpuai.OutcomeUnknown},
		{"an answer that is no answer", serve(t, nonsense), submitOne, gpuai.Internal},
	} {
		client, err := New(Config{Addrs: []string{c.addr}, RetryFor: -1})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.call(t.Context(), client); !is(err, c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err = c.call(ctx, open(t, c.addr))
		cancel()
		if !is(err, c.code) || c.code != gpuai.Internal && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s, until the context ended: %v", c.name, err)
		}
	}
}

// One server may have done what it did not answer: that no other one could take
// it says nothing about the first.
func TestDoubtIsKept(t *testing.T) {
	noLeader := func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, "no_leader", "an election") }
	down := httptest.NewServer(nil)
	down.Close()
	for _, c := range []struct {
		name  string
		addrs []string
		call  func(context.Context, *Client) error
		code  gpuai.Code
	}{
		{"cut, then no leader", []string{serve(t, cut), serve(t, noLeader)}, submitOne, gpuai.OutcomeUnknown},
		{"cut, then nobody", []string{serve(t, cut), down.URL}, submitOne, gpuai.OutcomeUnknown},
		{"not known, then no leader", []string{serve(t, func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, 504, "outcome_unknown", "send it again")
		}), serve(t, noLeader)}, submitOne, gpuai.OutcomeUnknown},
		{"no leader, then nobody", []string{serve(t, noLeader), down.URL}, submitOne, gpuai.NoLeader},
		{"a read that was cut, then no leader", []string{serve(t, cut), serve(t, noLeader)}, readOne, gpuai.NoLeader},
	} {
		once, err := New(Config{Addrs: c.addrs, RetryFor: -1})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.call(t.Context(), once); !is(err, c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
		// On a busy machine the context may end while a server is being asked: then
		// what it did is not known, so a longer time is given.
		wait := 200 * time.Millisecond
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			err = c.call(ctx, open(t, c.addrs...))
			cancel()
			if is(err, c.code) {
				break
			}
			wait *= 4
		}
		if !is(err, c.code) {
			t.Errorf("%s, until the context ended: %v", c.name, err)
		}
	}
}

// The transport sends a request with a key again by itself when a kept
// connection breaks: that the second connection never stood says nothing about
// the first.
func TestDoubtIsKeptOverAKeptConnection(t *testing.T) {
	var asked atomic.Int32
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if asked.Add(1) == 1 {
			submitted(w, r)
			return
		}
		s.Listener.Close()
		cut(w, r)
	}))
	defer s.Close()
	c, err := New(Config{Addrs: []string{s.URL}, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := submitOne(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := submitOne(t.Context(), c); !is(err, gpuai.OutcomeUnknown) {
		t.Errorf("a submit that was taken and not answered: %v", err)
	}
	if asked.Load() != 2 {
		t.Errorf("the server was asked %d times", asked.Load())
	}
}

func submitOne(ctx context.Context, c *Client) error {
	_, err := c.Submit(ctx, SubmitRequest{Spec: &gpuai.JobSpec{}, Key: "my-key"})
	if is(err, gpuai.OutcomeUnknown) && !strings.Contains(err.Error(), "my-key") {
		return errors.New("the key is not told: " + err.Error())
	}
	return err
}

func readOne(ctx context.Context, c *Client) error {
	_, err := c.Policy(ctx)
	return err
}

func half(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"job":`)
	panic(http.ErrAbortHandler)
}

func nonsense(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"index":"x"}`) }

// 429 is waited out as long as it says, other refusals are not.
func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		atMost time.Duration
		least  time.Duration
	}{
		{429, "rate_limited", 5 * time.Second, time.Second},
		{503, "no_leader", 900 * time.Millisecond, 0},
		{504, "outcome_unknown", 900 * time.Millisecond, 0},
	} {
		var tries atomic.Int32
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if tries.Add(1) == 1 {
				w.Header().Set("Retry-After", "1")
				refuse(w, c.status, c.code, "not now")
				return
			}
			submitted(w, r)
		})
		start := time.Now()
		if err := submitOne(t.Context(), open(t, addr)); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < c.least || d > c.atMost {
			t.Errorf("%s: the second try came after %s", c.code, d)
		}
	}
}

// What will not become better is not asked for twice.
func TestFinalAnswersAreFinal(t *testing.T) {
	for status, code := range map[int]string{
		400: "invalid_spec", 404: "not_found", 409: "conflict", 413: "too_large", 422: "unschedulable", 403: "forbidden", 500: "internal",
	} {
		var tries atomic.Int32
		addr := serve(t, func(w http.ResponseWriter, r *http.Request) { tries.Add(1); refuse(w, status, code, "no") })
		if err := submitOne(t.Context(), open(t, addr, serve(t, submitted))); err == nil || !strings.HasPrefix(err.Error(), code) || tries.Load() != 1 {
			t.Errorf("%s: %v after %d tries", code, err, tries.Load())
		}
	}
}

// The hook sees each attempt as it is sent.
func TestOnRequest(t *testing.T) {
	var seen []string
	first := serve(t, func(w http.ResponseWriter, r *http.Request) { refuse(w, 503, "no_leader", "an election") })
	second := serve(t, submitted)
	c, err := New(Config{Addrs: []string{first, second}, Token: gpuai.NewSecret("tok"), OnRequest: func(r *http.Request, body []byte) {
		seen = append(seen, r.Method+" "+r.URL.String()+" "+r.Header.Get("Idempotency-Key")+" "+r.Header.Get("Authorization")+" "+string(body))
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.SubmitEncoded(t.Context(), []byte(`{"jobs":[]}`), "k"); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, addr := range []string{first, second} {
		want = append(want, "POST "+addr+`/v1/jobs:batch k Bearer tok {"jobs":[]}`)
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %q", seen)
	}
}

// Keys are ULIDs, and no two are equal.
func TestNewKey(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		k := NewKey()
		if _, err := gpuai.ParseJobID(k); err != nil || seen[k] {
			t.Fatalf("%q: %v", k, err)
		}
		seen[k] = true
	}
}

// A dial that ctx cuts off has sent nothing.
func TestADialThatIsCutOffIsNoDoubt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	c, err := New(Config{Addrs: []string{"http://127.0.0.1:1"}, HTTP: &http.Client{Transport: hang}})
	if err != nil {
		t.Fatal(err)
	}
	if err := submitOne(ctx, c); !is(err, gpuai.NoLeader) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
