package nvidia

import (
	"sync"
	"time"
)

// A watch ends the process when a call does not answer: nothing else gets rid of
// the thread that is stuck in it. Safe for concurrent use.
type watch struct {
	limit time.Duration
	end   func(what string) // does not return, but in tests

	mu    sync.Mutex // guards below
	calls map[*call]bool
}

// A call is one that runs.
type call struct {
	what  string
	since time.Time
}

func newWatch(limit time.Duration, end func(what string)) *watch {
	return &watch{limit: limit, end: end, calls: map[*call]bool{}}
}

// enter notes a call; the caller runs what it returns when the call is over.
func (w *watch) enter(what string) (done func()) {
	c := &call{what: what, since: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[c] = true
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.calls, c)
	}
}

// run looks at the calls for as long as the process lives.
func (w *watch) run() {
	for range time.Tick(w.limit / 10) {
		if what := w.overdue(time.Now()); what != "" {
			w.end(what)
		}
	}
}

// overdue names a call that has run for longer than it may.
func (w *watch) overdue(now time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.calls {
		if now.Sub(c.since) > w.limit {
			return c.what
		}
	}
	return ""
}
