package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/server/offline"
)

// A recordingFlags says which recording, and which part of it.
type recordingFlags struct {
	data, report string
	from, to     uint64
}

func (f *recordingFlags) add(c *cobra.Command, reports bool) {
	c.Flags().StringVar(&f.data, "data", "", "data directory of a stopped server")
	if reports {
		c.Flags().StringVar(&f.report, "report", "", "report of gpuai operator report, - for standard input")
	}
	c.Flags().Uint64Var(&f.from, "from", 0, "index to begin at (default the first whose state can be made)")
	c.Flags().Uint64Var(&f.to, "to", 0, "index to end at (default the last)")
}

// open opens the recording and fills in the range. in is standard input.
func (f *recordingFlags) open(in io.Reader) (*offline.Recording, error) {
	if (f.data == "") == (f.report == "") {
		return nil, usageError{errors.New("give one of --data DIR and --report FILE")}
	}
	var r *offline.Recording
	var err error
	if f.report == stdioName {
		r, err = offline.ReadReport("standard input", in)
	} else {
		r, err = offline.OpenRecording(f.data + f.report)
	}
	if err != nil {
		return nil, err
	}
	if f.from == 0 {
		f.from = r.First
	}
	if f.to == 0 {
		f.to = r.Last
	}
	if f.from > f.to {
		return nil, errors.Join(usageError{fmt.Errorf("--from %d is behind --to %d", f.from, f.to)}, r.Close())
	}
	return r, nil
}

// A replayed is what a replay shows.
type replayed struct {
	State       offline.State       `json:"state"`
	Match       bool                `json:"match,omitzero"` // every digest of the report
	Report      *offline.ReportInfo `json:"report,omitempty"`
	Explanation *gpuai.Explanation  `json:"explanation,omitempty"`
}

func newReplayCmd(a *app) *cobra.Command {
	var f recordingFlags
	var job, diff string
	c := &cobra.Command{
		Use: "replay (--data DIR | --report FILE)", Short: "Make a past state again, or replay under another policy", Args: cobra.NoArgs,
		Long: `Make the state of a past index once more, from the newest snapshot before it and
the log: of a stopped server's data directory, or of a report. Nothing is changed.
Every replay gives the same state, bit for bit; that of a report is compared with
the digest that it records behind each entry, and the first index that differs
ends the command with code 1. --job explains a job as it was then.

--diff replays the log a second time under another policy, a file with settings or
NAME=VALUE, or the name of a packing policy, and compares: waits, utilisation,
preemptions. The shadow gets the commands of users, operators and nodes as they
were. What agents reported of leases it cannot get, since it grants others: each
task runs there as long as it was recorded to run. The recorded policy is
simulated like that too (control), so what control and shadow differ in is the
policy, and what recorded and control differ in is the simulation.`,
		Example: `  gpuai operator replay --data /var/lib/gpuai --to 48377
  gpuai operator replay --data /var/lib/gpuai --to 48377 --job sft-bot
  gpuai operator replay --report region.report -o json --jq .state.digest
  gpuai operator replay --data /var/lib/gpuai --diff priority_batch=90
  gpuai operator replay --report region.report --diff efw`,
	}
	f.add(c, true)
	c.Flags().StringVar(&job, "job", "", "explain this job, by ID, beginning of one, or name")
	c.Flags().StringVar(&diff, "diff", "", "policy to compare with: FILE.json, NAME=VALUE, bestfit or efw")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		r, err := f.open(a.in)
		if err != nil {
			return err
		}
		defer r.Close()
		if diff != "" {
			return a.replayDiff(ctx, r, &f, diff)
		}
		return a.replay(ctx, r, f.to, job)
	})
	return a.prints(c)
}

