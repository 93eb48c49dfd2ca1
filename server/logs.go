package server

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
)

const (
	// logTimeout bounds an answer beside the time that the agent may hold it.
	logTimeout = 5 * time.Second
	// maxLogWait bounds LogRequest.Wait.
	maxLogWait = 30 * gpuai.Second
	// maxLogChunk bounds the bytes of one answer.
	maxLogChunk = 1 << 20
	// maxLogRequests bounds the requests that wait at one agent.
	maxLogRequests = 64
)

// errNoSession is returned when no server that answers has the node's session.
var errNoSession = gpuai.NewError(gpuai.NotFound, "the node's agent is not connected, so its logs cannot be read now; retry when it is back")

// logWaiters are the log requests that an agent has not answered.
type logWaiters struct {
	mu     sync.Mutex // guards below
	last   uint64
	byID   map[uint64]chan gpuai.LogChunk
	closed bool
}

// begin names a request.
func (w *logWaiters) begin() (id uint64, answer chan gpuai.LogChunk, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, nil, errNoSession
	}
	if len(w.byID) >= maxLogRequests {
		return 0, nil, &gpuai.Error{Code: gpuai.RateLimited, Detail: "too many log requests wait at this node; retry", RetryAfter: gpuai.Second}
	}
	if w.byID == nil {
		w.byID = make(map[uint64]chan gpuai.LogChunk)
	}
	w.last++
	answer = make(chan gpuai.LogChunk, 1)
	w.byID[w.last] = answer
	return w.last, answer, nil
}

// finish takes a request off, and returns where its answer goes; nil when
// nobody waits any more.
func (w *logWaiters) finish(id uint64) chan gpuai.LogChunk {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.byID[id]
	delete(w.byID, id)
	return c
}

// fail ends all requests.
func (w *logWaiters) fail() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for id, c := range w.byID {
		delete(w.byID, id)
		close(c)
	}
}

// deliver hands an agent's answer to whoever asked.
func (se *session) deliver(c *gpuai.LogChunk) {
	if answer := se.logs.finish(c.ID); answer != nil {
		answer <- *c
	}
}

// readLog asks the session's agent.
func (se *session) readLog(ctx context.Context, q gpuai.LogRequest) (gpuai.LogChunk, error) {
	id, answer, err := se.logs.begin()
	if err != nil {
		return gpuai.LogChunk{}, err
	}
	defer se.logs.finish(id)
	q.ID = id
	se.mu.Lock()
	se.requests = append(se.requests, q)
	se.sends()
	se.mu.Unlock()
	select {
	case c, ok := <-answer:
		if !ok {
			return gpuai.LogChunk{}, errNoSession
		}
		return c, nil
	case <-ctx.Done():
		return gpuai.LogChunk{}, gpuai.NewError(gpuai.OutcomeUnknown, "the node's agent did not answer in time; retry")
	}
}

// A logQuestion is what servers ask each other for.
type logQuestion struct {
	Node    gpuai.NodeID     `json:"node"`
	Request gpuai.LogRequest `json:"request"`
}

// readLogs asks the node's agent, by whichever server has its session.
func (s *Server) readLogs(ctx context.Context, q logQuestion) (gpuai.LogChunk, error) {
	q.Request.Wait = min(max(q.Request.Wait, 0), maxLogWait)
	if q.Request.Limit <= 0 || q.Request.Limit > maxLogChunk {
		q.Request.Limit = maxLogChunk
	}
	ctx, cancel := context.WithTimeout(ctx, logTimeout+time.Duration(q.Request.Wait)*time.Millisecond)
	defer cancel()
	if se := s.sessions.get(q.Node); se != nil {
		if c, err := se.readLog(ctx, q.Request); err == nil || !errors.Is(err, errNoSession) {
			return c, err
		}
	}
	return s.readLogsElsewhere(ctx, q)
}

// readLogsElsewhere asks all other servers at once and takes the first answer.
func (s *Server) readLogsElsewhere(ctx context.Context, q logQuestion) (gpuai.LogChunk, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return gpuai.LogChunk{}, err
	}
	type answer struct {
		chunk gpuai.LogChunk
		err   error
	}
	members := s.node.Members()
	answers, asked := make(chan answer, len(members)), 0
	for _, p := range members {
		if p.ID == s.cfg.ID {
			continue
		}
		asked++
		go func() { // ends with ctx at the latest
			var a answer
			b, err := s.askPeer(ctx, p.ID, pathLogs, body)
			if err == nil {
				err = json.Unmarshal(b, &a.chunk)
			}
			a.err = err
			answers <- a
		}()
	}
	err = errNoSession
	for range asked {
		a := <-answers
		if a.err == nil {
			return a.chunk, nil
		}
		if !errors.Is(a.err, &gpuai.Error{Code: gpuai.NotFound}) && errors.Is(err, errNoSession) {
			err = a.err
		}
	}
	return gpuai.LogChunk{}, err
}

// logsPeer answers another server from a session of this one.
func (s *Server) logsPeer(ctx context.Context, body []byte) ([]byte, error) {
	var q logQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, errWire
	}
	se := s.sessions.get(q.Node)
	if se == nil {
		return nil, errNoSession
	}
	c, err := se.readLog(ctx, q.Request)
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}
