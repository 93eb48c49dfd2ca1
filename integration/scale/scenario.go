package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// steady measures a region in which nothing happens.
func (b *bench) steady(ctx context.Context) error {
	lead, term := b.leader(ctx)
	if lead == nil {
		return errors.New("nobody leads")
	}
	before, err := lead.api.Raft(ctx)
	if err != nil {
		return err
	}
	from := b.samples.take()
	if err := pause(ctx, b.o.steady); err != nil {
		return err
	}
	to := b.samples.take()
	after, err := lead.api.Raft(ctx)
	if err != nil {
		return err
	}
	span := to.at.Sub(from.at).Seconds()
	of := b.samples.since(from)
	r := &b.report.Steady
	*r = &steadyReport{
		Seconds: round(span), RealAcks: between(from.real, to.real), InjectedAcks: between(from.injected, to.injected),
		LeaderCPU: cpuOf(of, lead.id), EntriesPerSecond: round(float64(after.LastIndex-before.LastIndex) / span),
		Unconfirmed: to.failed - from.failed, SessionsLost: to.lost - from.lost,
	}
	for _, m := range b.alive() {
		if m != lead {
			(*r).FollowerCPU = append((*r).FollowerCPU, cpuOf(of, m.id))
		}
		(*r).RSSPerNode = append((*r).RSSPerNode, m.proc.rss()/int64(b.o.nodes))
	}
	(*r).BeatsPerSecond = round(float64((*r).RealAcks.N+(*r).InjectedAcks.N) / span)
	b.expect(after.Term == term, "the leader changed in the steady state, from term %d to %d", term, after.Term)
	return b.unchanged(ctx, 0, "in the steady state")
}

// kill kills the leader with -9 and waits until every node's beat is answered
// again. Its leases have longer than that to live; deaths and gone come after
// and check that none of them ended.
func (b *bench) kill(ctx context.Context) error {
	lead, term := b.leader(ctx)
	if lead == nil {
		return errors.New("nobody leads")
	}
	before, err := b.restarts(ctx)
	if err != nil {
		return err
	}
	from, at, began := b.samples.take(), clock(unix.CLOCK_BOOTTIME), time.Now()
	lead.proc.kill()
	r := &killReport{}
	b.report.Kill = r
	var next *server
	err = poll(ctx, "a new leader", func() (bool, error) {
		var t uint64
		next, t = b.leader(ctx)
		return next != nil && t > term, nil
	})
	if err != nil {
		return err
	}
	r.NewLeaderMS = ms(time.Since(began))
	watching, done := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return b.watchStates(watching, r) })
	back, err := b.settled(ctx, at)
	if err != nil {
		done()
		return errors.Join(err, g.Wait())
	}
	r.AllBackMS = ms(back)
	// The first TTL and grace of the new term pass: an old timer would show.
	// In the short form the deaths wait for as long, and check the same.
	if !b.o.short {
		err = pause(ctx, b.end()+2*time.Second-time.Since(began))
	}
	done()
	if err := errors.Join(err, g.Wait()); err != nil {
		return err
	}
	to := b.samples.take()
	of := b.samples.since(from)
	r.Reconnected, r.AcceptsPerSecond = to.welcomes-from.welcomes, accepts(of)
	r.NewLeaderCPU, r.Unconfirmed = cpuOf(of, next.id), to.failed-from.failed
	after, err := b.restarts(ctx)
	r.LeasesEnded = after - before
	b.expect(err != nil || after == before, "%d leases of live nodes ended after the leader was killed", after-before)
	b.expect(r.MaxSilent == 0, "%d nodes were silent after the leader was killed", r.MaxSilent)
	return err
}

// watchStates notes how many nodes at once a server calls suspect or silent.
func (b *bench) watchStates(ctx context.Context, r *killReport) error {
	for ctx.Err() == nil {
		v, err := b.states(ctx)
		if err == nil {
			r.MaxSuspect = max(r.MaxSuspect, int(v[`gpuai_nodes{status="suspect"}`]))
			r.MaxSilent = max(r.MaxSilent, int(v[`gpuai_nodes{status="silent"}`]))
		}
		if pause(ctx, time.Second) != nil {
			break
		}
	}
	return nil
}

