package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

func newAuditCmd(a *app) *cobra.Command {
	return group("audit", "Export the audit, and verify that nothing in it was changed", newAuditExportCmd(a), newAuditVerifyCmd(a))
}

func newAuditExportCmd(a *app) *cobra.Command {
	var q client.AuditQuery
	var server string
	c := &cobra.Command{
		Use: "export", Short: "Show who asked for what, and with what result", Args: cobra.NoArgs,
		Long: `Show the audit that a server's history archive has: what people, operators and
joining nodes asked for, with where from and with what result, in the order of the
log. Requests that were refused before they became a command are there too, folded
by who, route and minute.

With -o json it is lines of JSON, of which each entry has the hash of the one before
it; "gpuai operator audit verify --file" reads them. The oldest entries make way as
all history does (gpuai server run --archive-max): export them in time with --since.`,
		Example: `  gpuai operator audit export
  gpuai operator audit export -o json > audit.jsonl
  gpuai operator audit export --since 48377 -o json | jq -c '.entry.records[]?'`,
	}
	c.Flags().Uint64Var(&q.Since, "since", 0, "only entries after this index of the log")
	c.Flags().StringVar(&server, "server", "", "the server of the region whose archive is read (default: the one that is asked)")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		q.Server = gpuai.ServerID(server)
		c, err := a.connect()
		if err != nil {
			return err
		}
		if a.api.output == formatJSON {
			return c.Audit(ctx, q, func(raw []byte, _ *gpuai.AuditLine) error {
				_, err := fmt.Fprintf(a.out, "%s\n", raw)
				return err
			})
		}
		v := &view{head: []string{"TIME", "INDEX", "WHO", "WHAT", "TENANT", "ABOUT", "CHANGE", "RESULT"}}
		err = c.Audit(ctx, q, func(_ []byte, l *gpuai.AuditLine) error {
			if l.Begin != nil {
				a.warnAudit(l.Begin)
			}
			if l.Entry != nil {
				auditRows(v, l.Entry)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// warnAudit says what an export cannot have.
func (a *app) warnAudit(b *gpuai.AuditBegin) {
	if b.Dropped > b.Since {
		a.say("entries up to index %d may have made way for newer ones (server run --archive-max)\n", b.Dropped)
	}
	for _, r := range b.Missing {
		a.say("the archive of server %s has nothing of indexes %d to %d: ask another with --server\n", b.Server, r.From, r.To)
	}
}

func auditRows(v *view, e *gpuai.AuditEntry) {
	at := time.UnixMilli(int64(e.Wall)).UTC().Format(time.RFC3339)
	for i := range e.Records {
		r := &e.Records[i]
		what, about, result := r.Command, r.Subject, r.Code.String()
		if r.Request != "" {
			what = r.Request
		}
		if !r.Job.IsZero() {
			about = strings.TrimSpace(r.Job.String() + " " + about)
		}
		if r.Count > 1 {
			result += " ×" + strconv.FormatUint(uint64(r.Count), 10)
		}
		if r.Repeated {
			result += " (repeated)"
		}
		v.row(num(e.Index), at, num(e.Index), r.Actor, what, string(r.Tenant), about, r.Change, result)
	}
}

// An auditPlan is what is verified.
type auditPlan struct {
	file    string
	offline bool
	query   client.AuditQuery
}

func newAuditVerifyCmd(a *app) *cobra.Command {
	var p auditPlan
	var server string
	c := &cobra.Command{
		Use: "verify", Short: "Recompute the audit's chain and compare it with the region's state", Args: cobra.NoArgs,
		Long: `Recompute the hash chain of the audit over what a server's history archive has, and
compare its end with the one in that server's replicated state. A record that was
changed, left out, put in or moved is found; the command says between which indexes
of the log, and ends with 1. Verify each server with --server: the archives are
their own, the state is one.

--file begins with an exported file, and goes on with what the region has recorded
since. So old exports stay provable after the archive has dropped their entries.
With --offline the file is compared with its own last line only.`,
		Example: `  gpuai operator audit verify
  gpuai operator audit verify --server b
  gpuai operator audit verify --file audit.jsonl`,
	}
	c.Flags().StringVar(&p.file, "file", "", "a file of \"audit export -o json\" to begin with")
	c.Flags().BoolVar(&p.offline, "offline", false, "with --file: ask no server")
	c.Flags().Uint64Var(&p.query.Since, "since", 0, "begin behind this index of the log")
	c.Flags().StringVar(&server, "server", "", "the server whose archive is verified (default: the one that is asked)")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		p.query.Server = gpuai.ServerID(server)
		if err := a.checkFormat(); err != nil {
			return err
		}
		if p.offline && p.file == "" {
			return usageError{errors.New("--offline verifies a file: name it with --file")}
		}
		if p.file != "" && p.query.Since > 0 {
			return usageError{errors.New("--file says where to begin: leave --since out")}
		}
		return a.verifyAudit(ctx, &p)
	})
	return a.talks(c)
}

// An auditReport is what a verification found.
type auditReport struct {
	Holds      bool            `json:"holds"`
	Records    uint64          `json:"records"`
	Entries    uint64          `json:"entries"`
	First      uint64          `json:"first_record"`
	FirstIndex uint64          `json:"first_index"`
	Index      uint64          `json:"index"`
	Head       gpuai.AuditHead `json:"head"`
	Server     gpuai.ServerID  `json:"server,omitzero"`
}

// verifyAudit verifies a file, what the region has behind it, or both.
func (a *app) verifyAudit(ctx context.Context, p *auditPlan) error {
	var v fsm.AuditVerifier
	var r auditReport
	line := func(_ []byte, l *gpuai.AuditLine) error {
		switch {
		case l.Begin != nil:
			r.Server = l.Begin.Server
			if v.Entries == 0 {
				a.warnAudit(l.Begin)
			}
		case l.Entry != nil:
			return v.Add(l.Entry)
		case l.Head != nil:
			r.Head = *l.Head
			return v.End(l.Head, p.query.Since)
		}
		return nil
	}
	if p.file != "" {
		f, err := os.Open(p.file)
		if err != nil {
			return usageError{err}
		}
		defer f.Close()
		if err := readAuditFile(f, line); err != nil {
			return fmt.Errorf("%s: %w", p.file, err)
		}
		p.query.Since = v.Index
	}
	if !p.offline {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.Audit(ctx, p.query, line); err != nil {
			return err
		}
	}
	r.Holds, r.Entries, r.First, r.FirstIndex, r.Index = true, v.Entries, v.From, v.FirstIndex, v.Index
	if v.Entries > 0 {
		r.Records = v.To - v.From + 1
	}
	return a.showObject(ctx, &r, auditView(&r))
}

func readAuditFile(f io.Reader, line func([]byte, *gpuai.AuditLine) error) error {
	err := client.ReadAudit(f, line)
	var broken *gpuai.Error
	if errors.As(err, &broken) {
		return errors.New(broken.Detail)
	}
	return err
}

func auditView(r *auditReport) *view {
	v := &view{names: []string{r.Head.Hash.String()}}
	v.text = func(w io.Writer) error {
		if r.Records == 0 {
			_, err := fmt.Fprintln(w, "the audit has no entries there, and the region's state says so too")
			return err
		}
		_, err := fmt.Fprintf(w, "the chain holds: records %d to %d, of log indexes %d to %d, end as the region's state does\nhead %s\n",
			r.First, r.First+r.Records-1, r.FirstIndex, r.Index, r.Head.Hash)
		return err
	}
	return v
}
