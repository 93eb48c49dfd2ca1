package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// reasonsRefused adds to rs for each reason why agents take no new task how many
// nodes there are of it, and returns how many in all: those that would else be open.
func (m *Machine) reasonsRefused(rs []gpuai.Reason) (out []gpuai.Reason, nodes uint32) {
	for _, code := range []gpuai.ReasonCode{gpuai.DiskFull, gpuai.NodeRefuses} {
		r := gpuai.Reason{Code: code}
		detail, name := "", gpuai.NodeID("")
		for s := range m.nodes.Len() {
			n := m.nodes.Get(s)
			if !n.refuses || n.state != gpuai.NodeReady || n.drained || n.outside {
				continue
			}
			body := m.nodeBody(s)
			if f := body.spec.Refuses; f != nil && f.Code == code {
				if r.Nodes++; r.Nodes == 1 {
					detail, name = f.Detail, m.nodeName(s)
				}
			}
		}
		if r.Nodes == 0 {
			continue
		}
		r.Message = fmt.Sprintf("%d of %d nodes take no new task", r.Nodes, m.nodes.Len())
		if m.asker == "" { // the words are the agent's, whoever's that is
			r.Message += fmt.Sprintf("; %s says: %s", name, detail)
		}
		if r.Fix = "see to what they say (gpuai node status): until then they only finish what they run"; code == gpuai.DiskFull {
			r.Fix = "make room on the disk of these nodes' data directories: until then they only finish what they run"
		}
		rs = append(rs, r)
		nodes += r.Nodes
	}
	return rs, nodes
}
