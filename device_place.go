package gpuai

import "strconv"

// A NUMANode is one more than the number of a device's NUMA node; 0 is not known.
// In JSON it is the number.
type NUMANode uint8

// NUMAOf returns the NUMA node of a number as drivers give it: below 0, and above
// what is kept, it is not known.
func NUMAOf(number int32) NUMANode {
	if number < 0 || number >= 1<<8-1 {
		return 0
	}
	return NUMANode(number + 1)
}

// Number returns the node's number; false when it is not known.
func (n NUMANode) Number() (number uint8, known bool) { return uint8(n) - 1, n != 0 }

// MarshalJSON writes the number, null when it is not known.
func (n NUMANode) MarshalJSON() ([]byte, error) {
	if n == 0 {
		return []byte("null"), nil
	}
	return strconv.AppendUint(nil, uint64(n-1), 10), nil
}

// UnmarshalJSON reads a number or null.
func (n *NUMANode) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = 0
		return nil
	}
	v, err := strconv.ParseUint(string(b), 10, 8)
	if err != nil || v == 1<<8-1 {
		return NewError(InvalidSpec, "a NUMA node is a number from 0 to 254")
	}
	*n = NUMANode(v + 1)
	return nil
}

// A DevicePlace says to which devices of its node a device is near. Numbers count
// from 1 in the order of the devices; 0 is none, or not known.
type DevicePlace struct {
	NUMA NUMANode `json:"numa_node,omitzero"`
	// LinkIsland is of the devices that NVLink or XGMI joins, directly or through
	// others of them.
	LinkIsland uint8 `json:"link_island,omitzero"`
	// PCIeGroup is of the devices that reach one another through PCIe switches,
	// without the CPU's host bridge.
	PCIeGroup uint8 `json:"pcie_group,omitzero"`
}

// Places reports whether the place of any device is known.
func Places(ds []Device) bool {
	for i := range ds {
		if ds[i].DevicePlace != (DevicePlace{}) {
			return true
		}
	}
	return false
}
