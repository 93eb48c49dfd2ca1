package httpd

import (
	"cmp"
	"context"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
)

const (
	// fairWait bounds the wait for a turn, fairShare is the part of a ceiling that
	// one may have while others ask too, fairLately how long those count.
	fairWait   = time.Second
	fairShare  = 8
	fairLately = 10 * time.Second
	// maxLanes bounds those of one kind who are told apart; all beyond them are one.
	maxLanes = 4_096
	// forgetEvery is how often it is looked for lanes that nobody uses, when there
	// are as many as may be.
	forgetEvery = time.Second
	// holdRefusal is how long the answer is held with which somebody learns that
	// they ask for too much, and maxHeld how many may be held: whoever does not
	// wait by itself, as Retry-After says, is slowed down.
	holdRefusal = 500 * time.Millisecond
	maxHeld     = 1_024
)

// A fairQueue shares the requests that this server works on among those who ask:
// tenants, contributors, nodes, and addresses where it is not known who asks.
// While only one asks it may have all, or three quarters of the streams, which
// last. Once there are others each has a share of
// the ceilings, what finds its share used up waits in a short queue of its own,
// and turns go round. So somebody who floods fills its own queue, and everybody
// else finds room at once.
type fairQueue struct {
	gate    *gate
	waiting atomic.Int64
	held    atomic.Int64
	most    int // that wait in one lane, by class

	mu    sync.Mutex // guards below
	lanes [numLaneKinds]map[string]*lane
	swept [numLaneKinds]time.Time // when it was last looked for unused ones
	ring  [numClasses][]*lane     // with waiters, by turn
	last  string                  // who asked last
	mixed time.Time               // when another one than before did
}

// A laneKind is what those are whom a lane is for. No kind takes another's lanes.
type laneKind uint8

// The kinds of lanes.
const (
	laneMember  laneKind = iota // tenants and contributors
	laneNode                    // nodes' certificates
	laneAddress                 // who has shown nothing
	numLaneKinds
)

// A lane is one of those who ask.
type lane struct {
	kind     laneKind
	tokens   float64 // of its rate; below 0 in debt
	at       time.Time
	metered  bool // tokens means something
	seen     time.Time
	inFlight [numClasses]int64
	queue    [numClasses][]*turn
}

// A turn is what a request waits for.
type turn struct {
	came    chan struct{}
	granted bool
}

func newFairQueue(g *gate, c *Config) *fairQueue {
	f := &fairQueue{gate: g, most: c.MaxInFlight / 4}
	for kind := range f.lanes {
		f.lanes[kind] = map[string]*lane{}
	}
	return f
}

// A claim is what a request asks for.
type claim struct {
	class class
	kind  laneKind
	who   string // "" is nobody in particular, who waits for nobody
	rate  uint32 // requests a second; 0 is any
	lane  *lane  // once it was let in
}

// enter admits a request, now or after a short wait. It reports how long the
// caller should stay away when it does not. Who entered calls leave.
func (f *fairQueue) enter(ctx context.Context, c *claim) (retry gpuai.Duration, ok bool) {
	f.mu.Lock()
	now := time.Now()
	c.lane = f.laneOf(c, now)
	l := c.lane
	if wait := l.take(c.rate, now); wait > 0 {
		f.mu.Unlock()
		return gpuai.Duration(wait.Milliseconds()), false
	}
	if len(l.queue[c.class]) == 0 && l.inFlight[c.class] < f.share(l, c.class, now) && f.gate.admits(c.class) {
		l.inFlight[c.class]++
		f.mu.Unlock()
		return 0, true
	}
	if c.class == classStream || len(l.queue[c.class]) >= f.most {
		f.mu.Unlock()
		return gpuai.Second, false
	}
	t := &turn{came: make(chan struct{})}
	if l.queue[c.class] = append(l.queue[c.class], t); len(l.queue[c.class]) == 1 {
		f.ring[c.class] = append(f.ring[c.class], l)
	}
	f.waiting.Add(1)
	f.mu.Unlock()
	return f.await(ctx, l, c.class, t)
}

