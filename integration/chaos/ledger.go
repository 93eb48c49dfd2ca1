package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A ledger is what a region has acknowledged, and the clients that make it
// acknowledge more.
type ledger struct {
	r    *region
	wg   sync.WaitGroup
	stop context.CancelFunc

	mu      sync.Mutex // guards below
	all     []entry
	unknown int                                 // submits of which it is not known whether they were taken
	refused int                                 // submits that were surely not
	bad     []string                            // answers that a client cannot go on from
	counted struct{ all, unknown, refused int } // what a row has counted
}

// An entry is a submit that was acknowledged.
type entry struct {
	name  string // of the job, and its idempotency key
	sub   gpuai.Submitted
	begun time.Time
	at    time.Time
}

func newLedger(r *region) *ledger { return &ledger{r: r, stop: func() {}} }

// smallJob is a job that fits many thousand times onto a simulated node.
func smallJob(name string) *gpuai.JobSpec {
	return &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{CPU: 1, Memory: 1},
		Task:      gpuai.TaskSpec{Command: []string{"/bin/true"}},
	}}}
}

// load is how clients submit.
const (
	loadWorkers = 4
	loadEvery   = 25 * time.Millisecond // a worker's pace
)

// load submits jobs from now on, each under a key of its own, until halt.
// Names begin with prefix.
func (l *ledger) load(prefix string) error {
	ctx, cancel := context.WithCancel(l.r)
	l.stop = cancel
	j := &judge{ledger: l, next: l.r.transport(loadWorkers)}
	c, err := l.r.clientOver(j, time.Hour, 3*time.Second, l.r.addrs()...)
	if err != nil {
		return err
	}
	for w := range loadWorkers {
		l.wg.Go(func() { l.work(ctx, c, fmt.Sprintf("%s-w%d", prefix, w)) })
	}
	return nil
}

func (l *ledger) work(ctx context.Context, c *client.Client, prefix string) {
	pace := time.NewTicker(loadEvery)
	defer pace.Stop()
	for i := 0; ; i++ {
		_, _ = l.submit(ctx, c, fmt.Sprintf("%s-%d", prefix, i)) // the judge sees refusals
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

// submit submits one job, enters what comes of it, and returns how many leases
// it got.
func (l *ledger) submit(ctx context.Context, c *client.Client, name string) (leases int, err error) {
	begun := time.Now()
	sub, err := c.Submit(ctx, client.SubmitRequest{Spec: smallJob(name), Key: name})
	l.mu.Lock()
	defer l.mu.Unlock()
	var api *gpuai.Error
	switch {
	case errors.As(err, &api) && api.Code != gpuai.OutcomeUnknown && ctx.Err() == nil:
		l.refused++
	case err != nil:
		l.unknown++
	}
	if err != nil {
		return 0, fmt.Errorf("submit %s: %w", name, err)
	}
	l.all = append(l.all, entry{name, sub, begun, time.Now()})
	return len(sub.Leases), nil
}

func (l *ledger) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.bad) < maxFailures {
		l.bad = append(l.bad, fmt.Sprintf(format, args...))
	}
}

// entries returns what was acknowledged so far.
func (l *ledger) entries() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[:len(l.all):len(l.all)]
}

// await waits until n more submits than now are acknowledged.
func (l *ledger) await(n int) error {
	before := len(l.entries())
	return l.r.until(patience, fmt.Sprintf("%d more submits to be acknowledged", n), func(context.Context) error {
		if got := len(l.entries()) - before; got < n {
			return fmt.Errorf("%d were", got)
		}
		return nil
	})
}

// halt ends the load.
func (l *ledger) halt() {
	l.stop()
	l.wg.Wait()
}

// newest returns the highest index that was acknowledged.
func (l *ledger) newest() (index uint64) {
	for _, e := range l.entries() {
		index = max(index, e.sub.Index)
	}
	return index
}

// firstPlacement asks servers for a lease, again and again from now on, and
// returns how long after t the first submit was answered with one. The submits
// have no retries, so each one's time is its own.
func (l *ledger) firstPlacement(t time.Time, of []*member) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(l.r, patience, errors.New("no submit got a lease"))
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range of {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("probe-%d-%s-%d", t.UnixNano(), m.id, i)
				if leases, _ := l.submit(ctx, m.api, name); leases > 0 {
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
			cancel()
		})
	}
	wg.Wait()
	first := time.Duration(0)
	for _, e := range l.entries() {
		if e.begun.After(t) && len(e.sub.Leases) > 0 && (first == 0 || e.at.Sub(t) < first) {
			first = e.at.Sub(t)
		}
	}
	if first == 0 {
		return 0, fmt.Errorf("%w; %s", context.Cause(ctx), l.waiting(t))
	}
	return first, nil
}

// waiting says why the last job that was submitted after t waits.
func (l *ledger) waiting(t time.Time) string {
	all := l.entries()
	for i := len(all) - 1; i >= 0 && all[i].begun.After(t); i-- {
		if len(all[i].sub.Leases) == 0 {
			return fmt.Sprintf("job %s was acknowledged at index %d and waits: %+v", all[i].name, all[i].sub.Index, all[i].sub.Reasons)
		}
	}
	return "none was acknowledged"
}

