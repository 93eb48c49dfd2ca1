// Package hub hands one replica's events to whoever watches it.
//
// A Hub keeps the latest events in a ring, by log index. A Sub reads it from
// any index that the ring still covers, at its own pace: nothing is buffered
// for it, and one that the ring overtakes is cut with ErrCompacted. A Sink is
// called for each event of one node as it happens; agent sessions are sinks.
// Events route by node and by job: one wakes only who watches it.
package hub

import (
	"context"
	"errors"
	"slices"
	"sort"
	"sync"

	"github.com/gpuai/gpuai"
)

// ErrCompacted is returned when events that a watcher has not read are gone
// from the ring: it must read the state anew and watch from there.
var ErrCompacted = errors.New("events behind this index are no longer kept: read the state again and watch from its index")

const (
	// scanChunk is how many events are looked at under one hold of the lock.
	scanChunk = 2_048
	// batchLimit is when a batch is handed over, at the next end of an index.
	batchLimit = 512
)

// A Filter chooses events. Its zero value chooses all; with both fields set
// both must match.
type Filter struct {
	Node gpuai.NodeID
	Job  gpuai.JobID
}

func (f *Filter) match(e *gpuai.Event) bool {
	return (f.Node == "" || f.Node == e.Node) && (f.Job.IsZero() || f.Job == e.Job)
}

// A Sink takes the events of one node. Its methods are called under the hub's
// lock: they must not block and not call the hub.
type Sink interface {
	Offer(e *gpuai.Event)
	// Reset says that events may be missing from here on.
	Reset()
}

// A Hub is safe for concurrent use.
type Hub struct {
	mu    sync.Mutex // guards below
	ring  []gpuai.Event
	head  uint64 // events ever published; the next one's place
	tail  uint64 // the oldest kept one's place
	floor uint64 // events up to this index may be missing
	index uint64 // of the latest entry
	all   map[*Sub]struct{}
	nodes map[gpuai.NodeID]map[*Sub]struct{}
	jobs  map[gpuai.JobID]map[*Sub]struct{}
	sinks map[gpuai.NodeID][]Sink // few each, nearly always one
}

// New returns a hub that keeps the latest size events.
func New(size int) *Hub {
	return &Hub{
		ring:  make([]gpuai.Event, size),
		all:   make(map[*Sub]struct{}),
		nodes: make(map[gpuai.NodeID]map[*Sub]struct{}),
		jobs:  make(map[gpuai.JobID]map[*Sub]struct{}),
		sinks: make(map[gpuai.NodeID][]Sink),
	}
}

// Publish adds the events of one entry. It never waits for a watcher.
func (h *Hub) Publish(index uint64, events []gpuai.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = index
	for i := range events {
		h.add(&events[i])
	}
}

func (h *Hub) add(e *gpuai.Event) {
	size := uint64(len(h.ring))
	if h.head-h.tail == size {
		h.floor = h.ring[h.tail%size].Index
		h.tail++
	}
	h.ring[h.head%size] = *e
	for s := range h.all {
		s.mark(h.head)
	}
	if e.Node != "" {
		for s := range h.nodes[e.Node] {
			s.mark(h.head)
		}
		for _, k := range h.sinks[e.Node] {
			k.Offer(e)
		}
	}
	for s := range h.jobs[e.Job] {
		s.mark(h.head)
	}
	h.head++
}

// Reset forgets all events up to an index: the state was replaced by another,
// and every watcher must start over.
func (h *Hub) Reset(index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = max(h.index, index)
	h.tail, h.floor = h.head, h.index
	for s := range h.all {
		s.cut()
	}
	for _, subs := range h.nodes {
		for s := range subs {
			s.cut()
		}
	}
	for _, subs := range h.jobs {
		for s := range subs {
			s.cut()
		}
	}
	for _, sinks := range h.sinks {
		for _, k := range sinks {
			k.Reset()
		}
	}
}

