package decide

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// leaseSet takes a full set or a diff.
func (c *Core) leaseSet(now int64, s *gpuai.LeaseSet) {
	if !c.ours(s.Epoch, s.Incarnation) || s.Index < c.floor || !s.Full && !c.settled {
		return
	}
	c.floor, c.highest = s.Index, max(c.highest, s.Index)
	c.settled = true
	listed := make(map[gpuai.Token]bool, len(s.Leases))
	for i := range s.Leases {
		a := &s.Leases[i]
		// Only leases of this incarnation are this agent's to run.
		if a.Lease.Incarnation == c.id.Incarnation && a.Lease.ID.Epoch() == c.id.Epoch {
			listed[a.Lease.ID] = true
			c.move(now, a.Lease.ID, a, sightOf(a))
		}
	}
	for _, t := range s.Ended {
		c.move(now, t, nil, AssignedEnded)
	}
	if !s.Full {
		return
	}
	for _, t := range c.tokens() {
		if !listed[t] && c.grantedBy(t, s.Index) {
			c.move(now, t, nil, AssignedEnded)
		}
	}
}

func sightOf(a *gpuai.Assignment) Assigned {
	switch a.Lease.State {
	case gpuai.LeaseRevoking:
		return AssignedRevoking
	case gpuai.LeaseEnded:
		return AssignedEnded
	default:
		return AssignedLive
	}
}

// move reconciles one lease with what the region says of it.
func (c *Core) move(now int64, t gpuai.Token, a *gpuai.Assignment, as Assigned) {
	l := c.leases[t]
	if l != nil && a != nil {
		l.a.Lease.State, l.a.Lease.Cause = a.Lease.State, a.Lease.Cause
		if l.phase == Stopping && l.saving && a.Lease.Cause == gpuai.CauseStopped {
			c.stop(l) // its user has no use for what it would save
		}
		c.adopted(now, l, a.Lease.Incarnation)
		if as == AssignedLive && !a.Held() && (a.Gang != nil || l.a.Gang == nil) {
			c.regroup(l, a)
		}
	}
	switch Judge(Sight{Assigned: as, Recorded: c.recorded(t)}) {
	case MoveTake:
		l = &lease{a: *a, phase: Waiting, told: c.floor}
		c.leases[t] = l
		c.tryStart(now, l)
	case MoveStop:
		c.revoke(l)
	case MoveFence:
		c.kill(l, gpuai.ReportFenced, "the region has ended the lease")
	case MoveDrop:
		delete(c.leases, t)
	case MoveRefuse:
		if l == nil {
			l = &lease{a: *a}
			c.leases[t] = l
		}
		c.finish(now, l, gpuai.Report{State: gpuai.ReportStopped, Reason: "stopped before it was started"})
	}
}

// regroup takes what the region says now of a lease that need not wait: that all are
// ready that it waits for, and where the others of its gang are.
func (c *Core) regroup(l *lease, a *gpuai.Assignment) {
	lifted := l.held()
	if !lifted && (a.Gang == nil || l.a.Gang == nil || slices.EqualFunc(l.a.Gang.Peers, a.Gang.Peers, samePeer)) {
		return
	}
	l.a.Gang, l.a.Hold, l.told = a.Gang, a.Hold, c.floor
	if l.holds() {
		c.meet(l)
	}
	if lifted && l.phase == Prepared {
		c.launch(l)
	}
}

func samePeer(a, b gpuai.MeshPeer) bool {
	return a.Address == b.Address && a.MeshPoint == b.MeshPoint && slices.Equal(a.Ranks, b.Ranks)
}

// recorded is what this core knows of a lease.
func (c *Core) recorded(t gpuai.Token) Recorded {
	if c.finished[t] {
		return RecordedEnded
	}
	l := c.leases[t]
	switch {
	case l == nil:
		return RecordedNot
	case l.phase == Waiting:
		return RecordedWaiting
	case l.phase >= Starting && l.phase <= Running:
		return RecordedRunning
	case l.phase == Stopping:
		return RecordedStopping
	default:
		return RecordedEnded
	}
}
