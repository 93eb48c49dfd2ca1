package virtual

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// script is a history of calls about one job: "sub a", "stop a", "read a", the
// ID that was found, "-" for not found, "?" for an unknown outcome, "!" for a
// refusal; a "." at the end says that the job was stopped. "… +" overlaps with
// the next call.
func script(lines ...string) *history {
	h := &history{}
	stamp := int64(0)
	for _, line := range lines {
		f := strings.Fields(line)
		e := &event{q: request{map[string]action{"sub": submit, "stop": stop, "read": read}[f[0]], "j"}}
		switch what := f[1]; what {
		case "?":
			e.a.unknown = true
		case "!":
			e.refused = true
		case "-":
		default:
			e.a.found, e.a.stopped = true, strings.HasSuffix(what, ".")
			e.a.id = strings.TrimSuffix(what, ".")
		}
		e.called, e.ended = stamp+1, stamp+2
		if stamp += 2; len(f) == 3 {
			e.ended = stamp + 3
			stamp--
		}
		h.events = append(h.events, e)
	}
	return h
}

// TestTheModel says what the checker takes and what it finds.
func TestTheModel(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		ok    bool
	}{
		{"one life", []string{"read -", "sub a", "read a", "sub a", "stop a.", "read a.", "stop a.", "sub a."}, true},
		{"unknown, and done at once", []string{"sub ?", "read a"}, true},
		{"unknown, and done later", []string{"sub ?", "read -", "read a"}, true},
		{"unknown, and never done", []string{"sub ?", "read -", "read -"}, true},
		{"an unknown stop, done later", []string{"sub a", "stop ?", "read a", "read a."}, true},
		{"overlapping calls in either order", []string{"sub a +", "read -"}, true},
		{"a lost submit", []string{"sub a", "read -"}, false},
		{"a lost stop", []string{"sub a", "stop a.", "read a"}, false},
		{"a stale read", []string{"sub a", "read a", "read -", "read a"}, false},
		{"one key, two jobs", []string{"sub a", "sub b"}, false},
		{"an unknown submit that was done twice", []string{"sub ?", "read a", "sub b"}, false},
		{"refused, and done", []string{"sub !", "read a"}, false},
		{"a stop that was refused, and done", []string{"sub a", "stop !", "read a."}, false},
		{"from nowhere", []string{"read a"}, false},
		{"a stop of nothing", []string{"stop a."}, false},
	} {
		if why := script(c.lines...).violations(); (len(why) == 0) != c.ok {
			t.Errorf("%s: %q", c.name, why)
		}
	}
}

// TestTheIndexes says the same of what is checked across jobs.
func TestTheIndexes(t *testing.T) {
	h := script("sub a", "read a")
	h.events[0].index, h.events[1].index = 7, 6
	if len(h.violations()) != 1 {
		t.Errorf("a read from before a write that was answered: %q", h.violations())
	}
	at := func(index uint64, when, age time.Duration) staleRead {
		return staleRead{server: "a", at: when, index: index, age: age, ready: true}
	}
	h = &history{stale: []staleRead{at(7, 0, 0), at(6, 1, 0)}}
	if len(h.violations()) != 1 {
		t.Errorf("stale reads that went back: %q", h.violations())
	}
	h = script("sub a")
	h.events[0].index, h.events[0].end = 7, time.Second
	h.stale = []staleRead{at(6, 3*time.Second, 5*time.Millisecond)}
	if len(h.violations()) != 1 {
		t.Errorf("a stale read that says it is young: %q", h.violations())
	}
	h.stale[0].age = 2 * time.Second
	if len(h.violations()) != 0 {
		t.Errorf("a stale read that says how old it is: %q", h.violations())
	}
}

// TestTheCheckerFindsAStaleRead has a server that is cut off answer stale reads
// that are passed off as linearizable.
func TestTheCheckerFindsAStaleRead(t *testing.T) {
	bubble(t, 3, 1, func(r *region) {
		r.converge()
		alone := r.others(r.leader())[0]
		rest := r.others(alone)
		l := &load{r: r, h: newHistory()}
		writer := &worker{load: l, servers: rest, client: r.client(attempt, rest...)}
		liar := &worker{load: l, number: 1, servers: []*member{alone}, client: r.client(attempt, alone), lies: true}
		writer.do(request{submit, "before"})
		r.converge()
		r.net.partition(names([]*member{alone}), names(rest))
		for i := range 3 {
			key := fmt.Sprint("job-", i)
			writer.do(request{submit, key})
			writer.do(request{read, key})
			liar.do(request{read, key})
		}
		writer.do(request{stop, "before"})
		liar.do(request{read, "before"})
		if found := l.h.violations(); len(found) < 8 { // by the model and by the index
			t.Errorf("of 4 stale reads, found %d: %q", len(found), found)
		}
	})
}

// TestTheCheckerFindsALostSubmit puts the files of all servers back to what
// they were before a job was acknowledged.
func TestTheCheckerFindsALostSubmit(t *testing.T) {
	bubble(t, 3, 1, func(r *region) {
		l := &load{r: r, h: newHistory()}
		w := &worker{load: l, servers: r.servers, client: r.client(attempt, r.servers...)}
		w.do(request{submit, "kept"})
		r.converge()
		synctest.Wait()
		old := make(map[*member]string)
		for _, m := range r.servers {
			old[m] = r.copyFiles(m, string(m.id)+"-old")
		}
		w.do(request{submit, "lost"})
		w.do(request{stop, "kept"})
		if found := l.h.violations(); len(found) != 0 {
			t.Errorf("before: %q", found)
		}
		r.crash(r.servers...)
		for _, m := range r.servers {
			m.dir = old[m]
			r.start(m)
		}
		r.progress(r.servers...)
		w.do(request{read, "lost"})
		w.do(request{read, "kept"})
		found := strings.Join(l.h.violations(), "\n")
		for _, key := range []string{"lost", "kept"} {
			if !strings.Contains(found, "about "+key+" are not linearizable") {
				t.Errorf("job %s is not found: %q", key, found)
			}
		}
	})
}
