package raft

import (
	"sync"
	"time"

	"github.com/gpuai/gpuai"
)

// clock is region time on the leader: the machine's time at the election plus
// the monotonic time since. The wall clock has no part in it.
type clock struct {
	wall func() time.Time // nil is time.Now; for display only

	mu    sync.Mutex // guards below
	base  gpuai.Instant
	since time.Time
	last  gpuai.Instant // the latest instant given out
}

// anchor starts the clock at the machine's time.
func (c *clock) anchor(at gpuai.Instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.since, c.last = at, time.Now(), max(c.last, at)
}

// now returns region time; it never goes back.
func (c *clock) now() gpuai.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	elapsed := gpuai.Duration(time.Since(c.since) / time.Millisecond)
	c.last = max(c.last, c.base.Add(elapsed))
	return c.last
}

// wallTime returns the wall clock, which no decision follows.
func (c *clock) wallTime() gpuai.WallTime {
	if c.wall == nil {
		return gpuai.WallTime(time.Now().UnixMilli())
	}
	return gpuai.WallTime(c.wall().UnixMilli())
}
