package raft

import (
	"errors"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

// TestAPipelineWithoutAConsumerEnds reproduces a deadlock of the library: the
// consumer of a pipeline has returned, and the sender hands one request more
// over.
func TestAPipelineWithoutAConsumerEnds(t *testing.T) {
	follower := listenTransport(t)
	go func() {
		for rpc := range follower.Consumer() {
			rpc.Respond(&hraft.AppendEntriesResponse{Success: true}, nil)
		}
	}()
	for _, how := range []string{"in time", "when the node stops"} {
		closing := make(chan struct{})
		tr := &transport{NetworkTransport: listenTransport(t), timeout: 100 * time.Millisecond, closing: closing, unfit: func() error { return nil }}
		if how != "in time" {
			tr.timeout = time.Hour
			time.AfterFunc(50*time.Millisecond, func() { close(closing) })
		}
		p, err := tr.AppendEntriesPipeline("f", follower.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			for {
				if _, err := p.AppendEntries(&hraft.AppendEntriesRequest{}, &hraft.AppendEntriesResponse{}); err != nil {
					done <- err
					return
				}
			}
		}()
		select {
		case err := <-done:
			if !errors.Is(err, hraft.ErrPipelineShutdown) {
				t.Errorf("%s: it ended with: %v", how, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the sender is stuck", how)
		}
		if err := p.Close(); err != nil {
			t.Errorf("%s: a second close: %v", how, err)
		}
	}
}

func listenTransport(t *testing.T) *hraft.NetworkTransport {
	t.Helper()
	tr, err := hraft.NewTCPTransportWithConfig("127.0.0.1:0", nil, &hraft.NetworkTransportConfig{
		MaxPool: 2, MaxRPCsInFlight: maxRPCsInFlight, Timeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}
