package virtual

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const (
	// loadClients call at once, each about attempt long at most.
	loadClients = 6
	attempt     = 1500 * time.Millisecond
	// keyLife is how long all clients are about the same few jobs.
	keyLife = 120 * time.Millisecond
	hotKeys = 3
	// most a client pauses between calls.
	maxPause = 60 * time.Millisecond
)

// load is clients that submit, stop and read jobs until they are stopped.
type load struct {
	r    *region
	h    *history
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup
	rest atomic.Bool // they make no calls meanwhile
}

// startLoad starts clients: even ones ask one server, odd ones all in turn.
func (r *region) startLoad() *load { return r.startLoadAt(r.servers) }

// startLoadAt is startLoad at servers some of which may not run.
func (r *region) startLoadAt(all []*member) *load {
	l := &load{r: r, h: newHistory(), quit: make(chan struct{})}
	r.loads = append(r.loads, l)
	for i := range loadClients {
		servers := []*member{all[i/2%len(all)]}
		if i%2 == 1 {
			at := r.rng.IntN(len(all))
			servers = append(append(servers[:0], all[at:]...), all[:at]...)
		}
		w := &worker{load: l, number: i, servers: servers, client: r.client(attempt, servers...),
			rng: rand.New(rand.NewPCG(r.rng.Uint64(), 2))}
		l.wg.Go(w.run)
	}
	return l
}

// halt ends the clients.
func (l *load) halt() {
	l.once.Do(func() { close(l.quit) })
	l.wg.Wait()
}

// stop ends the clients, reads every job once more, and checks all.
func (l *load) stop() {
	l.r.t.Helper()
	l.halt()
	last := &worker{load: l, number: loadClients, servers: l.r.servers, client: l.r.client(10*time.Second, l.r.servers...)}
	seen := make(map[string]bool)
	for _, e := range l.h.events {
		if !seen[e.q.key] {
			seen[e.q.key] = true
			last.do(request{read, e.q.key})
		}
	}
	l.h.check(l.r.t)
}

// worker is one client.
type worker struct {
	*load
	number  int
	servers []*member
	client  *client.Client
	rng     *rand.Rand
	lies    bool // it passes stale answers off as linearizable
}

func (w *worker) run() {
	for {
		select {
		case <-w.quit:
			return
		case <-time.After(time.Duration(w.rng.Int64N(int64(maxPause)))):
		}
		if w.rest.Load() {
			continue
		}
		window := int(time.Since(w.h.began) / keyLife)
		key := fmt.Sprintf("job-%d-%d", window, w.rng.IntN(hotKeys))
		switch n := w.rng.IntN(10); {
		case n < 4:
			w.do(request{submit, key})
		case n < 5:
			w.do(request{stop, key})
		case n < 8:
			w.do(request{read, key})
		default:
			w.readStale(key)
		}
	}
}

// do makes one call, records it, and reports whether its outcome was told.
func (w *worker) do(q request) bool {
	var headers http.Header
	ctx := context.WithValue(context.Background(), headersKey{}, &headers)
	e := w.h.call(w.number, q)
	var err error
	e.a, err = w.ask(ctx, q)
	e.server = names(w.servers)[0]
	if err != nil {
		e.status = err.Error()
	}
	switch fate(q, err) {
	case nothing:
		e.refused = true
	case unknown:
		e.a, e.refused = reply{unknown: true}, q.action == read
	case told:
		e.index, _ = strconv.ParseUint(headers.Get("X-GPUAI-Index"), 10, 64)
	}
	w.h.finish(e)
	return !e.a.unknown && !e.refused
}

func (w *worker) ask(ctx context.Context, q request) (reply, error) {
	var j gpuai.Job
	var err error
	switch q.action {
	case submit:
		var s gpuai.Submitted
		s, err = w.client.Submit(ctx, client.SubmitRequest{Spec: jobSpec(q.key), Key: q.key})
		j = s.Job
	case stop:
		j, err = w.client.StopJob(ctx, q.key, "stop-"+q.key)
	case read:
		if w.lies {
			j, _, err = w.client.WatchJob(ctx, q.key, client.Read{Stale: true})
			break
		}
		j, err = w.client.Job(ctx, q.key)
	}
	if err != nil {
		return reply{}, err
	}
	return reply{found: true, id: j.ID.String(), stopped: j.Status == gpuai.JobStopped}, nil
}

// fates of a call.
type fateOf uint8

const (
	told    fateOf = iota // the answer says what came of it
	nothing               // surely nothing was done
	unknown
)

// fate says what an error means, as the API's documents have it.
func fate(q request, err error) fateOf {
	var e *gpuai.Error
	switch {
	case err == nil:
		return told
	case !errors.As(err, &e):
		return unknown
	case e.Code == gpuai.NotFound && q.action != submit:
		return told
	case e.Code == gpuai.NoLeader || e.Code == gpuai.RateLimited:
		return nothing
	}
	return unknown
}

// readStale reads a job from whatever one server has.
func (w *worker) readStale(key string) {
	m := w.servers[0]
	life, dazed := m.lives.Load(), m.dazed.Load()
	var headers http.Header
	ctx := context.WithValue(context.Background(), headersKey{}, &headers)
	s := staleRead{client: w.number, server: string(m.id), life: life, at: time.Since(w.h.began)}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	_, _, err := w.client.WatchJob(ctx, key, client.Read{Stale: true})
	if err != nil && !isCode(err, gpuai.NotFound) || m.lives.Load() != life || len(w.servers) > 1 {
		return
	}
	s.index, _ = strconv.ParseUint(headers.Get("X-GPUAI-Index"), 10, 64)
	ms, _ := strconv.ParseInt(headers.Get("X-GPUAI-Last-Contact"), 10, 64)
	s.age = time.Duration(ms) * time.Millisecond
	s.ready = headers.Get("X-GPUAI-Known-Leader") == "true" && !dazed && !m.dazed.Load()
	w.h.sawStale(s)
}
