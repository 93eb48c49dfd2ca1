package main

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
)

// A host is a machine that runs an agent: its clock, its power, its devices,
// its disk, and what runs on it, which is the truth that checkers look at.
type host struct {
	proc  // its kernel: stands still while the host is suspended
	idx   int
	name  string
	node  gpuai.NodeID
	clock clock
	boots int

	devices []gpuai.Device
	journal *journal
	wd      *watchdog // nil: none runs
	agent   *agent

	runners   []*runner
	reserved  map[gpuai.DeviceID][]*reservation
	sick      map[gpuai.DeviceID]bool // as their driver says
	full      bool                    // its disk: it takes no new task
	resumedAt int64
	retired   bool // its operator has switched it off for good
}

// A runner is a task's processes.
type runner struct {
	h        *host
	task     gpuai.TaskRef
	token    gpuai.Token
	devices  []gpuai.DeviceID
	share    gpuai.Milli
	started  int64
	zombie   bool // reported unkillable: no authorised runner any more
	over     bool
	exit     int32
	byItself bool
}

// reservation is a lease's hold on a device, as its driver knows it.
type reservation struct {
	token gpuai.Token
	share gpuai.Milli
}

func newHost(w *world, node gpuai.NodeID, devices []gpuai.Device) *host {
	h := &host{proc: proc{w: w}, idx: len(w.hosts), node: node, devices: devices}
	h.name = fmt.Sprintf("host%d(%s)", h.idx, node)
	h.clock = clock{off: w.between(0, 100_000*sec), ppm: w.skew()}
	h.reserved, h.sick = map[gpuai.DeviceID][]*reservation{}, map[gpuai.DeviceID]bool{}
	h.journal = newJournal(fmt.Sprintf("nonce-%d", w.rnd.Uint64()))
	h.agent = &agent{proc: proc{w: w}, h: h}
	w.hosts = append(w.hosts, h)
	return h
}

func (h *host) boottime() int64 { return h.clock.read(h.w.now) }

func (h *host) bootID() string { return fmt.Sprintf("boot-%d-%d", h.idx, h.boots) }

// powerOn boots the host and starts its agent.
func (h *host) powerOn() {
	h.start()
	h.boots++
	h.reserved = map[gpuai.DeviceID][]*reservation{}
	h.w.tracef("%s boots", h.name)
	h.agent.begin()
}

// powerOff ends everything on the host.
func (h *host) powerOff() {
	h.w.tracef("%s loses power", h.name)
	h.agent.die()
	h.wd = nil
	for _, r := range slices.Clone(h.runners) {
		h.ended(r)
	}
	h.crash()
}

// suspend stands the whole host still, its BOOTTIME goes on.
func (h *host) suspend(d int64) {
	h.w.tracef("%s is suspended for %d ms", h.name, d/ms)
	h.stop()
	h.agent.stop()
	h.w.after(d, h.resume)
}

func (h *host) resume() {
	if h.stops == 0 {
		return
	}
	h.w.tracef("%s resumes", h.name)
	h.resumedAt = h.w.now
	if h.stops == 1 && h.up {
		h.stops = 0 // its tasks run before anything else does
		h.w.check.resumed(h)
		h.stops = 1
	}
	h.cont()
	h.agent.cont()
}

// active reports whether what is on the host runs.
func (h *host) active() bool { return h.up && h.stops == 0 }

// run forks a task. It ends by itself when it has done its work.
func (h *host) run(a *gpuai.Assignment, wt *wdTask) *runner {
	w := h.w
	l := &a.Lease
	r := &runner{
		h: h, task: l.TaskRef, token: l.ID, devices: l.Devices, share: l.Share, started: w.now,
	}
	if r.share == 0 {
		r.share = gpuai.WholeDevice
	}
	h.runners = append(h.runners, r)
	w.tracef("%s runs %s with token %s", h.name, taskName(r.task), r.token)
	w.check.started(r)
	h.after(w.runTime(a), func() { h.finish(r, wt) })
	return r
}

