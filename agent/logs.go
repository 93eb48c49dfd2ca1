package agent

import (
	"context"
	"os"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

const (
	maxLogChunk = 1 << 20
	maxLogWait  = 30 * time.Second
	logPoll     = 50 * time.Millisecond
	// unknownWait is how long a request that may wait does so for a lease that
	// nobody here knows: another server may ask before ours has sent the lease.
	unknownWait = 2 * time.Second
)

// serveLog answers a request for output, beside the loop.
func (a *Agent) serveLog(l *line, r gpuai.LogRequest) {
	go func() {
		c := a.readLog(r)
		a.post(func() { a.send(l.id, gpuai.Frame{Kind: gpuai.FrameLog, Log: &c}) })
	}()
}

// readLog reads a task's output; while there is nothing new and the task may
// still write, it waits as long as r allows.
func (a *Agent) readLog(r gpuai.LogRequest) gpuai.LogChunk {
	ctx, cancel := context.WithTimeout(context.Background(), min(maxLogWait, time.Duration(r.Wait)*time.Millisecond))
	defer cancel()
	for began := time.Now(); ; {
		// The order matters: output is complete before a task counts as over.
		live := a.isLive(r.Lease)
		c, known := a.readLogOnce(r, live)
		wait := !known && time.Since(began) < unknownWait
		if len(c.Data) > 0 || c.EOF || c.Error != "" && !wait || !pause(ctx, logPoll) || a.over() {
			return c
		}
	}
}

// readLogOnce reads what there is now. known says whether this node has, or has
// had, the lease.
func (a *Agent) readLogOnce(r gpuai.LogRequest, live bool) (c gpuai.LogChunk, known bool) {
	c.ID = r.ID
	if r.Stream == gpuai.StreamProgress {
		c.Data, c.EOF = []byte(a.progressOf(r.Lease)), true
		return c, true
	}
	if r.Stream != "stdout" && r.Stream != "stderr" {
		c.Error = "a task has the streams stdout and stderr, not " + r.Stream
		return c, true
	}
	dir := a.taskDir(r.Lease)
	if _, err := os.Stat(dir); err != nil && !live {
		c.Error = "this node has no output of lease " + r.Lease.String()
		return c, false
	}
	limit := r.Limit
	if limit <= 0 || limit > maxLogChunk {
		limit = maxLogChunk
	}
	data, at, end, err := watchdog.ReadLog(dir, r.Stream, r.Offset, limit)
	if err != nil {
		c.Error = err.Error()
		return c, true
	}
	c.Data, c.Offset = data, at
	c.EOF = !live && at+int64(len(data)) >= end
	return c, true
}
