package raft

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// beatRPC is a heartbeat of a term, and where its answer comes.
func beatRPC(term uint64) (hraft.RPC, chan hraft.RPCResponse) {
	answer := make(chan hraft.RPCResponse, 1)
	return hraft.RPC{Command: &hraft.AppendEntriesRequest{Term: term}, RespChan: answer}, answer
}

// loneGate is a gate without a transport.
func loneGate() *gate {
	return &gate{
		rpcs: make(chan hraft.RPC), done: make(chan struct{}), note: func(*hraft.AppendEntriesResponse) {},
		answered: prometheus.NewCounter(prometheus.CounterOpts{Name: "x"}),
	}
}

// TestGate says of each heartbeat whether it is answered beside the main
// goroutine; nobody else answers here.
func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader := c.leader()
		follower := c.followers(leader)[0]
		c.converged()
		term := leader.raft.CurrentTerm()
		cases := []struct {
			name   string
			of     *Node // nil: the library does not run yet
			term   uint64
			parked bool
			aside  bool
		}{
			{"a follower in StoreLogs", follower, term, true, true},
			{"a follower elsewhere", follower, term, false, false},
			{"a newer term", follower, term + 1, true, false},
			{"an older term", follower, term - 1, true, false},
			{"a leader", leader, term, true, false},
			{"before the start", nil, term, true, false},
		}
		for _, k := range cases {
			g := loneGate()
			if k.of != nil {
				g.raft.Store(k.of.raft)
			}
			rpc, answer := beatRPC(k.term)
			go g.heartbeat(rpc) // waits at first, in every case
			synctest.Wait()
			if len(answer) > 0 {
				t.Fatalf("%s: it is answered before", k.name)
			}
			if k.parked {
				g.enter()
			}
			synctest.Wait()
			if got := len(answer) > 0; got != k.aside {
				t.Errorf("%s: answered aside: %v", k.name, got)
			}
			if k.aside {
				a := (<-answer).Response.(*hraft.AppendEntriesResponse)
				if !a.Success || a.Term != term || a.LastLog != follower.raft.LastIndex() {
					t.Errorf("%s: the answer is %+v", k.name, a)
				}
			}
			g.leave()
			if !k.aside { // what waits is for the main goroutine, or ends with the transport
				select {
				case held := <-g.rpcs:
					held.Respond(&hraft.AppendEntriesResponse{Term: 99}, nil)
					if a := (<-answer).Response.(*hraft.AppendEntriesResponse); a.Term != 99 {
						t.Errorf("%s: the main goroutine's answer came as %+v", k.name, a)
					}
				case <-time.After(time.Second):
					t.Errorf("%s: it does not wait for the main goroutine", k.name)
				}
			}
			last, answer := beatRPC(term)
			go g.heartbeat(last)
			synctest.Wait()
			close(g.done)
			if a := <-answer; !errors.Is(a.Error, hraft.ErrTransportShutdown) {
				t.Errorf("%s: at the stop: %v", k.name, a.Error)
			}
		}
	})
}

// TestForwardEnds hands requests on, refuses, and blocks no stop.
func TestForwardEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := loneGate()
		from, ended := make(chan hraft.RPC), make(chan struct{})
		errRefused := errors.New("no")
		refuse := func(r hraft.RPC) error {
			if _, ok := r.Command.(*hraft.TimeoutNowRequest); ok {
				return errRefused
			}
			return nil
		}
		go func() { g.forward(from, refuse); close(ended) }()
		answer := make(chan hraft.RPCResponse, 3)
		from <- hraft.RPC{Command: &hraft.TimeoutNowRequest{}, RespChan: answer}
		if a := <-answer; a.Error != errRefused {
			t.Errorf("refused with %v", a.Error)
		}
		from <- hraft.RPC{Command: &hraft.RequestVoteRequest{}, RespChan: answer}
		if _, ok := (<-g.rpcs).Command.(*hraft.RequestVoteRequest); !ok {
			t.Error("another request came")
		}
		from <- hraft.RPC{Command: &hraft.RequestVoteRequest{}, RespChan: answer}
		close(g.done) // nobody takes it
		<-ended
		if a := <-answer; !errors.Is(a.Error, hraft.ErrTransportShutdown) {
			t.Errorf("at the stop: %v", a.Error)
		}
	})
}

// TestOpenPipelineFallsSilent: guarding only what opens one would leave the
// commit index, and with it the leader, alive.
func TestOpenPipelineFallsSilent(t *testing.T) {
	t.Parallel()
	follower := listenTransport(t)
	go func() {
		for rpc := range follower.Consumer() {
			rpc.Respond(&hraft.AppendEntriesResponse{Success: true}, nil)
		}
	}()
	errUnfit := errors.New("unfit")
	var unfit atomic.Bool
	tr := &transport{
		NetworkTransport: listenTransport(t), timeout: time.Second, closing: make(chan struct{}), peers: new(peerViews),
		unfit: func() error {
			if unfit.Load() {
				return errUnfit
			}
			return nil
		},
	}
	p, err := tr.AppendEntriesPipeline("f", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.AppendEntries(&hraft.AppendEntriesRequest{}, &hraft.AppendEntriesResponse{}); err != nil {
		t.Fatal(err)
	}
	<-p.Consumer()
	unfit.Store(true)
	to := follower.LocalAddr()
	_, onOpen := p.AppendEntries(&hraft.AppendEntriesRequest{}, &hraft.AppendEntriesResponse{})
	_, opened := tr.AppendEntriesPipeline("f", to)
	for what, err := range map[string]error{
		"an open pipeline": onOpen,
		"a new pipeline":   opened,
		"AppendEntries":    tr.AppendEntries("f", to, &hraft.AppendEntriesRequest{}, &hraft.AppendEntriesResponse{}),
		"InstallSnapshot":  tr.InstallSnapshot("f", to, &hraft.InstallSnapshotRequest{}, &hraft.InstallSnapshotResponse{}, nil),
		"RequestPreVote":   tr.RequestPreVote("f", to, &hraft.RequestPreVoteRequest{}, &hraft.RequestPreVoteResponse{}),
		"RequestVote":      tr.RequestVote("f", to, &hraft.RequestVoteRequest{}, &hraft.RequestVoteResponse{}),
	} {
		if !errors.Is(err, errUnfit) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
