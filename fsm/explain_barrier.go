package fsm

import (
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
)

// explainRanks is how many members an explanation names that others wait for.
const explainRanks = 8

// barrierReason says whom the members of a group behind its barrier wait for.
func (m *Machine) barrierReason(group uint32) (gpuai.Reason, bool) {
	g := m.groups.Get(group)
	if !g.held || m.jobs.Get(g.job.slot()).stopping {
		return gpuai.Reason{}, false
	}
	var waits []string
	out := gpuai.Reason{Code: gpuai.GangNotReady}
	if g.broken != gpuai.CauseNone {
		return out, false // it is being stopped, which is told where its tasks wait again
	}
	if g.unready > 0 {
		waits = append(waits, m.lateMembers(g))
	}
	for x := m.jobs.Get(g.job.slot()).group; g.joint && x != 0; x = m.groups.Get(x.slot()).next {
		if o := m.groups.Get(x.slot()); x != refTo(group) && o.joint && !o.ended && !o.allReady() {
			waits = append(waits, m.lateGroup(o))
		}
	}
	if len(waits) == 0 {
		return out, false
	}
	word := "ranks"
	if !g.gang {
		word = "tasks"
	}
	out.Message = fmt.Sprintf("%s%d of %d %s are prepared and none starts before all are: waits for %s",
		m.groupPrefix(group), g.live()-g.unready, g.live(), word, strings.Join(waits, "; for "))
	if bound := m.policy.Get().GangReadyMax; g.readyBy != 0 {
		out.Message += fmt.Sprintf("; limit %s, over in %s", bound, max(gpuai.Duration(g.readyBy-m.Time()), 0))
	} else if bound > 0 {
		out.Message += fmt.Sprintf("; limit %s from the first that is", bound)
	}
	return out, true
}

// groupPrefix names a group where its job has several.
func (m *Machine) groupPrefix(group uint32) string {
	g := m.groups.Get(group)
	if j := m.jobs.Get(g.job.slot()); m.groups.Get(j.group.slot()).next == 0 {
		return ""
	}
	return fmt.Sprintf("group %d: ", g.idx)
}

// lateMembers names the members of a group that keep its barrier up, the first
// ones with their nodes.
func (m *Machine) lateMembers(g *groupRec) string {
	word, kind := "rank", "ranks"
	if !g.gang {
		word, kind = "task", "tasks"
	}
	var ranks, where []string
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		x := m.tasks.Get(t.slot())
		if x.lease == 0 || !m.leases.Get(x.lease.slot()).unready() {
			continue
		}
		if len(ranks) == explainRanks {
			break
		}
		l := m.leases.Get(x.lease.slot())
		ranks = append(ranks, fmt.Sprint(x.idx))
		where = append(where, fmt.Sprintf("%s %d on node %s since %s", word, x.idx, m.nodeName(l.node), gpuai.Duration(m.Time()-l.granted)))
	}
	list := strings.Join(ranks, ", ")
	if more := int(g.unready) - len(ranks); more > 0 {
		list = fmt.Sprintf("%s and %d more", list, more)
	}
	if len(ranks) == 1 && g.unready == 1 {
		kind = word
	}
	return fmt.Sprintf("%s %s to be prepared (%s)", kind, list, strings.Join(where, ", "))
}

// lateGroup says why a group is not ready that another one starts with.
func (m *Machine) lateGroup(g *groupRec) string {
	switch {
	case g.held && g.broken == gpuai.CauseNone && g.unready > 0:
		return fmt.Sprintf("group %d, %s", g.idx, m.lateMembers(g))
	default:
		return fmt.Sprintf("group %d to be placed again", g.idx)
	}
}
