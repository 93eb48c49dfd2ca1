package virtual

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// fleet is simulated agents: real sessions, no tasks.
type fleet struct {
	r      *region
	agents []*agent
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// agent keeps a session with one server or another and counts its leases'
// time as the real agent does.
type agent struct {
	r      *region
	rng    *rand.Rand
	id     gpuai.NodeID
	client *client.Client
	clock  time.Duration // its clock before the bubble's
	began  time.Time
	stop   context.CancelFunc

	mu       sync.Mutex // guards below
	renewed  map[gpuai.Token]int64
	gone     []gpuai.Token // leases that were said to have ended
	sessions int
	session  *client.Session // the one that was welcomed
	fences   []string        // when the real one would have killed a task
	lastBeat time.Time
	lastAck  time.Time
}

// startFleet connects n agents of one GPU each; clock gives each its offset.
func (r *region) startFleet(n int, clock func(i int) time.Duration) *fleet {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{r: r, cancel: cancel}
	r.fleets = append(r.fleets, f)
	for i := range n {
		servers := append(slices.Clone(r.servers[i%len(r.servers):]), r.servers[:i%len(r.servers)]...)
		a := &agent{
			r: r, id: gpuai.NodeID(fmt.Sprintf("node-%03d", i)), client: r.client(attempt, servers...), clock: clock(i),
			rng: rand.New(rand.NewPCG(r.rng.Uint64(), 3)), began: time.Now(), renewed: make(map[gpuai.Token]int64),
		}
		var own context.Context
		own, a.stop = context.WithCancel(ctx)
		f.agents = append(f.agents, a)
		f.wg.Go(func() { a.run(own) })
	}
	r.within(progressWithin, "session of every agent", func() bool {
		return !slices.ContainsFunc(f.agents, func(a *agent) bool { return a.count() == 0 })
	})
	return f
}

func (f *fleet) halt() {
	f.cancel()
	f.wg.Wait()
}

// now is the agent's own clock.
func (a *agent) now() int64 { return int64(a.clock + time.Since(a.began)) }

func (a *agent) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions
}

func (a *agent) run(ctx context.Context) {
	addrs := a.client.Addrs()
	for try := 0; ctx.Err() == nil; try++ {
		a.serve(ctx, addrs[try%len(addrs)])
		select {
		case <-time.After(time.Duration(100+a.rng.IntN(400)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// serve has one session, until it breaks or a beat is not confirmed within 2 s.
func (a *agent) serve(ctx context.Context, addr string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unconfirmed := time.AfterFunc(5*time.Second, cancel) // dial and welcome
	s, err := a.client.DialSession(ctx, addr)
	if err != nil {
		return
	}
	defer s.Close()
	if s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameHello, Hello: a.hello()}) != nil {
		return
	}
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	for {
		f, err := s.Recv(ctx)
		switch {
		case err != nil || f.Refused != nil:
			return
		case f.Welcome != nil:
			a.welcomed(s, &f.Welcome.Ack)
			unconfirmed.Stop()
			every := time.Duration(f.Welcome.Policy.BeatEvery) * time.Millisecond
			beats.Go(func() { a.beat(ctx, s, every, unconfirmed) })
		case f.Ack != nil:
			unconfirmed.Stop()
			a.ack(f.Ack)
		case f.Leases != nil:
			a.take(ctx, s, f.Leases)
		}
	}
}

func (a *agent) hello() *gpuai.Hello {
	h := &gpuai.Hello{
		BootID: "boot", Nonce: "life", Sent: a.now(),
		Node: gpuai.NodeSpec{
			ID: a.id, Zone: "z", Address: "127.0.0.1", CPU: 64_000, Memory: 1 << 40, Simulated: true,
			Labels:  map[string]string{"name": string(a.id)},
			Devices: []gpuai.Device{{ID: gpuai.DeviceID(a.id + "-gpu"), Vendor: "sim", Model: "X1", Memory: 80 << 30}},
		},
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastBeat = time.Now()
	for _, t := range slices.Sorted(maps.Keys(a.renewed)) {
		h.Held = append(h.Held, gpuai.HeldLease{Lease: t, BootID: h.BootID})
	}
	return h
}

func (a *agent) welcomed(s *client.Session, ack *gpuai.Ack) {
	a.mu.Lock()
	a.sessions++
	a.session = s
	a.mu.Unlock()
	a.ack(ack)
}

// tell sends a report, if there is a session.
func (a *agent) tell(r *gpuai.Report) {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s != nil {
		_ = s.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameReport, Report: r}) // the session's end says the rest
	}
}

func (a *agent) beat(ctx context.Context, s *client.Session, every time.Duration, unconfirmed *time.Timer) {
	for seq := uint64(1); ; seq++ {
		select {
		case <-time.After(every - time.Duration(a.rng.Int64N(int64(every)/5))):
		case <-ctx.Done():
			return
		}
		a.mu.Lock()
		a.lastBeat = time.Now()
		a.mu.Unlock()
		unconfirmed.Reset(2 * time.Second)
		if s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &gpuai.Beat{Seq: seq, Sent: a.now()}}) != nil {
			return
		}
	}
}

// fenceAfter is how long after the last renewal an agent kills a task: the TTL
// of 20 s less twice 1 % for the clocks' rates, 3 s to kill and 1 s of slack.
const fenceAfter = 19_600*time.Millisecond - 4*time.Second

