package virtual

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkTimeout bounds the checker, in virtual time that it does not spend: a
// history that it cannot judge is a failure of the test.
const checkTimeout = 20 * time.Second

// action is what a call asks for.
type action uint8

const (
	submit action = iota
	stop
	read
)

// request is one call about one job; key is its name and idempotency key.
type request struct {
	action action
	key    string
}

// reply is what came of it.
type reply struct {
	unknown bool // it may take effect at any later time, or never
	found   bool
	id      string
	stopped bool
}

// job is the model's state: what is known of one job.
type job struct {
	exists  bool
	id      string // "" until an answer tells
	stopped bool
}

// step is the model of one job: it is submitted at most once however often
// that is asked, keeps its ID, and once stopped stays so.
func step(j job, q request, a reply) (bool, job) {
	switch {
	case a.unknown && q.action == submit:
		j.exists = true
		return true, j
	case a.unknown && q.action == stop:
		j.stopped = j.exists
		return true, j
	case !a.found:
		return q.action != submit && !j.exists, j
	case q.action == submit:
		j.exists = true
	}
	if q.action == stop {
		j.stopped = j.exists
	}
	ok := j.exists && (j.id == "" || j.id == a.id) && (q.action == submit || j.stopped == a.stopped)
	j.id = a.id
	return ok, j
}

// model is step for porcupine; calls about different jobs are independent.
var model = porcupine.Model{
	Init: func() any { return job{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(job), input.(request), output.(reply))
	},
	Equal: func(a, b any) bool { return a == b },
}

// event is one call in a history. Order stamps are counted, since much happens
// at one instant of virtual time; the times are for people.
type event struct {
	client         int
	q              request
	a              reply
	called, ended  int64
	start, end     time.Duration
	index          uint64 // of the answer; 0 is none
	refused        bool   // nothing was done; or it is a read without an answer
	server, status string
}

// told reports whether the answer tells what came of the call.
func (e *event) told() bool { return !e.a.unknown && !e.refused }

// String implements fmt.Stringer.
func (e *event) String() string {
	verb := [...]string{"submit", "stop", "read"}[e.q.action]
	what := fmt.Sprintf("found %v, id %s, stopped %v, index %d", e.a.found, e.a.id, e.a.stopped, e.index)
	if e.refused {
		what = "refused"
	} else if e.a.unknown {
		what = "unknown"
	}
	return fmt.Sprintf("%12v … %12v client %2d %s %s at %s: %s %s", e.start, e.end, e.client, verb, e.q.key, e.server, what, e.status)
}

// history is the record of all calls.
type history struct {
	mu     sync.Mutex // guards below
	began  time.Time
	stamp  int64
	events []*event
	stale  []staleRead
	// behind is how far a server's log may lag while it hears its leader, which
	// is what an answer tells the age by: behind a link that fails and heals, the
	// library waits ever longer with entries while heartbeats go on.
	behind time.Duration
}

func newHistory() *history { return &history{began: time.Now()} }

// call notes that a call begins.
func (h *history) call(client int, q request) *event {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stamp++
	return &event{client: client, q: q, called: h.stamp, start: time.Since(h.began)}
}

// finish notes its answer.
func (h *history) finish(e *event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stamp++
	e.ended, e.end = h.stamp, time.Since(h.began)
	h.events = append(h.events, e)
}

// violations says what in the history cannot have happened.
func (h *history) violations() (out []string) {
	jobs := make(map[string][]*event)
	var keys []string
	for _, e := range h.events {
		if len(jobs[e.q.key]) == 0 {
			keys = append(keys, e.q.key)
		}
		jobs[e.q.key] = append(jobs[e.q.key], e)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if why := judge(jobs[k]); why != "" {
			out = append(out, why)
		}
	}
	return append(append(out, h.indexes()...), h.staleReads()...)
}

// judge checks the calls about one job.
func judge(events []*event) string {
	var ops []porcupine.Operation
	for _, e := range events {
		ended := e.ended
		if e.refused {
			continue
		}
		if e.a.unknown {
			ended = math.MaxInt64
		}
		ops = append(ops, porcupine.Operation{ClientId: e.client, Input: e.q, Call: e.called, Output: e.a, Return: ended})
	}
	verdict := porcupine.CheckOperationsTimeout(model, ops, checkTimeout)
	if verdict == porcupine.Ok {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the calls about %s are not linearizable (%s):\n", events[0].q.key, verdict)
	for _, e := range events {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// indexes checks across jobs what the model checks within one: an answer is
// from an index no lower than any that was told before it was asked for.
func (h *history) indexes() (out []string) {
	ends := slices.Clone(h.events)
	slices.SortFunc(ends, func(a, b *event) int { return int(a.ended - b.ended) })
	calls := slices.Clone(h.events)
	slices.SortFunc(calls, func(a, b *event) int { return int(a.called - b.called) })
	var highest *event
	for _, e := range calls {
		for len(ends) > 0 && ends[0].ended < e.called {
			if ends[0].told() && (highest == nil || ends[0].index > highest.index) {
				highest = ends[0]
			}
			ends = ends[1:]
		}
		if e.q.action == read && e.told() && highest != nil && e.index < highest.index {
			out = append(out, fmt.Sprintf("an answer is older than one that was given before it was asked for:\n%v\n%v", highest, e))
		}
	}
	return out
}

// check fails the test for each violation.
func (h *history) check(t *testing.T) {
	t.Helper()
	told, refused := 0, 0
	for _, e := range h.events {
		if e.told() {
			told++
		} else if e.refused {
			refused++
		}
	}
	t.Logf("%d calls were answered, %d refused, the outcome of %d is not known; %d stale reads",
		told, refused, len(h.events)-told-refused, len(h.stale))
	for _, v := range h.violations() {
		t.Error(v)
	}
}

// staleRead is the answer of one server to ?consistency=stale.
type staleRead struct {
	client   int
	server   string
	life     int32         // of the server
	at       time.Duration // when it was asked for
	index    uint64
	age      time.Duration // as the answer says
	ready    bool          // the server said it serves
	received int64
}

func (h *history) sawStale(s staleRead) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stamp++
	s.received = h.stamp
	h.stale = append(h.stale, s)
}

// ageSlack is what a stale answer may be older than it says: its server polls
// the age, and hears of a commit with the next append.
const ageSlack = 600 * time.Millisecond

// maxBackOff is the longest wait of hashicorp/raft's replication after failures.
const maxBackOff = 10 * time.Second

// staleReads checks that one server's stale answers to one client never go
// back, and that none is older than it says.
func (h *history) staleReads() (out []string) {
	type seat struct {
		client int
		life   int32
		server string
	}
	last := make(map[seat]staleRead)
	for _, s := range h.stale { // in the order of their receipt
		k := seat{s.client, s.life, s.server}
		if before := last[k]; s.index < before.index {
			out = append(out, fmt.Sprintf("stale reads at %s went back from index %d at %v to %d at %v", s.server, before.index, before.at, s.index, s.at))
		}
		last[k] = s
		if old := h.olderThan(s); old != "" {
			out = append(out, old)
		}
	}
	return out
}

// olderThan says which answer a stale read should have known by its age.
func (h *history) olderThan(s staleRead) string {
	if !s.ready {
		return ""
	}
	for _, e := range h.events {
		if e.told() && e.index > s.index && e.end < s.at-s.age-ageSlack-h.behind {
			return fmt.Sprintf("a stale read at %s at %v, of index %d, says that it is %v old and does not know\n%v", s.server, s.at, s.index, s.age, e)
		}
	}
	return ""
}
