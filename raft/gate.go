package raft

import (
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// gate keeps heartbeats from changing hraft's state beside its main goroutine.
//
// hraft answers heartbeats from the connection's goroutine, so that a slow disk
// does not cost a follower its leader. But that answer also takes over a newer
// term, at any point of what the main goroutine does: a leader deposed between
// two of its steps writes its next entry under the term of its successor
// (hashicorp/raft #695), and two logs differ at one index and term for ever.
//
// Here a heartbeat is answered aside only while the main goroutine is parked
// inside StoreLogs, this server follows, and the term is its own: then nothing
// changes. Every other one goes to the main goroutine. Leaving StoreLogs waits
// for an answer under way.
type gate struct {
	id       []byte                     // in answers
	raft     atomic.Pointer[hraft.Raft] // nil until it runs
	rpcs     chan hraft.RPC             // to the main goroutine
	done     chan struct{}              // the transport is closed
	note     func(*hraft.AppendEntriesResponse)
	answered prometheus.Counter

	mu     sync.Mutex // guards below, and an answer
	parked bool
	wake   chan struct{} // closed when the main goroutine parks next; nil while nobody waits
}

// enter is called by the main goroutine before it stores entries.
func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked = true
	if g.wake != nil {
		close(g.wake)
		g.wake = nil
	}
}

// leave is called by the main goroutine when it has stored them.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked = false
}

// heartbeat takes one heartbeat from a connection's goroutine and returns when
// it is answered, or the transport closed.
func (g *gate) heartbeat(rpc hraft.RPC) {
	answer := make(chan hraft.RPCResponse, 1)
	client := rpc.RespChan
	rpc.RespChan = answer
	for {
		wake, resp := g.aside(rpc.Command)
		if resp != nil {
			rpc.Respond(resp, nil)
			break
		}
		select {
		case g.rpcs <- rpc:
		case <-wake:
			continue
		case <-g.done:
			rpc.Respond(nil, hraft.ErrTransportShutdown)
		}
		break
	}
	select {
	case a := <-answer:
		if resp, ok := a.Response.(*hraft.AppendEntriesResponse); ok && resp != nil {
			g.note(resp)
		}
		client <- a // has room
	case <-g.done:
		client <- hraft.RPCResponse{Error: hraft.ErrTransportShutdown}
	}
}

// aside answers where nothing can change; else it returns what is closed when
// it is worth another look.
func (g *gate) aside(command any) (wake <-chan struct{}, resp *hraft.AppendEntriesResponse) {
	req, r := command.(*hraft.AppendEntriesRequest), g.raft.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	// Of the main goroutine's own state: while it is parked it holds still.
	if g.parked && r != nil && r.State() == hraft.Follower && r.CurrentTerm() == req.Term {
		g.answered.Inc()
		return nil, &hraft.AppendEntriesResponse{
			RPCHeader: hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax, ID: g.id, Addr: g.id},
			Term:      req.Term, LastLog: r.LastIndex(), Success: true,
		}
	}
	if g.wake == nil {
		g.wake = make(chan struct{})
	}
	return g.wake, nil
}

// forward hands all other requests to the main goroutine, beside which the
// heartbeats go.
func (g *gate) forward(from <-chan hraft.RPC, refuse func(hraft.RPC) error) {
	for {
		select {
		case rpc := <-from:
			if err := refuse(rpc); err != nil {
				rpc.Respond(nil, err)
				continue
			}
			select {
			case g.rpcs <- rpc:
			case <-g.done:
				rpc.Respond(nil, hraft.ErrTransportShutdown)
				return
			}
		case <-g.done:
			return
		}
	}
}