// await waits for a turn.
func (f *fairQueue) await(ctx context.Context, l *lane, class class, t *turn) (gpuai.Duration, bool) {
	timer := time.NewTimer(fairWait)
	defer timer.Stop()
	select {
	case <-t.came:
		return 0, true
	case <-timer.C:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.granted {
		return 0, true
	}
	f.waiting.Add(-1)
	l.queue[class] = without(l.queue[class], t)
	if len(l.queue[class]) == 0 {
		f.ring[class] = without(f.ring[class], l)
	}
	return gpuai.Second, false
}

func without[T comparable](all []T, x T) []T {
	for i := range all {
		if all[i] == x {
			return append(all[:i:i], all[i+1:]...)
		}
	}
	return all
}

// leave gives the room of a request to whoever is next.
func (f *fairQueue) leave(c *claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.lane.inFlight[c.class]--
	f.gate.leave(c.class)
	f.grant()
}

// freed is told that room came free outside the queue.
func (f *fairQueue) freed() {
	if f.waiting.Load() > 0 {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.grant()
	}
}

// grant gives turns while there is room: in the order of service, and round.
func (f *fairQueue) grant() {
	now := time.Now()
	for _, class := range [...]class{classStatus, classRead, classWrite, classAnonymous, classGrant, classObject} {
		for passed := 0; passed < len(f.ring[class]); {
			l := f.ring[class][0]
			f.ring[class] = append(f.ring[class][1:len(f.ring[class]):len(f.ring[class])], l)
			if l.inFlight[class] >= f.share(l, class, now) {
				passed++
				continue
			}
			if !f.gate.admits(class) {
				break
			}
			t := l.queue[class][0]
			if l.queue[class] = l.queue[class][1:]; len(l.queue[class]) == 0 {
				f.ring[class] = f.ring[class][:len(f.ring[class])-1]
			}
			l.inFlight[class]++
			f.waiting.Add(-1)
			t.granted, passed = true, 0
			close(t.came)
		}
	}
}

// share is how many requests of a class one lane may have under way. Streams last:
// one who has them all would leave none to who comes next.
func (f *fairQueue) share(l *lane, class class, now time.Time) int64 {
	all := f.gate.ceiling[class]
	alone := f.mixed.IsZero() || now.Sub(f.mixed) > fairLately
	switch {
	case !alone || class == classAnonymous || l.kind == laneNode:
		return max(1, all/fairShare)
	case class == classStream:
		return all - all/4
	}
	return all
}

// laneOf returns the lane of a claim, and notes that it asks. Nodes, and who asks
// for what needs no token, take nothing from the shares of others.
func (f *fairQueue) laneOf(c *claim, now time.Time) *lane {
	lanes, who := f.lanes[c.kind], c.who
	l := lanes[who]
	if l == nil && len(lanes) >= maxLanes && now.Sub(f.swept[c.kind]) >= forgetEvery {
		f.swept[c.kind] = now
		f.forget(c.kind, now)
	}
	if l == nil && len(lanes) >= maxLanes {
		who = "" // all who find no place are one
		l = lanes[who]
	}
	if l == nil {
		l = &lane{kind: c.kind}
		lanes[who] = l
	}
	if who != f.last && c.kind != laneNode && c.class != classAnonymous {
		if f.last != "" {
			f.mixed = now
		}
		f.last = who
	}
	l.seen = now
	return l
}

// forget drops lanes that nobody uses.
func (f *fairQueue) forget(kind laneKind, now time.Time) {
	for who, l := range f.lanes[kind] {
		if l.idle() && now.Sub(l.seen) > fairLately {
			delete(f.lanes[kind], who)
		}
	}
}

func (l *lane) idle() bool {
	for c := range l.inFlight {
		if l.inFlight[c] > 0 || len(l.queue[c]) > 0 {
			return false
		}
	}
	return true
}

// burst is how many seconds of its rate one may have at once.
const burst = 2

// take takes one request from the lane's rate, or returns how long until there
// is one.
func (l *lane) take(rate uint32, now time.Time) time.Duration {
	most := max(10, burst*float64(rate))
	if l.metered = l.metered && rate > 0; !l.metered {
		l.at, l.tokens, l.metered = now, most, rate > 0
	}
	if rate == 0 {
		return 0
	}
	l.tokens = min(most, l.tokens+float64(rate)*now.Sub(l.at).Seconds())
	if l.at = now; l.tokens < 1 {
		return time.Duration((1 - l.tokens) / float64(rate) * float64(time.Second))
	}
	l.tokens--
	return 0
}

// charge counts a request that was let in as n more: a batch is so many jobs. A
// lane may come into debt that way, and stays out until it is paid.
func (f *fairQueue) charge(c *claim, n int) {
	if c.lane != nil && c.rate > 0 {
		f.mu.Lock()
		defer f.mu.Unlock()
		c.lane.tokens -= float64(n)
	}
}

// hold holds a refusal for a moment, unless too many are held.
func (f *fairQueue) hold(ctx context.Context) {
	if f.held.Add(1) <= maxHeld {
		select {
		case <-time.After(holdRefusal):
		case <-ctx.Done():
		}
	}
	f.held.Add(-1)
}

// errTooMuch answers who asks for more than their rate or their share.
func errTooMuch(c *claim, retry gpuai.Duration) error {
	why := "others wait, and you have your share of this server's " + classNames[c.class] + " requests under way and waiting"
	if c.rate > 0 && retry != gpuai.Second {
		why = "you may send " + strconv.FormatUint(uint64(c.rate), 10) + " requests a second, each job of a batch counted"
	}
	return &gpuai.Error{Code: gpuai.RateLimited, RetryAfter: max(retry, gpuai.Second), Detail: why + ": retry later"}
}

// enter finds room for a request, or says why there is none. What has entered
// leaves.
func (c *call) enter() error {
	f := c.api.fair
	if c.rt.probe {
		return nil
	}
	if c.asker(); c.claim.who == "" || c.claim.class == classSession {
		if !c.api.gate.enter(c.claim.class) {
			return errBusy(c.claim.class)
		}
		return nil
	}
	retry, ok := f.enter(c.r.Context(), &c.claim)
	if ok {
		return nil
	}
	c.claim.lane = nil
	if err := c.r.Context().Err(); err != nil {
		return err // nobody waits any more
	}
	err := errTooMuch(&c.claim, retry)
	c.api.gate.refusals[c.claim.class].Add(1)
	c.api.backend.Refused(c.refusal(gpuai.RateLimited))
	f.hold(c.r.Context())
	return err
}

// leave gives the room back.
func (c *call) leave() {
	if c.rt.probe {
		return
	}
	if c.claim.lane != nil {
		c.api.fair.leave(&c.claim)
		return
	}
	c.api.gate.leave(c.claim.class)
	c.api.fair.freed()
}

// asker notes whose lane a request is in, and its rate: of a tenant or a
// contributor; of a node, which has none; of an address where nothing is known of
// who asks. Operators and servers have no lane, and wait for nobody.
func (c *call) asker() {
	p := PrincipalOf(c.r.Context())
	k := &c.claim
	switch {
	case p.Tenant != "":
		k.who = "tenant/" + string(p.Tenant)
	case p.Actor == "" || p.Actor == insecure.Actor:
		k.kind, k.who = laneAddress, netOf(cmp.Or(p.From, hostOf(c.r.RemoteAddr)))
	case p.Operator() || p.Server != "":
		return
	case p.Node != "":
		k.kind, k.who = laneNode, string(p.Node)
		return
	default:
		k.who = "contributor/" + string(p.Contributor)
	}
	if c.api.cfg.TenantRate != nil {
		k.rate = c.api.cfg.TenantRate(p.Tenant)
	}
}

// netOf returns what somebody has of addresses at the least: of IPv6 a network of
// 64 bits.
func netOf(host string) string {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a.String()
	}
	net, err := a.Prefix(64)
	if err != nil {
		return host
	}
	return net.String()
}
