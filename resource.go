package gpuai

import (
	"errors"
	"strconv"
)

// MilliCPU is CPU time in thousandths of a core.
type MilliCPU int64

// Bytes is an amount of memory.
type Bytes int64

// Micros is money in millionths of a US dollar. A decimal string in JSON.
type Micros int64

// String returns m in millionths, in decimal.
func (m Micros) String() string { return strconv.FormatInt(int64(m), 10) }

// MarshalText writes m in decimal.
func (m Micros) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(m), 10), nil }

// UnmarshalText reads a decimal amount.
func (m *Micros) UnmarshalText(b []byte) error {
	v, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return errors.New("an amount of money is a decimal number of millionths of a dollar")
	}
	*m = Micros(v)
	return nil
}

// Milli is thousandths of one device.
type Milli uint16

// WholeDevice is all of a device.
const WholeDevice Milli = 1000

// Resources are what one task of a group needs.
type Resources struct {
	GPU    GPURequest `json:"gpu,omitzero"`
	CPU    MilliCPU   `json:"cpu_milli,omitzero"`
	Memory Bytes      `json:"memory_bytes,omitzero"`
	// Scratch is the room on the node's disk that a task with an image has at
	// /work and /tmp, at least MinScratch; 0 leaves them in its memory.
	Scratch Bytes `json:"scratch_bytes,omitzero"`
	// Shm bounds what a task with an image may have in /dev/shm, which is part of
	// Memory; 0 means half of it.
	Shm Bytes `json:"shm_bytes,omitzero"`
	// Network is what a task with an image may reach.
	Network Network `json:"network,omitzero"`
}

// MinScratch is the least scratch space: a file system needs some for itself.
const MinScratch Bytes = 64 << 20

// A GPURequest asks for whole devices, or for a share of one.
type GPURequest struct {
	// Count is the number of devices; 0 means none.
	Count uint32 `json:"count,omitzero"`
	// Any are the alternatives, tried in order; empty means any device.
	Any []GPUAlternative `json:"any,omitempty"`
	// Share asks for a part of one device; Count is 1 then.
	Share Share `json:"share,omitzero"`
}

// A Share is a part of one device.
type Share struct {
	Milli Milli `json:"milli,omitzero"` // 1 … 999; 0 means the whole device
}

// A GPUAlternative is one acceptable kind of device. Zero fields match all.
type GPUAlternative struct {
	Vendor    string `json:"vendor,omitzero"`
	Model     string `json:"model,omitzero"`
	MemoryMin Bytes  `json:"memory_min_bytes,omitzero"` // inclusive
	MemoryMax Bytes  `json:"memory_max_bytes,omitzero"` // inclusive; 0 means no bound
}

// Op is the operator of a constraint.
type Op uint8

// The operators. In and NotIn take several values, Less … AtLeast one number.
const (
	Equal Op = iota
	NotEqual
	In
	NotIn
	Less
	AtMost
	Greater
	AtLeast
	numOps
)

var opNames = [numOps]string{"=", "!=", "in", "not_in", "<", "<=", ">", ">="}

// String returns the operator's text.
func (o Op) String() string { return enumName(opNames[:], uint8(o)) }

// MarshalText writes the operator's text.
func (o Op) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads an operator's text.
func (o *Op) UnmarshalText(b []byte) error {
	return enumParse(opNames[:], "op", b, (*uint8)(o))
}

// A Constraint must hold on a node for a task to be placed there.
//
// Attributes are "zone", "gpu.vendor", "gpu.model", "gpu.memory_bytes" and
// "label.<key>". A node without the attribute fails every operator but != and
// not_in. Less, AtMost, Greater and AtLeast compare decimal integers; a value
// that is none fails them.
type Constraint struct {
	Attribute string   `json:"attribute"`
	Op        Op       `json:"op"`
	Values    []string `json:"values"`
}
