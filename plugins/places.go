package plugins

import "github.com/gpuai/gpuai"

// Place sets where each device is within its node, by what the drivers say of it in
// their snapshots: links and NUMA nodes. Devices come in their order; groups that
// have one device only are none. Of devices that are not in the list, as partitioned
// ones, nothing is taken.
func Place(devices []gpuai.Device, snaps []Snapshot) {
	at := make(map[gpuai.DeviceID]int, len(devices))
	for i := range devices {
		devices[i].DevicePlace = gpuai.DevicePlace{}
		at[devices[i].ID] = i
	}
	islands, groups := newSets(len(devices)), newSets(len(devices))
	for i := range snaps {
		for _, d := range snaps[i].Details {
			if k, ok := at[d.ID]; ok {
				devices[k].NUMA = gpuai.NUMAOf(d.NUMANode)
			}
		}
		for _, l := range snaps[i].Links {
			a, known := at[l.A]
			b, both := at[l.B]
			if !known || !both {
				continue
			}
			switch l.Kind {
			case LinkNVLink, LinkXGMI, LinkSameBoard:
				islands.join(a, b)
			case LinkPCIeSwitch, LinkPCIeMultiSwitch:
				groups.join(a, b)
			}
		}
	}
	of, behind := islands.numbers(), groups.numbers()
	for i := range devices {
		devices[i].LinkIsland, devices[i].PCIeGroup = of[i], behind[i]
	}
}

// sets are disjoint sets of numbers: the least one of its own names each.
type sets []int

func newSets(n int) sets {
	s := make(sets, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func (s sets) name(i int) int {
	for s[i] != i {
		i = s[i]
	}
	return i
}

func (s sets) join(a, b int) {
	if a, b = s.name(a), s.name(b); a != b {
		s[max(a, b)] = min(a, b)
	}
}

// numbers counts the sets of more than one from 1 on; 0 for the others.
func (s sets) numbers() []uint8 {
	size := make([]int, len(s))
	for i := range s {
		size[s.name(i)]++
	}
	out, last := make([]uint8, len(s)), uint8(0)
	for i := range s {
		switch first := s.name(i); {
		case size[first] < 2:
		case first == i:
			last++
			out[i] = last
		default:
			out[i] = out[first]
		}
	}
	return out
}
