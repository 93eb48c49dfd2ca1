package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// A report is what one run came to.
type report struct {
	Date    string  `json:"date"`
	Profile string  `json:"profile"`
	Seed    uint64  `json:"seed"`
	Version string  `json:"version"`
	Machine machine `json:"machine"`
	Seconds float64 `json:"duration_s"`
	Totals  totals  `json:"totals"`
	// LeaderKill is from kill -9 of the leader to the first lease of a job that
	// was submitted after it, AgentDeath from an agent's death to the first
	// beat of each of its tasks elsewhere, less the policy's TTL and grace.
	LeaderKill spread `json:"leader_kill_to_placement_ms"`
	AgentDeath spread `json:"agent_death_to_running_beyond_ttl_and_grace_ms"`
	Rows       []*row `json:"faults"`
}

// totals are the sums over all rows.
type totals struct {
	Faults        int `json:"faults_injected"`
	Acknowledged  int `json:"acknowledged"`
	Leases        int `json:"acknowledged_leases"`
	Lost          int `json:"lost"`
	DoubleRunners int `json:"double_runners"`
	Passed        int `json:"passed"`
	Failed        int `json:"failed"`
	Skipped       int `json:"skipped"`
}

// A verdict is how one fault ended. Only passed says that all expectations
// were looked at and held.
type verdict string

const (
	passed  verdict = "passed"
	failed  verdict = "failed"
	skipped verdict = "skipped"
)

// A row is one fault with what came of it. Its methods are safe for concurrent
// use; its fields are for who made it, and for the report at the end.
type row struct {
	Case     string `json:"case"` // of the project's list of faults
	Scenario string `json:"scenario"`
	Fault    string `json:"fault"`
	Expected string `json:"expected"`

	Verdict  verdict `json:"verdict"`
	Reason   string  `json:"reason,omitzero"` // of skipped
	Injected int     `json:"injected"`
	// Acknowledged counts submits that were answered, Leases those that came
	// with them, Refused the submits that were surely not taken, Unknown those
	// of which it is not known.
	Acknowledged  int `json:"acknowledged"`
	Leases        int `json:"acknowledged_leases"`
	Refused       int `json:"refused"`
	Unknown       int `json:"unknown"`
	Lost          int `json:"lost"`
	DoubleRunners int `json:"double_runners"`
	// Operations is the length of the history that was checked for
	// linearizability, 0 without one.
	Operations int      `json:"operations,omitzero"`
	Recovery   spread   `json:"recovery_ms"`
	Recovered  string   `json:"recovery_from_to,omitzero"`
	Failures   []string `json:"failures,omitempty"`
	Notes      []string `json:"notes,omitempty"`
	Seconds    float64  `json:"duration_s"`

	mu      sync.Mutex // guards what follows, Failures and Notes
	times   []float64
	dropped int // failures beyond maxFailures
	done    bool
}

// maxFailures bounds the sentences kept of one row.
const maxFailures = 20

// fail notes that an expectation did not hold.
func (r *row) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Failures) >= maxFailures {
		r.dropped++
		return
	}
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// lose notes n acknowledged things that are gone, changed or there twice.
func (r *row) lose(n int, format string, args ...any) {
	r.mu.Lock()
	r.Lost += n
	r.mu.Unlock()
	r.fail(format, args...)
}

func (r *row) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// recovered notes one time to recover.
func (r *row) recovered(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, float64(d.Microseconds())/1000)
}

// skip says that this machine cannot inject the fault.
func (r *row) skip(why error) { r.Reason, r.done = why.Error(), true }

// end says that all that was to be looked at was.
func (r *row) end() { r.done = true }

// settle gives the verdict.
func (r *row) settle() {
	if r.dropped > 0 {
		r.Failures = append(r.Failures, fmt.Sprintf("and %d more", r.dropped))
	}
	r.Recovery = spreadOf(r.times)
	switch {
	case len(r.Failures) > 0:
		r.Verdict = failed
	case r.Reason != "":
		r.Verdict = skipped
	case !r.done:
		r.Verdict = failed
		r.Failures = []string{"it was not played to its end"}
	default:
		r.Verdict = passed
	}
}

