package hub

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gpuai/gpuai"
)

func job(n byte) gpuai.JobID { return gpuai.JobID{15: n} }

func event(index uint64, node gpuai.NodeID, j byte) gpuai.Event {
	return gpuai.Event{Index: index, Kind: gpuai.LeaseGrantedEvent, Node: node, Job: job(j)}
}

// collect reads until it has n events.
func collect(t *testing.T, s *Sub, n int) (out []gpuai.Event) {
	t.Helper()
	for len(out) < n {
		events, index, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("after %d events: %v", len(out), err)
		}
		out = append(out, events...)
		if last := out[len(out)-1].Index; index != last {
			t.Fatalf("the batch ends at index %d, its last event is of %d", index, last)
		}
	}
	return out
}

func TestRouting(t *testing.T) {
	tests := []struct {
		name   string
		filter Filter
		from   uint64
		want   []uint64 // indexes
	}{
		{"all", Filter{}, 0, []uint64{1, 2, 2, 3}},
		{"all behind an index", Filter{}, 2, []uint64{3}},
		{"one node", Filter{Node: "a"}, 0, []uint64{1, 2}},
		{"one job", Filter{Job: job(2)}, 0, []uint64{2, 3}},
		{"one job on one node", Filter{Node: "b", Job: job(2)}, 0, []uint64{2, 3}},
		{"one node behind an index", Filter{Node: "a"}, 1, []uint64{2}},
	}
	publish := func(h *Hub) {
		h.Publish(1, []gpuai.Event{event(1, "a", 1)})
		h.Publish(2, []gpuai.Event{event(2, "a", 1), event(2, "b", 2)})
		h.Publish(3, []gpuai.Event{event(3, "b", 2)})
		h.Publish(4, nil)
	}
	for _, tt := range tests {
		for _, order := range []string{"before", "after"} {
			t.Run(tt.name+" subscribed "+order, func(t *testing.T) {
				h := New(16)
				if order == "after" {
					publish(h)
				}
				s, err := h.Subscribe(tt.filter, tt.from)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if order == "before" {
					publish(h)
				}
				for i, e := range collect(t, s, len(tt.want)) {
					if e.Index != tt.want[i] {
						t.Errorf("event %d has index %d, want %d", i, e.Index, tt.want[i])
					}
				}
			})
		}
	}
}

func TestOnlyWatchersOfANodeAreWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(16)
		s, err := h.Subscribe(Filter{Node: "quiet"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { _, _, err := s.Next(ctx); done <- err }()
		synctest.Wait()
		for i := uint64(1); i <= 100; i++ { // overtakes the ring six times
			h.Publish(i, []gpuai.Event{event(i, "busy", 1)})
		}
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("woken by another node's events: %v", err)
		default:
		}
		h.Publish(101, []gpuai.Event{event(101, "quiet", 1)})
		if err := <-done; err != nil {
			t.Errorf("a watcher with nothing to read was cut: %v", err)
		}
		cancel()
		s.Close()
	})
}

func TestASlowReaderIsCut(t *testing.T) {
	h := New(8)
	s, err := h.Subscribe(Filter{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := uint64(1); i <= 9; i++ {
		h.Publish(i, []gpuai.Event{event(i, "a", 1)})
	}
	if _, _, err := s.Next(t.Context()); !errors.Is(err, ErrCompacted) {
		t.Errorf("a reader that the ring overtook got %v", err)
	}
}

func TestResume(t *testing.T) {
	h := New(8)
	for i := uint64(1); i <= 5; i++ {
		h.Publish(i, []gpuai.Event{event(i, "a", 1), event(i, "b", 1)})
	}
	// Ten events in a ring of eight: index 1 is gone.
	for from, want := range map[uint64]bool{0: false, 1: true, 2: true, 5: true, 9: true} {
		s, err := h.Subscribe(Filter{}, from)
		if got := err == nil; got != want {
			t.Errorf("subscribing behind index %d: %v", from, err)
		}
		if err == nil {
			s.Close()
		}
	}
	h.Publish(6, []gpuai.Event{event(6, "a", 1)}) // half of index 2 is gone
	if _, err := h.Subscribe(Filter{}, 1); !errors.Is(err, ErrCompacted) {
		t.Errorf("half an index was offered: %v", err)
	}
}

func TestBatchesEndWithAnIndex(t *testing.T) {
	h := New(1 << 14)
	h.Publish(1, make([]gpuai.Event, 0))
	for i := uint64(1); i <= 4; i++ {
		events := make([]gpuai.Event, 3_000)
		for k := range events {
			events[k] = event(i, "a", 1)
		}
		h.Publish(i, events)
	}
	s, err := h.Subscribe(Filter{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := uint64(1); i <= 4; i++ {
		events, index, err := s.Next(t.Context())
		if err != nil || index != i || len(events) != 3_000 {
			t.Fatalf("batch %d: %d events up to index %d, %v", i, len(events), index, err)
		}
	}
}

// sink counts what it is offered.
type sink struct {
	offered []gpuai.Event
	resets  int
}

func (k *sink) Offer(e *gpuai.Event) { k.offered = append(k.offered, *e) }
func (k *sink) Reset()               { k.resets++ }

func TestReset(t *testing.T) {
	h := New(8)
	k := &sink{}
	detach := h.Attach("a", k)
	h.Publish(1, []gpuai.Event{event(1, "a", 1), event(1, "b", 1)})
	s, err := h.Subscribe(Filter{Job: job(1)}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h.Reset(7)
	if _, _, err := s.Next(t.Context()); !errors.Is(err, ErrCompacted) {
		t.Errorf("a watcher went on over a reset: %v", err)
	}
	if len(k.offered) != 1 || k.resets != 1 {
		t.Errorf("the sink saw %d events and %d resets", len(k.offered), k.resets)
	}
	if _, err := h.Subscribe(Filter{}, 6); !errors.Is(err, ErrCompacted) {
		t.Errorf("events before the reset were offered: %v", err)
	}
	detach()
	h.Publish(8, []gpuai.Event{event(8, "a", 1)})
	if len(k.offered) != 1 {
		t.Error("a detached sink was called")
	}
}

func TestConcurrentReadersSeeEveryEventOnce(t *testing.T) {
	const entries = 2_000
	h := New(4 * entries)
	var wg sync.WaitGroup
	for range 4 {
		s, err := h.Subscribe(Filter{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer s.Close()
			for i := 0; i < 2*entries; {
				events, _, err := s.Next(t.Context())
				if err != nil {
					t.Errorf("after %d events: %v", i, err)
					return
				}
				for _, e := range events {
					if want := uint64(i/2 + 1); e.Index != want {
						t.Errorf("event %d is of index %d, want %d", i, e.Index, want)
						return
					}
					i++
				}
			}
		})
	}
	for i := uint64(1); i <= entries; i++ {
		h.Publish(i, []gpuai.Event{event(i, "a", 1), event(i, "b", 2)})
	}
	wg.Wait()
}
