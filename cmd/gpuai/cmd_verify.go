package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/server/offline"
)

func newVerifyCmd(a *app) *cobra.Command {
	var data string
	c := &cobra.Command{
		Use: "verify --data DIR", Short: "Check the data directory of a stopped server", Args: cobra.NoArgs,
		Long: `Check the data directory of a stopped server, and change nothing in it: the
identity, every page of the log, the checksum of every entry, every snapshot, and
that the log goes on where the snapshots end. Then the state is built from the
oldest snapshot on which the log follows and compared with each newer one, and
every row of the history archive is read. The last entries of a log may not be
committed; the state includes them.

The exit code is 0 when nothing is wrong, 1 when there are findings, each with
its file, its place and what to do next.`,
		Example: `  gpuai operator verify --data /var/lib/gpuai
  gpuai operator verify --data /var/lib/gpuai -o json --jq .state.digest`,
	}
	c.Flags().StringVar(&data, "data", "", "data directory of the server (required)")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		if data == "" {
			return usageError{errors.New("--data must name the data directory of a server")}
		}
		r, err := offline.Verify(ctx, data, a.verifyProgress())
		if err != nil {
			return err
		}
		v := &view{names: []string{data}, text: func(w io.Writer) error { return verifyText(w, &r) }}
		if err := a.showObject(ctx, r, v); err != nil {
			return err
		}
		if !r.OK {
			return &exitError{code: exitOther}
		}
		return nil
	})
	return a.prints(c)
}

// verifyProgress tells on standard error, at most once a second.
func (a *app) verifyProgress() func(string, uint64, uint64) {
	last := time.Now()
	return func(what string, done, of uint64) {
		if time.Since(last) >= time.Second {
			a.say("%s: %d of %d\n", what, done, of)
			last = time.Now()
		}
	}
}

func archiveText(a *offline.ArchiveReport) string {
	if a == nil {
		return "none that can be read"
	}
	state := "ok"
	if !a.OK {
		state = "damaged"
	}
	return fmt.Sprintf("%s, up to index %d, %s of events, %s, %s, %d bytes", state, a.End(),
		plural(a.Entries, "row"), plural(a.Jobs, "job"), plural(a.Tasks, "task"), a.Bytes)
}

func verifyText(w io.Writer, r *offline.Report) error {
	verdict := "ok"
	if !r.OK {
		verdict = plural(uint64(len(r.Findings)), "finding")
	}
	rows := [][]string{
		{"directory", r.Dir}, {"verdict", verdict}, {"server", string(r.Server)}, {"region", string(r.Region)}, {"cluster", string(r.Cluster)},
		{"applied index", num(r.Applied)},
		{"log", fmt.Sprintf("%d..%d, %d entries, %d of them with commands, %d bytes", r.Log.First, r.Log.Last, r.Log.Entries, r.Log.Commands, r.Log.Bytes)},
		{"raft term", num(r.Log.Term)},
	}
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		state := "damaged"
		if s.OK {
			state = fmt.Sprintf("ok, feature level %d, epoch %d, digest %s", s.Level, s.Epoch, s.Digest)
		}
		rows = append(rows, []string{"snapshot at " + num(s.Index), state})
	}
	if s := r.State; s != nil {
		from := s.From
		if from == "" {
			from = "the log alone"
		}
		rows = append(rows, [][]string{
			{"state", "from " + from}, {"index", num(s.Index)}, {"term", num(s.Term)}, {"digest", s.Digest}, {"feature level", num(s.Level)},
			{"epoch", num(s.Epoch)}, {"region time", gpuai.Duration(s.Time).String()},
			{"nodes", num(s.Nodes)}, {"jobs", num(s.Jobs)}, {"leases", num(s.Leases)},
		}...)
	}
	rows = append(rows, []string{"history archive", archiveText(r.Archive)})
	if err := columns(w, rows); err != nil {
		return err
	}
	var b strings.Builder
	for i := range r.Findings {
		f := &r.Findings[i]
		place := f.File
		if f.Place != "" {
			place += ", " + f.Place
		}
		fmt.Fprintf(&b, "\n%s: %s\n  next: %s\n", place, f.Problem, f.Next)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
