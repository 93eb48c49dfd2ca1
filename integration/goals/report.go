package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is what a run measured.
type report struct {
	Date       string `json:"date"`
	Machine    string `json:"machine"`
	Processors int    `json:"processors"`
	Nodes      int    `json:"nodes"`
	GPUs       int    `json:"gpus_per_node"`
	Load       string `json:"load_average_before"`
	LoadAfter  string `json:"load_average_after"`
	Rows       []row  `json:"rows"`
}

// A row is one goal.
type row struct {
	Name     string             `json:"row"`
	Goal     string             `json:"goal"`
	Measured string             `json:"measured"`
	Met      bool               `json:"met"`
	How      string             `json:"how"`
	Values   map[string]float64 `json:"values,omitempty"`
	Load     string             `json:"load_average"` // when it ended
	Error    string             `json:"error,omitempty"`
}

func (r *report) begin(o *options) {
	r.Date, r.Machine, r.Processors = time.Now().UTC().Format("2006-01-02 15:04"), machine(), runtime.NumCPU()
	r.Nodes, r.GPUs, r.Load, r.Rows = o.nodes, o.gpus, loadAverage(), []row{}
}

// write writes the report as JSON or as a table.
func (r *report) write(w io.Writer, format string) error {
	r.LoadAfter = loadAverage()
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tGOAL\tMEASURED\tMET")
	for i := range r.Rows {
		x := &r.Rows[i]
		met := map[bool]string{true: "yes", false: "NO"}[x.Met]
		if x.Error != "" {
			met, x.Measured = "?", "not measured: "+x.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", x.Name, x.Goal, x.Measured, met)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s; %s, %d processors; load average %s before, %s after\n\n", r.Date, r.Machine, r.Processors, r.Load, r.LoadAfter)
	for i := range r.Rows {
		if _, err := fmt.Fprintf(w, "%s: %s\n", r.Rows[i].Name, r.Rows[i].How); err != nil {
			return err
		}
	}
	return nil
}

// machine names the processor.
func machine() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for l := range strings.Lines(string(b)) {
		if name, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

// loadAverage is the machine's, of the last minute.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
