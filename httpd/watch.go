package httpd

import (
	"context"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

const (
	defaultWait = 30 * gpuai.Second
	maxWait     = 5 * gpuai.Minute
	// recheckEvery is the pace at which a blocking query on one object looks
	// again in a busy region, after a first look at once.
	recheckEvery = 20 * time.Millisecond
)

// await is readPoint for a route with ?index=N&wait=D: it first waits until
// modified returns more than N, or D has passed. nil stands for anything at
// all: the applied index.
func (c *call) await(modified func() (uint64, error)) error {
	after, wait, err := c.watchQuery()
	if err != nil {
		return err
	}
	if wait > 0 {
		ctx, cancel := context.WithTimeout(c.r.Context(), time.Duration(wait)*time.Millisecond)
		c.waitModified(ctx, after, modified)
		cancel()
		if err := c.r.Context().Err(); err != nil {
			return err
		}
		if auth := c.api.cfg.Auth; auth != nil && c.rt.judges(&c.api.cfg) { // it may have been long
			if err := auth.Again(c.r.Context(), c.who); err != nil {
				return err
			}
		}
	}
	return c.readPoint()
}

// waitModified returns when the object changed after index after, is gone, or
// ctx ended.
func (c *call) waitModified(ctx context.Context, after uint64, modified func() (uint64, error)) {
	for seen := after; ; {
		if c.waitIndex(ctx, seen) != nil || modified == nil {
			return
		}
		seen = c.api.backend.Status().Index // before the look: what comes later wakes us again
		if at, err := modified(); err != nil || at > after {
			return
		}
		select {
		case <-time.After(recheckEvery):
		case <-ctx.Done():
			return
		}
	}
}

// waitIndex returns once an index above after is applied here.
func (c *call) waitIndex(ctx context.Context, after uint64) error {
	for {
		changed := c.api.backend.Changed()
		if c.api.backend.Status().Index > after {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchQuery reads ?index= and ?wait=; a wait of 0 means that none was asked
// for.
func (c *call) watchQuery() (after uint64, wait gpuai.Duration, err error) {
	if s := c.query.Get("wait"); s != "" {
		if wait, err = gpuai.ParseDuration(s); err != nil || wait > maxWait {
			return 0, 0, badQuery("wait", `is a duration of at most `+maxWait.String()+`, such as "30s"`)
		}
	}
	s := c.query.Get("index")
	if s == "" {
		if c.query.Has("wait") {
			return 0, 0, badQuery("wait", "needs index: the one to wait beyond")
		}
		return 0, 0, nil
	}
	if !c.query.Has("wait") {
		wait = defaultWait
	}
	after, err = c.unsigned("index", 64)
	return after, wait, err
}

// unsigned reads a decimal parameter; absent is 0.
func (c *call) unsigned(name string, bits int) (uint64, error) {
	s := c.query.Get(name)
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, badQuery(name, "is a decimal number of at most "+strconv.Itoa(bits)+" bits, not "+strconv.Quote(clip(s)))
	}
	return v, nil
}

// boolean reads a parameter that is true or false; absent is false.
func (c *call) boolean(name string) (bool, error) {
	switch s := c.query.Get(name); s {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, badQuery(name, "is true or false, not "+strconv.Quote(clip(s)))
	}
}
