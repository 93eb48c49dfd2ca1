package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
)

// fault is a kind of fault, for the counts of a run.
type fault uint8

const (
	serverCrash fault = iota
	serverPause
	partition
	oneWayCut
	hostCut
	agentCrash
	agentPause
	hostSuspend
	hostPowerLoss
	watchdogDeath
	identityClone
	deviceSick
	nodeDrained
	answerLost
	snapshotTaken
	snapshotInstalled
	unkillableTask
	backupRestored
	expiry
	breakerTripped
	taskPreempted
	numFaults
)

var faultNames = [numFaults]string{
	"server crash", "server pause", "partition", "one-way cut", "host cut off", "agent crash",
	"agent pause", "host suspend", "host power loss", "watchdog death", "identity clone", "device sick",
	"node drained", "answer lost", "snapshot taken", "snapshot installed", "unkillable task", "backup restored",
	"expiry", "breaker tripped", "task preempted",
}

func (w *world) count(f fault) { w.faults[f]++ }

// A profile is how a run is set up and what goes wrong in it. It is drawn from
// the seed; variants lean towards what shows them.
type profile struct {
	servers, nodes, gpus int
	chaos                int64 // how long faults are injected
	jobs, stops, drains  int
	policy               gpuai.Policy
	longTasks, taskFails float64
	alwaysRestart        bool    // and soon
	singles              bool    // jobs of one task
	flip                 bool    // leaders change while an expiry is held up
	skewed               float64 // clocks at the bound

	snapshotEvery, trailing uint64
	checkEvery              int

	// Chances.
	spike, loss, repeat, reorder, loseSet, missEvent, loseAnswer float64
	slowDisk, slowApply, slowRaft, slowWindow                    float64
	lateWake, slowKill, unkillable                               float64
	holdExpiry, stillOnBeat, stillOnGrant                        float64
	spikeMax, slowRaftMean, slowWindowMean                       int64

	// Means between faults of a kind, 0: there are none.
	every [numFaults]int64
	cut   [2]int64 // how long a cut, a pause or a death lasts

	preempts     bool  // jobs take room from one another
	backups      int   // that are saved and put back
	restoreAfter int64 // how long after they were saved at most
}

// draw makes up the profile of a seed. Each kind of fault is there in some
// seeds only, so that the others are seen without it. nodes overrules the seed.
func (w *world) draw(nodes int) profile {
	p := profile{
		servers: 3, chaos: w.between(40, 100) * sec, policy: w.drawPolicy(),
		longTasks: 0.5, taskFails: 0.1, skewed: 0.3,
		snapshotEvery: uint64(w.between(40, 400)), trailing: uint64(w.between(2, 60)),
		checkEvery: 211, spikeMax: w.between(50, 800) * ms,
		slowRaftMean: w.between(50, 4_000) * ms, slowWindowMean: w.between(50, 4_000) * ms,
		cut: [2]int64{200 * ms, w.between(2, 50) * sec},
	}
	if p.snapshotEvery%2 == 0 { // so often that whoever was away needs one
		p.snapshotEvery, p.trailing = 5+p.snapshotEvery/8, p.trailing/8
	}
	if w.chance(0.2) {
		p.servers = 5
	}
	if p.nodes = w.drawNodes(); nodes > 0 {
		p.nodes = nodes
	}
	p.jobs = max(4, min(p.nodes*2, 150))
	if p.nodes > 100 {
		p.chaos = min(p.chaos, 45*sec)
	}
	p.stops, p.drains = p.jobs/4, w.rnd.IntN(2+p.nodes/4)
	some := func(v float64) float64 {
		if w.chance(0.5) {
			return 0
		}
		return v * w.rnd.Float64()
	}
	p.spike, p.loss, p.repeat, p.reorder = some(0.05), some(0.03), some(0.05), some(0.1)
	p.loseSet, p.missEvent, p.loseAnswer = some(0.1), some(0.2), some(0.5)
	p.slowDisk, p.slowApply, p.slowRaft, p.slowWindow = some(0.02), some(0.01), some(0.01), some(0.05)
	p.lateWake, p.slowKill, p.unkillable = some(1), some(1), some(0.05)
	scale := int64(3 + w.rnd.IntN(15))
	for f := range p.every {
		if w.chance(0.6) {
			p.every[f] = scale * w.between(sec, 4*sec)
		}
	}
	if w.chance(0.7) {
		p.every[identityClone] = 0
	}
	p.preempts = w.chance(0.5)
	if w.chance(0.1) {
		p.backups, p.restoreAfter = 1+w.rnd.IntN(2), w.between(2, 30)*sec
	}
	return p
}

