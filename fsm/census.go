package fsm

import (
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// A DeviceCount is how many devices of one kind there are, by state.
type DeviceCount struct {
	Vendor, Model string
	// Free, Shared and Allocated count healthy devices: with all, a part, or
	// nothing free.
	Free, Shared, Allocated uint32
	// Unhealthy counts the others by what is wrong with them.
	Unhealthy [NumDeviceHealth]uint32
	// Blocks are the wholly free devices of nodes that take new leases.
	Blocks gpuai.FreeBlocks
}

// NumDeviceHealth is how many states of health there are.
const NumDeviceHealth = int(gpuai.DeviceQuarantined) + 1

// CountDevices counts the devices of the nodes from a slot on, at most MaxScan
// nodes, and returns the slot to go on from; 0 at the end. A kind may come in
// several counts. What nodes said of themselves is read only where a device is
// not healthy.
func (m *Machine) CountDevices(from uint32) (counts []DeviceCount, next uint32) {
	var units []scheduler.DeviceCount
	pools := make(map[uint16]int) // place in counts
	for s := from; s < m.nodes.Len(); s++ {
		if s-from == MaxScan {
			return counts, s
		}
		units = m.sched.CountDevices(units[:0], s)
		for i := range units {
			u := &units[i]
			at, ok := pools[u.Pool]
			if !ok {
				at = len(counts)
				pools[u.Pool] = at
				vendor, model := m.sched.KindOf(u.Pool)
				counts = append(counts, DeviceCount{Vendor: vendor, Model: model})
			}
			c := &counts[at]
			if c.Free += uint32(u.Free); m.nodes.Get(s).open() {
				c.Blocks.Add(uint32(u.Free))
			}
			c.Shared += uint32(u.Shared)
			c.Allocated += uint32(u.Taken)
			m.countClosed(c, s, u.Closed)
		}
	}
	return counts, 0
}

// countClosed counts devices of a node that take no leases.
func (m *Machine) countClosed(c *DeviceCount, slot uint32, devices uint64) {
	if devices == 0 {
		return
	}
	spec := m.nodeBody(slot).spec
	for ; devices != 0; devices &= devices - 1 {
		health := gpuai.DeviceQuarantined
		if i := bits.TrailingZeros64(devices); i < len(spec.Devices) && spec.Devices[i].Health != gpuai.DeviceHealthy {
			health = spec.Devices[i].Health
		}
		c.Unhealthy[health]++
	}
}

// A QueueCount is how many waiting groups share class and reason.
type QueueCount struct {
	Class gpuai.Class
	// Reason is why the first group of each kind waits, ReasonNone where
	// nobody looked.
	Reason gpuai.ReasonCode
	Jobs   uint32
}

// QueueCounts sums up what waits: groups of one priority and shape count with
// the first of them, its class and its reason. Reasons are found for MaxScan
// kinds at most.
func (m *Machine) QueueCounts() []QueueCount {
	var out []QueueCount
	n := 0
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		c := QueueCount{Class: m.jobs.Get(m.groups.Get(r.first.slot()).job.slot()).class}
		if n++; n <= MaxScan {
			c.Reason = m.whyBucket(r)
		}
		at := slices.IndexFunc(out, func(x QueueCount) bool { return x.Class == c.Class && x.Reason == c.Reason })
		if at < 0 {
			at = len(out)
			out = append(out, c)
		}
		out[at].Jobs += r.groups
	}
	return out
}
