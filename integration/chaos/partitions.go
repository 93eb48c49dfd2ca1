package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/cable"
	"github.com/gpuai/gpuai/integration/chaos/history"
	"github.com/gpuai/gpuai/integration/chaos/netns"
)

const (
	httpPort, raftPort = 7470, 7471
	flapEvery          = 300 * time.Millisecond
	// progressBound is how long a region may take to place a job where a
	// majority is connected both ways.
	progressBound = 20 * time.Second
	// checkBound bounds the check of the history.
	checkBound = time.Minute
)

// A split is what a cut is made of: the network or the lines, for how long it lasts, who
// leads, and the others in a random order.
type split struct {
	*region
	net    *netns.Network
	lines  *lines
	lasts  time.Duration
	lead   int
	others []int
}

// heal undoes the cut.
func (p *split) heal() error {
	if p.lines != nil {
		p.lines.set(nil)
		return nil
	}
	return p.net.Heal()
}

// A cut separates servers.
type cut struct {
	fault string
	make  func(p *split) error
	// through returns the servers through which jobs must be placed meanwhile;
	// nil where no majority is connected both ways.
	through func(p *split) []int
	// during, which may be nil, goes on while the cut lasts.
	during func(ctx context.Context, p *split) error
}

func (p *split) rest() []int { return p.others }
func (p *split) all() []int  { return append([]int{p.lead}, p.others...) }

// both drops packets of pairs in both ways.
func both(pairs ...[2]int) (out [][2]int) {
	for _, a := range pairs {
		out = append(out, a, [2]int{a[1], a[0]})
	}
	return out
}

var cuts = []cut{
	{"link of the leader down", func(p *split) error { return p.net.Down(p.lead, true) }, (*split).rest, nil},
	{"the leader and one more on a second bridge, a minority",
		func(p *split) error { return errors.Join(p.net.Aside(p.lead, true), p.net.Aside(p.others[0], true)) },
		func(p *split) []int { return p.others[1:] }, nil},
	{"isolated ports: the leader and three others reach only the fifth",
		func(p *split) error {
			var errs []error
			for _, i := range append([]int{p.lead}, p.others[:3]...) {
				errs = append(errs, p.net.Isolate(i, true))
			}
			return errors.Join(errs...)
		}, func(p *split) []int { return p.others[3:] }, nil},
	{"bridge: two halves that only one server joins",
		func(p *split) error {
			a, b, c, d := p.lead, p.others[0], p.others[2], p.others[3]
			return p.net.Drop(both([2]int{a, c}, [2]int{a, d}, [2]int{b, c}, [2]int{b, d}))
		}, func(p *split) []int { return p.others[1:2] }, nil},
	{"ring: each server reaches two neighbours only",
		func(p *split) error {
			var pairs [][2]int
			for i, all := 0, p.all(); i < 5; i++ {
				pairs = append(pairs, [2]int{all[i], all[(i+2)%5]})
			}
			return p.net.Drop(both(pairs...))
		}, (*split).all, nil},
	{"one way: nobody hears the leader",
		func(p *split) error {
			var pairs [][2]int
			for _, i := range p.others {
				pairs = append(pairs, [2]int{p.lead, i})
			}
			return p.net.Drop(pairs)
		}, (*split).rest, nil},
	{"one way: the leader hears nobody",
		func(p *split) error {
			var pairs [][2]int
			for _, i := range p.others {
				pairs = append(pairs, [2]int{i, p.lead})
			}
			return p.net.Drop(pairs)
		}, (*split).rest, nil},
	{"one way: a follower hears nobody",
		func(p *split) error {
			deaf := p.others[0]
			var pairs [][2]int
			for _, i := range p.all() {
				if i != deaf {
					pairs = append(pairs, [2]int{i, deaf})
				}
			}
			return p.net.Drop(pairs)
		}, func(p *split) []int { return append([]int{p.lead}, p.others[1:]...) }, nil},
	{"one way: each server misses the next one's packets",
		func(p *split) error {
			var pairs [][2]int
			for i, all := 0, p.all(); i < 5; i++ {
				pairs = append(pairs, [2]int{all[(i+1)%5], all[i]})
			}
			return p.net.Drop(pairs)
		}, (*split).all, nil},
	{"the leader's link flaps every 300 ms", func(*split) error { return nil }, nil,
		func(ctx context.Context, p *split) error { return p.flap(ctx, p.lead) }},
	{"a follower's link flaps every 300 ms", func(*split) error { return nil },
		func(p *split) []int { return append([]int{p.lead}, p.others[1:]...) },
		func(ctx context.Context, p *split) error { return p.flap(ctx, p.others[0]) }},
	{"no majority: two, two and one",
		func(p *split) error {
			return errors.Join(p.net.Down(p.lead, true), p.net.Aside(p.others[0], true), p.net.Aside(p.others[1], true))
		}, nil, nil},
}

// flap takes a link down and up until ctx ends.
func (p *split) flap(ctx context.Context, i int) error {
	beat := time.NewTicker(flapEvery)
	defer beat.Stop()
	for down := true; ; down = !down {
		if err := p.net.Down(i, down); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
	}
}

// playPartitions makes every cut once and more between five servers.
func playPartitions(s *scene) error {
	const expected = "jobs are placed wherever a majority is connected both ways; the clients' history is linearizable; nothing is lost; the digests are equal once it is over"
	chosen := s.someCuts()
	if err := netns.Available(); err != nil {
		for _, c := range chosen {
			s.skip(s.row("13", c.fault, expected), err)
		}
		return nil
	}
	r, network, err := s.splitRegion()
	if err != nil {
		return err
	}
	if err := r.ledger.load("split"); err != nil {
		return err
	}
	h, err := r.observe()
	if err != nil {
		return err
	}
	for _, c := range chosen {
		w := s.row("13", c.fault, expected)
		w.Recovered = "from the cut, or where that leaves no majority from its end, to the first lease of a job submitted after it"
		before := h.log.Len()
		for range s.counts.cutRounds {
			if err := r.cut(w, &split{region: r, net: network, lasts: s.counts.cut}, &c); err != nil {
				return fmt.Errorf("%s: %w", c.fault, err)
			}
		}
		if err := r.afterCut(w); err != nil {
			return fmt.Errorf("%s: %w", c.fault, err)
		}
		w.Operations = h.log.Len() - before
		s.end(w)
	}
	w := s.row("13", "after all cuts", "the whole history of the clients is linearizable, nothing is lost, keys answer as before, the digests are equal")
	h.halt()
	h.judge(w)
	if err := r.ledger.settle(w); err != nil {
		return err
	}
	s.end(w)
	return nil
}

// someCuts returns as many kinds of cuts as the profile has, in their order.
func (s *scene) someCuts() (out []cut) {
	kinds := s.rng.Perm(len(cuts))[:s.counts.cutKinds]
	slices.Sort(kinds)
	for _, k := range kinds {
		out = append(out, cuts[k])
	}
	return out
}

// splitRegion starts five servers in namespaces of their own. Clients reach
// them over cables, from this process's own network.
func (s *scene) splitRegion() (*region, *netns.Network, error) {
	network, err := netns.New(nsPrefix(s.run.dir)+"n", 5)
	s.cleanup(network.Close)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.startRegion(5, func(i int, m *member) error {
		c, err := cable.New(func() (net.Conn, error) { return network.Dial(i, httpPort) })
		if err != nil {
			return err
		}
		s.cleanup(func() error { c.Close(); return nil })
		m.http, m.insecure, m.wrap = c.Addr, true, network.Wrap(i)
		m.listen = fmt.Sprint(network.Client(i), ":", httpPort)
		if !s.run.options.insecure { // servers that join reach the API over the peers' network
			m.insecure, m.listen = false, fmt.Sprint("0.0.0.0:", httpPort)
			m.joins = fmt.Sprint(network.Peer(i), ":", httpPort)
		}
		m.raft = fmt.Sprint(network.Peer(i), ":", raftPort)
		return nil
	})
	return r, network, err
}

// cut makes one cut for a while, and heals it.
func (r *region) cut(w *row, p *split, c *cut) error {
	if err := r.ledger.await(10); err != nil {
		return err
	}
	lead, term, err := r.leader()
	if err != nil {
		return err
	}
	for _, i := range r.rng.Perm(len(r.members)) {
		if r.members[i] == lead {
			p.lead = i
		} else {
			p.others = append(p.others, i)
		}
	}
	ctx, stop := context.WithCancel(r)
	defer stop()
	if err := c.make(p); err != nil {
		return err
	}
	began, before := time.Now(), len(r.ledger.entries())
	w.Injected++
	var during sync.WaitGroup
	var flapped error
	if c.during != nil {
		during.Go(func() { flapped = c.during(ctx, p) })
	}
	if c.through != nil {
		r.progress(w, p, c, began)
	}
	r.pause(p.lasts - time.Since(began))
	stop()
	during.Wait()
	w.note("%s led in term %d: %d submits were acknowledged in %.1f s", lead.id, term, len(r.ledger.entries())-before, time.Since(began).Seconds())
	healed := time.Now()
	if err := errors.Join(flapped, p.heal()); err != nil {
		return err
	}
	took, err := r.ledger.firstPlacement(healed, r.members)
	if err != nil {
		return fmt.Errorf("after the cut: %w", err)
	}
	if c.through == nil {
		w.recovered(took)
	}
	r.say("%s: healed after %.1f s, first new placement %d ms later", c.fault, healed.Sub(began).Seconds(), took.Milliseconds())
	return nil
}

