package fsm

import "github.com/gpuai/gpuai"

// revoke asks the agent to stop a lease's task. Its devices stay held, and the
// task is not placed again, until the agent reports the end or the node's
// silence ends the lease.
func (m *Machine) revoke(slot uint32, cause gpuai.LeaseCause) {
	if old := m.leases.Get(slot); old.state >= gpuai.LeaseRevoking {
		if old.state == gpuai.LeaseRevoking && cause == gpuai.CauseStopped {
			told := old.cause
			m.leases.Mut(slot).cause = cause // a user's stop outranks every other reason
			if told != cause && m.Level() >= LevelPlacement {
				m.emit(m.leaseEvent(gpuai.LeaseRevokingEvent, slot)) // it need not save its work
			}
		}
		return
	}
	l := m.leases.Mut(slot)
	m.timers.clear(&l.timer)
	if l.bill != 0 {
		m.timers.clear(&m.bills.Mut(l.bill.slot()).timer)
	}
	m.unprotect(slot)
	l = m.leases.Mut(slot)
	l.state, l.cause, l.modified = gpuai.LeaseRevoking, cause, m.now.index
	m.leaving(slot)
	m.leaseLeaves(slot)
	m.meta.Mut().revoking++
	m.now.work -= workEnd
	m.emit(m.leaseEvent(gpuai.LeaseRevokingEvent, slot))
}

// endLease ends a live lease and decides what becomes of its task. The room it
// held is looked at by refill.
func (m *Machine) endLease(slot uint32, end leaseEnd) {
	l := m.leases.Mut(slot)
	if l.state == gpuai.LeaseRevoking {
		m.meta.Mut().revoking--
	}
	m.timers.clear(&l.timer)
	m.unprotect(slot)
	m.closeBill(slot, end.cause)
	m.unlinkLease(slot)
	m.leftBarrier(slot)
	l = m.leases.Mut(slot)
	l.state, l.cause, l.exit = gpuai.LeaseEnded, end.cause, end.exit
	l.ended, l.modified = m.now.time, m.now.index
	m.giveRoom(l)
	m.gained(l.node)
	m.left(slot)
	m.now.work -= workEnd
	m.noteEnd(slot, &end)
	e := m.leaseEvent(gpuai.LeaseEndedEvent, slot)
	e.EndCode, e.Reason = end.code, end.reason
	m.emit(e)
	task := m.leases.Get(slot).task.slot()
	t := m.tasks.Mut(task)
	t.exit = end.exit
	job := m.groups.Get(t.group.slot()).job.slot()
	m.jobs.Mut(job).live--
	m.taskEnded(task, end.cause)
	m.lift(m.tasks.Get(task).group.slot())
	m.unthrottle(job)
	if j := m.jobs.Get(job); j.live == 0 && j.status == gpuai.JobRunning {
		m.setJobStatus(job, gpuai.JobPending) // what is left waits again
	}
}

// taskEnded decides what becomes of a task whose lease ended.
func (m *Machine) taskEnded(task uint32, cause gpuai.LeaseCause) {
	group := m.tasks.Get(task).group.slot()
	g := m.groups.Get(group)
	job := g.job.slot()
	switch {
	case cause == gpuai.CauseDone:
		m.setTask(task, gpuai.TaskSucceeded)
	case m.jobs.Get(job).stopping || cause == gpuai.CauseStopped:
		m.setTask(task, gpuai.TaskStopped)
	case g.gang:
		m.gangMemberLost(task, cause)
		return
	default:
		m.retryOrFail(task, cause)
	}
	if g.gang {
		m.gangSettle(group)
	} else {
		m.groupSettle(group)
	}
}

// restartOn returns which cause of the restart policy a lease's end is; 0 when
// the task is placed again in any case.
func restartOn(cause gpuai.LeaseCause) gpuai.RestartOn {
	switch cause {
	case gpuai.CauseFailed:
		return gpuai.OnFailure
	case gpuai.CauseGPU:
		return gpuai.OnGPUError
	case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted, gpuai.CauseNotReady:
		return gpuai.OnNodeLost
	default: // drained, preempted, gang, restored
		return 0
	}
}

// finalStatus is a task's last state after an end that is not retried.
func finalStatus(cause gpuai.LeaseCause) gpuai.TaskStatus {
	if restartOn(cause) == gpuai.OnNodeLost || cause == gpuai.CauseRestored {
		return gpuai.TaskLost
	}
	return gpuai.TaskFailed
}

// isOver reports whether a task, or a gang, whose lease ended by cause after
// used attempts is not placed again.
func (r *groupRec) isOver(cause gpuai.LeaseCause, used uint16) bool {
	switch on := restartOn(cause); {
	case cause == gpuai.CauseRunTime:
		return true
	case cause == gpuai.CauseRestored: // its outcome is unknown, and no attempt of its own failed
		return r.on&gpuai.OnNodeLost == 0
	case on == 0:
		return false
	default:
		return r.on&on == 0 || used >= r.tries
	}
}

// retryOrFail places a task again, now or after its back-off, or ends it.
func (m *Machine) retryOrFail(task uint32, cause gpuai.LeaseCause) {
	group := m.tasks.Get(task).group.slot()
	g := m.groups.Get(group)
	on := restartOn(cause)
	if g.isOver(cause, m.tasks.Get(task).used) {
		m.setTask(task, finalStatus(cause))
		return
	}
	m.setTask(task, gpuai.TaskPending)
	m.requeued(task)
	if on == 0 {
		m.putAgain(task)
		m.enqueue(group, 1)
		return
	}
	t := m.tasks.Mut(task)
	wait := backOff(gpuai.Duration(g.backoff), t.used)
	t.used++
	m.jobs.Mut(g.job.slot()).restarts++
	t.retryAt = m.now.time.Add(wait)
	m.groups.Mut(group).waiting++
	m.timers.set(t.retryAt, timerTask, task)
}