// Attach has k called for each event of a node from now on, until detach.
func (h *Hub) Attach(node gpuai.NodeID, k Sink) (detach func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sinks[node] = append(h.sinks[node], k)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.detach(node, k)
	}
}

// detach removes a sink. The caller holds h.mu.
func (h *Hub) detach(node gpuai.NodeID, k Sink) {
	left := slices.DeleteFunc(h.sinks[node], func(s Sink) bool { return s == k })
	if h.sinks[node] = left; len(left) == 0 {
		delete(h.sinks, node)
	}
}

func addTo[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if m[k] == nil {
		m[k] = make(map[V]struct{})
	}
	m[k][v] = struct{}{}
}

func dropFrom[K, V comparable](m map[K]map[V]struct{}, k K, v V) {
	if delete(m[k], v); len(m[k]) == 0 {
		delete(m, k)
	}
}

// A Sub is one reader of the ring. It belongs to one goroutine.
type Sub struct {
	hub    *Hub
	filter Filter
	from   uint64 // events up to this index are passed over
	wake   chan struct{}
	// Guarded by hub.mu.
	next    uint64 // place of the first event that it may not have read
	pending bool   // there is one
	lost    bool   // it was cut
}

// Subscribe returns a reader of the events behind an index. It fails with
// ErrCompacted when some of them are gone. The caller closes it.
func (h *Hub) Subscribe(f Filter, from uint64) (*Sub, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if from < h.floor {
		return nil, ErrCompacted
	}
	s := &Sub{hub: h, filter: f, from: from, wake: make(chan struct{}, 1)}
	n := sort.Search(int(h.head-h.tail), func(i int) bool {
		return h.at(h.tail+uint64(i)).Index > from
	})
	if at := h.tail + uint64(n); at < h.head {
		s.mark(at)
	}
	switch {
	case f.Node != "":
		addTo(h.nodes, f.Node, s)
	case !f.Job.IsZero():
		addTo(h.jobs, f.Job, s)
	default:
		h.all[s] = struct{}{}
	}
	return s, nil
}

func (h *Hub) at(place uint64) *gpuai.Event { return &h.ring[place%uint64(len(h.ring))] }

// mark notes that there is an event to read. The caller holds hub.mu.
func (s *Sub) mark(place uint64) {
	if s.pending {
		return
	}
	s.next, s.pending = place, true
	s.rouse()
}

func (s *Sub) cut() {
	s.lost = true
	s.rouse()
}

func (s *Sub) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next returns the next events, all of each index that it begins, and the
// index of the last. It waits until there is one, or returns ErrCompacted, or
// ctx's error.
func (s *Sub) Next(ctx context.Context) (events []gpuai.Event, index uint64, err error) {
	for {
		events, more, err := s.read(events)
		if err != nil {
			return nil, 0, err
		}
		if more && len(events) < batchLimit {
			continue
		}
		if len(events) > 0 {
			return events, events[len(events)-1].Index, nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// read appends what a chunk of the ring holds for s. more says that the ring
// goes on.
func (s *Sub) read(out []gpuai.Event) (_ []gpuai.Event, more bool, err error) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.lost || s.pending && s.next < h.tail {
		return nil, false, ErrCompacted
	}
	if !s.pending {
		return out, false, nil
	}
	for n := 0; s.next < h.head; n++ {
		e := h.at(s.next)
		ends := len(out) == 0 || out[len(out)-1].Index != e.Index
		if ends && (n >= scanChunk || len(out) >= batchLimit) {
			return out, true, nil
		}
		if e.Index > s.from && s.filter.match(e) {
			out = append(out, *e)
		}
		s.next++
	}
	s.pending = false
	return out, false, nil
}

// Close ends the reader. It is idempotent.
func (s *Sub) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, s)
	dropFrom(h.nodes, s.filter.Node, s)
	dropFrom(h.jobs, s.filter.Job, s)
}