// A spread sums up times, in milliseconds.
type spread struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	Max float64 `json:"max"`
}

// spreadOf sums up times by the nearest rank.
func spreadOf(times []float64) spread {
	if len(times) == 0 {
		return spread{}
	}
	s := slices.Sorted(slices.Values(times))
	at := func(q float64) float64 { return s[max(0, int(math.Ceil(q*float64(len(s))))-1)] }
	return spread{N: len(s), P50: at(0.5), P90: at(0.9), Max: s[len(s)-1]}
}

// String is the spread for people, in seconds.
func (s spread) String() string {
	switch s.N {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf("%.2f s", s.Max/1e3)
	}
	return fmt.Sprintf("p50 %.2f s, p90 %.2f s, max %.2f s (%d)", s.P50/1e3, s.P90/1e3, s.Max/1e3, s.N)
}

// settle gives the verdicts and adds everything up.
func (r *report) settle() {
	slices.SortStableFunc(r.Rows, func(a, b *row) int { return cmp.Compare(caseNumber(a.Case), caseNumber(b.Case)) })
	r.Totals = totals{}
	var kills, deaths []float64
	for _, w := range r.Rows {
		w.settle()
		t := &r.Totals
		t.Faults += w.Injected
		t.Acknowledged += w.Acknowledged
		t.Leases += w.Leases
		t.Lost += w.Lost
		t.DoubleRunners += w.DoubleRunners
		switch w.Verdict {
		case passed:
			t.Passed++
		case failed:
			t.Failed++
		case skipped:
			t.Skipped++
		}
		switch w.Recovered {
		case leaderToPlacement:
			kills = append(kills, w.times...)
		case deathToElsewhere:
			deaths = append(deaths, w.times...)
		}
	}
	r.LeaderKill, r.AgentDeath = spreadOf(kills), spreadOf(deaths)
}

func caseNumber(s string) (n int) {
	_, _ = fmt.Sscanf(s, "%d", &n) // what is no number comes first
	return n
}

// ok reports whether nothing was lost and every expectation held.
func (r *report) ok() bool {
	return r.Totals.Failed == 0 && r.Totals.Lost == 0 && r.Totals.DoubleRunners == 0
}

// summary is the report's last line.
func (r *report) summary() string {
	t := r.Totals
	word := "passed"
	if !r.ok() {
		word = "FAILED"
	}
	return fmt.Sprintf("chaos %s %s: seed %d, %d faults injected, %d submits acknowledged with %d leases, %d lost, %d double runners; %d rows passed, %d failed, %d skipped; %.0f s",
		r.Profile, word, r.Seed, t.Faults, t.Acknowledged, t.Leases, t.Lost, t.DoubleRunners, t.Passed, t.Failed, t.Skipped, r.Seconds)
}

// Times are the two times that the project has goals for, for people.
func (r *report) Times() []string {
	return []string{
		fmt.Sprintf("leader kill -9 to the first new placement: %s; the goal is a p50 of 1.3 s", r.LeaderKill),
		fmt.Sprintf("agent death to its tasks running elsewhere, beyond TTL + grace: %s; the goal is 1 s", r.AgentDeath),
	}
}

// write prints the report as text or JSON.
func (r *report) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	var b strings.Builder
	for _, l := range r.Rows {
		fmt.Fprintf(&b, "%-7s  case %-6s %s: %d injected, %d acknowledged, %d lost, %d double runners, recovery %s\n",
			l.Verdict, l.Case, l.Fault, l.Injected, l.Acknowledged, l.Lost, l.DoubleRunners, l.Recovery)
		for _, f := range l.Failures {
			fmt.Fprintf(&b, "         failed: %s\n", f)
		}
		if l.Reason != "" {
			fmt.Fprintf(&b, "         skipped: %s\n", l.Reason)
		}
		for _, n := range l.Notes {
			fmt.Fprintf(&b, "         %s\n", n)
		}
	}
	for _, l := range r.Times() {
		fmt.Fprintln(&b, l)
	}
	fmt.Fprintln(&b, r.summary())
	_, err := io.WriteString(w, b.String())
	return err
}
