package decide

import (
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
)

const second = int64(1e9)

const (
	// ackTimeout is how long a beat may go without its ack before the agent
	// turns to another server.
	ackTimeout = 2 * second
	// reportAgain is how long an answer to a report may take on one session.
	reportAgain = 5 * second
	// namedTwice is how many acks must name a lease that the agent was never
	// told of before it asks for its full set anew.
	namedTwice = 2
)

// An Identity is who the region says an agent is.
type Identity struct {
	Incarnation gpuai.Incarnation
	Epoch       uint8
	RestoreID   string
}

// A Held is a lease that was taken up before the agent's restart.
type Held struct {
	Assignment gpuai.Assignment
	Running    bool  // its task runs; else it is gone
	Deadline   int64 // that the watchdog has for it
	Seq        uint32
	Unsent     []gpuai.Report
	Unkillable bool // reported so, and still there
}

// Config says who an agent is when it starts.
type Config struct {
	Identity Identity
	Held     []Held
	Policy   gpuai.Policy // until a Welcome brings the region's
	Seed     uint64       // of the jitter of beats
}

// A Core decides for one agent. It is not safe for concurrent use, and every
// method returns at once.
type Core struct {
	id     Identity
	policy gpuai.Policy
	rnd    uint64
	acts   []Action

	// The session. welcomed: its Hello was accepted; settled: it has had its
	// full set.
	session           uint64
	open              bool
	welcomed, settled bool
	hello             int64
	seq               uint64
	beats             []gpuai.Beat // sent and not acked, oldest first
	nextBeat          int64

	// floor is the highest index that was seen: in the sets of this session,
	// and in anything before it. A set below it is dropped. (Acks of the same
	// session do not raise it: a server's sets and acks are in order among
	// themselves, not with one another, and no start depends on a set alone.)
	floor   uint64
	highest uint64 // of all
	ack     newest

	leases map[gpuai.Token]*lease
	// finished are leases that were forgotten. A late set may still offer
	// one; it must not start again. An ack that no longer names it ends that.
	finished map[gpuai.Token]bool
	strange  map[gpuai.Token]int // acks that named a lease we do not know

	draining string
	halted   bool
}

// newest is the newest acked beat.
type newest struct {
	valid bool
	sent  int64
	index uint64
	names map[gpuai.Token]bool
}

// New returns the core of an agent that starts.
func New(cfg Config) *Core {
	c := &Core{
		id: cfg.Identity, policy: cfg.Policy, rnd: cfg.Seed | 1,
		leases: map[gpuai.Token]*lease{}, finished: map[gpuai.Token]bool{}, strange: map[gpuai.Token]int{},
	}
	for i := range cfg.Held {
		h := &cfg.Held[i]
		l := &lease{a: h.Assignment, deadline: h.Deadline, seq: h.Seq, unsent: h.Unsent}
		switch {
		case h.Unkillable:
			l.phase, l.final = Unkillable, true
		case h.Running:
			l.phase = Running
		case len(h.Unsent) > 0 && h.Unsent[len(h.Unsent)-1].State.Ends():
			l.phase = Reported
		default:
			l.phase = Running // a TaskEnded follows
		}
		c.leases[h.Assignment.Lease.ID] = l
	}
	return c
}

// Step takes one event at time now and returns what to do about it. Whatever
// the event, fences that are due come first: the caller may have been stopped
// or suspended for any time.
func (c *Core) Step(now int64, e Event) []Action {
	c.acts = nil
	c.fenceDue(now)
	switch e := e.(type) {
	case Tick:
		c.tick(now)
	case HelloSent:
		c.helloSent(e)
	case TaskPrepared, TaskStarted, ImageResolved, TaskNotStarted, TaskEnded, TaskUnkillable, Released, DeviceFailed, DiskOverrun, NetworkFailed:
		c.taskEvent(now, e)
	case Drain:
		c.draining = e.Reason
	case StopAll:
		c.stopAll(e.Reason)
	default:
		c.sessionEvent(now, e)
	}
	return c.acts
}

// Identity is who the agent is now.
func (c *Core) Identity() Identity { return c.id }

