package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// maxAuditLine bounds a line of an exported file, in bytes.
const maxAuditLine = 16 << 20

// An auditCheck verifies exports of the audit, one behind the other: those in a
// file, and what a server has behind them.
type auditCheck struct {
	v      fsm.AuditVerifier
	begin  *gpuai.AuditBegin // of the newest export
	since  uint64            // of the first export
	ended  bool              // the newest export has its head
	head   gpuai.AuditHead   // the newest one read
	noted  *gpuai.AuditHash  // --head
	passed bool              // an entry has that hash
}

// add takes the next line.
func (k *auditCheck) add(l *gpuai.AuditLine) error {
	switch {
	case l.Begin != nil:
		if k.begin != nil && k.begin.Region != l.Begin.Region {
			return brokenAudit("an export of region %s goes on with one of region %s: they are not one audit", k.begin.Region, l.Begin.Region)
		}
		if k.begin == nil {
			k.since = l.Begin.Since
		}
		k.begin, k.ended = l.Begin, false
		return nil
	case k.begin == nil:
		return brokenAudit("it does not begin as an export does, with a line that names its region: its head was cut off")
	case k.ended:
		return brokenAudit("something stands behind the head that ends an export, and no other export begins there: it was put in")
	case l.Entry != nil:
		return k.entry(l.Entry)
	case l.Head != nil:
		k.ended, k.head = true, *l.Head
		return k.v.End(l.Head, k.begin.Since)
	}
	return brokenAudit("a line has neither a begin nor an entry nor a head")
}

func (k *auditCheck) entry(e *gpuai.AuditEntry) error {
	b := k.begin
	if k.v.Entries == 0 && e.First > 1 && b.Since+b.Dropped == 0 && len(b.Missing) == 0 {
		return brokenAudit("it begins with record %d (index %d), and the export had all from record 1 on: records 1 to %d were cut off its head", e.First, e.Index, e.First-1)
	}
	err := k.v.Add(e)
	if err == nil && k.noted != nil {
		k.passed = k.passed || k.v.Hash == *k.noted || k.v.Entries == 1 && e.Prev == *k.noted
	}
	return err
}

func brokenAudit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", fsm.ErrAuditBroken, fmt.Sprintf(format, args...))
}

// file verifies a file of exports. Errors name the line.
func (k *auditCheck) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return usageError{err}
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, maxAuditLine)
	n, wrong := 0, error(nil)
	for wrong == nil && in.Scan() {
		if n++; len(bytes.TrimSpace(in.Bytes())) == 0 {
			continue
		}
		var l gpuai.AuditLine
		if err := json.Unmarshal(in.Bytes(), &l, json.RejectUnknownMembers(true)); err != nil {
			wrong = notALine(in, err)
		} else if wrong = k.add(&l); wrong != nil && l.Entry != nil {
			wrong = k.moved(wrong, l.Entry, in, n)
		}
	}
	switch {
	case in.Err() != nil:
		return fmt.Errorf("%s, line %d: %w", path, n+1, in.Err())
	case wrong != nil:
		return k.brokenFile(fmt.Sprintf("%s, line %d: %v", path, n, wrong))
	case k.begin == nil:
		return k.brokenFile(path + " is empty: the export wrote nothing, or all of it was cut off")
	}
	return nil
}

