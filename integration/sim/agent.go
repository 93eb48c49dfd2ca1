package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
)

// journal is what an agent's disk remembers; it outlives the agent.
type journal struct {
	identity decide.Identity
	nonce    string
	boot     string // in which unclean was found
	records  map[gpuai.Token]*record
	unclean  map[gpuai.DeviceID]bool
}

type recState uint8

const (
	recStarting recState = iota
	recRunning
	recEnded
	recUnkillable
)

// record is what is remembered of a lease.
type record struct {
	a      gpuai.Assignment
	state  recState
	boot   string
	seq    uint32
	unsent []gpuai.Report
}

func newJournal(nonce string) *journal {
	return &journal{nonce: nonce, records: map[gpuai.Token]*record{}, unclean: map[gpuai.DeviceID]bool{}}
}

// clone copies a journal, as does who copies a host's disk.
func (j *journal) clone() *journal {
	c := newJournal(j.nonce)
	c.identity, c.boot = j.identity, j.boot
	for t, r := range j.records {
		x := *r
		x.unsent = slices.Clone(r.unsent)
		c.records[t] = &x
	}
	maps.Copy(c.unclean, j.unclean)
	return c
}

// An agent is the model of the agent's process around the real decide.Core:
// loop, workers, journal, session.
type agent struct {
	proc
	h       *host
	core    *decide.Core
	workers map[gpuai.Token]*worker
	acts    []decide.Action
	wakeGen int

	line     *line
	lines    uint64
	failures int
	server   int
	told     []gpuai.Device
	saidFull bool // and whether its disk is full
	halted   string
	takeOver bool
	dialGen  int
}

// line is a session from the agent's side.
type line struct {
	id uint64
	c  *conn
}

// worker carries out what concerns one lease, in order.
type worker struct {
	a        *agent
	assign   gpuai.Assignment
	deadline int64
	ending   bool
	ready    *decide.Start // waits for its gang
	started  bool
	busy     bool
	orders   []func()
}

// begin starts the agent's process: it adopts what its journal and the watchdog
// know, and connects.
func (a *agent) begin() {
	a.start()
	a.workers, a.acts, a.line, a.failures, a.told, a.halted = map[gpuai.Token]*worker{}, nil, nil, 0, nil, ""
	a.lines = 0
	a.server = a.w.rnd.IntN(len(a.w.servers))
	if j := a.h.journal; j.boot != a.h.bootID() {
		j.boot, j.unclean = a.h.bootID(), map[gpuai.DeviceID]bool{} // a reboot cleans
	}
	a.attach()
	a.adopt()
	a.refresh()
	a.settle()
	a.dialAfter(a.w.between(0, 200*ms))
}

// die ends the process; what the watchdog runs goes on.
func (a *agent) die() {
	a.crash()
	if a.line != nil {
		a.line.c.close()
		a.line = nil
	}
}

// attach finds the host's watchdog, or starts one.
func (a *agent) attach() {
	if a.h.wd == nil {
		a.h.wd = &watchdog{h: a.h, tasks: map[gpuai.Token]*wdTask{}}
	}
	a.h.wd.hello(a.h.journal.identity.Incarnation)
}

// adopt is agent/adopt.go: journal × watchdog → what is held.
func (a *agent) adopt() {
	j := a.h.journal
	var held []decide.Held
	var later []func()
	for _, t := range sortedKeys(j.records) {
		rec := j.records[t]
		wt := a.h.wd.tasks[t]
		switch decide.Judge(decide.Sight{Recorded: a.recordedAs(rec), Seen: seen(wt)}) {
		case decide.MoveAdopt, decide.MoveCollect:
			held = append(held, heldOf(rec, wt))
			x := a.newWorker(rec.a)
			x.started, x.deadline = true, wt.deadline
			if wt.state != wdRunning {
				later = append(later, func() { a.news(wt) })
			}
		case decide.MoveSweep:
			held = append(held, heldOf(rec, wt))
			x := a.newWorker(rec.a)
			later = append(later, func() { x.lost() })
		case decide.MoveForget:
			delete(j.records, t)
		default:
			if rec.state != recEnded || len(rec.unsent) == 0 { // nobody asks
				delete(j.records, t)
				continue
			}
			held = append(held, heldOf(rec, wt))
			a.newWorker(rec.a)
		}
	}
	for _, t := range sortedKeys(a.h.wd.tasks) {
		wt := a.h.wd.tasks[t]
		if rec := j.records[t]; rec == nil || rec.state == recEnded {
			if wt.state == wdExited {
				delete(a.h.wd.tasks, t)
			} else {
				a.h.wd.end(wt, byKill)
			}
		}
	}
	a.core = decide.New(decide.Config{Identity: j.identity, Held: held, Policy: gpuai.DefaultPolicy(), Seed: a.w.rnd.Uint64()})
	for _, f := range later {
		f()
	}
	a.recoverDrivers()
}

