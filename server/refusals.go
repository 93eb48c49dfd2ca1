package server

import (
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	// refusalEvery is how often a refused connection is logged, and maxRefusal how
	// much of why: both are in the hands of whoever connects.
	refusalEvery = time.Second
	maxRefusal   = 512
)

// refusals logs connections that were refused, some of them.
type refusals struct {
	log *slog.Logger

	mu     sync.Mutex // guards below
	said   time.Time
	unsaid uint64 // since then
}

// say logs a refusal, or counts it when one was logged just before.
func (r *refusals) say(from net.Addr, why error) {
	r.mu.Lock()
	if time.Since(r.said) < refusalEvery {
		r.unsaid++
		r.mu.Unlock()
		return
	}
	unsaid := r.unsaid
	r.said, r.unsaid = time.Now(), 0
	r.mu.Unlock()
	text := why.Error()
	if len(text) > maxRefusal {
		text = strings.ToValidUTF8(text[:maxRefusal], "") + "…"
	}
	r.log.Warn("connection refused", "from", from, "reason", text, "others_before", unsaid)
}