// finish ends a task that has done its work.
func (h *host) finish(r *runner, wt *wdTask) {
	if r.over || r.zombie {
		return
	}
	r.byItself = true
	if r.exit = 0; h.w.chance(h.w.prof.taskFails) && !h.w.healed {
		r.exit = 1
	}
	h.ended(r)
	if h.wd != nil {
		h.wd.exited(wt, r.exit)
	}
}

// ended notes that a task's processes are gone.
func (h *host) ended(r *runner) {
	if r.over {
		return
	}
	r.over = true
	h.runners = slices.DeleteFunc(h.runners, func(o *runner) bool { return o == r })
	h.w.tracef("%s: %s with token %s is over", h.name, taskName(r.task), r.token)
	h.w.check.ended(r)
}

// reserve is the driver's: it refuses a device that is held by another lease.
func (h *host) reserve(l *gpuai.Lease) bool {
	for _, d := range l.Devices {
		if slices.ContainsFunc(h.reserved[d], func(r *reservation) bool { return r.token == l.ID }) {
			return true
		}
	}
	need := l.Share
	if need == 0 {
		need = gpuai.WholeDevice
	}
	for _, d := range l.Devices {
		sum := need
		for _, r := range h.reserved[d] {
			sum += r.share
		}
		if sum > gpuai.WholeDevice || h.sick[d] || !slices.ContainsFunc(h.devices, func(x gpuai.Device) bool { return x.ID == d }) {
			return false
		}
	}
	for _, d := range l.Devices {
		h.reserved[d] = append(h.reserved[d], &reservation{l.ID, need})
	}
	return true
}

// release gives a lease's devices back.
func (h *host) release(t gpuai.Token) {
	for _, d := range h.devices {
		h.reserved[d.ID] = slices.DeleteFunc(h.reserved[d.ID], func(r *reservation) bool { return r.token == t })
	}
}

func taskName(t gpuai.TaskRef) string {
	return fmt.Sprintf("%s/%d/%d", t.Job, t.Group, t.Task)
}

// wdState is how far a task has come in the watchdog.
type wdState uint8

const (
	wdRunning wdState = iota
	wdExited
	wdUnkillable
)

// endedBy is who ended a task, in the order of their rank.
type endedBy uint8

const (
	byItself endedBy = iota
	byStop
	byKill
	byDeadline
)

// watchdog is the model of agent/watchdog: it holds the deadlines.
type watchdog struct {
	h     *host
	inc   gpuai.Incarnation
	tasks map[gpuai.Token]*wdTask
}

type wdTask struct {
	token    gpuai.Token
	inc      gpuai.Incarnation
	deadline int64
	budget   int64
	state    wdState
	by       endedBy
	code     int32
	hunted   bool
	runner   *runner
	armed    int64
}

// hello learns the node's incarnation, which never goes back.
func (d *watchdog) hello(inc gpuai.Incarnation) bool {
	if inc != 0 && inc < d.inc {
		return false
	}
	d.inc = max(d.inc, inc)
	return true
}

// start checks incarnation and deadline, arms the timer, and only then forks.
func (d *watchdog) start(a *gpuai.Assignment, deadline, budget int64) (*wdTask, bool) {
	t := a.Lease.ID
	if old := d.tasks[t]; old != nil {
		return old, true
	}
	late := d.h.boottime() >= deadline && d.h.w.weak != noWatchdog
	if a.Lease.Incarnation != d.inc || late {
		return nil, false
	}
	wt := &wdTask{token: t, inc: a.Lease.Incarnation, deadline: deadline, budget: budget}
	d.tasks[t] = wt
	d.arm(wt)
	wt.runner = d.h.run(a, wt)
	return wt, true
}

