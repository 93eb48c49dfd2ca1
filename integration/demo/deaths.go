package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/integration/oracle"
)

// killLeader kills the leading server with -9, and measures until another one
// leads and until a write is acknowledged.
func (d *demo) killLeader(ctx context.Context) error {
	lead, term := leader(ctx, d.region.servers)
	if lead == nil {
		return fmt.Errorf("no server says that it leads, in term %d", term)
	}
	policy, err := d.region.api.Policy(ctx)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	d.gangBeforeDeath = d.watcher.Live(d.gang)
	d.deadServer = lead
	d.say("killing the leader %s with -9, at step %d of the training", lead.id, d.training.step())
	if err := lead.proc.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	died := time.Now()
	written := make(chan error, 1)
	go func() {
		err := d.region.api.SetPolicy(ctx, policy) // what it is already
		d.report.FirstWriteMS = ms(time.Since(died))
		written <- err
	}()
	var next *member
	err = nursery.Poll(ctx, "a new leader", 5*time.Millisecond, func() (bool, error) {
		m, t := leader(ctx, d.region.except(lead))
		next, d.term = m, t
		return m != nil && t > term, nil
	})
	if err != nil {
		return err
	}
	d.report.NewLeaderMS = ms(time.Since(died))
	if err := <-written; err != nil {
		return fmt.Errorf("the first write after the leader's death: %w", err)
	}
	d.say("%s leads after %.0f ms; the first write was acknowledged after %.0f ms", next.id, d.report.NewLeaderMS, d.report.FirstWriteMS)
	return d.afterLeader(ctx)
}

// afterLeader checks that the leader's death cost no task its lease.
func (d *demo) afterLeader(ctx context.Context) error {
	if err := d.waitStep(ctx, d.training.step()+30); err != nil {
		return err
	}
	err := nursery.Poll(ctx, "all hosts to be ready at the new leader", 100*time.Millisecond, func() (bool, error) {
		n, err := d.region.readyHosts(ctx)
		return n == len(d.region.hosts), err
	})
	if err != nil {
		return err
	}
	lost := d.watcher.All(func(l *oracle.Lease) bool { return l.Ended != 0 && l.Cause != gpuai.CauseDone })
	if len(lost) > 0 || tokens(d.watcher.Live(d.gang)) != tokens(d.gangBeforeDeath) {
		return fmt.Errorf("the leader's death cost %d tasks their leases; the gang had %s before, and has %s", len(lost), tokens(d.gangBeforeDeath), tokens(d.watcher.Live(d.gang)))
	}
	d.say("all hosts beat at the new leader, no task was lost")
	return nil
}

func tokens(ls []oracle.Lease) string {
	var out []string
	for i := range ls {
		out = append(out, ls[i].Token.String())
	}
	return strings.Join(out, " ")
}

// killAgent kills the agent with most of the gang with -9, and nothing but the
// agent: its tasks run on below its watchdog.
func (d *demo) killAgent(ctx context.Context) error {
	count := map[gpuai.NodeID]int{}
	for _, l := range d.watcher.Live("") {
		if count[l.Node]++; l.Task.Job == d.gang {
			count[l.Node] += 1000
		}
	}
	for _, h := range d.region.hosts {
		if d.deadHost == nil || count[h.id] > count[d.deadHost.id] {
			d.deadHost = h
		}
	}
	dead := d.deadHost.id
	on := d.watcher.All(func(l *oracle.Lease) bool { return l.Started != 0 && l.Ended == 0 && l.Node == dead })
	if count[dead] < 1000 {
		return fmt.Errorf("no host runs a member of the gang, so that there is nothing to show: %d tasks run", len(d.watcher.Live("")))
	}
	d.say("killing the agent of %s with -9: %d members of the gang and %d other tasks run on there", dead, count[dead]/1000, len(on)-count[dead]/1000)
	if err := d.deadHost.proc.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	d.hostDiedAt = beat.Boottime()
	d.onDeadHost = on
	return nursery.Poll(ctx, "the gang to run elsewhere", 50*time.Millisecond, func() (bool, error) {
		elsewhere := 0
		for _, l := range d.watcher.Live(d.gang) {
			if l.Granted > d.hostDiedAt && l.Node != dead {
				elsewhere++
			}
		}
		if elsewhere < gangSize {
			d.progress(ctx)
			return false, nil
		}
		d.say("the gang runs again, without %s, %.1f s after its agent's death", dead, float64(beat.Boottime()-d.hostDiedAt)/1e9)
		return true, nil
	})
}

// digests starts the killed server again and compares the three servers' state
// at one index.
func (d *demo) digests(ctx context.Context) error {
	if _, term := leader(ctx, d.region.except(d.deadServer)); term > d.term {
		d.report.Elections = term - d.term
	}
	d.say("starting %s again", d.deadServer.id)
	if err := d.region.startServer(d.deadServer, nil); err != nil {
		return err
	}
	if err := d.region.waitReady(ctx, d.deadServer); err != nil {
		return err
	}
	return nursery.Poll(ctx, "an index that three servers remember", 100*time.Millisecond, func() (bool, error) {
		return d.compareDigests(ctx)
	})
}

// compareDigests reports whether all servers know the digest of the newest
// index that every one has reached; it is an error when they differ.
func (d *demo) compareDigests(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	var index uint64
	for i, m := range d.region.servers {
		newest, err := m.api.Digest(ctx, 0)
		if err != nil {
			return false, nil // it is not there yet
		}
		if i == 0 || newest.Index < index {
			index = newest.Index
		}
	}
	found := map[string]string{}
	for _, m := range d.region.servers {
		at, err := m.api.Digest(ctx, index)
		if err != nil {
			return false, nil // that index held no command
		}
		found[string(m.id)] = at.Digest
	}
	d.report.Digests = digests{Index: index, ByServer: found}
	first := found[string(d.region.servers[0].id)]
	for id, digest := range found {
		if digest != first {
			return false, fmt.Errorf("the servers differ at index %d: %s has digest %s, %s has %s", index, d.region.servers[0].id, first, id, digest)
		}
	}
	d.say("three servers have digest %s at index %d", first, index)
	return true, nil
}

func ms(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }
