package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
)

// errOtherLog is returned when this server's log is not that of another.
var errOtherLog = errors.New("this server's log differs")

// rebuild replaces the state of this quarantined server by one that a majority
// vouches for. It tries until it has or ctx ends, and ends the server where that
// cannot help: with another log it would come to another state again.
func (t *tribunal) rebuild(ctx context.Context) {
	s, began, said := t.s, time.Now(), ""
	for ctx.Err() == nil {
		err := t.rebuildOnce(ctx)
		if err == nil {
			s.quarantine.set("")
			s.log.Info("rebuilt: this server's state is the majority's again", "took", time.Since(began), "index", s.node.AppliedIndex())
			return
		}
		if errors.Is(err, errOtherLog) {
			s.fail(err)
			return
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.log.Warn("this server is not rebuilt yet; trying again", "error", err)
		}
		select {
		case <-time.After(rebuildRetry):
		case <-ctx.Done():
		}
	}
}

func (t *tribunal) rebuildOnce(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, rebuildTimeout)
	defer cancel()
	s := t.s
	if !s.node.Quarantined() { // the state is good: the snapshots of before are left
		return s.node.Renew()
	}
	err = errors.New("no other server is known to be asked")
	for _, m := range s.node.Members() {
		if m.ID == s.cfg.ID {
			continue
		}
		if err = t.rebuildFrom(ctx, m); err == nil || errors.Is(err, errOtherLog) {
			break
		}
	}
	if err != nil {
		return err
	}
	return s.node.Renew()
}

func (t *tribunal) rebuildFrom(ctx context.Context, m raft.Member) error {
	s := t.s
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+string(m.ID)+peerDomain+pathState, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := s.peerHTTP.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask server %s for its state: %w", m.ID, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask server %s for its state: it answers %s", m.ID, resp.Status)
	}
	return s.node.Rebuild(ctx, resp.Body, func(index uint64, d fsm.Digest) error {
		if err := t.vouched(ctx, index, d); err != nil {
			return err
		}
		return t.compareLogs(ctx, m.ID, index)
	})
}

// statePeer sends this server's state to one that is quarantined.
func (s *Server) statePeer(w http.ResponseWriter, r *http.Request) {
	if why := s.quarantine.why(); why != "" {
		http.Error(w, "this server is quarantined itself: "+why, http.StatusServiceUnavailable)
		return
	}
	out := &stateWriter{w: w, ctl: http.NewResponseController(w)}
	if err := s.Snapshot(r.Context(), out); err != nil {
		s.log.Warn("a state was not sent whole", "error", err)
		if !out.began {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		panic(http.ErrAbortHandler) // the reader must see that it is not whole
	}
}

// stateWriter bounds each write, not the whole.
type stateWriter struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController
	began bool
}

// Write implements io.Writer.
func (s *stateWriter) Write(p []byte) (int, error) {
	s.began = true
	_ = s.ctl.SetWriteDeadline(time.Now().Add(stopTimeout)) // a writer without deadlines is a test's
	return s.w.Write(p)
}

// A logRange is entries of a log; with To 0 the question is for its bounds.
type logRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	Sum  []byte `json:"sum,omitzero"`
}

// logPeer answers with the bounds of this server's log, or with a hash over some
// of its entries.
func (s *Server) logPeer(_ context.Context, body []byte) ([]byte, error) {
	var q logRange
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, errWire
	}
	if q.To == 0 {
		first, last, err := s.node.LogBounds()
		if err != nil {
			return nil, err
		}
		return json.Marshal(&logRange{From: first, To: last})
	}
	sum, err := s.node.HashLog(q.From, q.To)
	if err != nil {
		return nil, gpuai.NewError(gpuai.NotFound, err.Error())
	}
	q.Sum = sum[:]
	return json.Marshal(&q)
}

func (t *tribunal) askLog(ctx context.Context, id gpuai.ServerID, q logRange) (a logRange, err error) {
	body, err := json.Marshal(&q)
	if err != nil {
		return a, err
	}
	answer, err := t.s.askPeer(ctx, id, pathLog, body)
	if err == nil && json.Unmarshal(answer, &a) != nil {
		err = errWire
	}
	return a, err
}

// compareLogs compares all entries up to an index that both servers have: a
// state that is put in place of a wrong one must be followed by the right log,
// and a server that leads later must send no other.
func (t *tribunal) compareLogs(ctx context.Context, id gpuai.ServerID, to uint64) error {
	theirs, err := t.askLog(ctx, id, logRange{})
	if err != nil {
		return err
	}
	first, last, err := t.s.node.LogBounds()
	if err != nil {
		return err
	}
	first, last = max(first, theirs.From, 1), min(last, theirs.To, to)
	for from := first; from <= last; from += raft.MaxHashed {
		q := logRange{From: from, To: min(last, from+raft.MaxHashed-1)}
		a, err := t.askLog(ctx, id, q)
		if err != nil {
			return err
		}
		mine, err := t.s.node.HashLog(q.From, q.To)
		if err != nil {
			return err
		}
		if len(a.Sum) != sha256.Size || !bytes.Equal(a.Sum, mine[:]) {
			return fmt.Errorf("%w from server %s's between index %d and %d, not only its state: rebuild it with 'gpuai server rejoin --wipe'", errOtherLog, id, q.From, q.To)
		}
	}
	return nil
}
