package httpd

import (
	"sync/atomic"

	"github.com/gpuai/gpuai"
)

// A class is what a request is served before or after when there is too much.
type class uint8

// The classes, in the order of service. Sessions and streams last, so they are
// counted apart.
const (
	classSession class = iota
	classStatus
	classRead
	classWrite
	classStream
	// classAnonymous is what is done for whoever comes: it is counted apart, and
	// is little.
	classAnonymous
	// classGrant is what nodes ask of the region's store: it is counted apart, since
	// what is signed takes a processor's time.
	classGrant
	// classObject is what agents store and read by way of this server: it lasts, is
	// counted apart, and its bytes wait for one another.
	classObject
	numClasses
)

var classNames = [numClasses]string{"session", "status", "read", "submit", "stream", "anonymous", "grant", "object"}

// A gate admits requests. Short ones share one count, against which each class
// has its own ceiling: writes find it full first, then reads, then status.
// What is not admitted is answered 429 at once, or waits for a short while in the
// queue of who asks, see fairQueue.
type gate struct {
	short    atomic.Int64 // requests of status, read and write under way
	long     [numClasses]atomic.Int64
	ceiling  [numClasses]int64
	refusals [numClasses]atomic.Uint64
}

func newGate(c *Config) *gate {
	n := int64(c.MaxInFlight)
	return &gate{ceiling: [numClasses]int64{
		classSession: int64(c.MaxSessions),
		classStatus:  n,
		classRead:    max(1, n-n/8),
		classWrite:   max(1, n/2),
		classStream:  int64(c.MaxStreams),

		classAnonymous: max(1, n/8),
		classGrant:     int64(c.MaxObjects),
		classObject:    int64(c.MaxObjects),
	}}
}

func (g *gate) counter(c class) *atomic.Int64 {
	if c == classStatus || c == classRead || c == classWrite {
		return &g.short
	}
	return &g.long[c]
}

// enter admits a request of class c, or reports that there is no room. Who
// entered calls leave.
func (g *gate) enter(c class) bool {
	ok := g.admits(c)
	if !ok {
		g.refusals[c].Add(1)
	}
	return ok
}

// admits is enter for a request that may wait: it counts no refusal.
func (g *gate) admits(c class) bool {
	n := g.counter(c)
	if n.Add(1) > g.ceiling[c] {
		n.Add(-1)
		return false
	}
	return true
}

func (g *gate) leave(c class) { g.counter(c).Add(-1) }

// errBusy answers a request that the gate did not admit.
func errBusy(c class) error {
	return &gpuai.Error{
		Code: gpuai.RateLimited, RetryAfter: gpuai.Second,
		Detail: "this server serves as many " + classNames[c] + " requests as it can at one time: retry, or ask another server",
	}
}

// A budget bounds a sum, such as the bytes of all bodies being read.
type budget struct {
	used atomic.Int64
	max  int64
}

// take takes n, leaving spare, or reports that there is too little.
func (b *budget) take(n, spare int64) bool {
	if b.used.Add(n) > b.max-spare {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }
