package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// verdictTimeout bounds the wait for servers that do not say their digest,
	// × multiplier: without them there may be no majority.
	verdictTimeout = 20 * time.Second
	// verdictRetry is how often those are asked again.
	verdictRetry = 200 * time.Millisecond
	// rebuildRetry is the wait after a rebuild that did not come about.
	rebuildRetry = 500 * time.Millisecond
	// rebuildTimeout bounds one rebuild: a state may be large.
	rebuildTimeout = 15 * time.Minute
)

// A digestQuestion asks what a server remembers for an index; Mine is what From
// has, which the other then judges too when it differs.
type digestQuestion struct {
	Index uint64         `json:"index"`
	From  gpuai.ServerID `json:"from,omitzero"`
	Mine  string         `json:"mine,omitzero"`
}

// A digestAnswer is what it remembers; "" for nothing. Passed says then that the
// index is behind it, so that asking again is of no use.
type digestAnswer struct {
	Digest string `json:"digest,omitzero"`
	Passed bool   `json:"passed,omitzero"`
}

// digests are the answers of the voters.
type digests struct {
	of       map[gpuai.ServerID]string
	voters   int
	forgot   int // voters that do not remember the index any more
	answered int // voters of which nothing more is to be expected
}

// A verdict is what servers' digests at one index say of this one.
type verdict uint8

const (
	undecided verdict = iota // no digest has a majority of the voters
	right                    // this server's has
	wrong                    // another one has
	skipped                  // this server does not remember the index
)

func (v verdict) String() string {
	return [...]string{"undecided", "right", "wrong", "skipped"}[v]
}

// tribunal compares this server's state with the others' when a checkpoint, or
// another server, has found that they differ.
type tribunal struct {
	s       *Server
	suspect chan struct{}

	mu    sync.Mutex // guards below
	index uint64     // where they differ
	named string     // the digest that was named there, not this server's
	// heard is what others have, or had before they stopped, at an index.
	heard   map[gpuai.ServerID]string
	heardAt uint64
}

func newTribunal(s *Server) *tribunal { return &tribunal{s: s, suspect: make(chan struct{}, 1)} }

// accuse says that a digest was named for an index that this server does not
// have. It does not block.
func (t *tribunal) accuse(index uint64, named string) {
	t.mu.Lock()
	t.index, t.named = index, named
	t.mu.Unlock()
	nudge(t.suspect)
}

// hear notes what another server has at an index.
func (t *tribunal) hear(index uint64, from gpuai.ServerID, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if index != t.heardAt {
		t.heard, t.heardAt = make(map[gpuai.ServerID]string), index
	}
	t.heard[from] = digest
}

// run judges and rebuilds until ctx ends.
func (t *tribunal) run(ctx context.Context) {
	s := t.s
	if reason, err := s.dir.Quarantine(); err != nil {
		s.fail(err)
		return
	} else if reason != "" {
		s.quarantineFor(reason)
		t.rebuild(ctx)
	}
	for {
		select {
		case <-t.suspect:
		case <-ctx.Done():
			return
		}
		t.mu.Lock()
		index, named := t.index, t.named
		t.mu.Unlock()
		if t.judge(ctx, index, named) {
			t.rebuild(ctx)
		}
	}
}

// judge reports whether this server's state is wrong at an index; it is
// quarantined then. Where no majority agrees on any digest the server ends.
func (t *tribunal) judge(ctx context.Context, index uint64, named string) (rebuild bool) {
	s := t.s
	deadline := time.Now().Add(s.scaled(verdictTimeout))
	for {
		v, ds, waits := t.ask(ctx, index)
		if ctx.Err() != nil {
			return false
		}
		switch late := time.Now().After(deadline); {
		case v == skipped:
			return false
		case v == right:
			s.metrics.divergence.WithLabelValues(v.String()).Inc()
			s.log.Error("servers' states differ; this server's is the majority's", "index", index, "digests", ds.String())
			return false
		case v == wrong:
			s.metrics.divergence.WithLabelValues(v.String()).Inc()
			s.quarantineFor(fmt.Sprintf("its state at index %d differs from the majority's (%s)", index, ds.String()))
			return true
		case late || !waits:
			s.metrics.divergence.WithLabelValues(v.String()).Inc()
			s.fail(fmt.Errorf("at index %d the servers' states differ and no majority has the same (%s; named was %s): no server knows which is right, so this one stops; "+
				"compare them with 'gpuai operator digest --index %d' and restore the region from a backup, or rebuild all but one with 'gpuai server rejoin --wipe'", index, ds.String(), named, index))
			return false
		}
		select {
		case <-time.After(verdictRetry):
		case <-ctx.Done():
			return false
		}
	}
}