// maxNodes is how large a region is simulated.
const maxNodes = 2_000

// drawNodes is how many nodes a run has: mostly few, up to 2,000.
func (w *world) drawNodes() int {
	switch n := w.rnd.IntN(1_000); {
	case n < 700:
		return int(w.between(1, 6))
	case n < 930:
		return int(w.between(7, 20))
	case n < 990:
		return int(w.between(21, 60))
	case n < 999:
		return int(w.between(61, 300))
	default:
		return int(w.between(301, maxNodes))
	}
}

func (w *world) drawPolicy() gpuai.Policy {
	p := gpuai.DefaultPolicy()
	p.TTLBatch = gpuai.Duration(w.between(15, 25)) * gpuai.Second
	p.TTLTraining = gpuai.Duration(w.between(15, 60)) * gpuai.Second
	p.Grace = gpuai.Duration(w.between(2_000, 5_000))
	p.FlapBackoff = gpuai.Duration(w.between(1_000, 10_000))
	p.FlapLimit = uint32(w.between(2, 20))
	return p
}

// injector has one kind of fault happen.
var injectors = map[fault]func(*world){
	serverCrash: (*world).crashServer, serverPause: (*world).pauseServer,
	partition: (*world).partitionServers, oneWayCut: (*world).cutOneWay, hostCut: (*world).cutHost,
	agentCrash: (*world).crashAgent, agentPause: (*world).pauseAgent, hostSuspend: (*world).suspendHost,
	hostPowerLoss: (*world).powerLoss, watchdogDeath: (*world).killWatchdog, identityClone: (*world).cloneHost,
	deviceSick: (*world).sickDevice,
}

// inject begins the faults of the profile.
func (w *world) inject() {
	for f := range numFaults {
		if injectors[f] != nil && w.prof.every[f] > 0 {
			w.again(f)
		}
	}
	for range w.prof.backups {
		w.at(w.between(3*sec, w.prof.chaos*7/10), w.saveAndRestore)
	}
}

func (w *world) again(f fault) {
	mean := w.prof.every[f]
	if f >= hostCut && f <= watchdogDeath { // of each of the hosts, within reason
		mean = max(mean*2/int64(max(len(w.hosts), 2)), 500*ms)
	}
	w.after(w.about(mean), func() {
		if !w.healed && w.now < w.prof.chaos {
			injectors[f](w)
			w.again(f)
		}
	})
}

func (w *world) span() int64 { return w.between(w.prof.cut[0], w.prof.cut[1]) }

func (w *world) crashServer() {
	s := pick(w, w.servers)
	if !s.up || s.stops > 0 {
		return
	}
	w.count(serverCrash)
	s.die()
	w.after(w.between(100*ms, 10*sec), func() {
		if !s.up {
			s.boot()
		}
	})
}

func (w *world) pauseServer() {
	s := pick(w, w.servers)
	if w.chance(0.6) { // mostly the one that leads
		for _, o := range w.servers {
			if o.up && o.raft.role == leader {
				s = o
			}
		}
	}
	if !s.up || s.stops > 0 {
		return
	}
	w.count(serverPause)
	w.tracef("server %d is paused", s.id)
	s.stop()
	w.after(w.span(), func() {
		if s.stops > 0 {
			w.tracef("server %d goes on", s.id)
			s.cont()
		}
	})
}

// partitionServers separates some servers, and the hosts that happen to be on
// their side, from the rest.
func (w *world) partitionServers() {
	w.count(partition)
	n := len(w.servers)
	side := make([]bool, n+len(w.hosts))
	for i := range side {
		side[i] = w.chance(0.5)
	}
	var links []link
	for i := range n {
		for k := range side {
			if side[i] != side[k] {
				links = append(links, link{i, k}, link{k, i})
			}
		}
	}
	w.tracef("a partition: %v", side[:min(len(side), 20)])
	w.net.cut(links, w.span())
}

