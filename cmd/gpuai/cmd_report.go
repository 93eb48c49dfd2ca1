package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/server/offline"
)

// stdioName stands for standard output, or input, in place of a file.
const stdioName = "-"

func newReportCmd(a *app) *cobra.Command {
	var f recordingFlags
	var server string
	c := &cobra.Command{
		Use: "report FILE", Short: "Write a redacted report of a past that another build replays", Args: cobra.ExactArgs(1),
		Long: `Write a report for those who look for a bug in a decision: the state at --from and
every entry of the log up to --to. It is made by a server that runs, from its own
log: by the one that is asked, or by --server; at most 65536 entries, by default the
last 8192. Or it is made here, from the --data directory of a server that does not.
FILE "-" is standard output.

It is redacted: commands, scripts, environments, directories, the names of jobs,
groups, racks and NVLink domains, labels, idempotency keys, actors, addresses, boot
IDs, and reasons of reports and health are replaced by stand-ins. What decides
stays: sizes, times, priorities, models, and the names of nodes, servers, zones and
tenants. Look at what you send: those names are yours.

The digests in it are of the redacted states: gpuai operator replay --report FILE
on any build gives the same ones, or names the first index at which it does not.
A request that was repeated across --from is answered anew in it.`,
		Example: `  gpuai operator report region.report
  gpuai operator report --from 48000 --to 48377 region.report
  gpuai operator report --server b - | gpuai operator replay --report -
  gpuai operator report --data /var/lib/gpuai region.report
  gpuai operator replay --report region.report`,
	}
	f.add(c, false)
	c.Flags().StringVar(&server, "server", "", "the server of the region whose log is wanted (default: the one that is asked)")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		if server != "" && f.data != "" {
			return usageError{errors.New("--server asks a server that runs, and --data is of one that does not: give one of them")}
		}
		if f.to > 0 && f.from > f.to {
			return usageError{fmt.Errorf("--from %d is behind --to %d", f.from, f.to)}
		}
		write := a.reportOf(&f, gpuai.ServerID(server))
		if args[0] == stdioName {
			return write(ctx, a.out)
		}
		return a.writeReport(ctx, args[0], write)
	})
	return a.prints(a.reaches(c))
}

// reportOf returns what writes a report: from a data directory, or as a server
// sends it.
func (a *app) reportOf(f *recordingFlags, server gpuai.ServerID) func(context.Context, io.Writer) error {
	if f.data == "" {
		return func(ctx context.Context, w io.Writer) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			return c.Report(ctx, server, gpuai.IndexRange{From: f.from, To: f.to}, &receiving{a: a, w: w, told: time.Now()})
		}
	}
	return func(ctx context.Context, w io.Writer) error {
		r, err := f.open(a.in)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.WriteReport(ctx, w, gpuai.IndexRange{From: f.from, To: f.to}, a.verifyProgress())
		return err
	}
}

// writeReport writes a report to a file: it is there whole, and was read, or not
// at all.
func (a *app) writeReport(ctx context.Context, path string, write func(context.Context, io.Writer) error) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(tmp)
	err = write(ctx, f)
	if closed := errors.Join(f.Sync(), f.Close()); err == nil && closed != nil {
		err = fmt.Errorf("writing %s: %w", path, closed)
	}
	if err != nil {
		return err
	}
	r, err := offline.OpenRecording(tmp)
	if err != nil {
		return fmt.Errorf("the report that came is damaged, ask again: %w", err)
	}
	size, err := os.Stat(tmp)
	if err == nil {
		err = errors.Join(r.Close(), os.Rename(tmp, path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	info := r.Report
	return a.showObject(ctx, info, &view{names: []string{path}, text: func(w io.Writer) error {
		return columns(w, [][]string{
			{"file", path}, {"bytes", num(size.Size())}, {"indexes", fmt.Sprintf("%d..%d", info.From, info.To)},
			{"entries", num(info.Entries)}, {"digest", info.Digest}, {"redacted", info.Redacted},
		})
	}})
}

// A receiving tells on standard error how much has come.
type receiving struct {
	a    *app
	w    io.Writer
	n    gpuai.Bytes
	told time.Time
}

// Write implements io.Writer.
func (r *receiving) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if r.n += gpuai.Bytes(n); time.Since(r.told) >= exportProgress {
		r.told = time.Now()
		r.a.say("received %s\n", bytesText(r.n))
	}
	return n, err
}