// recoverDrivers releases what no record holds.
func (a *agent) recoverDrivers() {
	for _, d := range a.h.devices {
		a.h.reserved[d.ID] = slices.DeleteFunc(a.h.reserved[d.ID], func(r *reservation) bool {
			_, known := a.h.journal.records[r.token]
			return !known && a.h.wd.tasks[r.token] == nil
		})
	}
}

func (a *agent) recordedAs(r *record) decide.Recorded {
	switch {
	case r.state == recEnded:
		return decide.RecordedEnded
	case r.boot != a.h.bootID():
		return decide.RecordedOtherBoot
	default:
		return decide.RecordedRunning
	}
}

func seen(wt *wdTask) decide.Seen {
	switch {
	case wt == nil:
		return decide.SeenNot
	case wt.state == wdExited:
		return decide.SeenExited
	default:
		return decide.SeenRunning
	}
}

func heldOf(r *record, wt *wdTask) decide.Held {
	h := decide.Held{Assignment: r.a, Seq: r.seq, Unsent: slices.Clone(r.unsent), Unkillable: r.state == recUnkillable}
	if wt != nil {
		h.Running, h.Deadline = wt.state != wdExited, wt.deadline
	}
	return h
}

func (a *agent) newWorker(as gpuai.Assignment) *worker {
	x := &worker{a: a, assign: as}
	a.workers[as.Lease.ID] = x
	return x
}

// step has the core take an event; what it decides waits for settle.
func (a *agent) step(e decide.Event) {
	a.acts = append(a.acts, a.core.Step(a.h.boottime(), e)...)
}

// handle is one round of the agent's loop: an event, what time it is, and what
// was decided.
func (a *agent) handle(e decide.Event) {
	a.step(e)
	a.settle()
}

func (a *agent) settle() {
	if a.halted != "" && a.core.Idle() {
		a.w.tracef("%s halts: %s", a.h.name, a.halted)
		a.carryOut()
		a.die()
		return
	}
	a.step(decide.Tick{})
	a.carryOut()
	a.rogues()
	a.wakeGen++
	gen := a.wakeGen
	next := a.core.NextWake()
	if next == 1<<63-1 {
		return
	}
	a.after(max(0, a.h.clock.when(next)-a.w.now)+a.w.wakeLate(), func() {
		if gen == a.wakeGen {
			a.settle()
		}
	})
}

// carryOut does what was decided: what ends tasks first, then the journal, then
// the rest in order.
func (a *agent) carryOut() {
	for len(a.acts) > 0 {
		acts := a.acts
		a.acts = nil
		starting := map[gpuai.Token]bool{}
		rest := acts[:0:0]
		for _, act := range acts {
			if s, ok := act.(decide.Start); ok {
				starting[s.Assignment.Lease.ID] = true
			}
			if t := endingOf(act); t != 0 && !starting[t] {
				a.do(act)
			} else {
				rest = append(rest, act)
			}
		}
		for _, act := range rest {
			a.record(act)
		}
		for _, act := range rest {
			a.do(act)
		}
	}
}

func endingOf(act decide.Action) gpuai.Token {
	switch act := act.(type) {
	case decide.Kill:
		return act.Lease
	case decide.Stop:
		return act.Lease
	case decide.Extend:
		return act.Lease
	}
	return 0
}

// record journals what an action says.
func (a *agent) record(act decide.Action) {
	j := a.h.journal
	switch act := act.(type) {
	case decide.Remember:
		j.identity = act.Identity
		a.takeOver = false
		if a.h.wd != nil && !a.h.wd.hello(act.Identity.Incarnation) {
			a.w.tracef("%s: the watchdog does not take incarnation %s", a.h.name, act.Identity.Incarnation)
		}
	case decide.Start:
		j.records[act.Assignment.Lease.ID] = &record{a: act.Assignment, boot: a.h.bootID()}
	case decide.SendReport:
		if rec := j.records[act.Report.Lease]; rec != nil && act.First {
			a.recordReport(rec, act.Report)
		}
	case decide.Forget:
		delete(j.records, act.Lease)
	}
}

func (a *agent) recordReport(rec *record, r gpuai.Report) {
	rec.seq = r.Seq
	rec.unsent = append(rec.unsent, r)
	switch r.State {
	case gpuai.ReportRunning, gpuai.ReportResolved, gpuai.ReportPrepared:
	case gpuai.ReportUnkillable:
		rec.state = recUnkillable
		a.taint(r.Unclean)
	default:
		rec.state = recEnded
		a.taint(r.Unclean)
	}
}

func (a *agent) taint(ids []gpuai.DeviceID) {
	for _, id := range ids {
		a.h.journal.unclean[id] = true
	}
	if len(ids) > 0 {
		a.tellDevices()
	}
}