func (w *world) cutOneWay() {
	w.count(oneWayCut)
	a, b := w.rnd.IntN(len(w.servers)), w.rnd.IntN(len(w.servers)+len(w.hosts))
	l := link{a, b}
	if w.chance(0.5) {
		l = link{b, a}
	}
	w.tracef("a cut from place %d to place %d", l.from, l.to)
	w.net.cut([]link{l}, w.span())
}

// cutHost cuts a host off from all servers, in one direction or both.
func (w *world) cutHost() {
	w.count(hostCut)
	h := pick(w, w.hosts)
	p, way := w.hostPlace(h), w.rnd.IntN(4)
	var links []link
	for i := range w.servers {
		if way != 1 {
			links = append(links, link{p, i})
		}
		if way != 2 {
			links = append(links, link{i, p})
		}
	}
	w.tracef("%s is cut off", h.name)
	w.net.cut(links, w.span())
}

func (w *world) crashAgent() {
	h := pick(w, w.hosts)
	a := h.agent
	if !h.active() || !a.up || a.stops > 0 {
		return
	}
	w.count(agentCrash)
	w.tracef("the %s crashes", a)
	a.die()
	w.after(w.span(), func() { w.restartAgent(h) })
}

func (w *world) restartAgent(h *host) {
	if h.up && h.stops == 0 && !h.agent.up && !h.retired && h.agent.halted == "" {
		w.tracef("the %s starts", h.agent)
		h.agent.begin()
	}
}

func (w *world) pauseAgent() {
	h := pick(w, w.hosts)
	a := h.agent
	if !h.active() || !a.up || a.stops > 0 {
		return
	}
	w.count(agentPause)
	w.tracef("the %s is paused", a)
	a.stop()
	life := a.life
	w.after(w.span(), func() {
		if a.life == life && a.stops > 0 {
			a.cont()
		}
	})
}

func (w *world) suspendHost() {
	h := pick(w, w.hosts)
	if !h.active() || h.agent.stops > 0 {
		return
	}
	w.count(hostSuspend)
	h.suspend(w.span())
}

func (w *world) powerLoss() {
	h := pick(w, w.hosts)
	if !h.active() || h.agent.stops > 0 || h.retired {
		return
	}
	w.count(hostPowerLoss)
	h.powerOff()
	w.after(w.span(), func() {
		if !h.up && !h.retired {
			h.powerOn()
		}
	})
}

func (w *world) killWatchdog() {
	h := pick(w, w.hosts)
	if !h.active() || h.wd == nil || h.agent.stops > 0 {
		return
	}
	w.count(watchdogDeath)
	h.wd.die()
}

// cloneHost copies a host's data directory to another host and starts an agent
// there.
func (w *world) cloneHost() {
	h := pick(w, w.hosts)
	if h.retired || len(w.hosts) > 3*w.prof.nodes {
		return
	}
	w.count(identityClone)
	c := newHost(w, h.node, h.devices)
	c.journal = h.journal.clone()
	w.tracef("%s is a copy of %s", c.name, h.name)
	c.powerOn()
}

// holdUp lets an expiry wait between the scan and the proposal, while the node
// comes back, another server leads, and this one leads again.
func (w *world) holdUp(r *reign, propose func()) {
	hold := w.between(4*sec, 10*sec)
	w.tracef("server %d holds an expiry for %d ms", r.s.id, hold/ms)
	r.s.after(hold, propose)
	w.after(w.between(100*ms, sec), w.net.heal)
	if !w.prof.flip {
		return
	}
	w.after(sec, func() { w.isolate(r.s, 2*sec) })
	w.after(hold-w.between(sec, 3*sec), func() {
		for _, o := range w.servers {
			if o != r.s && !o.leads() && o.stops == 0 { // so that it is this one's turn
				w.count(serverPause)
				o.stop()
				w.after(2*sec, o.cont)
				break
			}
		}
		for _, o := range w.servers {
			if o.leads() && o != r.s {
				o.raft.follow() // it hands its leadership over
			}
		}
	})
}

// isolate cuts a server off from the others.
func (w *world) isolate(s *server, d int64) {
	w.count(partition)
	var links []link
	for i := range w.servers {
		if i != s.id {
			links = append(links, link{i, s.id}, link{s.id, i})
		}
	}
	w.net.cut(links, d)
}

