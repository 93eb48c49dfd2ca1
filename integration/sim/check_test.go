package main

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// calm is a world in which nothing happens but what a test does.
func calm(t *testing.T) *world {
	t.Helper()
	w := newWorld(plan{seed: 1, nodes: 3}, nil)
	w.healed, w.users.terms.on = true, false
	for _, h := range w.hosts {
		h.start()
	}
	return w
}

func lease(token gpuai.Token, devices ...gpuai.DeviceID) *gpuai.Assignment {
	a := &gpuai.Assignment{}
	a.Lease.ID, a.Lease.Devices = token, devices
	a.Lease.Job = gpuai.JobID{1}
	return a
}

// caught expects one violation, of the named check.
func caught(t *testing.T, w *world, check string) {
	t.Helper()
	if len(w.check.violations) != 1 || w.check.violations[0].Check != check {
		t.Errorf("violations %+v, want one of %q", w.check.violations, check)
	}
}

func TestCheckTwoRunners(t *testing.T) {
	w := calm(t)
	w.now = 10 * sec
	w.hosts[0].run(lease(1, "gpu-0"), &wdTask{})
	w.hosts[1].run(lease(2, "gpu-0"), &wdTask{})
	caught(t, w, "two runners")
}

func TestCheckOneRunnerAfterTheOther(t *testing.T) {
	w := calm(t)
	w.now = 10 * sec
	r := w.hosts[0].run(lease(1, "gpu-0"), &wdTask{})
	w.hosts[0].ended(r)
	r = w.hosts[1].run(lease(2, "gpu-0"), &wdTask{})
	r.zombie = true // it outlived its kill: nobody's authorised runner
	w.check.ended(r)
	w.hosts[2].run(lease(3, "gpu-0"), &wdTask{})
	if w.check.failed() {
		t.Error(w.check.violations)
	}
}

func TestCheckAllowsAResumeItsWakeUp(t *testing.T) {
	for wait, want := range map[int64]int{150 * ms: 0, 250 * ms: 1} {
		w := calm(t)
		w.healed, w.prof.longTasks, w.now = false, 1, 10*sec // 20 s and more
		r := w.hosts[0].run(lease(1, "gpu-0"), &wdTask{})
		w.hosts[0].suspend(5 * sec)
		w.runUntil(12 * sec)
		w.hosts[1].run(lease(2, "gpu-0"), &wdTask{})
		if w.check.failed() {
			t.Fatal("a task of a suspended host runs")
		}
		w.after(3*sec+wait, func() { w.hosts[0].ended(r) })
		w.runUntil(16 * sec)
		if n := len(w.check.violations); n != want {
			t.Errorf("a runner that is over %d ms after the resume: %v", wait/ms, w.check.violations)
		}
	}
}

func TestCheckCapacity(t *testing.T) {
	w := calm(t)
	w.hosts[0].run(lease(1, "gpu-0"), &wdTask{})
	other := lease(2, "gpu-0")
	other.Lease.Task = 1
	w.hosts[0].run(other, &wdTask{})
	caught(t, w, "capacity")
}

func TestCheckTokensGrow(t *testing.T) {
	w := calm(t)
	w.hosts[0].ended(w.hosts[0].run(lease(2, "gpu-0"), &wdTask{}))
	w.hosts[1].run(lease(1, "gpu-0"), &wdTask{})
	caught(t, w, "tokens")
	w = calm(t)
	e := gpuai.Event{Kind: gpuai.LeaseGrantedEvent, Lease: 5}
	w.check.event(&e)
	w.check.event(&e)
	caught(t, w, "tokens")
}

func TestCheckStaleEffect(t *testing.T) {
	w := calm(t)
	r := w.hosts[0].run(lease(1, "gpu-0"), &wdTask{})
	r.exit = 137
	w.hosts[0].ended(r)
	w.check.event(&gpuai.Event{Kind: gpuai.LeaseEndedEvent, Lease: 1, Cause: gpuai.CauseDone})
	caught(t, w, "stale effect")
}

func TestCheckIdempotency(t *testing.T) {
	w := calm(t)
	w.check.submitted("k", gpuai.JobID{1}, 1)
	w.check.submitted("k", gpuai.JobID{1}, 1)
	w.check.submitted("k", gpuai.JobID{2}, 2)
	caught(t, w, "idempotency")
}

func TestCheckLostAcknowledgement(t *testing.T) {
	w := calm(t)
	s := w.servers[0]
	s.m = fsm.New(fsm.Options{Region: "sim"})
	w.check.submitted("k", gpuai.JobID{1}, 7)
	if w.check.acknowledged(s); w.check.failed() {
		t.Fatal("the replica has not come to it yet")
	}
	s.raft.applied = 7
	w.check.acknowledged(s)
	caught(t, w, "lost acknowledgement")
}

func TestCheckDigests(t *testing.T) {
	w := calm(t)
	for i, s := range w.servers {
		s.m = fsm.New(fsm.Options{Region: "sim"})
		entry := fsm.AppendEntry(nil, fsm.Header{Time: gpuai.Instant(i), Term: 1}, (&fsm.Tick{}).Append(nil, fsm.Envelope{}))
		if err := s.m.Apply(1, 1, entry, &s.out); err != nil {
			t.Fatal(err)
		}
		w.check.applied(s, 1, &s.out)
	}
	if !w.check.failed() || w.check.violations[0].Check != "digests" {
		t.Error(w.check.violations)
	}
}

func TestClockTurnsBack(t *testing.T) {
	w := calm(t)
	for range 10_000 {
		c := clock{off: w.between(0, 1000*sec), ppm: w.between(-maxSkew, maxSkew)}
		now := w.between(0, 10_000*sec)
		at := c.read(now)
		if when := c.when(at); c.read(when) < at || when > now || when > 0 && c.read(when-1) >= at {
			t.Fatalf("%+v shows %d at %d, and when says %d", c, at, now, when)
		}
	}
}

func TestCommand(t *testing.T) {
	tests := []struct {
		args   string
		status int
		out    string
	}{
		{"--seed 5", 0, "0 violations"},
		{"--seeds 3", 0, "3 seeds from 1 in"},
		{"--seeds 2 --first 9 -o json", 0, `"seeds": 2,`},
		{"--variant no-watchdog --seeds 20", 1, "--seed"},
		{"--variant nothing", 2, "there is no variant"},
		{"--profile nothing", 2, "there is no profile"},
		{"--profile ack-all --variant ack-all", 2, "leave --profile away"},
		{"--nodes 5000", 2, "0 to 2000"},
		{"--seeds 0", 2, "at least 1"},
		{"-o xml", 2, "text or json"},
		{"more", 2, "unexpected argument"},
		{"--help", 0, "how many seeds"},
	}
	for _, tt := range tests {
		var out strings.Builder
		status := start(strings.Fields(tt.args), &out, &out)
		if status != tt.status || !strings.Contains(out.String(), tt.out) {
			t.Errorf("sim %s: status %d, want %d with %q:\n%s", tt.args, status, tt.status, tt.out, out.String())
		}
	}
}