// offered is the devices as the agent says they are.
func (a *agent) offered() []gpuai.Device {
	out := slices.Clone(a.h.devices)
	for i := range out {
		if a.h.journal.unclean[out[i].ID] || a.h.sick[out[i].ID] {
			out[i].Health = gpuai.DeviceUnhealthy
		}
	}
	return out
}

// refresh looks at the devices anew, tells the region of changes and the core of
// devices that failed under a task.
func (a *agent) refresh() {
	a.tellDevices()
	for _, t := range sortedKeys(a.h.journal.records) {
		r := a.h.journal.records[t]
		if slices.ContainsFunc(r.a.Lease.Devices, func(d gpuai.DeviceID) bool { return a.h.sick[d] }) {
			a.handle(decide.DeviceFailed{Lease: t, Reason: "its device is sick"})
		}
	}
}

// do carries out one action.
func (a *agent) do(act decide.Action) {
	switch act := act.(type) {
	case decide.Start:
		x := a.newWorker(act.Assignment)
		x.deadline = a.shifted(&act.Assignment.Lease, act.Deadline)
		x.order(func() { x.start(act) })
	case decide.Launch:
		if x := a.workers[act.Lease]; x != nil {
			x.order(x.goOn)
		}
	case decide.Extend:
		if x := a.workers[act.Lease]; x != nil {
			x.deadline = a.shifted(&x.assign.Lease, act.Deadline)
			x.order(x.push)
		}
	case decide.Stop:
		a.endTask(act.Lease, func(x *worker) { x.stop(act) })
	case decide.Kill:
		a.w.tracef("%s ends token %s at once: %s", a.h.name, act.Lease, act.Why)
		a.endTask(act.Lease, func(x *worker) { x.kill(act) })
	case decide.Release:
		if x := a.workers[act.Lease]; x != nil {
			x.order(x.release)
		} else {
			a.step(decide.Released{Lease: act.Lease})
		}
	case decide.SendBeat:
		a.send(act.Session, gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &act.Beat})
	case decide.SendReport:
		r := act.Report
		if act.First && r.State.Ends() && r.State != gpuai.ReportUnkillable {
			a.forgetTask(r.Lease)
		}
		if a.line != nil {
			a.send(a.line.id, gpuai.Frame{Kind: gpuai.FrameReport, Report: &r})
		}
	case decide.Forget:
		a.forgetTask(act.Lease)
		delete(a.workers, act.Lease)
	case decide.Reconnect:
		a.hangUp(act.Session, int64(act.After)*ms)
	case decide.Halt:
		a.halted = act.Err
		a.hangUp(a.lines, 0)
	case decide.Alarm:
		a.w.tracef("%s: %s", a.h.name, act.Text)
	}
}

// forgetTask lets the watchdog forget a task whose end is journaled.
func (a *agent) forgetTask(t gpuai.Token) {
	if x := a.workers[t]; x != nil {
		x.order(func() {
			if a.h.wd != nil {
				a.h.wd.forget(t)
			}
		})
	}
}

func (a *agent) endTask(t gpuai.Token, f func(*worker)) {
	if x := a.workers[t]; x != nil {
		x.ending = true
		x.order(func() { f(x) })
	}
}

// order queues f behind what the worker has under way.
func (x *worker) order(f func()) {
	if x.busy {
		x.orders = append(x.orders, f)
		return
	}
	f()
}

// free goes on with the next orders.
func (x *worker) free() {
	x.busy = false
	for !x.busy && len(x.orders) > 0 {
		f := x.orders[0]
		x.orders = x.orders[1:]
		f()
	}
}

// tell has the agent's loop take an event about the lease.
func (x *worker) tell(e decide.Event) { x.a.after(0, func() { x.a.handle(e) }) }

// start reserves, prepares and starts the task.
func (x *worker) start(act decide.Start) {
	w := x.a.w
	x.busy = true
	d := w.between(ms, 200*ms)
	if !w.healed && w.chance(0.02) {
		d = w.between(sec, 6*sec)
	}
	x.a.after(d, func() {
		x.launch(act)
		x.free()
	})
}

func (x *worker) launch(act decide.Start) {
	a, l := x.a, &act.Assignment.Lease
	no := decide.TaskNotStarted{Lease: l.ID, State: gpuai.ReportFailed}
	switch {
	case x.ending:
		no.State = gpuai.ReportStopped
	case !a.h.reserve(l):
		no.State = gpuai.ReportGPUError
	case act.Hold:
		x.ready = &act
		x.tell(decide.TaskPrepared{Lease: l.ID})
		return
	default:
		x.run(act)
		return
	}
	x.tell(no)
}

