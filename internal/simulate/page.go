package simulate

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": func(v float64) string { return fmt.Sprintf("%.2f %%", 100*v) },
	"seconds": seconds,
	"of":      func(m map[string]float64, k string) float64 { return m[k] },
	"figure":  func(v float64) string { return fmt.Sprintf("%.2f", v) },
	"short":   short,
}).Parse(pageText))

// A Page is a report with plots: one HTML file that needs nothing else.
type Page struct {
	Title   string
	Command string   // that makes it again
	Notes   []string // what was left out of the trace
	Runs    []Report // of one mode
}

// WriteFile writes the page: whole, or not at all.
func (p *Page) WriteFile(path string) (err error) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return fmt.Errorf("making the report: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("writing the report: %w", err)
		}
	}()
	_, err = f.Write(b.Bytes())
	if chmodErr := f.Chmod(0o644); err == nil {
		err = chmodErr
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// Timed reports whether the runs are of mode time.
func (p *Page) Timed() bool {
	return len(p.Runs) > 0 && p.Runs[0].TimedReport != nil
}

// Churned reports whether the runs are of mode churn.
func (p *Page) Churned() bool { return len(p.Runs) > 0 && p.Runs[0].Churn != nil }

// First is the first run: what all have in common is read from it.
func (p *Page) First() *Report { return &p.Runs[0] }

// ClassNames lists the classes of jobs that the runs tell apart.
func (p *Page) ClassNames() []string {
	var out []string
	for i := range p.Runs {
		if p.Runs[i].TimedReport == nil {
			continue
		}
		for name := range p.Runs[i].Classes { // in any order: sorted below
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Charts are the page's plots.
func (p *Page) Charts() []*chart {
	switch {
	case p.Churned():
		return nil
	case !p.Timed():
		return []*chart{p.curves()}
	}
	hours := 3600.0
	unit := "hours since the first arrival"
	if last := p.First().WindowTo; last < 3*3600 {
		hours, unit = 60, "minutes since the first arrival"
	}
	band := [2]float64{p.First().WindowFrom / hours, p.First().WindowTo / hours}
	over := func(title, about, label string, y func(*Series) []float64) *chart {
		c := &chart{title: title, about: about, xLabel: unit, yLabel: label, band: band}
		for i := range p.Runs {
			c.lines = append(c.lines, overTime(&p.Runs[i], hours, y))
		}
		return c
	}
	use := over("Utilisation", "The part of all devices that leases hold. The measured window is shaded.", "allocated",
		func(s *Series) []float64 { return s.Allocation })
	use.percent, use.yMax = true, 1
	queue := over("Queue length", "Jobs that have arrived and not started.", "jobs",
		func(s *Series) []float64 { return floats(s.Queue) })
	frag := over("Fragmentation", "The part of the idle devices that a job drawn from the trace could not use where they are.", "of idle devices",
		func(s *Series) []float64 { return s.Fragmentation })
	frag.percent, frag.yMax = true, 1
	return []*chart{use, queue, p.waits(), frag}
}

// overTime makes a run's line over time, without the points that are below 0:
// nobody looked there.
func overTime(r *Report, unit float64, y func(*Series) []float64) line {
	l := line{name: r.Policy}
	v := y(&r.Series)
	for i := range v {
		if v[i] >= 0 {
			l.x, l.y = append(l.x, r.Series.Seconds[i]/unit), append(l.y, v[i])
		}
	}
	return l
}

// waits is the distribution of waits.
func (p *Page) waits() *chart {
	c := &chart{
		title: "Waits", about: "The part of the measured jobs that waited at most so long. Jobs that had not started at the end count with their wait until then.",
		xLabel: "wait (logarithmic)", yLabel: "of jobs", log: true, percent: true, yMax: 1,
	}
	for i := range p.Runs {
		l := line{name: p.Runs[i].Policy}
		for k, v := range p.Runs[i].WaitCDF {
			l.x, l.y = append(l.x, v), append(l.y, float64(k)/cdfSteps)
		}
		c.lines = append(c.lines, l)
	}
	return c
}

// curves are the allocations of mode fill.
func (p *Page) curves() *chart {
	c := &chart{
		title: "Allocation", about: "What is allocated when so much has arrived, both in percent of all devices.",
		xLabel: "load that arrived, %", yLabel: "% allocated", yMax: 100,
	}
	for i := range p.Runs {
		l := line{name: p.Runs[i].Policy}
		for _, x := range p.Runs[i].Curve {
			l.x, l.y = append(l.x, float64(x.Load)), append(l.y, x.Allocation)
		}
		c.lines = append(c.lines, l)
	}
	return c
}

func floats(v []int) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = float64(v[i])
	}
	return out
}