// ask asks all voters for their digest at an index, this server's included.
// waits says that one of them may still answer.
func (t *tribunal) ask(ctx context.Context, index uint64) (v verdict, ds digests, waits bool) {
	mine, err := t.s.DigestAt(index)
	if err != nil {
		return skipped, ds, false
	}
	ds = t.digestsAt(ctx, index, mine.Digest)
	t.remember(index, &ds)
	if m, _ := t.s.node.Member(t.s.cfg.ID); m.Voter {
		ds.of[t.s.cfg.ID] = mine.Digest
		ds.answered++
		if ds.voters == 1 { // nobody else knows; its own log says otherwise
			return undecided, ds, false
		}
	}
	return ds.judge(mine.Digest), ds, ds.answered < ds.voters
}

// remember adds what voters said before that do not answer now: the digest at an
// index does not change.
func (t *tribunal) remember(index uint64, ds *digests) {
	for id, d := range ds.of {
		t.hear(index, id, d)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if index != t.heardAt {
		return
	}
	for id, d := range t.heard {
		if m, ok := t.s.node.Member(id); ok && m.Voter && ds.of[id] == "" {
			ds.of[id] = d
			ds.answered++
		}
	}
}

// judge compares: only what more than half of all voters have is right. Where
// there is no such digest and a voter has forgotten, a later checkpoint judges.
func (ds *digests) judge(mine string) verdict {
	count := make(map[string]int)
	for _, d := range ds.of {
		if count[d]++; 2*count[d] > ds.voters {
			if d == mine {
				return right
			}
			return wrong
		}
	}
	if ds.forgot > 0 {
		return skipped
	}
	return undecided
}

// digestsAt asks the other voters at once.
func (t *tribunal) digestsAt(ctx context.Context, index uint64, mine string) digests {
	ctx, cancel := context.WithTimeout(ctx, t.s.scaled(positionTimeout))
	defer cancel()
	ds := digests{of: make(map[gpuai.ServerID]string)}
	body, err := json.Marshal(&digestQuestion{Index: index, From: t.s.cfg.ID, Mine: mine})
	if err != nil {
		return ds
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range t.s.node.Members() {
		if !m.Voter {
			continue
		}
		if ds.voters++; m.ID == t.s.cfg.ID {
			continue
		}
		wg.Go(func() {
			answer, err := t.s.askPeer(ctx, m.ID, pathDigest, body)
			var d digestAnswer
			if err != nil || json.Unmarshal(answer, &d) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ds.add(m.ID, d)
		})
	}
	wg.Wait()
	return ds
}

func (ds *digests) add(id gpuai.ServerID, d digestAnswer) {
	switch {
	case d.Digest != "":
		ds.of[id] = d.Digest
		ds.answered++
	case d.Passed:
		ds.forgot++
		ds.answered++
	}
}

// String names every digest and whose it is.
func (ds *digests) String() string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(ds.of)) {
		out = append(out, string(id)+" "+ds.of[id])
	}
	return strings.Join(out, ", ")
}

// digestPeer answers digestsAt. A question that shows a difference makes this
// server judge itself: only it knows then that it may be wrong.
func (s *Server) digestPeer(_ context.Context, body []byte) ([]byte, error) {
	var q digestQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, errWire
	}
	a := digestAnswer{Passed: s.node.AppliedIndex() > q.Index}
	if d, err := s.DigestAt(q.Index); err == nil && q.Index > 0 {
		a.Digest = d.Digest
	}
	if _, ok := s.node.Member(q.From); ok && q.Mine != "" && q.From != s.cfg.ID {
		s.tribunal.hear(q.Index, q.From, q.Mine)
	}
	if a.Digest != "" && q.Mine != "" && a.Digest != q.Mine && s.quarantine.why() == "" {
		s.tribunal.accuse(q.Index, q.Mine)
	}
	return json.Marshal(&a)
}

// errNoVouchers is returned while no majority vouches for a state.
var errNoVouchers = errors.New("no majority of the voters says that this state is right")

// vouched returns once a majority of the voters, this server not among them, has
// a digest at an index.
func (t *tribunal) vouched(ctx context.Context, index uint64, d fsm.Digest) error {
	deadline := time.Now().Add(t.s.scaled(verdictTimeout))
	for {
		ds := t.digestsAt(ctx, index, "")
		if ds.judge(d.String()) == right {
			return nil
		}
		select {
		case <-time.After(verdictRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: at index %d it is %s, theirs are %s", errNoVouchers, index, d, ds.String())
		}
	}
}