// standStill suspends a host right after it has sent a beat; when it resumes it
// finds the ack, and no network.
func (w *world) standStill(h *host) {
	if !h.active() || h.agent.stops > 0 || w.now > w.prof.chaos {
		return
	}
	w.count(hostSuspend)
	d := int64(w.prof.policy.FenceAfter(w.prof.policy.TTLBatch))*ms - w.between(200*ms, 3*sec)
	h.suspend(d)
	p := w.hostPlace(h)
	var links []link
	for i := range w.servers {
		links = append(links, link{p, i}, link{i, p})
	}
	w.after(d-sec, func() { w.net.cut(links, w.between(15*sec, 30*sec)) })
}

// sickDevice has a device fail under whatever runs on it, or the host's disk fill up,
// and come back.
func (w *world) sickDevice() {
	h := pick(w, w.hosts)
	if !h.active() {
		return
	}
	w.count(deviceSick)
	if w.chance(0.3) {
		w.tracef("%s: its disk is full", h.name)
		h.fill(true)
		w.after(w.span(), func() { h.fill(false) })
		return
	}
	d := pick(w, h.devices).ID
	w.tracef("%s: %s is sick", h.name, d)
	h.sick[d] = true
	h.agent.after(w.between(0, 100*ms), h.agent.refresh)
	w.after(w.span(), func() { h.well(d) })
}

// fill fills a host's disk, or makes room on it.
func (h *host) fill(full bool) {
	h.full = full
	h.agent.after(0, h.agent.refresh)
}

// well ends a device's sickness.
func (h *host) well(d gpuai.DeviceID) {
	if h.sick[d] {
		delete(h.sick, d)
		h.agent.after(0, h.agent.refresh)
	}
}

// standStillOnGrant suspends the host that is being given a lease.
func (w *world) standStillOnGrant(node gpuai.NodeID) {
	for _, h := range w.hosts {
		if h.node == node && h.active() && h.agent.stops == 0 && !w.healed && w.now < w.prof.chaos && w.chance(w.prof.stillOnGrant) {
			w.count(hostSuspend)
			h.suspend(w.span())
		}
	}
}

// heal ends every fault: what is cut is mended, what stands still goes on, what
// is down comes back, and operators put in order what is theirs.
func (w *world) heal() {
	w.tracef("heal")
	w.healed = true
	w.net.heal()
	for _, s := range w.servers {
		for s.stops > 0 {
			s.cont()
		}
		if !s.up {
			s.boot()
		}
	}
	for _, h := range w.hosts {
		for h.up && h.stops > 0 {
			h.resume()
		}
		for h.agent.up && h.agent.stops > 0 {
			h.agent.cont()
		}
		for _, d := range h.devices {
			h.well(d.ID)
		}
	}
	byNode := map[gpuai.NodeID][]*host{}
	for _, h := range w.hosts {
		byNode[h.node] = append(byNode[h.node], h)
	}
	for _, n := range sortedKeys(byNode) {
		w.oneHost(byNode[n])
		w.users.eligibility(n, false)
		w.after(30*sec, func() { w.users.eligibility(n, false) }) // behind any that was late
	}
}

// oneHost leaves a node one host: of several with its identity the operator
// switches off all but one that the region knows.
func (w *world) oneHost(hosts []*host) {
	keep := hosts[0]
	for _, h := range hosts {
		if h.up && h.agent.up && h.agent.halted == "" && h.agent.core.Connected() {
			keep = h
		}
	}
	for _, h := range hosts {
		if h != keep {
			h.retired = true
			if h.up {
				h.powerOff()
			}
		}
	}
	switch a := keep.agent; {
	case !keep.up:
		keep.powerOn()
		a.takeOver = true
	case !a.up:
		a.begin()
		a.takeOver = true
	default:
		a.takeOver = true
	}
}

// operate is what an operator does after the heal: start agents that halted.
func (w *world) operate() {
	for _, h := range w.hosts {
		if h.up && !h.retired && !h.agent.up {
			h.agent.begin()
			h.agent.takeOver = true
		}
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func faultCounts(n *[numFaults]int) map[string]int {
	out := map[string]int{}
	for f, name := range faultNames {
		out[name] = n[f]
	}
	return out
}

func (f fault) String() string { return fmt.Sprint(faultNames[f]) }
