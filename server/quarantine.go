package server

import "sync"

// quarantine is why this server serves nothing though it runs.
type quarantine struct {
	mu     sync.Mutex // guards below
	reason string
}

func (q *quarantine) why() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reason
}
