package raft

import (
	"context"
	"io"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// transport is the library's, with gated heartbeats, a leader that falls
// silent when it cannot lead, and pipelines that cannot get stuck. Embedding
// the type, and not an interface, keeps PreVote on.
type transport struct {
	*hraft.NetworkTransport
	timeout time.Duration
	handOff time.Duration // for TimeoutNow
	closing <-chan struct{}
	gate    *gate
	unfit   func() error
	refuse  func(hraft.RPC) error
	peers   *peerViews

	forward sync.Once
	close   sync.Once
}

var (
	_ hraft.Transport   = (*transport)(nil)
	_ hraft.WithPreVote = (*transport)(nil)
	_ hraft.WithClose   = (*transport)(nil)
)

// Consumer returns what hraft's main goroutine has to answer.
func (t *transport) Consumer() <-chan hraft.RPC {
	t.forward.Do(func() { go t.gate.forward(t.NetworkTransport.Consumer(), t.refuse) })
	return t.gate.rpcs
}

// SetHeartbeatHandler puts the gate in the place of hraft's own fast path.
func (t *transport) SetHeartbeatHandler(func(hraft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(t.gate.heartbeat)
}

// Close ends whatever waits in the transport.
func (t *transport) Close() error {
	t.close.Do(func() { close(t.gate.done) })
	return t.NetworkTransport.Close()
}

// AppendEntries sends a request, unless this server must not lead.
func (t *transport) AppendEntries(id hraft.ServerID, target hraft.ServerAddress, req *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) error {
	if err := t.unfit(); err != nil {
		return err
	}
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	if err == nil && isHeartbeat(req) {
		t.peers.heard(id, resp)
	}
	return err
}

// InstallSnapshot sends a snapshot, unless this server must not lead.
func (t *transport) InstallSnapshot(id hraft.ServerID, target hraft.ServerAddress, req *hraft.InstallSnapshotRequest, resp *hraft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.InstallSnapshot(id, target, req, resp, data)
}

// RequestPreVote asks for support, unless this server must not lead.
func (t *transport) RequestPreVote(id hraft.ServerID, target hraft.ServerAddress, req *hraft.RequestPreVoteRequest, resp *hraft.RequestPreVoteResponse) error {
	if err := t.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, target, req, resp)
}

// RequestVote asks for a vote, unless this server must not lead.
func (t *transport) RequestVote(id hraft.ServerID, target hraft.ServerAddress, req *hraft.RequestVoteRequest, resp *hraft.RequestVoteResponse) error {
	if err := t.unfit(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestVote(id, target, req, resp)
}

// TimeoutNow hands leadership over. While it waits, this server refuses
// commands, even if it was elected again meanwhile: so it waits only shortly.
func (t *transport) TimeoutNow(id hraft.ServerID, target hraft.ServerAddress, req *hraft.TimeoutNowRequest, resp *hraft.TimeoutNowResponse) error {
	done := make(chan error, 1)
	go func() { done <- t.NetworkTransport.TimeoutNow(id, target, req, new(hraft.TimeoutNowResponse)) }()
	select {
	case err := <-done:
		return err
	case <-time.After(t.handOff):
		return context.DeadlineExceeded
	}
}

// AppendEntriesPipeline wraps the library's pipeline.
func (t *transport) AppendEntriesPipeline(id hraft.ServerID, target hraft.ServerAddress) (hraft.AppendPipeline, error) {
	if err := t.unfit(); err != nil {
		return nil, err
	}
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, timeout: t.timeout, unfit: t.unfit, closed: make(chan struct{})}
	go func() {
		select {
		case <-t.closing:
			_ = p.Close()
		case <-p.closed:
		}
	}()
	return p, nil
}

// pipeline bounds the hand-over of a request to the library's decoder. When
// the follower's answer ends a leader's term, its consumer returns; with a
// request more on its way the decoder then waits for the consumer, and the
// sender for the decoder, for ever: nobody closes the pipeline, because the
// sender would. The server went on sending heartbeats of that term, and did not
// stop when told to.
type pipeline struct {
	hraft.AppendPipeline
	timeout time.Duration
	unfit   func() error
	once    sync.Once
	closed  chan struct{}
}

// AppendEntries sends a request; one that is not handed over in time ends the
// pipeline, and the library goes on without one. A server that must not lead
// sends none.
func (p *pipeline) AppendEntries(req *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) (hraft.AppendFuture, error) {
	if err := p.unfit(); err != nil {
		return nil, err
	}
	late := time.AfterFunc(p.timeout, func() { _ = p.Close() })
	defer late.Stop()
	return p.AppendPipeline.AppendEntries(req, resp)
}

// Close ends the pipeline; a sender that waits in it returns.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}
