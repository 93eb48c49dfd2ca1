package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/store"
)

const (
	// fillRetry … fillRetryMost is the wait after an attempt that fetched
	// nothing, doubling; fillPoll how often gaps are looked for unasked.
	fillRetry     = time.Second
	fillRetryMost = time.Minute
	fillPoll      = time.Minute
	// fillPage is about how many bytes of rows one answer has.
	fillPage = 4 << 20
	// fillTimeout bounds one question to another server.
	fillTimeout = 20 * time.Second
)

// An archiveQuestion is what servers ask each other for: rows from a place up
// to an index, or, with To 0, only what there is.
type archiveQuestion struct {
	From store.ArchivePlace `json:"from"`
	To   uint64             `json:"to,omitzero"`
	// Audit asks for links of the audit instead; only the index of a place
	// counts then.
	Audit bool `json:"audit,omitzero"`
}

// An archiveAnswer is the line in front of the rows.
type archiveAnswer struct {
	State store.ArchiveState `json:"state"`
	Next  store.ArchivePlace `json:"next"`
	Done  bool               `json:"done,omitzero"` // Next means nothing
}

// fill fetches what this archive misses, until ctx ends.
func (a *archiver) fill(ctx context.Context) {
	wait, retry := fillPoll, fillRetry
	for {
		select {
		case <-a.gaps:
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		more, err := true, error(nil)
		for more && err == nil && ctx.Err() == nil {
			more, err = a.fillOne(ctx)
		}
		if err == nil {
			wait, retry = fillPoll, fillRetry
			continue
		}
		a.s.log.Info("history that this server misses is not fetched yet", "retry_in", retry, "error", err)
		wait, retry = retry, min(2*retry, fillRetryMost)
	}
}

// A holder is another server and what its archive has.
type holder struct {
	id    gpuai.ServerID
	state store.ArchiveState
}

// fillOne fetches the first gap, or the first part of it that some server has.
// more: there was one.
func (a *archiver) fillOne(ctx context.Context) (more bool, err error) {
	db := a.current()
	if db == nil {
		return false, nil
	}
	st := db.State()
	gaps := st.Gaps()
	if len(gaps) == 0 {
		a.hopeless.Store(false)
		return false, nil
	}
	gap := gaps[0]
	holders, silent := a.ask(ctx)
	next := gap.To + 1 // where something is had again
	for _, h := range holders {
		for _, r := range h.state.Has() {
			if r.From <= gap.From && gap.From <= r.To {
				a.hopeless.Store(false)
				return true, a.copyFrom(ctx, h.id, gpuai.IndexRange{From: gap.From, To: min(gap.To, r.To)})
			}
			if r.From > gap.From {
				next = min(next, r.From)
			}
		}
	}
	missing := gpuai.IndexRange{From: gap.From, To: next - 1}
	if a.replay(ctx, missing) {
		return true, nil
	}
	if len(silent) > 0 {
		a.hopeless.Store(true)
		return true, fmt.Errorf("nobody who answers has indexes %d to %d, and servers %v do not answer", gap.From, gap.To, silent)
	}
	return true, a.lack(missing, holders)
}

// replay makes what no other server has from this one's own log, as far as that
// reaches back. It reports whether there is more now than before.
func (a *archiver) replay(ctx context.Context, r gpuai.IndexRange) bool {
	var entries []store.ArchiveEntry
	weight := 0
	write := func() error {
		err := a.use(func(db *store.Archive) error { return db.Append(entries) })
		entries, weight = nil, 0
		return err
	}
	began := time.Now()
	from, err := a.s.node.Replay(ctx, r, func(out *fsm.Output) error {
		entries = append(entries, store.ArchiveEntry{
			Prev: out.Prev, Index: out.Index, Upto: out.Index, Events: out.Events, Retired: out.Retired, Audit: out.Audit,
		})
		if weight += weightOf(out.Events, out.Retired, out.Audit); weight < maxArchiveTx {
			return nil
		}
		return write()
	})
	if err == nil {
		err = write()
	}
	if err == nil { // entries without commands have no output
		err = a.use(func(db *store.Archive) error { return db.Fill(nil, gpuai.IndexRange{From: from, To: r.To}) })
	}
	if err != nil {
		if !errors.Is(err, raft.ErrNoReplay) {
			a.s.log.Info("history cannot be made from the log", "error", err)
		}
		return false
	}
	a.s.log.Info("history was made from this server's log", "from", from, "to", r.To, "took", time.Since(began))
	return true
}

// lack notes that no server has a range: it was dropped to make room, or is
// gone. A server that has not come as far cannot say.
func (a *archiver) lack(r gpuai.IndexRange, holders []holder) error {
	dropped := uint64(0)
	for _, h := range holders {
		if h.state.End() < r.To {
			return fmt.Errorf("server %s has not come to index %d yet", h.id, r.To)
		}
		dropped = max(dropped, h.state.Dropped)
	}
	if r.From <= dropped {
		return a.use(func(db *store.Archive) error { return db.Lack(min(dropped, r.To)) })
	}
	a.s.log.Warn("no server has a part of the history: what happened then can be read no more", "from", r.From, "to", r.To)
	return a.use(func(db *store.Archive) error { return db.GiveUp(r) })
}

// ask asks all other servers what their archives have.
func (a *archiver) ask(ctx context.Context) (holders []holder, silent []gpuai.ServerID) {
	type answer struct {
		holder
		err error
	}
	peers := a.s.node.Members()
	answers, asked := make(chan answer, len(peers)), 0
	for _, p := range peers {
		if p.ID == a.s.cfg.ID {
			continue
		}
		asked++
		go func() { // ends with its timeout at the latest
			head, _, err := a.question(ctx, p.ID, archiveQuestion{})
			answers <- answer{holder{p.ID, head.State}, err}
		}()
	}
	for range asked {
		if x := <-answers; x.err != nil {
			silent = append(silent, x.id)
		} else {
			holders = append(holders, x.holder)
		}
	}
	return holders, silent
}

func (a *archiver) question(ctx context.Context, id gpuai.ServerID, q archiveQuestion) (head archiveAnswer, rows []store.ArchiveRow, err error) {
	body, err := json.Marshal(&q)
	if err != nil {
		return head, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fillTimeout)
	defer cancel()
	body, err = a.s.askPeer(ctx, id, pathArchive, body)
	if err != nil {
		return head, nil, err
	}
	line, rest, ok := bytes.Cut(body, []byte("\n"))
	if !ok {
		return head, nil, errWire
	}
	if err = json.Unmarshal(line, &head); err == nil {
		rows, err = store.ReadRows(rest)
	}
	return head, rows, err
}

// copyFrom copies the rows of a range from another server.
func (a *archiver) copyFrom(ctx context.Context, id gpuai.ServerID, r gpuai.IndexRange) error {
	began := time.Now()
	rows, err := a.copyAudit(ctx, id, r) // first: what is covered has all its rows
	if err != nil {
		return err
	}
	at := store.ArchivePlace{Index: r.From}
	for done := false; !done; {
		head, page, err := a.question(ctx, id, archiveQuestion{From: at, To: r.To})
		if err != nil {
			return fmt.Errorf("copy history from server %s: %w", id, err)
		}
		if head.State.Dropped >= r.From {
			return fmt.Errorf("copy history from server %s: it has just dropped index %d", id, r.From)
		}
		covered := r
		if done = head.Done; !done {
			covered.To = head.Next.Index - 1 // that index itself may come in parts
			if head.Next == at {
				return fmt.Errorf("copy history from server %s: %w", id, errWire)
			}
		}
		if err := a.use(func(db *store.Archive) error { return db.Fill(page, covered) }); err != nil {
			return err
		}
		rows += len(page)
		r.From, at = covered.To+1, head.Next
	}
	a.s.log.Info("history was copied from another server", "server", id, "to", r.To, "rows", rows, "took", time.Since(began))
	return nil
}

// copyAudit copies the audit of a range from another server, which covers
// nothing yet.
func (a *archiver) copyAudit(ctx context.Context, id gpuai.ServerID, r gpuai.IndexRange) (rows int, err error) {
	at := store.ArchivePlace{Index: r.From}
	for done := false; !done; {
		head, page, err := a.question(ctx, id, archiveQuestion{From: at, To: r.To, Audit: true})
		if err != nil {
			return rows, fmt.Errorf("copy the audit from server %s: %w", id, err)
		}
		if done = head.Done; !done && head.Next == at {
			return rows, fmt.Errorf("copy the audit from server %s: %w", id, errWire)
		}
		if err := a.use(func(db *store.Archive) error { return db.Fill(page, gpuai.IndexRange{From: 1}) }); err != nil {
			return rows, err
		}
		rows, at = rows+len(page), head.Next
	}
	return rows, nil
}

// archivePeer answers another server from this one's archive.
func (s *Server) archivePeer(ctx context.Context, body []byte) ([]byte, error) {
	var q archiveQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, errWire
	}
	if q.To == 0 { // what happened a moment ago counts
		s.archive.awaitAll(ctx)
	}
	var head archiveAnswer
	var rows []store.ArchiveRow
	err := s.archive.use(func(db *store.Archive) (err error) {
		if q.To > 0 {
			read := db.Rows
			if q.Audit {
				read = db.Audits
			}
			rows, head.Next, head.Done, err = read(q.From, min(q.To, math.MaxInt64), fillPage)
		}
		head.State = db.State() // after the rows: what was dropped meanwhile is told
		return err
	})
	if errors.Is(err, errNoArchive) || errors.Is(err, store.ErrArchiveDamaged) {
		return nil, gpuai.NewError(gpuai.NoLeader, "this server's history archive cannot be read now")
	}
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(&head)
	if err != nil {
		return nil, err
	}
	return store.AppendRows(append(line, '\n'), rows), nil
}