// Policy is the region's, as far as it is known.
func (c *Core) Policy() gpuai.Policy { return c.policy }

// Connected reports whether a session stands.
func (c *Core) Connected() bool { return c.open && c.welcomed }

// Idle reports whether no task is or may be running.
func (c *Core) Idle() bool { return !slices.ContainsFunc(c.tokens(), c.live) }

// Holding reports whether a lease is held, so that a session is urgent.
func (c *Core) Holding() bool { return len(c.leases) > 0 }

// live reports whether t's task is or may be running.
func (c *Core) live(t gpuai.Token) bool {
	p := c.leases[t].phase
	return p != Waiting && p != Reported && p != Releasing
}

// Running returns the leases to offer for adoption, in order.
func (c *Core) Running() []gpuai.Token {
	return slices.DeleteFunc(c.tokens(), func(t gpuai.Token) bool { return !c.leases[t].holds() })
}

// A View is what can be seen of a lease.
type View struct {
	Lease    gpuai.Token
	Phase    Phase
	Deadline int64
}

// Views returns what is known of each lease, in order.
func (c *Core) Views() []View {
	var out []View
	for _, t := range c.tokens() {
		l := c.leases[t]
		out = append(out, View{Lease: t, Phase: l.phase, Deadline: l.deadline})
	}
	return out
}

// NextWake is the latest time at which the core wants a Tick.
func (c *Core) NextWake() int64 {
	const never = 1<<63 - 1
	wake := int64(never)
	for _, l := range c.leases {
		if l.holds() && l.deadline > 0 {
			wake = min(wake, l.deadline)
		}
		if len(l.unsent) > 0 && c.Connected() {
			wake = min(wake, l.sentAt+reportAgain)
		}
	}
	if c.open && !c.welcomed {
		wake = min(wake, c.hello+ackTimeout)
	}
	if c.Connected() {
		wake = min(wake, c.nextBeat)
		if len(c.beats) > 0 {
			wake = min(wake, c.beats[0].Sent+ackTimeout)
		}
	}
	return wake
}

func (c *Core) tick(now int64) {
	if !c.open {
		return
	}
	if waiting := c.oldestUnacked(); waiting > 0 && now-waiting >= ackTimeout {
		c.reconnect(0, "no ack within 2 s")
		return
	}
	if !c.welcomed {
		return
	}
	if now >= c.nextBeat {
		c.beat(now)
	}
	for _, t := range c.tokens() {
		if l := c.leases[t]; len(l.unsent) > 0 && now-l.sentAt >= reportAgain {
			c.resend(now, l)
		}
	}
}

// oldestUnacked is t_send of the oldest beat that waits for its ack; 0: none.
func (c *Core) oldestUnacked() int64 {
	if !c.welcomed {
		return c.hello
	}
	if len(c.beats) > 0 {
		return c.beats[0].Sent
	}
	return 0
}

func (c *Core) beat(now int64) {
	c.seq++
	b := gpuai.Beat{Seq: c.seq, Sent: now}
	c.beats = append(c.beats, b)
	c.nextBeat = now + c.beatGap()
	c.do(SendBeat{Session: c.session, Beat: b})
}

// beatGap is the policy's period less 0-20 %.
func (c *Core) beatGap() int64 {
	// xorshift64: any spread will do, it must only differ between agents.
	c.rnd ^= c.rnd << 13
	c.rnd ^= c.rnd >> 7
	c.rnd ^= c.rnd << 17
	every := nanos(c.policy.BeatEvery)
	return every - int64(c.rnd%uint64(every/5+1))
}

func (c *Core) reconnect(after gpuai.Duration, why string) {
	c.do(Reconnect{Session: c.session, After: after, Why: why})
	c.closeSession()
}

func (c *Core) closeSession() {
	c.open, c.welcomed, c.settled, c.beats = false, false, false, nil
	for _, l := range c.leases {
		l.doubts = 0
	}
}

func (c *Core) do(a Action) { c.acts = append(c.acts, a) }

func (c *Core) tokens() []gpuai.Token { return slices.Sorted(maps.Keys(c.leases)) }

func nanos(d gpuai.Duration) int64 { return int64(d) * 1e6 }
