package server

import (
	"log/slog"
	"net"
	"sync"
	"time"
)

// Bounds of what is logged of connections that are refused, which anybody can open.
const (
	refusalsPerSecond = 5
	maxRefusal        = 300 // bytes of a reason, which may quote a certificate
)

// refusals logs the connections that are refused, so many in a second.
type refusals struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex // guards below
	since  time.Time
	said   int
	unsaid int // since the last that was logged
}

func (r *refusals) refused(from net.Addr, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if d := now.Sub(r.since); d >= time.Second || d < 0 {
		r.since, r.said = now, 0
	}
	if r.said >= refusalsPerSecond {
		r.unsaid++
		return
	}
	text := why.Error()
	if len(text) > maxRefusal {
		text = text[:maxRefusal] + "…"
	}
	r.log.Warn("connection refused", "from", from, "reason", text, "others_unlogged", r.unsaid)
	r.said++
	r.unsaid = 0
}
