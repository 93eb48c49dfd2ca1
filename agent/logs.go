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
	// maxLogTimes bounds the times of an answer, which has less data then.
	maxLogTimes = 8192
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
		c.Error, c.Gone = "this node has no output of lease "+r.Lease.String(), true
		return c, false
	}
	limit := r.Limit
	if limit <= 0 || limit > maxLogChunk {
		limit = maxLogChunk
	}
	if err := readChunk(&c, dir, &r, limit); err != nil {
		c.Error = err.Error()
	}
	c.EOF = c.EOF && !live
	return c, true
}

// readChunk fills a chunk; EOF says that nothing more is there.
func readChunk(c *gpuai.LogChunk, dir string, r *gpuai.LogRequest, limit int64) error {
	offset := r.Offset
	if r.Since > 0 || r.Tail > 0 {
		lines := r.Tail
		if lines == 0 {
			lines = -1
		}
		from, err := watchdog.SeekLog(dir, r.Stream, r.Since, lines)
		if err != nil {
			return err
		}
		offset = max(offset, from)
	}
	data, at, end, err := watchdog.ReadLog(dir, r.Stream, offset, limit)
	if err != nil {
		return err
	}
	c.Data, c.Offset = data, at
	if r.Times && len(data) > 0 {
		if c.Times, err = watchdog.ReadTimes(dir, r.Stream, at, at+int64(len(data)), maxLogTimes+1); err != nil {
			return err
		}
		if len(c.Times) > maxLogTimes {
			c.Data = data[:c.Times[maxLogTimes].Offset-at]
			c.Times = c.Times[:maxLogTimes]
		}
	}
	c.EOF = at+int64(len(c.Data)) >= end
	return nil
}