// replay shows one past state.
func (a *app) replay(ctx context.Context, r *offline.Recording, to uint64, job string) error {
	m, err := r.MachineAt(ctx, to, a.verifyProgress())
	if err != nil {
		return err
	}
	out := replayed{State: offline.StateOf(m, r.Source), Match: r.Report != nil, Report: r.Report}
	if job != "" {
		id, err := m.FindJob(job)
		if err != nil {
			return err
		}
		x, _ := m.Ask(id)
		out.Explanation = &x
	}
	v := &view{names: []string{out.State.Digest}, text: func(w io.Writer) error {
		s := &out.State
		rows := [][]string{
			{"source", r.Source}, {"indexes", fmt.Sprintf("%d..%d", r.First, r.Last)}, {"index", num(s.Index)}, {"term", num(s.Term)},
			{"region time", gpuai.Duration(s.Time).String()}, {"feature level", num(s.Level)}, {"epoch", num(s.Epoch)},
			{"nodes", num(s.Nodes)}, {"jobs", num(s.Jobs)}, {"leases", num(s.Leases)}, {"digest", s.Digest},
		}
		if out.Report != nil {
			rows = append(rows, []string{"recorded", "match: every digest up to here is the same"}, []string{"written by", out.Report.Version})
		}
		if err := columns(w, rows); err != nil || out.Explanation == nil {
			return err
		}
		fmt.Fprintln(w)
		return explainText(w, out.Explanation)
	}}
	return a.showObject(ctx, out, v)
}

// diffSettings reads what --diff names.
func (a *app) diffSettings(diff string) (map[string]any, error) {
	if diff == "bestfit" || diff == "efw" {
		return map[string]any{"packing": diff}, nil
	}
	if _, err := os.Stat(diff); err == nil || filepath.Ext(diff) == ".json" {
		return a.planPolicy(diff, nil)
	}
	return a.planPolicy("", []string{diff})
}

// replayDiff compares two policies on one recording.
func (a *app) replayDiff(ctx context.Context, r *offline.Recording, f *recordingFlags, diff string) error {
	settings, err := a.diffSettings(diff)
	if err != nil {
		return err
	}
	d, err := r.Diff(ctx, gpuai.IndexRange{From: f.from, To: f.to}, settings, a.verifyProgress())
	if err != nil {
		return err
	}
	return a.showObject(ctx, d, &view{text: func(w io.Writer) error { return diffText(w, &d) }})
}

func diffText(w io.Writer, d *offline.Diff) error {
	rows := [][]string{{"INDEX " + num(d.From) + ".." + num(d.To), "RECORDED", "CONTROL", "SHADOW"}}
	row := func(name string, f func(o *offline.Outcome) string) {
		rows = append(rows, []string{name, f(&d.Recorded), f(&d.Control), f(&d.Shadow)})
	}
	row("jobs submitted", func(o *offline.Outcome) string { return num(o.Jobs) })
	row("started", func(o *offline.Outcome) string { return num(o.Started) })
	row("ended", func(o *offline.Outcome) string { return num(o.Ended) })
	row("leases granted", func(o *offline.Outcome) string { return num(o.Leases) })
	row("preempted", func(o *offline.Outcome) string { return num(o.Preempted) })
	row("lost", func(o *offline.Outcome) string { return num(o.Lost) })
	row("wait p50", func(o *offline.Outcome) string { return short(o.WaitP50) })
	row("wait p90", func(o *offline.Outcome) string { return short(o.WaitP90) })
	row("wait max", func(o *offline.Outcome) string { return short(o.WaitMax) })
	row("utilisation", func(o *offline.Outcome) string { return fmt.Sprintf("%.2f %%", float64(o.Utilisation)/1e4) })
	if err := columns(w, rows); err != nil || len(d.Jobs) == 0 {
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"JOB", "NAME", "CONTROL WAITS", "SHADOW WAITS"}}
	for _, j := range d.Jobs {
		rows = append(rows, []string{j.Job.String(), j.Name, short(j.Control), short(j.Shadow)})
	}
	return columns(w, rows)
}
