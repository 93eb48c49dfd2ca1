package raft

import (
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// transport is the library's, with pipelines that cannot get stuck. Embedding
// the type, and not an interface, keeps PreVote on.
type transport struct {
	*hraft.NetworkTransport
	timeout time.Duration
	closing <-chan struct{}
}

var (
	_ hraft.Transport   = (*transport)(nil)
	_ hraft.WithPreVote = (*transport)(nil)
	_ hraft.WithClose   = (*transport)(nil)
)

// AppendEntriesPipeline wraps the library's pipeline.
func (t *transport) AppendEntriesPipeline(id hraft.ServerID, target hraft.ServerAddress) (hraft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, timeout: t.timeout, closed: make(chan struct{})}
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
	once    sync.Once
	closed  chan struct{}
}

// AppendEntries sends a request; one that is not handed over in time ends the
// pipeline, and the library goes on without one.
func (p *pipeline) AppendEntries(req *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) (hraft.AppendFuture, error) {
	late := time.AfterFunc(p.timeout, func() { _ = p.Close() })
	defer late.Stop()
	return p.AppendPipeline.AppendEntries(req, resp)
}

// Close ends the pipeline; a sender that waits in it returns.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}
