package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
)

const (
	pollUnready = 20 * time.Millisecond
	pollReady   = 250 * time.Millisecond
	// lostContact is the silence of the leader, × the multiplier, after which
	// a follower says that it is not ready.
	lostContact = 3 * gpuai.Second
)

// readiness is whether this server serves, and why not. A follower is ready
// once it has applied what its leader had when it was asked. (Applied is never
// compared with committed: no-ops and barriers do not reach the machine.)
type readiness struct {
	mu       sync.Mutex    // guards below
	turned   chan struct{} // closed when the server gets ready, or stops; nil: nobody waits
	ready    bool
	why      string
	stopping bool
	caughtUp bool
	once     bool           // … since the start, whatever came after
	contact  gpuai.Duration // since the leader was heard, at polled
	polled   time.Time
}

func (r *readiness) get() (ready bool, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready && r.why == "" {
		return false, "it is starting"
	}
	return r.ready, r.why
}

func (r *readiness) set(ready bool, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopping {
		r.ready, r.why = ready, why
		if ready {
			r.wake()
		}
	}
}

// wake lets those go on that wait. The caller holds the lock.
func (r *readiness) wake() {
	if r.turned != nil {
		close(r.turned)
		r.turned = nil
	}
}

// await waits for a while until the server is ready.
func (r *readiness) await(ctx context.Context, d time.Duration) (ready bool, why string) {
	r.mu.Lock()
	ready, stopping := r.ready, r.stopping
	if !ready && !stopping && r.turned == nil {
		r.turned = make(chan struct{})
	}
	turned := r.turned
	r.mu.Unlock()
	if ready || stopping {
		return r.get()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-turned:
	case <-t.C:
	case <-ctx.Done():
	}
	return r.get()
}

// stop makes the server unready for good.
func (r *readiness) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready, r.why, r.stopping = false, "it is stopping", true
	r.wake()
}

// pollReadiness follows the node's state until ctx ends.
func (s *Server) pollReadiness(ctx context.Context) {
	for {
		st := s.node.Status()
		s.catchUp(ctx, &st)
		ready, why := s.judge(&st)
		if was, _ := s.readiness.get(); was != ready {
			s.log.Info("readiness changed", "ready", ready, "reason", why)
		}
		s.readiness.set(ready, why)
		wait := pollReady
		if !ready {
			wait = pollUnready
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// judge says whether a server in this state may serve.
func (s *Server) judge(st *gpuai.RaftStatus) (ready bool, why string) {
	r := &s.readiness
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contact, r.polled = st.LastContact, time.Now()
	switch {
	case len(s.failed) > 0:
		return false, r.why
	case s.quarantine.why() != "":
		return false, "it is quarantined: " + s.quarantine.why()
	case s.warden != nil && s.warden.src.Credential() == nil:
		return false, "it has no certificate yet"
	case st.Leader == "" && s.announcer.obstacle() != "":
		return false, s.announcer.obstacle()
	case st.Leader == "":
		return false, "no leader is known"
	case st.Leader == s.cfg.ID && !s.node.IsLeader():
		return false, "it is about to lead"
	case s.stalled() != "":
		return false, s.stalled()
	case st.Leader != s.cfg.ID && st.LastContact > s.patience():
		return false, fmt.Sprintf("its leader was last heard %s ago", st.LastContact)
	case !r.caughtUp:
		return false, fmt.Sprintf("it catches up: it has applied index %d of about %d", st.AppliedIndex, st.CommitIndex)
	}
	return true, ""
}

// stalled is raft.Node's Stalled.
func (s *Server) stalled() string {
	why, _ := s.node.Stalled()
	return why
}

// catchUp notes whether this server has come as far as its leader. One that
// has lost its leader, or could not apply, must catch up anew.
func (s *Server) catchUp(ctx context.Context, st *gpuai.RaftStatus) {
	r := &s.readiness
	r.mu.Lock()
	done := r.caughtUp
	if st.Leader == "" || s.stalled() != "" || st.Leader != s.cfg.ID && st.LastContact > s.patience() {
		r.caughtUp, done = false, true
	}
	r.mu.Unlock()
	if done {
		return
	}
	caught := s.node.IsLeader()
	if !caught {
		ctx, cancel := context.WithTimeout(ctx, beatTimeout)
		defer cancel()
		answer, err := s.askLeader(ctx, pathIndex, nil)
		w := wireReader{b: answer}
		index := w.number()
		caught = err == nil && w.err == nil && s.node.AppliedIndex() >= index
	}
	r.mu.Lock()
	r.caughtUp, r.once = caught, r.once || caught
	r.mu.Unlock()
}

// indexPeer tells another server how far a server must be that serves.
func (s *Server) indexPeer(ctx context.Context, _ []byte) ([]byte, error) {
	index, err := s.node.Barrier(ctx)
	if err != nil {
		return nil, err
	}
	return binary.AppendUvarint(nil, index), nil
}

func (s *Server) patience() gpuai.Duration {
	return lostContact * gpuai.Duration(max(s.cfg.Multiplier, 1))
}

// Status implements httpd.Reader.
func (s *Server) Status() httpd.Status {
	st := httpd.Status{Server: s.cfg.ID, Index: s.node.AppliedIndex(), IsLeader: s.node.IsLeader()}
	st.Leader, _ = s.node.Leader()
	st.Ready, st.NotReady = s.readiness.get()
	st.Quarantined = s.quarantine.why()
	var stood time.Duration
	st.Stalled, stood = s.node.Stalled()
	if st.Ready && s.cfg.NotReady != nil {
		st.NotReady = s.cfg.NotReady()
		st.Ready = st.NotReady == ""
	}
	if st.IsLeader {
		st.Leader = s.cfg.ID
		return st
	}
	s.readiness.mu.Lock()
	defer s.readiness.mu.Unlock()
	st.Starting = !s.readiness.once && st.Leader != ""
	if !s.readiness.polled.IsZero() {
		st.LastContact = s.readiness.contact
	}
	st.LastContact = max(st.LastContact, gpuai.Duration(stood/time.Millisecond))
	return st
}

// changes tells waiters that an entry was applied. Without waiters it costs a
// lock.
type changes struct {
	mu   sync.Mutex // guards below
	next chan struct{}
}

func (c *changes) happened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

// Changed implements httpd.Reader.
func (s *Server) Changed() <-chan struct{} {
	c := &s.changed
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}