// goOn starts the task that waited for its gang.
func (x *worker) goOn() {
	if r := x.ready; r != nil && !x.ending {
		x.ready = nil
		x.run(*r)
	}
}

// giveUp tells of a task that waited for its gang and is to end.
func (x *worker) giveUp() {
	if x.ready != nil {
		x.ready = nil
		x.tell(decide.TaskNotStarted{Lease: x.assign.Lease.ID, State: gpuai.ReportStopped})
	}
}

// run has the watchdog start the task.
func (x *worker) run(act decide.Start) {
	a, l := x.a, &act.Assignment.Lease
	no := decide.TaskNotStarted{Lease: l.ID, State: gpuai.ReportFailed}
	switch {
	case a.h.wd == nil:
		no.State = gpuai.ReportLost
	default:
		_, ok := a.h.wd.start(&act.Assignment, x.deadline, int64(act.KillBudget)*ms)
		if ok {
			x.started = true
			if rec := a.h.journal.records[l.ID]; rec != nil && rec.state == recStarting {
				rec.state = recRunning
			}
			x.push()
			x.tell(decide.TaskStarted{Lease: l.ID})
			return
		}
		if a.h.boottime() >= x.deadline {
			no.State = gpuai.ReportFenced
		}
	}
	x.tell(no)
}

// push gives the watchdog the newest deadline.
func (x *worker) push() {
	if wd := x.a.h.wd; wd != nil && x.started {
		wd.extend(x.assign.Lease.ID, x.deadline)
	}
}

func (x *worker) stop(act decide.Stop) {
	x.giveUp()
	if wd := x.a.h.wd; wd != nil && x.started {
		wd.stop(x.assign.Lease.ID, int64(act.Grace+act.Save.Grace)*ms) // the task saves its work, as long as it may
	}
}

// kill ends the task at once, through the watchdog.
func (x *worker) kill(decide.Kill) {
	x.giveUp()
	wd := x.a.h.wd
	if wd == nil || !x.started {
		return // a dead watchdog's tasks died with it
	}
	wt := wd.tasks[x.assign.Lease.ID]
	if wt == nil {
		return
	}
	if wait := x.a.killLater(wt); wait > 0 {
		x.a.h.after(wait, func() { wd.end(wt, byKill) })
		return
	}
	wd.end(wt, byKill)
}

// lost settles a task that the watchdog does not know: it looks for what is
// left of it, and goes on until that is gone.
func (x *worker) lost() {
	x.busy = true
	x.a.after(x.a.w.between(ms, 100*ms), func() { x.sweep(true) })
}

func (x *worker) sweep(first bool) {
	t := x.assign.Lease.ID
	if slices.ContainsFunc(x.a.h.runners, func(r *runner) bool { return r.token == t }) {
		if first {
			x.a.handle(decide.TaskUnkillable{Lease: t, Reason: "what is left of it cannot be killed"})
		}
		x.a.after(sec, func() { x.sweep(false) })
		return
	}
	x.free()
	x.a.handle(decide.TaskEnded{Lease: t, By: decide.ByLoss})
}

// release gives the devices back.
func (x *worker) release() {
	x.busy = true
	a, t := x.a, x.assign.Lease.ID
	a.after(a.w.between(ms, 50*ms), func() {
		a.h.release(t)
		x.free()
		for _, d := range x.assign.Lease.Devices {
			delete(a.h.journal.unclean, d)
		}
		a.handle(decide.Released{Lease: t})
		a.tellDevices()
	})
}

// news takes what the watchdog says of a task.
func (a *agent) news(wt *wdTask) {
	x := a.workers[wt.token]
	if x == nil {
		if wt.state == wdExited && a.h.wd != nil {
			a.h.wd.forget(wt.token)
		}
		return
	}
	switch wt.state {
	case wdExited:
		by := [...]decide.EndedBy{decide.ByItself, decide.ByStop, decide.ByKill, decide.ByDeadline}[wt.by]
		a.handle(decide.TaskEnded{Lease: wt.token, By: by, Code: wt.code})
	case wdUnkillable:
		a.handle(decide.TaskUnkillable{Lease: wt.token, Reason: "it outlived the kill budget"})
	}
}

// watchdogGone starts another watchdog and settles the tasks that went with the
// old one.
func (a *agent) watchdogGone() {
	a.after(a.w.between(10*ms, sec), func() {
		if a.h.wd != nil {
			return
		}
		a.attach()
		for _, t := range sortedKeys(a.workers) {
			x, rec := a.workers[t], a.h.journal.records[t]
			if rec != nil && (rec.state == recRunning || rec.state == recUnkillable) && a.h.wd.tasks[t] == nil {
				x.order(x.lost)
			}
		}
	})
}

// String names the agent.
func (a *agent) String() string { return fmt.Sprintf("agent of %s", a.h.name) }
