package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// ReportLease tells what became of a lease's task. It is idempotent by (lease,
// Seq) and counts only from the incarnation that the lease belongs to.
//
// Rejected: NotFound for a token that is not kept, Conflict for one that has
// ended, belongs to another incarnation or another node, or was granted before
// the region was restored from a backup; RateLimited for a
// digest that cannot be kept, to be told again later. None changes
// anything: a stale runner's report has no effect.
type ReportLease struct {
	Node   gpuai.NodeID
	Report gpuai.Report
}

// Append appends the encoded command to dst.
func (c *ReportLease) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeReportLease, env, func(b []byte) []byte {
		return wire.AppendReport(wire.AppendStr(b, string(c.Node)), &c.Report)
	})
}

func (m *Machine) applyReportLease(r *wire.Reader) Result {
	id := gpuai.NodeID(r.Str())
	rep, err := wire.ReadReportFrom(r)
	if err != nil || r.Done() != nil || !m.knows(&rep) {
		return malformed
	}
	node, ok := m.nodeSlot(id)
	if !ok {
		return rejected(gpuai.NotFound, "no such node")
	}
	if rep.Lease.Epoch() < m.Epoch() {
		return rejected(gpuai.Conflict, "the lease is void: it was granted before the region was restored from a backup")
	}
	slot, ok := m.leaseSlot(rep.Lease)
	if !ok {
		return rejected(gpuai.NotFound, "no such lease")
	}
	l := m.leases.Get(slot)
	switch {
	case l.node != node || l.incarnation != rep.Incarnation:
		return rejected(gpuai.Conflict, "the lease belongs to another incarnation or node")
	case rep.Seq <= l.seq:
		return Result{} // a repeated report, answered again
	case !l.live():
		return rejected(gpuai.Conflict, "the lease has ended")
	case rep.State == gpuai.ReportResolved && !m.roomForDigest(slot, rep.Image):
		return rejected(gpuai.RateLimited, "the region has no room for the digest of one more image: tell it again later")
	}
	m.leases.Mut(slot).seq = rep.Seq
	switch rep.State {
	case gpuai.ReportRunning:
		m.started(slot)
		return Result{}
	case gpuai.ReportResolved:
		m.resolved(slot, rep.Image)
		return Result{}
	case gpuai.ReportPrepared:
		m.keepPoint(slot, rep.Mesh)
		m.prepared(slot)
		return Result{}
	}
	m.quarantineDevices(slot, &rep)
	end := leaseEnd{cause: endCause(m.leases.Get(slot), rep.State), exit: rep.ExitCode}
	if m.Level() >= LevelPlacement {
		end.code, end.reason = rep.EndCode, cleanReason(rep.Reason)
	}
	m.endLease(slot, end)
	return Result{}
}

// knows reports whether builds of the state's level read a report.
func (m *Machine) knows(rep *gpuai.Report) bool {
	if m.Level() < LevelPlacement && (rep.State == gpuai.ReportResolved || rep.State == gpuai.ReportPrepared || rep.EndCode != gpuai.EndOther) {
		return false
	}
	return rep.State != gpuai.ReportResolved || gpuai.ValidDigest(rep.Image)
}

// started notes that a lease's task runs.
func (m *Machine) started(slot uint32) {
	l := m.leases.Mut(slot)
	if l.state != gpuai.LeaseGranted {
		return
	}
	m.leftBarrier(slot)
	l = m.leases.Mut(slot)
	l.prepared = l.prepared || m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).held
	l.state, l.started, l.modified = gpuai.LeaseRunning, m.now.time, m.now.index
	task := l.task.slot()
	m.setTask(task, gpuai.TaskRunning)
	j := m.jobs.Get(m.groups.Get(m.tasks.Get(task).group.slot()).job.slot())
	if j.runTime > 0 {
		m.timers.set(m.now.time.Add(j.runTime), timerLease, slot)
	}
	m.emit(m.leaseEvent(gpuai.LeaseStarted, slot))
	m.lift(m.tasks.Get(task).group.slot())
}

// endCause is why a lease ends by a report. A task that was being stopped ends
// by the reason of the stop, unless it finished by itself.
func endCause(l *leaseRec, s gpuai.ReportState) gpuai.LeaseCause {
	if s == gpuai.ReportDone {
		return gpuai.CauseDone
	}
	if l.state == gpuai.LeaseRevoking {
		return l.cause
	}
	switch s {
	case gpuai.ReportFailed:
		return gpuai.CauseFailed
	case gpuai.ReportLost:
		return gpuai.CauseNodeRestarted
	case gpuai.ReportGPUError:
		return gpuai.CauseGPU
	default: // fenced, unkillable, stopped without an order
		return gpuai.CauseFenced
	}
}

// quarantineDevices takes devices out of use that a report says are not clean:
// all of the lease's when its task could not be killed.
func (m *Machine) quarantineDevices(slot uint32, rep *gpuai.Report) {
	l := m.leases.Get(slot)
	bad := uint64(0)
	if rep.State == gpuai.ReportUnkillable {
		bad = l.devices
	}
	if len(rep.Unclean) > 0 {
		devices := m.nodeBody(l.node).spec.Devices
		for _, id := range rep.Unclean {
			if i := deviceIndex(devices, id); i >= 0 {
				bad |= l.devices & (1 << i)
			}
		}
	}
	if bad == 0 {
		return
	}
	n := m.nodes.Mut(l.node)
	for i := range n.devices {
		if bad>>i&1 != 0 && n.broken>>i&1 == 0 {
			n.broken |= 1 << i
			m.sched.SetDevice(l.node, i, false)
		}
	}
	m.lostDevices(l.node, bad)
	n.modified = m.now.index
	m.emit(gpuai.Event{Kind: gpuai.NodeChanged, Node: m.nodeName(l.node), Incarnation: n.incarnation, NodeState: n.state, Drained: n.drained})
}
