package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// auditOf reads a server's audit, and verifies it.
func (m *member) auditOf(t *testing.T) (records []gpuai.AuditRecord, head gpuai.AuditHead) {
	t.Helper()
	var v fsm.AuditVerifier
	err := m.Audit(t.Context(), 0, func(l *gpuai.AuditLine) error {
		switch {
		case l.Entry != nil:
			records = append(records, l.Entry.Records...)
			return v.Add(l.Entry)
		case l.Head != nil:
			head = *l.Head
			return v.End(l.Head, 0)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("server %s: %v", m.cfg.ID, err)
	}
	return records, head
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// What is asked of a region is in the audit of every server, the same, and so it
// is after a restart; refusals are folded; and no secret of a job is in it, nor in
// a log (case 37).
func TestAuditIsOnEveryServer(t *testing.T) {
	const secret = "hush-4711-value"
	logs := &lockedBuffer{}
	r := startRegionWith(t, 3, func(c *Config) {
		c.Logger = slog.New(slog.NewJSONHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	eventually(t, "feature level", func() bool { return r.leader().audits() })
	spec := jobSpec("j", 1)
	spec.Groups[0].Task.Env = map[string]string{"PASSWORD": secret}
	spec.Groups[0].Task.Script, spec.Groups[0].Task.Command = "echo "+secret, nil
	sub := r.submit(spec, "key-"+secret)
	r.write(func(m *member) error {
		_, err := m.StopJob(t.Context(), sub.Job.ID.String(), "")
		return err
	})
	f := r.followers()[0]
	for i := range 700 { // a flood of refusals is one command
		f.Refused(gpuai.AuditNote{Actor: fmt.Sprint("anonymous@10.0.", i/256, ".", i%256), Request: "GET /v1/jobs", Code: gpuai.Unauthenticated})
		f.Refused(gpuai.AuditNote{Actor: "token/A@10.1.1.1", Request: "PUT /v1/operator/policy", Code: gpuai.Forbidden})
	}
	before := r.leader().machineIndex()
	f.auditor.flush(t.Context())
	if err := r.leader().RecordExec(t.Context(), gpuai.AuditNote{Actor: "token/B@::1", Job: sub.Job.ID, Request: "exec", Count: 1}); err != nil {
		t.Fatal(err)
	}
	var want gpuai.AuditHead
	r.leader().node.View(func(m *fsm.Machine) { want = m.AuditHead() })
	if want.Index > before+20 {
		t.Errorf("700 refusals took the log from %d to %d", before, want.Index)
	}
	r.halt(f)
	r.restart(f)
	for _, m := range r.servers {
		eventually(t, "the audit's end", func() bool { return m.machineIndex() >= want.Index })
		records, head := m.auditOf(t)
		if head != want {
			t.Errorf("server %s ends with %+v, the leader with %+v", m.cfg.ID, head, want)
		}
		wantRecords(t, records, sub.Job.ID)
		if raw, _ := json.Marshal(records); strings.Contains(string(raw), "hush") {
			t.Error("the audit holds a secret")
		}
	}
	if strings.Contains(logs.String(), "hush") {
		t.Error("a log holds a secret")
	}
}

func wantRecords(t *testing.T, records []gpuai.AuditRecord, job gpuai.JobID) {
	t.Helper()
	var refused, folded uint32
	seen := map[string]int{}
	for _, x := range records {
		seen[x.Command+" "+x.Request+" "+x.Code.String()]++
		if x.Code == gpuai.Unauthenticated {
			refused += x.Count
		}
		if x.Actor == "token/A@10.1.1.1" {
			folded = x.Count
		}
		if (x.Command == "submit_job" || x.Command == "stop_job" || x.Request == "exec") && x.Job != job {
			t.Errorf("%+v is of another job", x)
		}
	}
	if seen["submit_job  ok"] != 1 || seen["stop_job  ok"] != 1 || seen["audit_note exec ok"] != 1 || refused != 700 || folded != 700 {
		t.Errorf("the audit has %v, %d and %d refusals", seen, refused, folded)
	}
}

// A server that was away, and gets a snapshot, has the audit of the others.
func TestAuditIsCopied(t *testing.T) {
	r := startRegion(t, 3)
	eventually(t, "feature level", func() bool { return r.leader().audits() })
	for i := range 5 {
		r.write(func(m *member) error {
			return m.SetTenantWeight(t.Context(), gpuai.TenantID(fmt.Sprint("t", i)), 3)
		})
	}
	lost := r.followers()[0]
	_, head := lost.auditOf(t)
	lost.archive.dbMu.RLock()
	db := lost.archive.db
	lost.archive.dbMu.RUnlock()
	damage := fmt.Errorf("%w (test)", store.ErrArchiveDamaged)
	lost.archive.fix(db, damage)
	eventually(t, "the copied audit", func() bool {
		n := uint64(0)
		err := lost.Audit(context.Background(), 0, func(l *gpuai.AuditLine) error {
			if l.Entry != nil {
				n += uint64(len(l.Entry.Records))
			}
			return nil
		})
		return err == nil && n >= head.Records
	})
	lost.auditOf(t)
}
