package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
)

// What packets are late by. Raft's leader lease is 250 ms: between servers a round trip
// within it is slow, and one beyond it is as a cut.
var (
	slow    = window{50 * time.Millisecond, 90 * time.Millisecond}
	distant = window{50 * time.Millisecond, 400 * time.Millisecond}
	awful   = window{300 * time.Millisecond, 2 * time.Second}
	endless = window{50 * time.Millisecond, 2 * time.Second}
)

// between is a lateness of what servers send each other.
func between(w window) func(*split) error {
	return func(p *split) error {
		p.lines.set(func(from, to int) window {
			if from == stranger || to == stranger {
				return window{}
			}
			return w
		})
		return nil
	}
}

// around is a lateness of what one server sends to the others, hears of them, or both.
func around(who func(*split) int, w window, sends, hears bool) func(*split) error {
	return func(p *split) error {
		i := who(p)
		p.lines.set(func(from, to int) window {
			if from == stranger || to == stranger || !(sends && from == i || hears && to == i) {
				return window{}
			}
			return w
		})
		return nil
	}
}

func leading(p *split) int   { return p.lead }
func following(p *split) int { return p.others[0] }
func (p *split) most() []int { return append([]int{p.lead}, p.others[1:]...) }

// lags are made as cuts are, of the lines: where through is nil no majority is promised
// to be there in time.
var lags = []cut{
	{"between all servers, 50 to 90 ms", between(slow), (*split).all, nil},
	{"to and from a follower, 50 ms to 2 s", around(following, endless, true, true), (*split).most, nil},
	{"to and from the leader, 300 ms to 2 s", around(leading, awful, true, true), (*split).rest, nil},
	{"what the leader sends, 300 ms to 2 s", around(leading, awful, true, false), (*split).rest, nil},
	{"what the leader hears, 300 ms to 2 s", around(leading, awful, false, true), (*split).rest, nil},
	{"to and from clients and agents, 50 to 400 ms", func(p *split) error {
		p.lines.set(func(from, to int) window {
			if from == stranger || to == stranger {
				return distant
			}
			return window{}
		})
		return nil
	}, (*split).all, nil},
	{"between all servers, 50 ms to 2 s", between(endless), nil, nil},
	{"everything, 50 ms to 2 s", func(p *split) error {
		p.lines.set(func(int, int) window { return endless })
		return nil
	}, nil, nil},
}

// playDelays has packets come late and overtake each other, between servers and on
// their way to clients and agents.
func playDelays(s *scene) error {
	if err := s.delayServers(); err != nil {
		return err
	}
	return s.delayAgents()
}

func (s *scene) delayServers() error {
	const expected = "jobs are placed wherever a majority is in time; the clients' history is linearizable; nothing is lost; the digests are equal once it is over"
	l := s.newLines()
	r, err := s.startRegion(3, l.shape)
	if err != nil {
		return err
	}
	if err := r.ledger.load("delay"); err != nil {
		return err
	}
	h, err := r.observe()
	if err != nil {
		return err
	}
	kinds := s.rng.Perm(len(lags))[:s.counts.lagKinds]
	slices.Sort(kinds)
	for _, k := range kinds {
		c := &lags[k]
		w := s.row("13", "packets late "+c.fault, expected)
		w.Recovered = "from the delay, or where that leaves no majority in time from its end, to the first lease of a job submitted after it"
		before := h.log.Len()
		for range s.counts.lagRounds {
			if err := r.delayed(w, l, c); err != nil {
				return fmt.Errorf("%s: %w", c.fault, err)
			}
		}
		if err := r.afterCut(w); err != nil {
			return fmt.Errorf("%s: %w", c.fault, err)
		}
		w.Operations = h.log.Len() - before
		s.end(w)
	}
	w := s.row("13", "after all delays", "the whole history of the clients is linearizable, nothing is lost, keys answer as before, the digests are equal")
	h.halt()
	h.judge(w)
	if err := r.ledger.settle(w); err != nil {
		return err
	}
	s.end(w)
	return r.stop()
}

// delayed has packets come late once, for a while.
func (r *region) delayed(w *row, l *lines, c *cut) error {
	if err := r.cut(w, &split{region: r, lines: l, lasts: r.counts.lag}, c); err != nil {
		return err
	}
	n, mean, lost := l.take()
	w.note("%d pieces were late, by %d ms in the mean", n, mean.Milliseconds())
	switch {
	case n == 0:
		w.fail("no piece was late: the fault was not there")
	case lost > 0:
		w.note("of %d connections it could not be found out whose they are", lost)
	}
	return nil
}