func (a *agent) ack(k *gpuai.Ack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	a.lastAck = time.Now()
	for _, t := range k.Tokens {
		before, held := a.renewed[t]
		if held && time.Duration(now-before) > fenceAfter {
			a.fences = append(a.fences, fmt.Sprintf("%s would have fenced lease %s, renewed %v ago", a.id, t, time.Duration(now-before)))
		}
		if held && k.Sent > before {
			a.renewed[t] = k.Sent
		}
	}
}

// take notes leases and reports new ones as running.
func (a *agent) take(ctx context.Context, s *client.Session, set *gpuai.LeaseSet) {
	a.mu.Lock()
	var begun []gpuai.Lease
	named := make(map[gpuai.Token]bool)
	for i := range set.Leases {
		l := set.Leases[i].Lease
		named[l.ID] = true
		if _, known := a.renewed[l.ID]; !known {
			a.renewed[l.ID] = a.now()
			begun = append(begun, l)
		}
	}
	for t := range a.renewed {
		if set.Full && !named[t] || slices.Contains(set.Ended, t) {
			delete(a.renewed, t)
			a.gone = append(a.gone, t)
		}
	}
	a.mu.Unlock()
	for _, l := range begun {
		r := &gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportRunning}
		_ = s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameReport, Report: r}) // the session's end says the rest
	}
}

// held returns every lease that the agents know, by token.
func (f *fleet) held() map[gpuai.Token]gpuai.NodeID {
	out := make(map[gpuai.Token]gpuai.NodeID)
	for _, a := range f.agents {
		a.mu.Lock()
		for t := range a.renewed {
			out[t] = a.id
		}
		a.mu.Unlock()
	}
	return out
}

// fill submits a job of one task a node and waits until every agent has its
// lease.
func (f *fleet) fill() map[gpuai.Token]gpuai.NodeID {
	f.r.t.Helper()
	c := f.r.client(10*time.Second, f.r.servers...)
	spec := jobSpec("all")
	spec.Groups[0].Count = uint32(len(f.agents))
	if _, err := c.Submit(context.Background(), client.SubmitRequest{Spec: spec, Key: "all"}); err != nil {
		f.r.t.Fatal(err)
	}
	f.r.within(progressWithin, "lease at every agent", func() bool { return len(f.held()) == len(f.agents) })
	return f.held()
}

// undisturbed requires that every lease is where it was and none came near its
// end, and that no node was taken for silent.
func (f *fleet) undisturbed(before map[gpuai.Token]gpuai.NodeID) {
	f.r.t.Helper()
	if now := f.held(); !maps.Equal(before, now) {
		f.r.t.Errorf("of %d leases %d are left", len(before), len(now))
	}
	for _, a := range f.agents {
		a.mu.Lock()
		for _, why := range a.fences {
			f.r.t.Error(why)
		}
		if len(a.gone) > 0 {
			f.r.t.Errorf("%s was told that its leases %v ended", a.id, a.gone)
		}
		a.mu.Unlock()
	}
	nodes, _, err := f.r.client(10*time.Second, f.r.others()...).Nodes(context.Background(), client.Page{Limit: 1000})
	if err != nil {
		f.r.t.Fatal(err)
	}
	for _, n := range nodes {
		if n.State != gpuai.NodeReady || n.Leases != 1 {
			f.r.t.Errorf("node %s is %s and has %d leases", n.ID, n.State, n.Leases)
		}
	}
}

// TestCase26AgentsReconnect kills the leader of a region with many agents, all
// of which hold leases. All come back, and within the first TTL and after it
// nobody is taken for lost. (100,000 of them are another test's: here it is
// that no session's or server's time-out is in the way.)
func TestCase26AgentsReconnect(t *testing.T) {
	each(t, 1, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			f := r.startFleet(150, func(int) time.Duration { return 0 })
			before := f.fill()
			for range 2 {
				r.idle(r.between(5*time.Second, 10*time.Second))
				old := r.leader()
				r.crash(old)
				began := time.Now()
				r.progress(r.others()...)
				r.within(fenceAfter, "confirmed beat of every agent", func() bool { return f.confirmedSince(began) })
				t.Logf("%d agents had a beat confirmed %v after the crash of %s", len(f.agents), time.Since(began), old.id)
				r.idle(30 * time.Second) // TTL + G, and some
				f.undisturbed(before)
				r.start(old)
			}
			r.converge()
		})
	})
}

// confirmedSince reports whether every agent has had a beat confirmed since.
func (f *fleet) confirmedSince(at time.Time) bool {
	return !slices.ContainsFunc(f.agents, func(a *agent) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.lastAck.Before(at)
	})
}

// TestCase16WallClocks gives servers and agents wrong clocks and changes the
// leader among them: no lease ends early or late, nothing starts twice.
func TestCase16WallClocks(t *testing.T) {
	off := []time.Duration{time.Hour, -time.Hour, -24 * time.Hour}
	each(t, 1, func(t *testing.T, seed uint64) {
		tuned(t, 3, seed, wrongClocks(off), func(r *region) {
			f := r.startFleet(9, func(i int) time.Duration { return off[i%3] })
			before := f.fill()
			for i := range 4 {
				l := r.leader()
				r.seesItsOwnClock(l, off[slices.Index(r.servers, l)])
				r.idle(30 * time.Second)
				f.undisturbed(before)
				if i%2 == 0 {
					r.crash(l)
				} else {
					r.stop(l)
				}
				r.progress(r.others()...)
				r.start(l)
			}
			r.idle(10 * time.Second) // a new leader counts silence from its election
			f.expiresInTime(f.agents[0])
			r.converge()
		})
	})
}
