package scheduler

import "math/bits"

// A DeviceCount is the devices of one kind of one node, by what they can take.
type DeviceCount struct {
	// Pool numbers the kind, with all else that its node's placements share,
	// until the next change of a node. KindOf names it.
	Pool   uint16
	Free   uint8 // whole ones
	Shared uint8 // free in part
	Taken  uint8 // with nothing free
	Closed uint64
}

// CountDevices appends the devices of a registered node, one count for each
// kind. Closed are the device numbers that take no new leases, whatever is free
// of them; they are in no other count.
func (s *State) CountDevices(dst []DeviceCount, slot uint32) []DeviceCount {
	if !s.Known(slot) {
		return dst
	}
	n := s.nodes.Get(slot)
	for u := &n.unit; u != nil; u = s.next(u) {
		if u.devs == 0 {
			continue // a node without devices
		}
		dst = append(dst, DeviceCount{
			Pool: u.pool, Free: ones(u.whole), Shared: ones(u.parts),
			Taken: ones(u.usable &^ (u.whole | u.parts)), Closed: u.devs &^ u.usable,
		})
	}
	return dst
}

// FreeDevices returns how many devices of a node are wholly free and may be taken.
func (s *State) FreeDevices(slot uint32) (free uint8) {
	if !s.Known(slot) {
		return 0
	}
	for u := &s.nodes.Get(slot).unit; u != nil; u = s.next(u) {
		free += ones(u.whole)
	}
	return free
}

func ones(m uint64) uint8 { return uint8(bits.OnesCount64(m)) }

// KindOf returns vendor and model of a pool's devices.
func (s *State) KindOf(pool uint16) (vendor, model string) {
	v := viewPool(s.poolBytes.Append(nil, s.pools.Get(uint32(pool)).def))
	return string(v.vendor), string(v.model)
}
