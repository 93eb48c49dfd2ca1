package server

import (
	"sync"

	"github.com/gpuai/gpuai"
)

// quarantine is why this server serves nothing though it runs: its state is
// not, or may not be, that of the region.
type quarantine struct {
	mu     sync.Mutex // guards below
	reason string
}

func (q *quarantine) why() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reason
}

func (q *quarantine) set(reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reason = reason
}

// quarantineFor takes this server's state out of use: it does not serve, lead
// or make snapshots until it is rebuilt. The reason outlives a restart.
func (s *Server) quarantineFor(reason string) {
	s.quarantine.set(reason)
	s.readiness.set(false, "it is quarantined: "+reason)
	if err := s.node.Quarantine(reason); err != nil {
		s.fail(err) // a restart would not know of it
		return
	}
	s.log.Error("this server is quarantined: it serves nothing until its state is rebuilt from the others'", "reason", reason)
	s.sessions.end("this server is quarantined; go on at another")
}

// end ends all sessions; their agents go to other servers.
func (r *registry) end(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, se := range r.byNode {
		se.stop(errStopping, &gpuai.SessionError{Code: gpuai.NoLeader, Detail: why})
	}
}
