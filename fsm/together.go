package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// The groups of a job that start together wait as one: the first is in the
// queue and stands for all, the tasks of the others count as waiting. Once they
// have started each is by itself.

// placeAs notes on a new group what its job says of its placement.
func (m *Machine) placeAs(group uint32, v *wire.GroupView, job *wire.JobView) {
	if !job.Extended {
		return
	}
	g := m.groups.Mut(group)
	if v.MinCount < v.Count {
		g.min = v.MinCount
	}
	if v.Gang || job.Together {
		g.same, g.near = gpuai.Topology(job.Same), gpuai.Topology(job.Near)
	}
	switch {
	case job.Together && g.idx == 0:
		g.together = togetherFirst
	case job.Together:
		g.together, g.waiting = togetherOther, g.count
	}
}

// togetherKey returns how many tasks the groups of a job have, and a number
// that jobs share which need the same.
func (m *Machine) togetherKey(job uint32) (tasks uint32, sig uint64) {
	for x := m.jobs.Get(job).group; x != 0; x = m.groups.Get(x.slot()).next {
		g := m.groups.Get(x.slot())
		tasks += g.count
		sig = mem.Mix(sig^uint64(g.shape), uint64(g.count)<<32|uint64(g.least()))
		sig = mem.Mix(sig, uint64(g.same)<<8|uint64(bool8(g.gang)))
	}
	return tasks, sig | 1
}

// placeTogether gives leases to all groups of a job that start together, or to
// none. The one that is hardest to place is placed first: that with the most
// devices for a task.
func (m *Machine) placeTogether(group uint32) (placed, final bool) {
	job := m.groups.Get(group).job.slot()
	if m.now.ordinal+m.jobs.Get(job).tasks > MaxLeasesPerEntry {
		return false, m.now.ordinal == 0
	}
	m.gather(group)
	return m.startTogether(m.groups.Get(group).same), true
}

// leaveTogether has a group be by itself from now on, which starts.
func (m *Machine) leaveTogether(group uint32) {
	if m.groups.Get(group).together != 0 {
		g := m.groups.Mut(group)
		g.together, g.waiting, g.joint = 0, 0, m.jobs.Get(g.job.slot()).tasks > 1
		m.leaveKind(group)
		m.joinKind(group)
	}
}

// gather puts the groups that start with one into m.members: of a job whose
// groups start together all of them, the hardest to place first, with the most
// devices for a task.
func (m *Machine) gather(group uint32) {
	g := m.groups.Get(group)
	if m.members = m.members[:0]; g.together == 0 {
		m.members = append(m.members, group)
		return
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		m.members = append(m.members, x.slot())
		for i := len(m.members) - 1; i > 0 && m.groups.Get(m.members[i]).gpus > m.groups.Get(m.members[i-1]).gpus; i-- {
			m.members[i], m.members[i-1] = m.members[i-1], m.members[i]
		}
	}
}

// togetherEver reports whether the registered nodes, empty and healthy, may hold
// all groups of a job at a time.
func (m *Machine) togetherEver(job uint32) bool {
	var buf [gpuai.MaxGroups]scheduler.Members
	needs, same := buf[:0], gpuai.TopologyNone
	for x := m.jobs.Get(job).group; x != 0; x = m.groups.Get(x.slot()).next {
		g := m.groups.Get(x.slot())
		same = g.same
		needs = append(needs, scheduler.Members{Shape: g.shape, Count: g.count, Min: g.least()})
	}
	return m.sched.EverHolds(same, needs)
}
