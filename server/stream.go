package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server/hub"
)

// Events implements httpd.Streams.
func (s *Server) Events(ctx context.Context, q httpd.EventQuery, f func([]gpuai.Event, uint64) error) error {
	filter := hub.Filter{Node: q.Node}
	f = s.eventsOf(q.Tenant, f)
	if q.Job != "" {
		at, err := s.locate(q.Job)
		if err != nil {
			return err
		}
		filter.Job = at.id
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	sub, err := s.subscribe(ctx, filter, q.From, f)
	if err != nil {
		return compacted(err)
	}
	defer sub.Close()
	for {
		events, index, err := sub.Next(ctx)
		if err != nil {
			return compacted(err)
		}
		if err := f(events, index); err != nil {
			return err
		}
	}
}

// subscribe follows events from after an index on. Those that the hub no longer
// keeps are given from the archive first.
func (s *Server) subscribe(ctx context.Context, filter hub.Filter, from uint64, f func([]gpuai.Event, uint64) error) (*hub.Sub, error) {
	for {
		sub, err := s.hub.Subscribe(filter, from)
		if !errors.Is(err, hub.ErrCompacted) {
			return sub, err
		}
		next, err := s.archivedEvents(ctx, &filter, from, f)
		if err != nil {
			return nil, err
		}
		from = next
	}
}

// compacted gives the hub's error its name at the API.
func compacted(err error) error {
	if errors.Is(err, hub.ErrCompacted) {
		return fmt.Errorf("%w: %w", httpd.ErrCompacted, err)
	}
	return err
}

// Logs implements httpd.Streams: whichever server has the agent's session asks
// it. What the node cannot tell any more is read from the region's store.
func (s *Server) Logs(ctx context.Context, q httpd.LogQuery) (gpuai.LogChunk, error) {
	s.awaitLease(ctx, q.Lease)
	run, err := s.runOfQuery(&q)
	if err != nil {
		return gpuai.LogChunk{}, err
	}
	stream := q.Stream
	if stream == "" {
		stream = "stdout"
	}
	question := logQuestion{Node: run.node, Request: gpuai.LogRequest{
		Lease: run.lease, Stream: stream, Offset: q.Offset, Limit: q.Limit, Wait: q.Wait,
		Since: q.Since, Tail: q.Tail, Times: q.Times,
	}}
	c, err := s.readLogs(ctx, question)
	if stream != gpuai.StreamProgress && (c.Gone || errors.Is(err, errNoSession)) {
		return s.keptLog(ctx, &run, &question.Request, c, err)
	}
	return c, err
}

// leaseSettles bounds the wait for a lease that is named: a follower is some
// milliseconds behind the leader that told of it.
const leaseSettles = time.Second

// awaitLease waits until this server has come to the entry that granted t.
func (s *Server) awaitLease(ctx context.Context, t gpuai.Token) {
	if t == 0 || t.Index() <= s.node.AppliedIndex() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaseSettles)
	defer cancel()
	_ = s.node.WaitApplied(ctx, t.Index()) // then it is looked for all the same
}

// DigestAt implements httpd.Operator; index 0 asks for the latest.
func (s *Server) DigestAt(index uint64) (gpuai.DigestAt, error) {
	var d fsm.Digest
	ok := false
	s.node.View(func(m *fsm.Machine) {
		if index == 0 {
			index = m.Index()
		}
		d, ok = m.DigestAt(index)
	})
	if !ok {
		return gpuai.DigestAt{}, notFound(fmt.Sprintf("this server does not remember the digest at index %d: it keeps the last %d, of entries that hold commands", index, fsm.DigestsKept))
	}
	return gpuai.DigestAt{Index: index, Digest: d.String()}, nil
}

// Snapshot implements httpd.Operator. What is streamed lies on this server's
// disk: a slow reader holds no fork.
func (s *Server) Snapshot(_ context.Context, w io.Writer) error {
	if err := s.node.Snapshot(); err != nil {
		return err
	}
	r, err := s.node.OpenSnapshot()
	if errors.Is(err, raft.ErrNoSnapshot) {
		return notFound("the region has applied nothing yet, so there is nothing to save")
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// Forward implements httpd.Operator.
func (s *Server) Forward(context.Context) (http.RoundTripper, error) {
	if s.node.IsLeader() {
		return nil, nil
	}
	id, ok := s.node.Leader()
	if !ok || id == s.cfg.ID {
		return nil, &gpuai.Error{
			Code: gpuai.NoLeader, Detail: "the region has no leader at the moment; retry", RetryAfter: 500 * gpuai.Millisecond,
		}
	}
	return &leaderTransport{s, id}, nil
}