// notALine says why a line could not be read: the last one may be a half.
func notALine(in *bufio.Scanner, err error) error {
	if cut := new(json.SemanticError); errors.As(err, &cut) {
		return brokenAudit("this is no line of an audit as this version knows it: %v", err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) && !in.Scan() {
		return brokenAudit("the last line ends in its middle: it was cut off, or the export broke off there")
	}
	return brokenAudit("this is no line of an audit: %v", err)
}

// moved says where records are that an entry, in line n, leaves out, if they are
// further down.
func (k *auditCheck) moved(wrong error, e *gpuai.AuditEntry, in *bufio.Scanner, n int) error {
	if e.First <= k.v.To+1 || k.v.Entries == 0 {
		return wrong
	}
	for n++; in.Scan(); n++ {
		var l gpuai.AuditLine
		if json.Unmarshal(in.Bytes(), &l) == nil && l.Entry != nil && l.Entry.First == k.v.To+1 {
			return fmt.Errorf("%w; line %d has record %d: lines are not in their order", wrong, n, l.Entry.First)
		}
	}
	return wrong
}

func (k *auditCheck) brokenFile(text string) error {
	next := "nothing of this file is proven: export again, with gpuai operator audit export -o json, and keep this file as it is for who looks into it"
	if k.v.Entries > 0 {
		next = fmt.Sprintf("records %d to %d, up to index %d, hold among themselves, what is behind proves nothing: compare with gpuai operator audit export --since %d -o json, and keep this file as it is for who looks into it",
			k.v.From, k.v.To, k.v.Index, k.v.Index)
	}
	return &exitError{exitOther, text, next}
}

// server goes on with what a server has.
func (k *auditCheck) server(ctx context.Context, c *client.Client, q client.AuditQuery, begun func(*gpuai.AuditBegin)) error {
	fromFile := k.begin != nil
	if fromFile && k.v.From > 1 {
		if err := k.startOf(ctx, c, q.Server); err != nil {
			return err
		}
	}
	var who gpuai.ServerID
	err := c.Audit(ctx, q, func(_ []byte, l *gpuai.AuditLine) error {
		if l.Begin != nil {
			who = l.Begin.Server
			begun(l.Begin)
		}
		return k.add(l)
	})
	if !errors.Is(err, fsm.ErrAuditBroken) {
		return err
	}
	text, next := fmt.Sprintf("server %s: %v", who, err), "verify the archives of the others with --server: each has its own, and the state is one; take what they have for what was recorded, and look into what happened to this one's"
	if fromFile {
		text = fmt.Sprintf("the file and what server %s has behind it do not fit: %v", who, err)
		next = "without --file see whether that server's own audit holds, and with --server what the others say: if theirs do, the file was changed or cut, or is of before a backup was restored"
	}
	if k.begin.Dropped > k.v.Index {
		next = fmt.Sprintf("this archive dropped its entries up to index %d (gpuai server run --archive-max), which is behind the file's end: ask another with --server, and export more often", k.begin.Dropped)
	}
	return &exitError{exitOther, text, next}
}

// startOf asks a server whether there are entries before a file's first that the
// file's export would have had.
func (k *auditCheck) startOf(ctx context.Context, c *client.Client, server gpuai.ServerID) error {
	var first *gpuai.AuditEntry
	err := c.Audit(ctx, client.AuditQuery{Since: k.since, Server: server}, func(_ []byte, l *gpuai.AuditLine) error {
		if first = l.Entry; l.Entry != nil || l.Head != nil {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if first == nil || first.Index >= k.v.FirstIndex {
		return nil // it has no more than the file
	}
	return &exitError{
		exitOther, fmt.Sprintf("the file begins with record %d (index %d), and the region has record %d (index %d) before it, which the file's export asked for: records %d to %d were cut off its head",
			k.v.From, k.v.FirstIndex, first.First, first.Index, first.First, k.v.From-1),
		fmt.Sprintf("gpuai operator audit export --since %d -o json has them", k.since),
	}
}

// whole reports whether the file is, once all that can be verified was.
func (k *auditCheck) whole(p *auditPlan, cut bool) error {
	if k.noted != nil && !k.passed {
		return &exitError{
			exitOther, fmt.Sprintf("no entry of records %d to %d, up to index %d, has the hash %s: what led to that head was cut off, was rewritten, or is before the first of them", k.v.From, k.v.To, k.v.Index, k.noted),
			"verify an older export with --file, or another server with --server; if none has it, what was recorded up to that head is no longer what the region says",
		}
	}
	if !cut || k.noted != nil && k.v.Hash == *k.noted {
		return nil
	}
	text := fmt.Sprintf("%s ends without the head that ends an export: its tail was cut off, or the export broke off", p.file)
	if p.offline {
		return k.brokenFile(text)
	}
	return &exitError{
		exitOther, text + "; what it does have is what the region recorded",
		fmt.Sprintf("gpuai operator audit export --since %d -o json >> %s completes it", p.query.Since, p.file),
	}
}
