package httpd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// as sends a request of a tenant to a handler.
func as(t *testing.T, h http.Handler, tenant gpuai.TenantID, method, path, body string) *httptest.ResponseRecorder {
	body = strings.ReplaceAll(body, `{"name"`, `{"tenant":"default","name"`) // specs take no other yet
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if body == "" {
		r = httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
	} else {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set(headerPrincipal, string(mustJSON(t, &gpuai.Principal{
		Actor: "token/" + string(tenant), Tenant: tenant, From: "10.0.0.7", Scopes: gpuai.ScopesOf(gpuai.ScopeOperator),
	})))
	w := httptest.NewRecorder()
	FromServers(h).ServeHTTP(w, r)
	return w
}

// slowSubmits is a region whose submits last until they are let go.
type slowSubmits struct {
	*twin
	under, most *atomic.Int64 // of tenant a
	gate        chan struct{}
}

func (s slowSubmits) Submit(ctx context.Context, r SubmitRequest) (gpuai.Submitted, error) {
	if PrincipalOf(ctx).Tenant == "a" {
		n := s.under.Add(1)
		for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
		}
		defer s.under.Add(-1)
		select {
		case <-s.gate:
		case <-ctx.Done():
			return gpuai.Submitted{}, ctx.Err()
		}
	}
	return s.twin.Submit(ctx, r)
}

// RELIABILITY.md, case 31: a tenant that floods is refused with 429 and a time to
// stay away; another finds room at once, every time.
func TestCase31FloodOfOneTenant(t *testing.T) {
	b := slowSubmits{newTwin(), new(atomic.Int64), new(atomic.Int64), make(chan struct{})}
	h := New(Config{Hosts: testHosts, Backend: b, MaxInFlight: 64}) // 32 submits, of which one among several has 4
	if w := as(t, h, "b", "POST", "/v1/jobs", spec("first", 1, 1)); w.Code != http.StatusCreated {
		t.Fatal(w.Code, w.Body)
	}
	var wg sync.WaitGroup
	var refused, served atomic.Int64
	for range 60 {
		wg.Go(func() {
			switch w := as(t, h, "a", "POST", "/v1/jobs", spec("flood", 1, 1)); w.Code {
			case http.StatusTooManyRequests:
				if refused.Add(1); w.Header().Get("Retry-After") == "" {
					t.Error("a refusal says not when to come again")
				}
			case http.StatusCreated, http.StatusAccepted:
				served.Add(1)
			default:
				t.Errorf("%d: %s", w.Code, w.Body)
			}
		})
	}
	for refused.Load() < 40 { // 4 are under way, 16 wait for a second
		if w := as(t, h, "b", "POST", "/v1/jobs", spec("beside", 1, 1)); w.Code >= 300 {
			t.Errorf("beside a flood: %d %s", w.Code, w.Body)
		}
	}
	close(b.gate)
	wg.Wait()
	if m := b.most.Load(); m > 4 || served.Load() < 4 {
		t.Errorf("%d of the flood were under way at once, %d were served, %d refused", m, served.Load(), refused.Load())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	noted := 0
	for _, n := range b.notes {
		if n.Actor == "token/a@10.0.0.7" && n.Code == gpuai.RateLimited && n.Request == "POST /v1/jobs" {
			noted++
		}
	}
	if int64(noted) != refused.Load() || len(b.notes) != noted {
		t.Errorf("%d of %d refusals are noted, %d in all", noted, refused.Load(), len(b.notes))
	}
}

func TestRateOfATenant(t *testing.T) {
	b := newTwin()
	h := New(Config{Hosts: testHosts, Backend: b, TenantRate: func(id gpuai.TenantID) uint32 {
		if id == "a" {
			return 20
		}
		return 0
	}})
	codes := map[int]int{}
	for range 42 { // twice the rate at once, and what came meanwhile
		codes[as(t, h, "a", "GET", "/v1/jobs", "").Code]++
	}
	if codes[200] < 40 || codes[429] == 0 || codes[200]+codes[429] != 42 {
		t.Errorf("of 42 requests %v", codes)
	}
	for range 60 {
		if w := as(t, h, "b", "GET", "/v1/jobs", ""); w.Code != 200 {
			t.Fatalf("a tenant without a rate: %d", w.Code)
		}
	}
	// Each job of a batch counts.
	h = New(Config{Hosts: testHosts, Backend: b, TenantRate: func(gpuai.TenantID) uint32 { return 5 }})
	if w := as(t, h, "c", "POST", "/v1/jobs:batch", `{"jobs":[`+strings.TrimSuffix(strings.Repeat(spec("x", 1, 1)+",", 50), ",")+`]}`); w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := as(t, h, "c", "GET", "/v1/jobs", ""); w.Code != 429 || w.Header().Get("Retry-After") == "1" {
		t.Errorf("behind a batch of ten times the rate: %d, Retry-After %s", w.Code, w.Header().Get("Retry-After"))
	}
}

// Turns go round, reads before writes, and a request that gives up leaves no
// trace.
func TestFairQueueTurns(t *testing.T) {
	g := newGate(&Config{MaxInFlight: 16, MaxStreams: 16})
	f := newFairQueue(g, &Config{MaxInFlight: 16})
	f.last, f.mixed = "x", time.Now()
	enter := func(ctx context.Context, who string, class class) (*claim, bool) {
		c := &claim{class: class, who: who}
		_, ok := f.enter(ctx, c)
		return c, ok
	}
	first, ok := enter(t.Context(), "a", classWrite)
	if !ok {
		t.Fatal("the first finds no room")
	}
	came := make(chan *claim)
	for range 3 {
		go func() {
			if c, ok := enter(t.Context(), "a", classWrite); ok {
				came <- c
			} else {
				came <- nil
			}
		}()
	}
	for f.waiting.Load() < 3 {
		select {
		case <-came:
			t.Fatal("a second of one lane is let in")
		default:
		}
	}
	b, ok := enter(t.Context(), "b", classWrite)
	if !ok {
		t.Fatal("another waits for a flood")
	}
	f.leave(first)
	second := <-came
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := enter(ctx, "b", classWrite); ok {
		t.Error("who gave up was let in beyond its share")
	}
	f.leave(second)
	f.leave(<-came)
	f.leave(<-came)
	f.leave(b)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting.Load() != 0 || g.short.Load() != 0 || len(f.ring[classWrite]) != 0 || !f.lanes[laneMember]["a"].idle() || !f.lanes[laneMember]["b"].idle() {
		t.Errorf("%d wait, %d are under way, %d lanes have turns", f.waiting.Load(), g.short.Load(), len(f.ring[classWrite]))
	}
}

func TestLanesAreBounded(t *testing.T) {
	f := newFairQueue(newGate(&Config{MaxInFlight: 1024}), &Config{MaxInFlight: 1024})
	now := time.Now()
	for i := range 3 * maxLanes {
		f.laneOf(&claim{who: strings.Repeat("x", i%97) + string(rune('0'+i))}, now)
	}
	if n := len(f.lanes[laneMember]); n > maxLanes+1 {
		t.Errorf("%d lanes", n)
	}
	f.laneOf(&claim{who: "late"}, now.Add(time.Minute))
	if n := len(f.lanes[laneMember]); n > 2 {
		t.Errorf("%d lanes are kept that nobody uses", n)
	}
}
