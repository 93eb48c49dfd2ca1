package httpd

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// beatEvery is the pace of a stream's signs of life while nothing happens, so
// that both ends notice a connection that is gone.
const beatEvery = 15 * time.Second

// catchUpTime bounds the wait for an index that is not applied here yet.
const catchUpTime = 5 * time.Second

// events answers GET /v1/events: Server-Sent Events or, by Accept, lines of
// JSON, from after ?index= or Last-Event-ID, by default from now on.
func (c *call) events() error {
	q := EventQuery{Job: c.query.Get("job"), Node: gpuai.NodeID(c.query.Get("node")), Tenant: c.tenant()}
	var err error
	if q.From, err = c.eventsFrom(); err != nil {
		return err
	}
	if err := c.catchUp(q.From); err != nil {
		return err
	}
	if q.Job != "" { // an unknown one is a 404 now, not an empty stream
		if q.Job, err = c.jobOf(q.Job); err != nil {
			return err
		}
		if _, err := c.api.backend.Job(q.Job, false); err != nil {
			return err
		}
	}
	s := &eventStream{c: c, sse: c.accepts("text/event-stream")}
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	if s.sse {
		c.w.Header().Set("Content-Type", "text/event-stream")
	}
	c.w.Header().Set("Cache-Control", "no-store")
	c.begin(http.StatusOK)
	if err := s.flush(); err != nil {
		return err
	}
	return s.run(q)
}

// eventsFrom is the index after which to start; Last-Event-ID wins, as a
// client sends it when it connects again with the same URL.
func (c *call) eventsFrom() (uint64, error) {
	if last := c.r.Header.Get("Last-Event-ID"); last != "" {
		from, err := strconv.ParseUint(last, 10, 64)
		if err != nil {
			return 0, badQuery("Last-Event-ID", "is the id of an event: an index")
		}
		return from, nil
	}
	if c.query.Has("index") {
		return c.unsigned("index", 64)
	}
	return c.api.backend.Status().Index, nil
}

// catchUp waits a moment for an index that the caller saw at another server, so
// that what it was told of there exists here.
func (c *call) catchUp(index uint64) error {
	if index == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), catchUpTime)
	defer cancel()
	if c.waitIndex(ctx, index-1) != nil && c.r.Context().Err() == nil {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "this server has not applied index " + strconv.FormatUint(index, 10) + " yet: retry, or ask another server",
		}
	}
	return c.r.Context().Err()
}

// accepts reports whether the caller named the media type.
func (c *call) accepts(kind string) bool {
	for part := range strings.SplitSeq(c.r.Header.Get("Accept"), ",") {
		if got, _, err := mime.ParseMediaType(part); err == nil && got == kind {
			return true
		}
	}
	return false
}

// An eventStream writes one caller's events. A caller that does not read within
// the write timeout is cut; nothing is buffered for it but one batch.
type eventStream struct {
	c   *call
	sse bool

	mu  sync.Mutex // guards below, and writing
	buf []byte
}

// run writes events until the caller goes. What is compacted is told by one
// reset with the index that the stream goes on from: the caller reads the state
// again, at that index or later.
func (s *eventStream) run(q EventQuery) error {
	ctx, cancel := s.c.still()
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.beat(ctx, cancel)
	}()
	defer func() { cancel(); <-done }()
	err := s.c.api.backend.Events(ctx, q, s.batch)
	if !errors.Is(err, ErrCompacted) {
		return err
	}
	q.From = s.c.api.backend.Status().Index
	if err := s.reset(q.From); err != nil {
		return err
	}
	err = s.c.api.backend.Events(ctx, q, s.batch)
	if errors.Is(err, ErrCompacted) { // slower than the region: cut, after saying so
		return s.reset(s.c.api.backend.Status().Index)
	}
	return err
}

// beat writes a sign of life now and then, and ends the stream when it cannot.
func (s *eventStream) beat(ctx context.Context, cancel func()) {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if s.sign() != nil {
				cancel()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// sign writes a comment, or the empty line that JSON readers skip.
func (s *eventStream) sign() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf[:0], '\n')
	if s.sse {
		s.buf = append(s.buf[:0], ":\n\n"...)
	}
	return s.write()
}

// batch writes events that are complete up to index. Only the last event of an
// index carries its ID: a caller that is cut within an index and resumes from
// its last ID gets that index whole again, and loses nothing.
func (s *eventStream) batch(events []gpuai.Event, index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = s.buf[:0]
	for i := range events {
		e := &events[i]
		last := e.Index <= index && (i+1 == len(events) || events[i+1].Index != e.Index)
		if err := s.append(e, last); err != nil {
			return err
		}
	}
	return s.write()
}

func (s *eventStream) append(e *gpuai.Event, last bool) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if !s.sse {
		s.buf = append(append(s.buf, line...), '\n')
		return nil
	}
	s.buf = append(append(append(s.buf, "event: "...), e.Kind.String()...), '\n')
	if last {
		s.buf = append(strconv.AppendUint(append(s.buf, "id: "...), e.Index, 10), '\n')
	}
	s.buf = append(append(append(s.buf, "data: "...), line...), "\n\n"...)
	return nil
}

// reset tells that events were lost and that index is where the stream goes on.
func (s *eventStream) reset(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := strconv.FormatUint(index, 10)
	s.buf = append(s.buf[:0], `{"kind":"reset","index":`+n+"}\n"...)
	if s.sse {
		s.buf = append(s.buf[:0], "event: reset\nid: "+n+"\ndata: {\"kind\":\"reset\",\"index\":"+n+"}\n\n"...)
	}
	return s.write()
}

// write sends the buffer; the caller holds the lock.
func (s *eventStream) write() error {
	if len(s.buf) > 0 {
		_ = s.c.ctl.SetWriteDeadline(time.Now().Add(s.c.api.cfg.WriteTimeout))
		if _, err := s.c.w.Write(s.buf); err != nil {
			return err
		}
	}
	return s.flush()
}

func (s *eventStream) flush() error { return s.c.ctl.Flush() }