// deaths are few: all of them below the breaker's threshold, side by side.
func (b *bench) deaths(ctx context.Context) error {
	before, err := b.restarts(ctx)
	if err != nil {
		return err
	}
	g, group := errgroup.WithContext(ctx)
	g.Go(func() error { return b.death(group) })
	g.Go(func() error { return b.replace(group) })
	g.Go(func() error { return b.device(group) })
	if !b.o.short {
		g.Go(func() error { return b.flap(group) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.unchanged(ctx, before, "while others died")
}

// death kills the process of the agent that holds a lease, and waits until an
// agent of the other process has read the task's new lease.
func (b *bench) death(ctx context.Context) error {
	j, err := b.submit(ctx, load{"death", poolCanary, 1, 1})
	if err != nil {
		return err
	}
	ls, _, err := b.region.api.Leases(ctx, client.LeaseQuery{Job: "death", Live: true})
	if err != nil || len(ls) != 1 {
		return fmt.Errorf("job death has %d leases: %w", len(ls), err)
	}
	victim := b.canary[0]
	if ls[0].Node >= gpuai.NodeID(fmt.Sprintf("bench-%06d", canaries)) {
		victim = b.canary[1]
	}
	id := j.ID.String()
	err = poll(ctx, "the first lease at its agent", func() (bool, error) { return b.leasedAt(id) > 0, nil })
	if err != nil {
		return err
	}
	first, killed := b.leasedAt(id), clock(unix.CLOCK_MONOTONIC)
	victim.proc.kill()
	err = poll(ctx, "the task's lease elsewhere", func() (bool, error) { return b.leasedAt(id) > first, nil })
	r := &deathReport{BoundMS: ms(b.end() + time.Second)}
	r.ElsewhereMS = ms(time.Duration(b.leasedAt(id) - killed))
	b.report.Death = r
	b.expect(err != nil || r.ElsewhereMS <= r.BoundMS, "a dead agent's task was elsewhere after %v ms, later than %v", r.ElsewhereMS, r.BoundMS)
	return err
}

// replace lets the nodes of many tasks fall silent at once, and measures from
// the entry that ends the first lease to the one that grants the last new one.
func (b *bench) replace(ctx context.Context) error {
	tasks := lostTasks(b.o.nodes)
	j, err := b.submit(ctx, load{"lost", poolLost, tasks, 1})
	if err != nil {
		return err
	}
	ls, err := b.allLeases(ctx, "lost")
	if err != nil {
		return err
	}
	var gone []*injected
	for _, l := range ls {
		if n := b.injector.byID[l.Node]; n != nil && !slices.Contains(gone, n) {
			gone = append(gone, n)
		}
	}
	b.expect(len(ls) == tasks && len(gone) <= len(b.injector.of(poolLost))/2+1, "%d tasks have %d leases on %d nodes", tasks, len(ls), len(gone))
	st, err := b.region.api.Raft(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	b.injector.mute(gone, true)
	r := &replaceReport{Tasks: tasks, Nodes: len(gone)}
	b.report.Replace = r
	if err := b.watchReplaced(ctx, j, st.AppliedIndex, r); err != nil {
		return err
	}
	r.SilentMS = ms(time.Since(began)) - r.SpanMS
	b.injector.mute(gone, false)
	return nil
}

// watchReplaced follows a job's events until as many tasks were placed anew as
// it has. Times are region time: from the ends' entries to the grants'.
func (b *bench) watchReplaced(ctx context.Context, j gpuai.Job, from uint64, r *replaceReport) error {
	var first, last gpuai.Instant
	ended := make(map[uint32]gpuai.Instant)
	var waits []float64
	done := errors.New("done")
	err := b.region.api.Events(ctx, client.EventQuery{From: from, Job: j.ID.String()}, func(es []gpuai.Event, _ uint64) error {
		for i := range es {
			switch e := &es[i]; e.Kind {
			case gpuai.LeaseEndedEvent:
				if first == 0 {
					first = e.At
				}
				ended[e.Task] = e.At
			case gpuai.LeaseGrantedEvent:
				if at, ok := ended[e.Task]; ok {
					waits, last = append(waits, float64(e.At-at)), e.At
					delete(ended, e.Task)
				}
			default:
			}
		}
		if len(waits) >= r.Tasks {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		return err
	}
	slices.Sort(waits)
	r.SpanMS = float64(last - first)
	r.P50MS, r.P99MS, r.MaxMS = waits[len(waits)/2], waits[len(waits)*99/100], waits[len(waits)-1]
	return nil
}

// allLeases returns the live leases of a job.
func (b *bench) allLeases(ctx context.Context, job string) (out []gpuai.Lease, err error) {
	q := client.LeaseQuery{Job: job, Live: true}
	for {
		ls, next, err := b.region.api.Leases(ctx, q)
		if err != nil {
			return nil, err
		}
		if out = append(out, ls...); next == "" {
			return out, nil
		}
		q.Cursor = next
	}
}

// device has the device of a task fail: it is quarantined, and its node goes on.
func (b *bench) device(ctx context.Context) error {
	if _, err := b.submit(ctx, load{"device", poolDevice, 1, 1}); err != nil {
		return err
	}
	ls, _, err := b.region.api.Leases(ctx, client.LeaseQuery{Job: "device", Live: true})
	if err != nil || len(ls) != 1 || len(ls[0].Devices) != 1 {
		return fmt.Errorf("job device has leases %v: %w", ls, err)
	}
	l := ls[0]
	c := fsm.ReportLease{Node: l.Node, Report: gpuai.Report{
		Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportGPUError, Unclean: l.Devices,
	}}
	if _, err := b.injector.propose(ctx, [][]byte{c.Append(nil, fsm.Envelope{Actor: "node/" + string(l.Node)})}); err != nil {
		return err
	}
	var n gpuai.Node
	err = poll(ctx, "another device for the task", func() (bool, error) {
		var err error
		if n, err = b.region.api.Node(ctx, l.Node); err != nil {
			return false, err
		}
		return n.Leases == 1, nil
	})
	if err != nil {
		return err
	}
	r := &deviceReport{NodeState: n.State.String()}
	for i := range n.Devices {
		if n.Devices[i].Health == gpuai.DeviceQuarantined {
			r.Quarantined++
		}
	}
	b.report.Device = r
	b.expect(n.State == gpuai.NodeReady && r.Quarantined == 1, "after a device failed its node is %s with %d quarantined devices", n.State, r.Quarantined)
	return nil
}

// flap lets a node with a lease fall silent and come back until it is
// quarantined, and then waits until it is let in again.
func (b *bench) flap(ctx context.Context) error {
	if _, err := b.submit(ctx, load{"flap", poolFlap, 1, 1}); err != nil {
		return err
	}
	nodes := b.injector.of(poolFlap)
	is := func(want gpuai.NodeState) error {
		return poll(ctx, fmt.Sprintf("a flapping node to be %s", want), func() (bool, error) {
			n, err := b.region.api.Node(ctx, nodes[0].id)
			return err == nil && n.State == want && (want != gpuai.NodeReady || n.Leases == 1), err
		})
	}
	r := &flapReport{}
	b.report.Flap = r
	for last := gpuai.NodeReady; last != gpuai.NodeQuarantined; r.Returns++ {
		b.injector.mute(nodes, true)
		if err := is(gpuai.NodeSilent); err != nil {
			return err
		}
		last = gpuai.NodeReady
		if r.Returns >= int(b.policy.FlapLimit) {
			last = gpuai.NodeQuarantined
		}
		b.injector.mute(nodes, false)
		if err := is(last); err != nil {
			return err
		}
	}
	began := time.Now()
	err := is(gpuai.NodeReady)
	r.QuarantineMS = ms(time.Since(began))
	least := float64(b.policy.FlapBackoff) - 500 // it was seen a little later
	b.expect(err != nil || r.QuarantineMS >= least, "the quarantine of a flapping node lasted %v ms of %v", r.QuarantineMS, least)
	return err
}

// gone lets 30 % of the nodes fall silent at once, of both kinds.
func (b *bench) gone(ctx context.Context) error {
	before, err := b.restarts(ctx)
	if err != nil {
		return err
	}
	stopped := b.generators[:(len(b.generators)*3+9)/10]
	muted := b.injector.of(poolInject)
	muted = muted[:len(muted)*3/10]
	r := &goneReport{}
	b.report.Gone = r
	for _, g := range stopped {
		r.Real += g.To - g.From
	}
	r.Injected = len(muted)
	began := time.Now()
	b.injector.mute(muted, true)
	for _, g := range stopped {
		if err := g.signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	var resume sync.Once
	back := func() {
		resume.Do(func() {
			for _, g := range stopped {
				_ = g.signal(syscall.SIGCONT) // one that ended is noticed below
			}
			b.injector.mute(muted, false)
		})
	}
	defer back()
	if err := b.breaker(ctx, true); err != nil {
		return err
	}
	r.OpenMS = ms(time.Since(began))
	if err := b.slowly(ctx, before, began, r); err != nil {
		return err
	}
	at, began := clock(unix.CLOCK_BOOTTIME), time.Now()
	from := b.samples.take()
	back()
	took, err := b.settled(ctx, at)
	if err != nil {
		return err
	}
	r.AllBackMS = ms(took)
	if err := b.breaker(ctx, false); err != nil {
		return err
	}
	r.ClosedMS = ms(time.Since(began))
	b.samples.take()
	r.AcceptsPerSecond = accepts(b.samples.since(from))
	return nil
}

// slowly watches how leases end while the breaker is open: none until its pause
// is over, then few.
func (b *bench) slowly(ctx context.Context, before int, began time.Time, r *goneReport) error {
	opened := time.Now()
	held := time.Duration(b.policy.BreakerWindow) * time.Millisecond
	free := max(opened.Add(held).Sub(began), b.end()) // since began
	if err := pause(ctx, free-time.Second-time.Since(began)); err != nil {
		return err
	}
	n, err := b.restarts(ctx)
	if err != nil {
		return err
	}
	r.EndedInPause = n - before
	b.expect(n == before, "%d leases ended while the breaker held all of them", n-before)
	if err := pause(ctx, free+time.Second-time.Since(began)); err != nil {
		return err
	}
	from, start := 0, time.Now()
	if from, err = b.restarts(ctx); err != nil {
		return err
	}
	watch := 10 * time.Second
	if b.o.short {
		watch = 3 * time.Second
	}
	if err := pause(ctx, watch); err != nil {
		return err
	}
	to, err := b.restarts(ctx)
	if err != nil {
		return err
	}
	r.EndedPerSecond = round(float64(to-from) / time.Since(start).Seconds())
	r.AllowedPerSecond = max(1, float64(b.o.nodes)*float64(b.policy.BreakerRatePPM)/1e6)
	b.expect(r.EndedPerSecond <= 1.3*r.AllowedPerSecond+1, "%v leases a second ended, of %v that the open breaker lets through", r.EndedPerSecond, r.AllowedPerSecond)
	b.expect(to > from, "no lease ended although the breaker lets some through")
	return nil
}

// breaker waits until the leader's breaker is open, or is not.
func (b *bench) breaker(ctx context.Context, open bool) error {
	return poll(ctx, fmt.Sprintf("the breaker to be open: %v", open), func() (bool, error) {
		lead := b.lead.Load()
		if lead == nil {
			return false, nil
		}
		v, err := b.scrape(ctx, lead)
		return err == nil && (v["gpuai_breaker_open"] == 1) == open, nil
	})
}

func ms(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }
