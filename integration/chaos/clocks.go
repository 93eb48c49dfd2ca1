package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/chaos/clock"
	"github.com/gpuai/gpuai/integration/oracle"
)

// onePercent is the bound of a clock's rate error, in parts in a million.
const onePercent = 10_000

// steps are what wall clocks are moved by, one after the other.
var steps = []time.Duration{time.Hour, -2 * time.Hour, time.Hour - 24*time.Hour, 24 * time.Hour}

const (
	calm      = "no lease ends early, no node leaves ready, tasks beat on, jobs are placed"
	inTheEnd  = "a killed agent's tasks are fenced in time and run elsewhere no sooner than TTL + grace by the servers' clock, never twice at once"
	stepFault = "the wall clock of %s steps by +1 h, -1 h, -1 day and back"
)

// playClocks bends the clocks of running servers and agents.
func playClocks(s *scene) error {
	err := clock.Available()
	for i, r := range []struct {
		what string
		ppm  int64
	}{{"fast", onePercent}, {"slow", -onePercent}} {
		fault := fmt.Sprintf("the leader's monotonic and wall clocks run 1 %% %s against its agents'", r.what)
		if err != nil {
			s.skip(s.row("16", fault, calm+"; "+inTheEnd), err)
			continue
		}
		f, err := s.newFieldOf(r.what, "") // certificates of a day: a clock that is hours off ends shorter ones
		if err == nil {
			err = f.skewed(i == 0, fault, r.ppm)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", fault, err)
		}
	}
	if err != nil {
		for _, who := range []string{"the leader", "a follower", "an agent"} {
			s.skip(s.row("16", fmt.Sprintf(stepFault, who), calm), err)
		}
	}
	return nil
}

// skewed runs a region whose leader's clock has another rate, from its start to
// an agent's death; with steps it also moves wall clocks.
func (f *field) skewed(withSteps bool, fault string, ppm int64) error {
	w := f.row("16", fault, calm+"; "+inTheEnd)
	w.Recovered = deathToElsewhere
	victim, err := f.startHost("victim", tasksPerHost, nil, f.addrs())
	if err != nil {
		return err
	}
	for k := range tasksPerHost {
		if _, err := f.beatOn(w, fmt.Sprint("victim-", k), "victim", "spare"); err != nil {
			return err
		}
	}
	if withSteps {
		if err := f.ahead(f.row("16", "an agent's CLOCK_BOOTTIME and monotonic clock one hour ahead, in a time namespace", calm)); err != nil {
			return err
		}
	}
	lead, term, err := f.leader()
	if err != nil {
		return err
	}
	bent, err := clock.Bend(lead.proc.PID())
	if err != nil {
		return err
	}
	defer bent.Close()
	if err := errors.Join(bent.Rate(clock.Monotonic, ppm), bent.Rate(clock.Wall, ppm)); err != nil {
		return err
	}
	w.Injected++
	f.say("%s, watching for %s", fault, f.counts.skewed)
	if withSteps {
		if err := f.stepWalls(bent, lead, victim); err != nil {
			return err
		}
	}
	if err := f.watchCalm(w, f.counts.skewed); err != nil {
		return err
	}
	return f.lastDeath(w, victim, term, 1+float64(ppm)/1e6)
}

// lastDeath kills the agent while clocks are bent, and judges by its tasks.
func (f *field) lastDeath(w *row, victim *host, term uint64, fast float64) error {
	if _, err := f.startHost("spare", tasksPerHost, nil, f.addrs()); err != nil {
		return err
	}
	since := beat.Boottime()
	if err := victim.proc.Kill(); err != nil {
		return err
	}
	for _, t := range f.tasks {
		if t.host != "victim" {
			continue
		}
		if err := f.moved(w, t, since, fast); err != nil {
			return err
		}
	}
	if _, now, err := f.leader(); err != nil || now != term {
		w.note("another server led in the end, in term %d and not %d (%v): the times are not those of the bent clock alone", now, term, err)
	}
	f.oneRunner(w)
	if err := f.digests(w, 0); err != nil {
		return err
	}
	f.end(w)
	return f.killAllOf()
}

// ahead starts a host in a time namespace of its own, with a task.
func (f *field) ahead(w *row) error {
	wrap := []string{"unshare", "--time", "--boottime", "3600", "--monotonic", "3600"}
	if out, err := exec.Command(wrap[0], append(wrap[1:], "true")...).CombinedOutput(); err != nil {
		f.skip(w, fmt.Errorf("time namespaces cannot be made here: %w: %s", err, strings.TrimSpace(string(out))))
		return nil
	}
	w.Injected++
	if _, err := f.startHost("ahead", 1, wrap, f.addrs()); err != nil {
		return err
	}
	t, err := f.beatOn(w, "ahead", "ahead")
	if err != nil {
		return err
	}
	r, err := f.runOf(t.first.Lease)
	if err != nil {
		return err
	}
	if gap := time.Duration(r.First - beat.Boottime()); gap < 50*time.Minute {
		w.fail("the task's clock is ahead by %s and not by an hour: the fault was not injected", gap)
	}
	if err := f.watchCalm(w, f.counts.skewed); err != nil {
		return err
	}
	f.end(w)
	return nil
}

// stepWalls moves the wall clocks of the leader, of a follower and of an agent.
func (f *field) stepWalls(leader *clock.Bent, lead *member, agent *host) error {
	follower, err := clock.Bend(f.except(lead)[0].proc.PID())
	if err != nil {
		return err
	}
	defer follower.Close()
	host, err := clock.Bend(agent.proc.PID())
	if err != nil {
		return err
	}
	defer host.Close()
	for _, c := range []struct {
		who  string
		bent *clock.Bent
	}{{"the leader", leader}, {"a follower", follower}, {"an agent", host}} {
		w := f.row("16", fmt.Sprintf(stepFault, c.who), calm)
		for _, by := range steps {
			if err := c.bent.Step(clock.Wall, by); err != nil {
				return err
			}
			w.Injected++
			if err := f.watchCalm(w, f.counts.skewed/2); err != nil {
				return err
			}
		}
		f.end(w)
	}
	return nil
}

// watchCalm watches for a while that nothing ends that should not, and that
// tasks go on.
func (f *field) watchCalm(w *row, d time.Duration) error {
	f.pause(d)
	for _, l := range f.watcher.All(func(l *oracle.Lease) bool { return l.Ended != 0 }) {
		w.fail("lease %s on node %s ended, cause %s", l.Token, l.Node, l.Cause)
	}
	now := beat.Boottime()
	for _, t := range f.tasks {
		if t.host != "victim" {
			continue // its beats are by another clock
		}
		if err := f.beatsOn(t.first, now); err != nil {
			return err
		}
		if err := f.until(patience, "node "+t.host, func(ctx context.Context) error {
			n, err := f.api.Node(ctx, gpuai.NodeID(t.host))
			if err == nil && n.State != gpuai.NodeReady {
				err = fmt.Errorf("it is %s", n.State)
			}
			return err
		}); err != nil {
			return err
		}
	}
	p, err := f.api.Plan(f, smallJob("calm"))
	if err != nil {
		return fmt.Errorf("plan a job: %w", err)
	}
	if len(p.Leases) == 0 {
		w.fail("a job would not be placed: %+v", p.Reasons)
	}
	return nil
}
