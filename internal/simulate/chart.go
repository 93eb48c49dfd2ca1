package simulate

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// Size of a chart, in its own units.
const (
	chartWidth  = 720
	chartHeight = 300
	plotLeft    = 64
	plotRight   = 16
	plotTop     = 12
	plotBottom  = 44
)

// colors tell lines apart, also for those who see few colors (Okabe and Ito).
var colors = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"}

// dashes tell lines apart in print.
var dashes = []string{"", "7 4", "2 3", "10 3 2 3", "4 2", "1 2"}

// A line is one line of a chart; its points are (x[i], y[i]).
type line struct {
	name string
	x, y []float64
}

// A chart is lines over the same axes.
type chart struct {
	title   string
	about   string // one sentence: what is seen
	xLabel  string
	yLabel  string
	lines   []line
	band    [2]float64 // of x that is marked as measured; both 0: none
	log     bool       // x is drawn as log(1+x)
	yMax    float64    // at least
	percent bool       // y is a ratio
}

// A span maps values to places.
type span struct {
	lo, hi   float64
	from, to float64
	log      bool
}

func (s *span) at(v float64) float64 {
	lo, hi := s.lo, s.hi
	if s.log {
		v, lo, hi = math.Log1p(v), math.Log1p(lo), math.Log1p(hi)
	}
	if hi == lo {
		return s.from
	}
	return s.from + (v-lo)/(hi-lo)*(s.to-s.from)
}

// axes returns the spans that hold all lines.
func (c *chart) axes() (x, y span) {
	x = span{lo: math.Inf(1), hi: 0, from: plotLeft, to: chartWidth - plotRight, log: c.log}
	y = span{hi: c.yMax, from: chartHeight - plotBottom, to: plotTop}
	for i := range c.lines {
		for k, v := range c.lines[i].x {
			x.lo, x.hi = min(x.lo, v), max(x.hi, v)
			y.hi = max(y.hi, c.lines[i].y[k])
		}
	}
	if x.lo > x.hi || c.log {
		x.lo = 0
	}
	if x.hi <= x.lo {
		x.hi = x.lo + 1
	}
	if y.hi <= 0 {
		y.hi = 1
	}
	return x, y
}

// SVG draws the chart. It needs no other file.
func (c *chart) SVG() template.HTML {
	x, y := c.axes()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight, template.HTMLEscapeString(c.title))
	if c.band[1] > c.band[0] {
		fmt.Fprintf(&b, `<rect class="band" x="%.1f" y="%d" width="%.1f" height="%d"/>`,
			x.at(c.band[0]), plotTop, x.at(c.band[1])-x.at(c.band[0]), chartHeight-plotTop-plotBottom)
	}
	for _, v := range ticks(y.hi) {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="y" x="%d" y="%.1f">%s</text>`,
			plotLeft, chartWidth-plotRight, y.at(v), y.at(v), plotLeft-8, y.at(v)+4, c.yText(v))
	}
	for _, v := range c.xTicks(&x) {
		fmt.Fprintf(&b, `<line class="grid" y1="%d" y2="%d" x1="%.1f" x2="%.1f"/><text class="x" x="%.1f" y="%d">%s</text>`,
			plotTop, chartHeight-plotBottom, x.at(v), x.at(v), x.at(v), chartHeight-plotBottom+18, c.xText(v))
	}
	fmt.Fprintf(&b, `<text class="x" x="%d" y="%d">%s</text>`, (plotLeft+chartWidth-plotRight)/2, chartHeight-6, template.HTMLEscapeString(c.xLabel))
	for i := range c.lines {
		l := &c.lines[i]
		fmt.Fprintf(&b, `<polyline stroke="%s" stroke-dasharray="%s" points="`, colors[i%len(colors)], dashes[i%len(dashes)])
		for k := range l.x {
			fmt.Fprintf(&b, "%.1f,%.1f ", x.at(l.x[k]), y.at(l.y[k]))
		}
		fmt.Fprintf(&b, `"><title>%s</title></polyline>`, template.HTMLEscapeString(l.name))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String())
}

// Legend names the lines.
func (c *chart) Legend() template.HTML {
	var b strings.Builder
	for i := range c.lines {
		fmt.Fprintf(&b, `<span><svg class="key" viewBox="0 0 36 8"><line x1="0" x2="36" y1="4" y2="4" stroke="%s" stroke-dasharray="%s"/></svg>%s</span> `,
			colors[i%len(colors)], dashes[i%len(dashes)], template.HTMLEscapeString(c.lines[i].name))
	}
	return template.HTML(b.String())
}

// Title, About and YLabel are for the template.
func (c *chart) Title() string  { return c.title }
func (c *chart) About() string  { return c.about }
func (c *chart) YLabel() string { return c.yLabel }

func (c *chart) yText(v float64) string {
	if c.percent {
		return fmt.Sprintf("%.0f %%", 100*v)
	}
	return short(v)
}

func (c *chart) xText(v float64) string {
	if c.log {
		return seconds(v)
	}
	return short(v)
}

func (c *chart) xTicks(x *span) []float64 {
	if !c.log {
		return ticks(x.hi)
	}
	var out []float64
	for _, v := range []float64{0, 1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400} {
		if v <= x.hi {
			out = append(out, v)
		}
	}
	return out
}

// ticks returns four to ten round numbers from 0 to a maximum.
func ticks(hi float64) []float64 {
	step := math.Pow(10, math.Floor(math.Log10(hi)))
	for _, f := range []float64{0.1, 0.2, 0.25, 0.5, 1} {
		if hi/(step*f) <= 7 {
			step *= f
			break
		}
	}
	var out []float64
	for i := range 12 {
		if v := float64(i) * step; v <= hi*1.0001 {
			out = append(out, v)
		}
	}
	return out
}

// short writes a number with few digits.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// seconds writes a span of time with few digits.
func seconds(v float64) string {
	switch {
	case v >= 86400:
		return fmt.Sprintf("%.3g d", v/86400)
	case v >= 3600:
		return fmt.Sprintf("%.3g h", v/3600)
	case v >= 60:
		return fmt.Sprintf("%.3g min", v/60)
	case v >= 1 || v == 0:
		return fmt.Sprintf("%.3g s", v)
	default:
		return fmt.Sprintf("%.3g ms", v*1000)
	}
}
