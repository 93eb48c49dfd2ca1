package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// aRow is a row that was played to its end.
func aRow(number string) *row {
	w := &row{Case: number, Scenario: "scene", Fault: "a fault of <case> " + number, Expected: "it holds", Injected: 2, Acknowledged: 5, Leases: 4}
	w.end()
	return w
}

func TestVerdicts(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(*row)
		want  verdict
		ok    bool
	}{
		{"all held", func(*row) {}, passed, true},
		{"an expectation failed", func(w *row) { w.fail("it took %d s", 9) }, failed, false},
		{"something lost", func(w *row) { w.lose(3, "three are gone") }, failed, false},
		{"not played to its end", func(w *row) { w.done = false }, failed, false},
		{"skipped", func(w *row) { w.skip(errors.New("no root")) }, skipped, true},
		{"failed, then skipped", func(w *row) { w.fail("x"); w.skip(errors.New("no root")) }, failed, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := aRow("1")
			c.spoil(w)
			r := &report{Rows: []*row{w}}
			r.settle()
			if w.Verdict != c.want || r.ok() != c.ok {
				t.Errorf("%s, ok %v, want %s, %v", w.Verdict, r.ok(), c.want, c.ok)
			}
			if w.Verdict == failed && len(w.Failures) == 0 {
				t.Error("a failed row does not say why")
			}
		})
	}
}

func TestFailuresAreBounded(t *testing.T) {
	w := aRow("1")
	for range maxFailures + 30 {
		w.lose(1, "gone")
	}
	w.settle()
	if len(w.Failures) != maxFailures+1 || w.Failures[maxFailures] != "and 30 more" || w.Lost != maxFailures+30 {
		t.Errorf("%d failures, the last %q, %d lost", len(w.Failures), w.Failures[len(w.Failures)-1], w.Lost)
	}
}

// fullReport has a row of each verdict, out of order.
func fullReport() *report {
	kill, death, skip, bad := aRow("2"), aRow("21"), aRow("3"), aRow("13")
	kill.Recovered, death.Recovered = leaderToPlacement, deathToElsewhere
	for _, d := range []time.Duration{3, 1, 2, 4} {
		kill.recovered(d * time.Second)
	}
	death.recovered(250 * time.Millisecond)
	skip.Injected, skip.Acknowledged, skip.Leases = 0, 0, 0
	skip.skip(errors.New("power cuts need root"))
	bad.DoubleRunners = 1
	bad.fail("two runners | at once")
	r := &report{Date: "2026-01-02T03:04:05Z", Profile: "short", Seed: 7, Machine: machine{CPU: "a CPU", Cores: 2}, Rows: []*row{death, bad, skip, kill}}
	r.settle()
	return r
}

func TestTotals(t *testing.T) {
	r := fullReport()
	want := totals{Faults: 6, Acknowledged: 15, Leases: 12, DoubleRunners: 1, Passed: 2, Failed: 1, Skipped: 1}
	if r.Totals != want || r.ok() {
		t.Errorf("%+v, want %+v", r.Totals, want)
	}
	if got := (spread{N: 4, P50: 2000, P90: 4000, Max: 4000}); r.LeaderKill != got {
		t.Errorf("%+v, want %+v", r.LeaderKill, got)
	}
	if r.AgentDeath.N != 1 || r.AgentDeath.Max != 250 {
		t.Errorf("%+v", r.AgentDeath)
	}
	var order []string
	for _, w := range r.Rows {
		order = append(order, w.Case)
	}
	if got := strings.Join(order, " "); got != "2 3 13 21" {
		t.Errorf("the rows are in the order %s", got)
	}
}

// TestPages writes the report in every form: each says what failed and what was
// skipped, and the JSON is the report again.
func TestPages(t *testing.T) {
	r := fullReport()
	dir := t.TempDir()
	var text, data bytes.Buffer
	if err := errors.Join(r.write(&text, "text"), r.write(&data, "json"), r.save(filepath.Join(dir, "a.html")), r.save(filepath.Join(dir, "b.md"))); err != nil {
		t.Fatal(err)
	}
	html, errHTML := os.ReadFile(filepath.Join(dir, "a.html"))
	md, errMD := os.ReadFile(filepath.Join(dir, "b.md"))
	beside, errJSON := os.ReadFile(filepath.Join(dir, "a.json"))
	if err := errors.Join(errHTML, errMD, errJSON); err != nil {
		t.Fatal(err)
	}
	for name, page := range map[string]string{"text": text.String(), "html": string(html), "md": string(md)} {
		for _, want := range []string{"power cuts need root", "two runners", "1 double runners", "seed 7", "skipped", "p50 2.00 s"} {
			if !strings.Contains(page, want) {
				t.Errorf("%s does not say %q:\n%s", name, want, page)
			}
		}
	}
	if strings.Contains(string(html), "<case>") {
		t.Error("the HTML is not escaped")
	}
	if strings.Contains(string(md), "| at once |") {
		t.Error("a cell of the table is cut in two")
	}
	var again report
	if err := json.Unmarshal(data.Bytes(), &again); err != nil || again.Totals != r.Totals || len(again.Rows) != 4 || again.Rows[2].Verdict != failed {
		t.Errorf("%+v, %v", again, err)
	}
	if !bytes.Equal(bytes.TrimSpace(beside), bytes.TrimSpace(data.Bytes())) {
		t.Error("the JSON beside the page is another one")
	}
}