// The agents of late lines: where a round trip is always within the 2 s in which an
// agent wants its ack leases must stay; beyond it they may go, but no task may have
// two runners.
var lateAgents = []struct {
	id    string
	late  window
	stays bool
}{
	{"distant", window{50 * time.Millisecond, 500 * time.Millisecond}, true},
	{"awful", endless, false},
}

// delayAgents runs tasks on agents whose packets come late both ways.
func (s *scene) delayAgents() error {
	w := s.row("25", "agents' packets late both ways: 50 to 500 ms, and 50 ms to 2 s",
		"with the first the tasks go on under their leases; with the second they go on, or are fenced and run again; no task has two runners; once it is over all nodes are ready")
	w.Recovered = "from the end of the delay to beats of all tasks"
	f, err := s.newField("late")
	if err != nil {
		return err
	}
	var all []*lines
	var hosts []*host
	for _, a := range lateAgents {
		l := s.newLines()
		var addrs []string
		for i, m := range f.members {
			c, err := l.lay(m.http, func(net.Addr) int { return stranger }, i)
			if err != nil {
				return err
			}
			addrs = append(addrs, c.Addr)
		}
		h, err := f.startHost(a.id, tasksPerHost, nil, addrs)
		if err != nil {
			return err
		}
		all, hosts = append(all, l), append(hosts, h)
	}
	if _, err := f.startHost("spare", 2*tasksPerHost, nil, f.addrs()); err != nil {
		return err
	}
	for _, a := range lateAgents {
		for k := range tasksPerHost {
			if _, err := f.beatOn(w, fmt.Sprintf("%s-%d", a.id, k), a.id, "spare"); err != nil {
				return err
			}
		}
	}
	return f.late(w, all, hosts)
}

// late has the agents' packets come late for longer than a lease lives.
func (f *field) late(w *row, all []*lines, hosts []*host) error {
	began := time.Now()
	for i, l := range all {
		late := lateAgents[i].late
		l.set(func(int, int) window { return late })
	}
	w.Injected++
	f.pause(time.Duration(testTTL+testGrace)*time.Millisecond + f.counts.lag)
	for i, l := range all {
		l.set(nil)
		n, mean, _ := l.take()
		w.note("%s: %d pieces were late, by %d ms in the mean, within %.0f s", lateAgents[i].id, n, mean.Milliseconds(), time.Since(began).Seconds())
		if n == 0 {
			w.fail("no packet of %s was late: the fault was not there", lateAgents[i].id)
		}
	}
	for _, h := range hosts {
		if err := f.nodeReady(h); err != nil {
			w.fail("%v", err)
		}
	}
	since := beat.Boottime()
	for i, t := range f.tasks {
		if err := f.afterLate(w, t, lateAgents[i/tasksPerHost].stays, since); err != nil {
			w.fail("%v", err)
		}
	}
	w.recovered(time.Duration(beat.Boottime() - since))
	f.oneRunner(w)
	if err := f.digests(w, 0); err != nil {
		return err
	}
	f.end(w)
	return f.killAllOf()
}

// afterLate sees that a task beats once its agent's packets are in time again, perhaps
// after it was fenced at the last moment, and whether it was the same lease all along.
func (f *field) afterLate(w *row, t *tracked, stays bool, since int64) error {
	err := f.until(away, fmt.Sprintf("job %s to run and beat again", t.job), func(ctx context.Context) error {
		tasks, _, err := f.api.Tasks(ctx, t.job.String(), client.Page{Limit: 1})
		if err != nil {
			return err
		}
		t.next = tasks[0]
		run, err := f.runOf(t.next.Lease)
		if err == nil && run.Last <= since {
			err = fmt.Errorf("lease %s on %s has not beaten since", t.next.Lease, t.next.Node)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case stays && t.next.Lease != t.first.Lease:
		w.fail("the task on %s was given up, though every round trip was within a second: it was %+v and is %+v", t.host, t.first, t.next)
	case t.next.Lease != t.first.Lease:
		w.note("the task on %s was fenced and ran again on %s", t.host, t.next.Node)
	}
	return nil
}