// backOff doubles with each attempt, up to MaxBackoff.
func backOff(first gpuai.Duration, used uint16) gpuai.Duration {
	if used >= 20 {
		return gpuai.MaxBackoff
	}
	return min(first<<used, gpuai.MaxBackoff)
}

func (m *Machine) requeued(task uint32) {
	t := m.tasks.Get(task)
	g := m.groups.Get(t.group.slot())
	m.emit(gpuai.Event{
		Kind: gpuai.TaskRequeued, Job: m.jobs.Get(g.job.slot()).id, Group: uint16(g.idx), Task: t.idx,
	})
}

// backOffOver makes a task ready whose back-off ended.
func (m *Machine) backOffOver(task uint32) {
	t := m.tasks.Mut(task)
	group := t.group.slot()
	t.retryAt = 0
	m.groups.Mut(group).waiting--
	if t.status == gpuai.TaskPending && !m.jobs.Get(m.groups.Get(group).job.slot()).stopping {
		m.putAgain(task)
		m.enqueue(group, 1)
	}
}

// groupSettle ends a group of independent tasks when all have ended.
func (m *Machine) groupSettle(group uint32) {
	g := m.groups.Get(group)
	if !g.ended && g.pending() == 0 && g.live() == 0 {
		m.endGroup(group)
	}
}

// endGroup marks a group as ended, and its job when it was the last.
func (m *Machine) endGroup(group uint32) {
	g := m.groups.Mut(group)
	g.ended, g.stop = true, 0
	m.halting.Clear(group)
	m.timers.clear(&g.timer)
	m.dropBarrier(group)
	m.dequeue(group, 0)
	m.leaveKind(group)
	m.sched.ReleaseShape(g.shape)
	job := g.job.slot()
	j := m.jobs.Mut(job)
	if j.openGroups--; j.openGroups == 0 {
		m.endJob(job)
	}
}

// endJob gives a job its last state.
func (m *Machine) endJob(job uint32) {
	c := m.taskCounts(job)
	c.Stopped -= m.spared(job)
	j := m.jobs.Mut(job)
	status := gpuai.JobSucceeded
	switch {
	case j.reason == endQueueTime || j.reason == endRunTime || j.reason == endDependency:
		status = gpuai.JobFailed
	case j.stopping:
		status = gpuai.JobStopped
	case c.Failed > 0:
		status, j.reason = gpuai.JobFailed, endTaskFailed
	case c.Lost > 0:
		status, j.reason = gpuai.JobFailed, endTaskLost
	case c.Stopped > 0:
		status, j.reason = gpuai.JobStopped, endStopped
	}
	m.timers.clear(&j.timer)
	j.endedAt = max(m.now.time, 1)
	m.setJobStatus(job, status)
	m.emit(gpuai.Event{Kind: gpuai.JobEnded, Job: j.id, JobStatus: status})
}

// queueTimeOver ends a job that has not started within its limit.
func (m *Machine) queueTimeOver(job uint32) {
	if j := m.jobs.Mut(job); j.status == gpuai.JobPending {
		j.reason = endQueueTime
		m.stopJob(job)
	}
}

// stopJob ends every task of a job that has no lease and revokes the others, from
// LevelPlacement on as far as the entry's budget goes.
func (m *Machine) stopJob(job uint32) {
	j := m.jobs.Mut(job)
	j.stopping, j.modified = true, m.now.index
	m.release(job)
	for g := j.group; g != 0; {
		next := m.groups.Get(g.slot()).next
		switch {
		case m.groups.Get(g.slot()).ended:
		case m.Level() < LevelPlacement:
			m.stopGroup(g.slot())
		default:
			m.beginStop(g.slot())
		}
		g = next
	}
	m.goOnStopping(0)
}

// stopGroup stops a group in one step: below LevelPlacement.
func (m *Machine) stopGroup(group uint32) {
	g := m.groups.Mut(group)
	fresh := g.count - g.made // never had a lease
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Mut(t.slot())
		if x.status == gpuai.TaskLeased || x.status == gpuai.TaskRunning {
			m.revoke(x.lease.slot(), gpuai.CauseStopped)
		}
		if x.status == gpuai.TaskPending {
			x.qnext = 0
			switch {
			case x.timer != 0: // in its back-off: no bucket counts it
				m.timers.clear(&x.timer)
				x.retryAt = 0
				g.waiting--
			case g.bucket != 0:
				m.buckets.Mut(g.bucket.slot()).tasks--
				m.recountDebt(g.bucket.slot())
			}
			m.setTask(t.slot(), gpuai.TaskStopped)
		}
	}
	g.again, g.againTo = 0, 0
	if fresh > 0 {
		if g.bucket != 0 {
			m.buckets.Mut(g.bucket.slot()).tasks -= uint64(fresh)
			m.recountDebt(g.bucket.slot())
		}
		g.n[gpuai.TaskStopped] += fresh
		m.meta.Mut().pending -= uint64(fresh)
	}
	m.timers.clear(&g.timer)
	g.waiting, g.retryAt = 0, 0
	m.dequeue(group, 0)
	if g.live() == 0 {
		m.endGroup(group)
	}
}