// progress sees that jobs are placed while a cut lasts.
func (r *region) progress(w *row, p *split, c *cut, since time.Time) {
	var through []*member
	for _, i := range c.through(p) {
		through = append(through, r.members[i])
	}
	took, err := r.ledger.firstPlacement(since, through)
	switch {
	case err != nil:
		w.fail("a majority was connected both ways, and no job was placed: %v", err)
	case took > progressBound:
		w.fail("a majority was connected both ways, and the first job was placed after %s only", took)
	default:
		w.recovered(took)
	}
}

// afterCut looks at everything once the cut is over.
func (r *region) afterCut(w *row) error {
	if err := r.ready(); err != nil {
		return err
	}
	if err := r.ledger.account(w); err != nil {
		return err
	}
	return r.digests(w, r.ledger.newest())
}

// An observer is clients that read and write one register, each at a server of
// its own, without retries, and read jobs that others were told are there.
type observer struct {
	*region
	log  *history.Log
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards below
	value int64      // the last one that was written
	stale []string
}

const (
	firstValue   = 60_000 // of the register, a policy's flap backoff in ms
	observeEvery = 40 * time.Millisecond
)

// observe starts the clients, one a server.
func (r *region) observe() (*observer, error) {
	policy, err := r.api.Policy(r)
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	policy.FlapBackoff = firstValue
	if err := r.api.SetPolicy(r, policy); err != nil {
		return nil, fmt.Errorf("set the policy: %w", err)
	}
	ctx, cancel := context.WithCancel(r)
	o := &observer{region: r, log: history.New(firstValue), stop: cancel, value: firstValue}
	for i := range r.members {
		o.wg.Go(func() { o.client(ctx, i, policy) })
	}
	return o, nil
}

func (o *observer) client(ctx context.Context, i int, policy gpuai.Policy) {
	pace := time.NewTicker(observeEvery)
	defer pace.Stop()
	for n := 0; ; n++ {
		switch n % 3 {
		case 0:
			o.write(ctx, i, policy)
		case 1:
			o.read(ctx, i)
		case 2:
			o.find(ctx, i)
		}
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
	}
}

func (o *observer) write(ctx context.Context, i int, policy gpuai.Policy) {
	o.mu.Lock()
	o.value++
	policy.FlapBackoff = gpuai.Duration(o.value)
	o.mu.Unlock()
	call := o.log.Now()
	err := o.members[i].api.SetPolicy(ctx, policy)
	var api *gpuai.Error
	switch {
	case err == nil:
		o.log.Wrote(i, call, int64(policy.FlapBackoff))
	case errors.As(err, &api) && (api.Code == gpuai.NoLeader || api.Code == gpuai.RateLimited):
		// It was surely not done.
	default:
		o.log.MayHaveWritten(i, call, int64(policy.FlapBackoff))
	}
}

func (o *observer) read(ctx context.Context, i int) {
	call := o.log.Now()
	if p, err := o.members[i].api.Policy(ctx); err == nil {
		o.log.Read(i, call, int64(p.FlapBackoff))
	}
}

// find reads the job that was acknowledged last, at any server.
func (o *observer) find(ctx context.Context, i int) {
	all := o.ledger.entries()
	if len(all) == 0 {
		return
	}
	last := all[len(all)-1]
	_, err := o.members[i].api.Job(ctx, last.sub.Job.ID.String())
	var api *gpuai.Error
	if errors.As(err, &api) && api.Code == gpuai.NotFound {
		o.mu.Lock()
		o.stale = append(o.stale, fmt.Sprintf("%s did not know job %s, acknowledged at index %d before it was asked", o.members[i].id, last.name, last.sub.Index))
		o.mu.Unlock()
	}
}

func (o *observer) halt() {
	o.stop()
	o.wg.Wait()
}

// judge checks what the clients have seen.
func (o *observer) judge(w *row) {
	w.Operations = o.log.Len()
	for _, s := range o.stale {
		w.lose(1, "stale read: %s", s)
	}
	if err := o.log.Check(checkBound); err != nil {
		w.fail("%v", err)
	}
}
