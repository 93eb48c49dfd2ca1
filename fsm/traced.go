package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// MaxTraced bounds the grants that a machine explains as it makes them.
const MaxTraced = 5

// A tracing is the grants that are to be explained. It is no state: a machine
// that replays has one, all others have none.
type tracing struct {
	want []gpuai.Token
	got  []gpuai.PlacedWhy
}

// TraceGrants has the machine explain, when it comes to them, why it chooses
// the places of these leases, the first MaxTraced of them. It is for machines
// that replay the log: each of them looks at every node.
func (m *Machine) TraceGrants(tokens []gpuai.Token) {
	m.traced = &tracing{want: tokens[:min(MaxTraced, len(tokens))]}
}

// Traced returns what TraceGrants asked for, as far as it was granted since.
func (m *Machine) Traced() []gpuai.PlacedWhy {
	if m.traced == nil {
		return nil
	}
	return m.traced.got
}

// trace explains a grant that is about to take its place.
func (m *Machine) trace(task uint32, fit scheduler.Fit) {
	token := gpuai.MakeToken(m.meta.Get().epoch, m.now.index, uint16(m.now.ordinal))
	if !slices.Contains(m.traced.want, token) {
		return
	}
	t := m.tasks.Get(task)
	g := m.groups.Get(t.group.slot())
	j := m.jobs.Get(g.job.slot())
	why, exact := m.sched.Why(g.shape, fit)
	why.TaskRef = gpuai.TaskRef{Job: j.id, Group: uint16(g.idx), Task: t.idx}
	why.Lease, why.Node, why.Index = token, m.nodeName(fit.Node), m.now.index
	why.Waited = gpuai.Duration(m.now.time - j.submittedAt)
	if !exact {
		why.Steps, why.Note = nil, "the gang's placement, or the packing policy of that time, chose another place than the order of best fit would"
	}
	for i := range m.traced.got { // granted, taken back, and granted again
		if m.traced.got[i].Lease == token {
			m.traced.got[i] = why
			return
		}
	}
	m.traced.got = append(m.traced.got, why)
}
