package main

const (
	beatTimeout = 2 * sec
	beatAge     = 3 * sec
)

// heldBeat is a beat of a session of this server.
type heldBeat struct {
	beat
	since int64
	done  func(index uint64) // once, if the beat is confirmed
}

// collector is the model of server/beats.go: it folds the beats of a server's
// sessions into one message per window to the leader.
type collector struct {
	s       *server
	pending []heldBeat
	last    int64
	armed   bool
}

func (c *collector) reset() { c.pending, c.last, c.armed = nil, -beatWindow, false }

func (c *collector) add(b heldBeat) {
	if c.s.w.weak == ackUnconfirmed {
		b.done(c.s.m.Index()) // and the leader hears of it when it does
		b.done = func(uint64) {}
	}
	c.pending = append(c.pending, b)
	c.kick()
}

func (c *collector) kick() {
	w := c.s.w
	if c.armed || len(c.pending) == 0 {
		return
	}
	c.armed = true
	c.s.after(max(0, beatWindow-(w.now-c.last)), func() {
		c.armed = false
		if batch := c.pending; len(batch) > 0 {
			c.pending, c.last = nil, w.now
			c.send(batch)
		}
	})
}

// send has a batch confirmed. Beats that no leader took are offered again
// while they are young.
func (c *collector) send(batch []heldBeat) {
	beats := make([]beat, len(batch))
	for i := range batch {
		beats[i] = batch[i].beat
	}
	over := false
	fail := func() {
		if !over {
			over = true
			c.again(batch)
		}
	}
	c.s.after(beatTimeout, fail)
	c.confirm(beats, func(got confirmation) {
		if over {
			return
		}
		if !got.ok {
			c.s.after(0, fail)
			return
		}
		c.s.whenApplied(got.index, func() {
			if over {
				return
			}
			over = true
			for i := range batch {
				if len(got.beats) > 0 && got.beats[0] == batch[i].beat {
					got.beats = got.beats[1:]
					batch[i].done(got.index)
				}
			}
		})
	})
}

func (c *collector) again(batch []heldBeat) {
	for _, b := range batch {
		if c.s.w.now-b.since < beatAge {
			c.pending = append(c.pending, b)
		}
	}
	c.kick()
}

// confirm asks the leader, which may be this server.
func (c *collector) confirm(beats []beat, done func(confirmation)) {
	if r := c.s.reign; r != nil {
		r.confirm(beats, done)
		return
	}
	to := c.s.leaderServer()
	if to == nil || to == c.s {
		c.s.after(10*ms, func() { done(confirmation{}) })
		return
	}
	c.s.w.ask(c.s, to, beatTimeout, func(reply func(any)) {
		if to.reign == nil {
			reply(confirmation{})
			return
		}
		to.reign.confirm(beats, func(got confirmation) { reply(got) })
	}, func(v any) {
		got, _ := v.(confirmation)
		done(got)
	})
}
