package decide

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
)

// helloSent makes e the current session. Its Hello is a beat.
func (c *Core) helloSent(e HelloSent) {
	if c.halted || e.Session <= c.session {
		return
	}
	c.closeSession()
	c.session, c.open, c.hello, c.seq = e.Session, true, e.Sent, 0
	c.floor = c.highest
}

// sessionEvent takes what a server said, on the current session only.
func (c *Core) sessionEvent(now int64, e Event) {
	switch e := e.(type) {
	case Welcomed:
		if c.current(e.Session) && !c.welcomed {
			c.welcome(now, e.Welcome)
		}
	case Refused:
		if c.current(e.Session) {
			c.refused(e.Error)
		}
	case Disconnected:
		if c.current(e.Session) {
			c.closeSession()
		}
	case LeasesReceived:
		if c.current(e.Session) && c.welcomed {
			c.leaseSet(now, e.Set)
		}
	case AckReceived:
		if c.current(e.Session) && c.welcomed {
			c.acked(now, e.Ack)
		}
	case ReportAnswered:
		if c.current(e.Session) && c.welcomed {
			c.answered(e.Reported)
		}
	}
}

func (c *Core) current(session uint64) bool { return c.open && !c.halted && session == c.session }

func (c *Core) welcome(now int64, w *gpuai.Welcome) {
	id := Identity{Incarnation: w.Incarnation, Epoch: w.Epoch, RestoreID: w.RestoreID}
	if why := c.distrust(id); why != "" {
		c.do(Alarm{Text: why})
		c.reconnect(gpuai.Second, why)
		return
	}
	if id.Epoch > c.id.Epoch {
		// A restored region counts its log anew.
		c.floor, c.highest = 0, 0
	}
	if id != c.id {
		c.id = id
		c.do(Remember{Identity: id})
	}
	c.welcomed, c.policy = true, w.Policy
	c.nextBeat = c.hello + c.beatGap()
	c.ack = newest{}
	for _, t := range c.tokens() {
		if l := c.leases[t]; l.phase == Waiting {
			delete(c.leases, t) // the full set tells of it again
		}
	}
	a := w.Ack
	a.Policy = nil
	c.confirm(now, &a, c.hello)
	c.floor = c.highest
	for _, t := range c.tokens() {
		l := c.leases[t]
		if len(l.unsent) > 0 {
			c.resend(now, l)
		}
		if c.ack.names[t] {
			c.adopted(now, l, c.id.Incarnation)
		}
	}
}

// distrust says why a server must not be listened to, or "".
func (c *Core) distrust(id Identity) string {
	switch {
	case id.Epoch < c.id.Epoch:
		return fmt.Sprintf("a server of restore epoch %d answered, this agent knows epoch %d: it was restored from an older backup, or belongs to another region", id.Epoch, c.id.Epoch)
	case id.Epoch == c.id.Epoch && c.id.RestoreID != "" && id.RestoreID != c.id.RestoreID:
		return fmt.Sprintf("a server of restore %q answered, this agent knows restore %q of the same epoch %d: two backups were restored, or it belongs to another region", id.RestoreID, c.id.RestoreID, id.Epoch)
	case id.Epoch == c.id.Epoch && id.Incarnation < c.id.Incarnation:
		return fmt.Sprintf("a server gave this agent incarnation %s, it has %s already", id.Incarnation, c.id.Incarnation)
	}
	return ""
}

// refused takes the server's refusal. A Conflict means that another agent has
// this node's identity.
func (c *Core) refused(e *gpuai.SessionError) {
	switch e.Code {
	case gpuai.Conflict:
		if e.Incarnation != 0 && e.Incarnation != c.id.Incarnation {
			c.superseded(e.Incarnation, e.Detail)
			return
		}
	case gpuai.PreconditionFailed:
		c.do(Alarm{Text: "a server refuses this agent: " + e.Detail})
	case gpuai.InvalidSpec, gpuai.Unauthenticated, gpuai.Forbidden:
		if !c.everWelcomed() {
			c.halted = true
			c.do(Halt{Err: "the region refuses this agent: " + e.Detail})
			c.closeSession()
			return
		}
		c.do(Alarm{Text: "the region refuses this agent: " + e.Detail})
	}
	c.closeOn(e)
}

