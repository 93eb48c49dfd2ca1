package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

const (
	// auditWindow is how long refused requests are gathered before they go into
	// the log as one command.
	auditWindow = time.Minute
	// maxFolded is how many different refusals a window tells apart; what comes
	// beyond them is counted together.
	maxFolded = gpuai.MaxAuditNotes - 1
	// auditPage is about how many bytes of the audit are read at once.
	auditPage = 1 << 20
)

// An auditor folds what is refused here: who asked for which route, with which
// answer, and how often. However many requests are refused, the log gets one
// command a window.
type auditor struct {
	s      *Server
	window time.Duration

	mu     sync.Mutex // guards below
	folded map[gpuai.AuditNote]uint32
}

func newAuditor(s *Server) *auditor {
	return &auditor{s: s, window: auditWindow, folded: map[gpuai.AuditNote]uint32{}}
}

// Refused implements httpd.Auditor.
func (s *Server) Refused(n gpuai.AuditNote) { s.auditor.add(n, 1) }

// add counts a note, whose own count says nothing.
func (a *auditor) add(n gpuai.AuditNote, count uint32) {
	n.Count = 0
	a.mu.Lock()
	defer a.mu.Unlock()
	old, known := a.folded[n]
	if !known && len(a.folded) >= maxFolded {
		n = gpuai.AuditNote{Actor: "others", Request: "any", Code: n.Code}
		old = a.folded[n]
		if _, known := a.folded[n]; !known && len(a.folded) > maxFolded {
			return // one more of another code
		}
	}
	if !known {
		a.s.log.Info("refused", "audit", "refused", "who", n.Actor, "request", n.Request, "code", n.Code)
	}
	a.folded[n] = uint32(min(uint64(old)+uint64(count), math.MaxUint32))
}

// run proposes what was gathered, until ctx ends.
func (a *auditor) run(ctx context.Context) {
	tick := time.NewTicker(a.window)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.flush(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// flush proposes one command. What could not be proposed waits for the next
// window, as far as there is room.
func (a *auditor) flush(ctx context.Context) {
	a.mu.Lock()
	folded := a.folded
	a.folded = map[gpuai.AuditNote]uint32{}
	a.mu.Unlock()
	if len(folded) == 0 || !a.s.audits() {
		return
	}
	notes := make([]gpuai.AuditNote, 0, len(folded))
	for n, count := range folded {
		if n.Count = count; len(notes) < gpuai.MaxAuditNotes {
			notes = append(notes, n)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, laneTimeout)
	defer cancel()
	if err := a.s.recordNotes(ctx, notes); err != nil {
		a.s.log.Warn("refused requests are not in the audit yet", "notes", len(notes), "error", err)
		for _, n := range notes {
			a.add(n, n.Count)
		}
	}
}

// audits reports whether the region has an audit.
func (s *Server) audits() (yes bool) {
	s.node.View(func(m *fsm.Machine) { yes = m.Level() >= fsm.LevelTenants })
	return yes
}

// recordNotes has notes in the log when it returns nil.
func (s *Server) recordNotes(ctx context.Context, notes []gpuai.AuditNote) error {
	c := fsm.AuditNote{Notes: notes}
	out, err := s.propose(ctx, c.Append(nil, fsm.Envelope{Actor: "server/" + string(s.cfg.ID), Key: rand.Text()}))
	if err == nil && out[0].Code != gpuai.OK {
		err = &gpuai.Error{Code: out[0].Code, Detail: out[0].Detail}
	}
	return err
}

// RecordExec implements httpd.Auditor.
func (s *Server) RecordExec(ctx context.Context, n gpuai.AuditNote) error {
	if !s.audits() {
		return nil // the log of this server has it
	}
	if err := s.recordNotes(ctx, []gpuai.AuditNote{n}); err != nil {
		s.log.Warn("a command is refused: it cannot be recorded in the audit", "error", err)
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "the command was not run: the region has no leader who would record it in the audit; retry",
		}
	}
	return nil
}

// Audit implements httpd.Operator: from this server's archive, up to the end
// that this server's state has now.
func (s *Server) Audit(ctx context.Context, since uint64, f func(*gpuai.AuditLine) error) error {
	var head gpuai.AuditHead
	s.node.View(func(m *fsm.Machine) { head = m.AuditHead() })
	if err := s.archivedUpTo(ctx, head.Index); err != nil {
		return err
	}
	begin := gpuai.AuditBegin{Server: s.cfg.ID, Region: s.cfg.Region, Since: since}
	err := s.archive.use(func(db *store.Archive) error {
		st := db.State()
		begin.Dropped, begin.Missing = st.Dropped, append(st.Missing, st.Gaps()...)
		return nil
	})
	if err != nil {
		return archiveError(err)
	}
	if err := f(&gpuai.AuditLine{Begin: &begin}); err != nil {
		return err
	}
	at := store.ArchivePlace{Index: min(since, math.MaxInt64) + 1}
	for done := since >= head.Index; !done; {
		var rows []store.ArchiveRow
		err := s.archive.use(func(db *store.Archive) (err error) {
			rows, at, done, err = db.Audits(at, head.Index, auditPage)
			return err
		})
		if err != nil {
			return archiveError(err)
		}
		if err := auditRows(rows, f); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return f(&gpuai.AuditLine{Head: &head})
}

// auditRows calls f with the entries in rows.
func auditRows(rows []store.ArchiveRow, f func(*gpuai.AuditLine) error) error {
	for i := range rows {
		link, err := rows[i].Audit()
		if err != nil {
			return err
		}
		e, err := fsm.ReadAudit(link)
		if err != nil {
			return fmt.Errorf("the audit in this server's history archive, at index %d: %w", rows[i].Index, err)
		}
		if err := f(&gpuai.AuditLine{Entry: &e}); err != nil {
			return err
		}
	}
	return nil
}