// account adds to a row what was acknowledged since the last call, and checks
// that everything that ever was is there exactly once, as it was acknowledged.
func (l *ledger) account(w *row) error {
	all := l.entries()
	l.mu.Lock()
	bad, unknown, refused := l.bad, l.unknown, l.refused
	l.bad = nil
	l.mu.Unlock()
	for _, b := range bad {
		w.fail("a client cannot go on from this answer: %s", b)
	}
	jobs, err := l.jobs(w)
	if err != nil {
		return err
	}
	held, err := l.leases()
	if err != nil {
		return err
	}
	for i := range all {
		l.find(w, &all[i], jobs[all[i].name], held)
	}
	for _, e := range all[l.counted.all:] {
		w.Acknowledged++
		w.Leases += len(e.sub.Leases)
	}
	w.Unknown += unknown - l.counted.unknown
	w.Refused += refused - l.counted.refused
	l.counted.all, l.counted.unknown, l.counted.refused = len(all), unknown, refused
	return nil
}

// find looks for one acknowledged job and its leases.
func (l *ledger) find(w *row, e *entry, j gpuai.Job, held map[gpuai.Token]gpuai.Lease) {
	if j.ID != e.sub.Job.ID || j.SubmitIndex != e.sub.Index {
		w.lose(1, "job %s was acknowledged as %s at index %d and is now %s at index %d", e.name, e.sub.Job.ID, e.sub.Index, j.ID, j.SubmitIndex)
	}
	for i := range e.sub.Leases {
		was := &e.sub.Leases[i]
		now, ok := held[was.ID]
		if !ok || now.TaskRef != was.TaskRef || now.Node != was.Node || now.State == gpuai.LeaseEnded {
			w.lose(1, "lease %s of job %s was acknowledged on node %s and is now %s on %q, cause %s", was.ID, e.name, was.Node, now.State, now.Node, now.Cause)
		}
	}
}

// jobs returns all jobs by name; two of one name are two of one key.
func (l *ledger) jobs(w *row) (map[string]gpuai.Job, error) {
	out := make(map[string]gpuai.Job)
	q := client.JobQuery{Page: client.Page{Limit: 1_000}}
	for more := true; more; more = q.Cursor != "" {
		page, next, err := l.r.api.Jobs(l.r, q)
		if err != nil {
			return nil, fmt.Errorf("list the jobs: %w", err)
		}
		for _, j := range page {
			if other, twice := out[j.Name]; twice {
				w.lose(1, "key %s made two jobs, %s and %s", j.Name, other.ID, j.ID)
			}
			out[j.Name] = j
		}
		q.Cursor = next
	}
	return out, nil
}

func (l *ledger) leases() (map[gpuai.Token]gpuai.Lease, error) {
	out := make(map[gpuai.Token]gpuai.Lease)
	q := client.LeaseQuery{Page: client.Page{Limit: 1_000}}
	for more := true; more; more = q.Cursor != "" {
		page, next, err := l.r.api.Leases(l.r, q)
		if err != nil {
			return nil, fmt.Errorf("list the leases: %w", err)
		}
		for _, lease := range page {
			out[lease.ID] = lease
		}
		q.Cursor = next
	}
	return out, nil
}

// remembered is how old an acknowledgement may be to have its key tried again;
// the region's policy remembers answers for ten minutes.
const remembered = 8 * time.Minute

// keys submits some acknowledged jobs again under their keys: each is answered
// as before.
func (l *ledger) keys(w *row) error {
	all := l.entries()
	for i := 0; i < len(all); i += 1 + len(all)/20 {
		e := &all[i]
		if time.Since(e.begun) > remembered {
			continue
		}
		again, err := l.r.api.Submit(l.r, client.SubmitRequest{Spec: smallJob(e.name), Key: e.name})
		if err != nil {
			return fmt.Errorf("submit %s again: %w", e.name, err)
		}
		if again.Job.ID != e.sub.Job.ID || again.Index != e.sub.Index {
			w.lose(1, "key %s answered job %s at index %d, and now job %s at index %d", e.name, e.sub.Job.ID, e.sub.Index, again.Job.ID, again.Index)
		}
	}
	return nil
}

// settle ends the load and looks at everything once more: the ledger, the keys
// and the digests of all servers.
func (l *ledger) settle(w *row) error {
	l.halt()
	if err := l.account(w); err != nil {
		return err
	}
	if err := l.keys(w); err != nil {
		return err
	}
	return l.r.digests(w, l.newest())
}

// A judge passes requests on and complains of answers that a client could not
// retry after, or was not told when to.
type judge struct {
	ledger *ledger
	next   *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (j *judge) RoundTrip(q *http.Request) (*http.Response, error) {
	res, err := j.next.RoundTrip(q)
	switch {
	case err != nil:
	case res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests:
		if res.Header.Get("Retry-After") == "" {
			j.ledger.complain("%s %s: %s without Retry-After", q.Method, q.URL.Path, res.Status)
		}
	case res.StatusCode >= 400 && res.StatusCode != http.StatusGatewayTimeout:
		j.ledger.complain("%s %s: %s is no answer to try again after", q.Method, q.URL.Path, res.Status)
	}
	return res, err
}
