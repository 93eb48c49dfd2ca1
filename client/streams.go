package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// ErrReset is returned by Events when the server no longer has all events after
// the index that was asked for: read the state anew, then watch from its index.
var ErrReset = errors.New("events were missed: the server no longer keeps them; read the state again and watch from there")

// EventQuery asks for events after index From; 0 is from now on.
type EventQuery struct {
	From uint64
	Job  string       // ID, unique beginning or name; "" is any
	Node gpuai.NodeID // "" is any
}

// LogQuery asks for output of one task. Lease wins over Group and Task; 0 is
// the task's latest lease.
type LogQuery struct {
	Job    string
	Group  uint16
	Task   uint32
	Lease  gpuai.Token
	Stream string // "stdout", which "" stands for, "stderr" or gpuai.StreamProgress
	Offset int64  // bytes from the start; negative: from the end
	Limit  int64  // bytes at most; 0 is the server's default
	// Wait lets the answer be held until there is something new.
	Wait gpuai.Duration
	// Attempt is the task's run of this number, from 1; 0 is the latest.
	Attempt uint32
	// Since and Tail (lines) leave out what was written before, and all but the
	// last lines; 0 leaves out nothing. Times asks when output was written.
	Since gpuai.WallTime
	Tail  int64
	Times bool
}

// Logs returns a chunk of a task's output.
func (c *Client) Logs(ctx context.Context, q LogQuery) (gpuai.LogChunk, error) {
	v := url.Values{}
	set(v, "stream", q.Stream)
	for name, n := range map[string]int64{
		"group": int64(q.Group), "task": int64(q.Task), "offset": q.Offset, "limit": q.Limit,
		"attempt": int64(q.Attempt), "since_ms": int64(q.Since), "tail": q.Tail,
	} {
		if n != 0 {
			v.Set(name, strconv.FormatInt(n, 10))
		}
	}
	if q.Lease != 0 {
		v.Set("lease", q.Lease.String())
	}
	if q.Wait > 0 {
		v.Set("wait", q.Wait.String())
	}
	if q.Times {
		v.Set("times", "true")
	}
	return get[gpuai.LogChunk](ctx, c, jobPath(q.Job)+"/logs", v)
}

// resumeAfter is the pause before a broken stream is opened again.
const resumeAfter = 200 * time.Millisecond

// maxLine bounds a line of the event stream.
const maxLine = 1 << 20

// Events calls f for events in their order as they arrive, until f or ctx ends
// it. index is what to resume from: everything up to it has been given. A
// stream that breaks is resumed from there, at another server if need be; an
// index that was given in part then comes whole again.
func (c *Client) Events(ctx context.Context, q EventQuery, f func(events []gpuai.Event, index uint64) error) error {
	w := watch{from: q.From, started: q.From > 0, f: f}
	for at := c.at.Load(); ; at++ {
		v := url.Values{}
		if w.started {
			v.Set("index", strconv.FormatUint(w.from, 10))
		}
		set(v, "job", q.Job)
		set(v, "node", string(q.Node))
		r := request{method: http.MethodGet, path: "/v1/events", query: v, accept: "application/x-ndjson", stream: true}
		err := c.try(ctx, c.addrs[at%uint32(len(c.addrs))], &r, w.read)
		if w.err != nil {
			return w.err
		}
		if _, worth := again(err); !worth && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resumeAfter):
		}
	}
}

// A watch is one Events over the streams that serve it.
type watch struct {
	from    uint64 // given whole
	at      uint64 // of the newest event
	started bool
	f       func([]gpuai.Event, uint64) error
	pending []gpuai.Event
	err     error // what ended it for good
}

// A line is an event, or a reset, whose kind no event has.
type line struct {
	Kind string `json:"kind"`
}

// maxPending bounds the events of one call of f.
const maxPending = 512

func (w *watch) read(res *http.Response) error {
	w.pending = w.pending[:0]
	if !w.started { // from now on: what the server has now is where a resume begins
		if n, err := strconv.ParseUint(res.Header.Get("X-GPUAI-Index"), 10, 64); err == nil {
			w.from, w.started = n, true
		}
	}
	r := bufio.NewReaderSize(res.Body, maxLine)
	for {
		b, err := r.ReadSlice('\n')
		if err != nil {
			w.err = w.flush()
			return &transportError{err: fmt.Errorf("reading events: %w", err)}
		}
		if w.err = w.line(b[:len(b)-1]); w.err != nil {
			return nil
		}
		if r.Buffered() == 0 || len(w.pending) == maxPending {
			if w.err = w.flush(); w.err != nil {
				return nil
			}
		}
	}
}

// line takes one line. An empty one is a sign of life.
func (w *watch) line(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("decoding an event: %w", err)
	}
	if l.Kind == "reset" {
		return ErrReset
	}
	var e gpuai.Event
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("decoding an event: %w", err)
	}
	if e.Index > w.at { // the one before it is complete
		w.from, w.at = max(w.from, w.at), e.Index
	}
	w.pending = append(w.pending, e)
	return nil
}

func (w *watch) flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	err := w.f(w.pending, w.from)
	w.pending = w.pending[:0]
	return err
}
