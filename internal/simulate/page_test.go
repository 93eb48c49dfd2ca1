package simulate

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func runs(t *testing.T, mode string) []Report {
	t.Helper()
	c := fixture(t)
	c.TimedConfig = TimedConfig{Arrivals: ArrivalsPoisson, Count: 600, ClipMax: 20 * gpuai.Minute, Load: 1.1, WarmUp: 0.3}
	for i := range c.Jobs {
		c.Jobs[i].Class = gpuai.ClassTraining
	}
	ps, err := ParsePolicies("fifo,bestfit")
	if err != nil {
		t.Fatal(err)
	}
	rs, err := Run(t.Context(), mode, c, ps)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// A report is one file that needs nothing else, with a line of each policy in
// each plot.
func TestPages(t *testing.T) {
	for mode, charts := range map[string]int{"time": 4, "fill": 1, "churn": 0} {
		path := filepath.Join(t.TempDir(), "report.html")
		page := Page{Title: "<trace>", Command: "gpuai sim run & more", Notes: []string{"3 lines were left out"}, Runs: runs(t, mode)}
		if err := page.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := string(b)
		if n := strings.Count(s, "<polyline"); n != charts*len(page.Runs) {
			t.Errorf("%s: %d lines, want %d in each of %d plots", mode, n, len(page.Runs), charts)
		}
		if regexp.MustCompile(`(?i)https?:|src=|href=|@import|url\(|<script|NaN|Inf\b`).FindString(s) != "" {
			t.Errorf("%s: the page asks for something, or shows what is no number: %s", mode, s)
		}
		for _, want := range []string{"Simulation of &lt;trace&gt;", "gpuai sim run &amp; more", "3 lines were left out", page.Runs[0].Digest, page.Runs[1].Digest, "fifo", "bestfit"} {
			if !strings.Contains(s, want) {
				t.Errorf("%s: no %q", mode, want)
			}
		}
		if mode == "time" && !strings.Contains(s, "Class training") {
			t.Error("no table of the classes")
		}
	}
}

func TestPageThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	page := Page{Runs: []Report{{}}}
	if err := page.WriteFile(filepath.Join(dir, "no", "report.html")); err == nil || !strings.Contains(err.Error(), "writing the report") {
		t.Error(err)
	}
	if err := page.WriteFile(dir); err == nil {
		t.Error("a report took the place of a directory")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); len(left) > 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestTicks(t *testing.T) {
	for _, hi := range []float64{0.003, 0.07, 1, 1.3, 9, 10, 123, 7e6} {
		v := ticks(hi)
		if len(v) < 3 || len(v) > 12 || v[0] != 0 || v[len(v)-1] > hi*1.001 || v[len(v)-1] < hi/2 {
			t.Errorf("up to %v: %v", hi, v)
		}
	}
}