// arm has the task fenced at its deadline.
func (d *watchdog) arm(t *wdTask) {
	w, h := d.h.w, d.h
	if w.weak == noWatchdog || t.armed == t.deadline {
		return
	}
	t.armed = t.deadline
	at := t.deadline
	h.after(max(0, h.clock.when(at)+w.wakeLate()-w.now), func() {
		if h.wd == d && t.deadline == at {
			d.end(t, byDeadline)
		}
	})
}

// wakeLate is how late a timer may wake the watchdog: within the slack.
func (w *world) wakeLate() int64 {
	if w.chance(w.prof.lateWake) {
		return w.between(700*ms, 999*ms)
	}
	return w.between(0, 2*ms)
}

// extend moves a deadline to a later time. One that has passed has passed.
func (d *watchdog) extend(t gpuai.Token, at int64) {
	wt := d.tasks[t]
	if wt == nil || wt.state != wdRunning || wt.hunted || at <= wt.deadline ||
		d.h.w.weak != noWatchdog && d.h.boottime() >= wt.deadline {
		return
	}
	wt.deadline = at
	d.arm(wt)
}

// stop has a task end within its grace.
func (d *watchdog) stop(t gpuai.Token, grace int64) {
	wt, w := d.tasks[t], d.h.w
	if wt == nil || wt.state != wdRunning || wt.hunted {
		return
	}
	wt.by = max(wt.by, byStop)
	wait := grace
	if !w.chance(0.3) { // it heeds SIGTERM
		wait = w.between(0, grace)
	}
	d.h.after(wait, func() {
		if d.h.wd == d {
			d.end(wt, byStop)
		}
	})
}

// end hunts a task down; it takes the kill budget at most.
func (d *watchdog) end(wt *wdTask, by endedBy) {
	w, h := d.h.w, d.h
	if wt.state != wdRunning || wt.hunted {
		return
	}
	wt.hunted, wt.by = true, max(wt.by, by)
	gone := func() {
		if wt.runner.over {
			return
		}
		wt.runner.exit = 137
		h.ended(wt.runner)
		if h.wd == d {
			d.exited(wt, 137)
		}
	}
	switch {
	case !w.healed && w.chance(w.prof.unkillable):
		// Of a host that was suspended the budget may be over already.
		over := max(0, min(wt.budget, wt.deadline+wt.budget-h.boottime()))
		h.after(over, func() { d.unkillable(wt) })
		h.after(over+w.between(sec, 60*sec), gone)
	case w.now < h.resumedAt+200*ms:
		h.after(w.between(0, max(0, h.resumedAt+190*ms-w.now)), gone)
	case w.chance(w.prof.slowKill):
		h.after(w.between(wt.budget*8/10, wt.budget-ms), gone)
	default:
		h.after(w.between(0, 50*ms), gone)
	}
}

func (d *watchdog) unkillable(wt *wdTask) {
	if d.h.wd == d && !wt.runner.over {
		d.h.w.count(unkillableTask)
		wt.runner.zombie, wt.state = true, wdUnkillable
		d.h.w.check.ended(wt.runner)
		d.tell(wt)
	}
}

// exited notes the end of a task and tells the agent, if there is one.
func (d *watchdog) exited(wt *wdTask, code int32) {
	wt.state, wt.code = wdExited, code
	d.tell(wt)
}

func (d *watchdog) tell(wt *wdTask) {
	a := d.h.agent
	a.after(d.h.w.between(0, ms), func() {
		if d.h.wd == d {
			a.news(wt)
		}
	})
}

// forget drops a task whose end is journaled.
func (d *watchdog) forget(t gpuai.Token) {
	if wt := d.tasks[t]; wt != nil && wt.state == wdExited {
		delete(d.tasks, t)
	}
}

// die ends the watchdog: its tasks die with it.
func (d *watchdog) die() {
	d.h.w.tracef("%s: the watchdog dies", d.h.name)
	d.h.wd = nil
	for _, r := range slices.Clone(d.h.runners) {
		if !r.zombie {
			d.h.ended(r)
		}
	}
	d.h.agent.after(d.h.w.between(ms, 50*ms), d.h.agent.watchdogGone)
}
