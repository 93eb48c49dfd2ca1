package fsm

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A nodeShare is what a node adds to the region's capacity.
type nodeShare struct {
	gpus, free uint8
	open       bool
	touched    bool // it may be another since
}

func (m *Machine) shareOf(slot uint32) (x nodeShare) {
	n := m.nodes.Get(slot)
	if n.state != gpuai.NodeReady || n.drained || n.refuses || n.outside {
		return x
	}
	return nodeShare{open: true, gpus: n.devices - uint8(bits.OnesCount64(n.broken)), free: m.sched.FreeDevices(slot)}
}

// A capacityCount is the region's capacity and what each node has of it, so that
// another count looks only at nodes that were touched.
type capacityCount struct {
	gpuai.Capacity
	shares  []nodeShare // by slot
	touched []uint32
}

// countCapacity looks at every node.
func (m *Machine) countCapacity() *capacityCount {
	c := &capacityCount{shares: make([]nodeShare, m.nodes.Len())}
	for s := range m.nodes.Len() {
		c.shares[s] = m.shareOf(s)
		c.add(c.shares[s], 1)
	}
	c.total(m)
	return c
}

// add adds a share as often as n says, which may be below 0.
func (c *capacityCount) add(x nodeShare, n int32) {
	if x.open {
		c.NodesOpen += uint32(n)
		c.GPUs += uint32(n) * uint32(x.gpus)
		c.FreeGPUs += uint32(n) * uint32(x.free)
	}
}

// total sets what the machine sums up itself.
func (c *capacityCount) total(m *Machine) {
	meta := m.meta.Get()
	c.Nodes, c.GPUMilliUsed, c.TasksPending = m.nodes.Len(), meta.milliUsed, meta.pending
	c.QueueGPUs, _ = m.queueTotals()
}

// touch says that a node may have another share now.
func (c *capacityCount) touch(m *Machine, id gpuai.NodeID) {
	slot, ok := m.nodeSlot(id)
	if !ok {
		return
	}
	for uint32(len(c.shares)) <= slot {
		c.shares = append(c.shares, nodeShare{})
	}
	if x := &c.shares[slot]; !x.touched {
		x.touched = true
		c.touched = append(c.touched, slot)
	}
}

// again counts once more, after the nodes that changed were touched.
func (c *capacityCount) again(m *Machine) gpuai.Capacity {
	for _, slot := range c.touched {
		c.add(c.shares[slot], -1)
		c.shares[slot] = m.shareOf(slot)
		c.add(c.shares[slot], 1)
	}
	c.touched = c.touched[:0]
	c.total(m)
	return c.Capacity
}