func (c *Core) closeOn(e *gpuai.SessionError) {
	c.do(Reconnect{Session: c.session, After: e.RetryAfter, Why: e.Code.String() + ": " + e.Detail})
	c.closeSession()
}

// everWelcomed reports whether this core has had an ack.
func (c *Core) everWelcomed() bool { return c.ack.valid }

// superseded fences everything for good: there is another agent with this
// node's identity, and only the operator knows which is right.
func (c *Core) superseded(by gpuai.Incarnation, detail string) {
	c.fenceAll("another agent has this node's identity")
	c.halted = true
	if detail == "" {
		detail = "stop one of the two, or give this host another node name"
	}
	c.do(Halt{Err: fmt.Sprintf("this agent has incarnation %s of its node and the region knows incarnation %s: %s", c.id.Incarnation, by, detail)})
	c.closeSession()
}

// ours checks epoch and incarnation of a message of this session; a newer
// incarnation supersedes this agent.
func (c *Core) ours(epoch uint8, inc gpuai.Incarnation) bool {
	if epoch == c.id.Epoch && inc > c.id.Incarnation {
		c.superseded(inc, "")
		return false
	}
	return epoch == c.id.Epoch && inc == c.id.Incarnation
}

// acked takes the answer to a beat: one that was sent on this session and not
// settled yet, and counts from the t_send remembered here.
func (c *Core) acked(now int64, a *gpuai.Ack) {
	if !c.ours(a.Epoch, a.Incarnation) {
		return
	}
	for i, b := range c.beats {
		if b.Seq == a.Seq {
			c.beats = append([]gpuai.Beat(nil), c.beats[i+1:]...)
			c.confirm(now, a, b.Sent)
			return
		}
	}
}

// confirm counts an ack for a beat sent at sent.
func (c *Core) confirm(now int64, a *gpuai.Ack, sent int64) {
	if a.Policy != nil {
		c.policy = *a.Policy
	}
	if c.ack.valid && (a.Index < c.ack.index || sent < c.ack.sent) {
		return
	}
	c.highest = max(c.highest, a.Index)
	names := make(map[gpuai.Token]bool, len(a.Tokens))
	for _, t := range a.Tokens {
		names[t] = true
	}
	c.ack = newest{valid: true, sent: sent, index: a.Index, names: names}
	for _, t := range c.tokens() {
		switch l := c.leases[t]; {
		case l.phase == Waiting:
			c.tryStart(now, l)
		case !l.holds():
		case names[t]:
			c.renew(l)
		case c.grantedBy(t, a.Index):
			c.kill(l, gpuai.ReportFenced, "the region does not name the lease any more")
		}
	}
	c.prune(a)
}

// prune forgets finished leases that the region has forgotten, and asks for
// the full set when it names a lease that this agent was never told of.
func (c *Core) prune(a *gpuai.Ack) {
	for t := range c.finished {
		if c.grantedBy(t, a.Index) && !c.ack.names[t] {
			delete(c.finished, t)
		}
	}
	missing := map[gpuai.Token]int{}
	resync := false
	for _, t := range a.Tokens {
		if c.leases[t] == nil && !c.finished[t] {
			missing[t] = c.strange[t] + 1
			resync = resync || missing[t] >= namedTwice
		}
	}
	c.strange = missing
	if resync {
		c.strange = map[gpuai.Token]int{}
		c.reconnect(0, "the region names a lease that this agent was not told of")
		return
	}
	if c.doubtHeld(a) {
		c.reconnect(0, "a task waits for its gang, and the region knows nothing of that")
	}
}

// doubtHeld reports whether a task waits for its gang that need not, or is to
// end: what was sent about it was lost.
func (c *Core) doubtHeld(a *gpuai.Ack) (resync bool) {
	limit := namedTwice
	if !c.settled {
		limit++ // the Welcome's ack comes before the full set
	}
	for _, t := range c.tokens() {
		l := c.leases[t]
		if l.phase != Prepared || len(l.unsent) > 0 || slices.Contains(a.Held, t) {
			l.doubts = 0
			continue
		}
		l.doubts++
		resync = resync || l.doubts >= limit
	}
	return resync
}
