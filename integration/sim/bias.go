package main

import "github.com/gpuai/gpuai"

// bias leans a profile towards the faults that show what a variant lacks. The
// real protocol must stand the same.
func (v variant) bias(w *world, p *profile) {
	if v == sound {
		return
	}
	p.lean(w)
	end := int64(p.policy.TTLBatch+p.policy.Grace) * ms
	switch v {
	case ackUnconfirmed:
		// Servers are cut off from each other, each with some of the hosts.
		p.every[partition] = 25 * sec
		p.nodes, p.jobs, p.longTasks = 10, 30, 0.8
		p.cut = [2]int64{20 * sec, 40 * sec}
	case ackOvertakes:
		// Nodes come back while the expiry that gives them up is held up.
		p.every[hostCut] = 12 * sec
		p.cut = [2]int64{end, end + 6*sec}
		p.holdExpiry = 0.8
	case noTermCheck, currentTerm:
		// Expiries are held up while leaders change to and fro.
		p.every[hostCut] = 12 * sec
		p.cut = [2]int64{end, end + 6*sec}
		p.holdExpiry, p.flip = 0.8, true
	case fromReceipt:
		// Hosts stand still between a beat and its ack, and are cut off then.
		p.stillOnBeat = 0.05
	case ackAll:
		// Hosts stand still for as long as their silence is borne, from when
		// they are given a lease.
		p.stillOnGrant = 0.25
		p.cut = [2]int64{end, end + 5*sec}
		p.loseSet, p.reorder = 0.5, 0.2
	case noFirstDeadline:
		p.every[hostSuspend], p.every[agentPause] = 2*sec, 2*sec
		p.cut = [2]int64{end - 3*sec, end + 8*sec}
	case revokingFrees:
		p.drains, p.stops = 8, 0
	case registeringFrees:
		p.every[identityClone], p.every[hostCut] = 5*sec, 4*sec
	case expiryAcross:
		p.every[hostPowerLoss] = 15 * sec
		p.jobs, p.longTasks = 15, 0.8
		p.cut = [2]int64{sec, 5 * sec}
	case oldTimers:
		p.every[serverPause] = 15 * sec
		p.cut = [2]int64{8 * sec, 30 * sec}
		p.nodes, p.jobs, p.longTasks = 8, 30, 0.5
	case noWatchdog:
		p.every[agentCrash], p.every[agentPause] = 3*sec, 4*sec
		p.cut = [2]int64{end, end + 15*sec}
	case restoreSameEpoch:
		p.backups, p.restoreAfter, p.jobs = 2, 20*sec, 80
	case restoreNotQuiet:
		p.backups, p.restoreAfter, p.longTasks = 2, 10*sec, 0.8
		p.every[hostCut] = 10 * sec
	case noMargins:
		p.every[hostCut] = 20 * sec
		p.jobs, p.longTasks = 15, 0.8
		p.cut = [2]int64{end, end + 10*sec}
		p.skewed, p.lateWake, p.slowKill = 1, 1, 1
	}
}

// lean is a small region without faults, with the shortest leases, where what is
// lost is soon placed again: all that happens can be told apart.
func (p *profile) lean(w *world) {
	q := *p
	*p = profile{
		servers: 3, nodes: int(w.between(3, 6)), chaos: 80 * sec, jobs: 35,
		policy: q.policy, longTasks: 0.3, alwaysRestart: true, singles: true,
		snapshotEvery: q.snapshotEvery, trailing: q.trailing, checkEvery: q.checkEvery,
		spikeMax: 50 * ms, slowRaftMean: sec, slowWindowMean: sec, slowKill: 0.8,
		cut: [2]int64{sec, 10 * sec},
	}
	p.policy.TTLBatch, p.policy.TTLTraining = 15*gpuai.Second, 15*gpuai.Second
	p.policy.Grace = 2 * gpuai.Second
	p.policy.FlapLimit = 100
}
