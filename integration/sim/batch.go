package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// progressEvery is how often a long run says how far it is.
const progressEvery = 10 * time.Second

// A batch runs seeds side by side, each on one goroutine of its own.
type batch struct {
	o        *options
	progress io.Writer // nil: nothing is said before the end

	mu      sync.Mutex // guards below
	next    uint64
	begun   time.Time
	said    time.Time
	stopped bool
	sum     summary
}

// A summary is what a batch came to.
type summary struct {
	Variant    string         `json:"variant,omitempty"`
	First      uint64         `json:"first"`
	Seeds      uint64         `json:"seeds"`
	Seconds    float64        `json:"seconds"`
	PerSecond  float64        `json:"seeds_per_second"`
	SimulatedS float64        `json:"simulated_s"`
	Events     int            `json:"events"`
	Runs       int            `json:"task_runs"`
	Acked      int            `json:"acknowledged"`
	MaxNodes   int            `json:"nodes_max"`
	Faults     map[string]int `json:"faults"`
	Violations int            `json:"violations"`
	ByCheck    map[string]int `json:"violations_by_check"`
	Failed     []result       `json:"failed"`

	faults [numFaults]int
}

func newBatch(o *options) *batch {
	now := time.Now()
	return &batch{o: o, next: o.first, begun: now, said: now, sum: summary{
		Variant: o.variant.String(), First: o.first, ByCheck: map[string]int{}, Failed: []result{},
	}}
}

// run returns when every seed is run, or the budget is used up, or a seed has
// broken a promise.
func (b *batch) run() *summary {
	// Machines come and go, and little of them lives long.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var wg sync.WaitGroup
	for range b.o.parallel {
		wg.Go(func() {
			for seed, ok := b.take(); ok; seed, ok = b.take() {
				b.add(simulate(b.o.plan(seed), nil))
			}
		})
	}
	wg.Wait()
	s := &b.sum
	s.Seconds = time.Since(b.begun).Seconds()
	s.PerSecond = float64(s.Seeds) / max(s.Seconds, 1e-9)
	s.Faults = faultCounts(&s.faults)
	return s
}

// take gives out the next seed.
func (b *batch) take() (seed uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.next - b.o.first
	spent := b.o.budget > 0 && time.Since(b.begun) > b.o.budget && n >= b.o.atLeast
	if b.stopped || n >= b.o.seeds || spent {
		return 0, false
	}
	b.next++
	return b.next - 1, true
}

func (b *batch) add(r result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.sum
	s.Seeds++
	s.Events += r.Events
	s.Runs += r.Runs
	s.Acked += r.Acked
	s.SimulatedS += r.SimulatedS
	s.MaxNodes = max(s.MaxNodes, r.Nodes)
	for f, n := range r.faults {
		s.faults[f] += n
	}
	if len(r.Violations) > 0 {
		s.Violations += len(r.Violations)
		s.ByCheck[r.Violations[0].Check]++
		s.Failed = append(s.Failed, r)
		b.stopped = !b.o.keepOn
		if b.progress != nil {
			fmt.Fprintf(b.progress, "seed %d breaks a promise: %s: %s\n", r.Seed, r.Violations[0].Check, r.Violations[0].Text)
		}
	}
	if b.progress != nil && time.Since(b.said) >= progressEvery {
		b.said = time.Now()
		spent := time.Since(b.begun)
		fmt.Fprintf(b.progress, "%d of %d seeds in %s, %.1f a second, %d failed\n", s.Seeds, b.o.seeds,
			spent.Round(time.Second), float64(s.Seeds)/spent.Seconds(), len(s.Failed))
	}
}

// write writes the summary: in text, one line.
func (s *summary) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	var faults []string
	for f, name := range faultNames {
		if n := s.faults[f]; n > 0 {
			faults = append(faults, fmt.Sprintf("%d × %s", n, name))
		}
	}
	_, err := fmt.Fprintf(w, "%d seeds from %d in %.1f s (%.1f a second): %d events, %.0f simulated hours, %d task runs, %d acknowledged jobs; %s; %d violations in %d seeds\n",
		s.Seeds, s.First, s.Seconds, s.PerSecond, s.Events, s.SimulatedS/3600, s.Runs, s.Acked,
		strings.Join(faults, ", "), s.Violations, len(s.Failed))
	return err
}

// traceKept is how many lines before a violation are shown.
const traceKept = 60

// explain runs a failed seed again and says what led to its violation, and how
// to see all of it.
func explain(r *result, p plan) string {
	tr := &tracer{limit: 4_000}
	simulate(p, tr)
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d breaks a promise:\n", r.Seed)
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "  %s: %s\n", v.Check, v.Text)
	}
	fmt.Fprintf(&b, "what led to it, of the last %d lines:\n", traceKept)
	for _, l := range tr.about(r.Violations[0].Text) {
		fmt.Fprintln(&b, l.String())
	}
	fmt.Fprintf(&b, "to see all of it: go run ./integration/sim --seed %d", r.Seed)
	if p.weak != sound {
		fmt.Fprintf(&b, " --variant %s", p.weak)
	} else if p.bias != sound {
		fmt.Fprintf(&b, " --profile %s", p.bias)
	}
	if p.nodes > 0 {
		fmt.Fprintf(&b, " --nodes %d", p.nodes)
	}
	b.WriteString("\n")
	return b.String()
}

// about returns the newest lines that have to do with a text: those that share
// a name, a host, a node or a token with it, and those of terms.
func (t *tracer) about(text string) (out []traceLine) {
	var words []string
	for _, x := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == ':' || r == '(' || r == ')' }) {
		if len(x) > 8 || strings.HasPrefix(x, "host") || strings.HasPrefix(x, "n") && len(x) > 1 && x[1] >= '0' && x[1] <= '9' {
			words = append(words, x)
		}
	}
	for _, l := range t.lines {
		hit := strings.Contains(l.text, "reign") || strings.Contains(l.text, "VIOLATION") || strings.Contains(l.text, "heal")
		for _, x := range words {
			hit = hit || strings.Contains(l.text, x)
		}
		if hit {
			out = append(out, l)
		}
	}
	return out[max(0, len(out)-traceKept):]
}
