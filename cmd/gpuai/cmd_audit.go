package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
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
	noted   string // a head
	query   client.AuditQuery
}

func newAuditVerifyCmd(a *app) *cobra.Command {
	var p auditPlan
	var server string
	c := &cobra.Command{
		Use: "verify", Short: "Recompute the audit's chain and compare it with the region's state", Args: cobra.NoArgs,
		Long: `Recompute the hash chain of the audit over what a server's history archive has, and
compare its end with the one in that server's replicated state. A record that was
changed, left out, put in or moved is found; the command says which one and what was
done to it, and ends with 1. Verify each server with --server: the archives are
their own, the state is one.

--file begins with an exported file, or with several one behind the other, and goes
on with what the region has recorded since. So old exports stay provable after the
archive has dropped their entries, and a file whose end was cut off is found: what
was cut is what the region has.

With --offline no server is asked: the file is compared with its own last line, and
what was cut off together with that line is not seen. Give --head then: the hash of
the head that was noted when the audit was verified or exported, elsewhere than the
file. The chain must lead to it.`,
		Example: `  gpuai operator audit verify
  gpuai operator audit verify --server b
  gpuai operator audit verify --file audit.jsonl
  gpuai operator audit verify --file audit.jsonl --offline --head "$(cat audit.head)"
  gpuai operator audit verify -o name > audit.head`,
	}
	c.Flags().StringVar(&p.file, "file", "", "a file of \"audit export -o json\" to begin with")
	c.Flags().BoolVar(&p.offline, "offline", false, "with --file: ask no server")
	c.Flags().StringVar(&p.noted, "head", "", "hash of a head that was noted before: the chain must lead to it")
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
	// Offline is set when the head is that of a file, and of no server's state.
	Offline bool `json:"offline,omitzero"`
}

// verifyAudit verifies a file, what the region has behind it, or both.
func (a *app) verifyAudit(ctx context.Context, p *auditPlan) error {
	var k auditCheck
	if p.noted != "" {
		k.noted = new(gpuai.AuditHash)
		if err := k.noted.UnmarshalText([]byte(p.noted)); err != nil {
			return usageError{fmt.Errorf("--head: %w", err)}
		}
	}
	cut := false
	if p.file != "" {
		if err := k.file(p.file); err != nil {
			return err
		}
		cut = !k.ended
		p.query.Since = max(k.v.Index, k.since)
	}
	if !p.offline {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := k.server(ctx, c, p.query, a.warnAudit); err != nil {
			return err
		}
	}
	if err := k.whole(p, cut); err != nil {
		return err
	}
	r := auditReport{
		Holds: true, Entries: k.v.Entries, First: k.v.From, FirstIndex: k.v.FirstIndex, Index: k.v.Index,
		Head: k.head, Server: k.begin.Server, Offline: p.offline,
	}
	if cut && p.offline { // it ends with the head that was noted
		r.Head = gpuai.AuditHead{Hash: k.v.Hash, Records: k.v.To, Index: k.v.Index}
	}
	if k.v.Entries > 0 {
		r.Records = k.v.To - k.v.From + 1
	}
	return a.showObject(ctx, &r, auditView(&r, p.noted != ""))
}

func auditView(r *auditReport, noted bool) *view {
	v := &view{names: []string{r.Head.Hash.String()}}
	v.text = func(w io.Writer) error {
		as, unseen := "end as the region's state does", ""
		if r.Offline {
			as = "end as the file says"
		}
		if r.Offline && !noted {
			unseen = "what was cut off together with the file's last line would not be seen: leave --offline out, or give --head\n"
		}
		if r.Records == 0 {
			_, err := fmt.Fprintln(w, "the audit has no entries there, and", as)
			return err
		}
		_, err := fmt.Fprintf(w, "the chain holds: records %d to %d, of log indexes %d to %d, %s\n%shead %s\n",
			r.First, r.First+r.Records-1, r.FirstIndex, r.Index, as, unseen, r.Head.Hash)
		return err
	}
	return v
}
