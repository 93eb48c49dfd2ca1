package gpuai

// NodeState is how the region sees a node.
type NodeState uint8

// The states. Only a ready node takes new leases.
const (
	// NodeReady beats.
	NodeReady NodeState = iota
	// NodeSuspect has not beaten for 12 s: no new placements.
	NodeSuspect
	// NodeSilent has lost at least one lease to its silence.
	NodeSilent
	// NodeQuarantined flapped; QuarantineUntil ends it.
	NodeQuarantined
	numNodeStates
)

var nodeStateNames = [numNodeStates]string{"ready", "suspect", "silent", "quarantined"}

// String returns the state's text.
func (s NodeState) String() string { return enumName(nodeStateNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s NodeState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *NodeState) UnmarshalText(b []byte) error {
	return enumParse(nodeStateNames[:], "node state", b, (*uint8)(s))
}

// A NodeSpec is what an agent says of its host when it registers.
type NodeSpec struct {
	ID   NodeID `json:"id"`
	Zone string `json:"zone,omitzero"` // ValidName; empty means "default"
	// Rack and NVLinkDomain say which nodes of the zone are near this one, see
	// Topology. ValidName; empty means a domain of its own.
	Rack         string `json:"rack,omitzero"`
	NVLinkDomain string `json:"nvlink_domain,omitzero"`
	// Labels are matched by constraints as "label.<key>".
	Labels map[string]string `json:"labels,omitempty"`
	// Address is the host or IP where other nodes reach this one's tasks.
	Address string   `json:"address"`
	CPU     MilliCPU `json:"cpu_milli"`
	Memory  Bytes    `json:"memory_bytes"`
	// PortMin and PortCount are the ports lent to gangs for their rendezvous,
	// one for each gang whose rank 0 runs here. Agents that share a host must
	// be given ranges that do not overlap. At most MaxPorts.
	PortMin   uint16 `json:"port_min,omitzero"`
	PortCount uint16 `json:"port_count,omitzero"`
	// Price is what the contributor asks for one GPU, per hour.
	Price   Micros   `json:"price_micros_per_gpu_hour,omitzero"`
	Devices []Device `json:"devices,omitempty"`
	// Simulated says that a driver made the devices up.
	Simulated bool `json:"simulated,omitzero"`
	// Version is the agent's.
	Version string `json:"version,omitzero"`
	// Refuses says that the agent takes no new task of any kind, and why; nil: it
	// does. What runs goes on.
	Refuses *Refusal `json:"refuses,omitempty"`
}

// A Refusal is why an agent takes no new task: DiskFull, or NodeRefuses for what
// else its operator has to see to. Detail says what to do; tenants may read it.
type Refusal struct {
	Code   ReasonCode `json:"code"`
	Detail string     `json:"detail"`
}

// DeviceHealth is what a driver says of a device.
type DeviceHealth uint8

// The states of a device. Only a healthy device takes new leases.
const (
	DeviceHealthy DeviceHealth = iota
	DeviceDegraded
	DeviceUnhealthy
	DeviceLost
	// DeviceQuarantined is set by the machine: a task could not be killed or
	// the device not be cleaned. An UpdateDevices that says healthy clears it.
	DeviceQuarantined
	numDeviceHealth
)

var deviceHealthNames = [numDeviceHealth]string{"healthy", "degraded", "unhealthy", "lost", "quarantined"}

// String returns the state's text.
func (h DeviceHealth) String() string { return enumName(deviceHealthNames[:], uint8(h)) }

// MarshalText writes the state's text.
func (h DeviceHealth) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads a state's text.
func (h *DeviceHealth) UnmarshalText(b []byte) error {
	return enumParse(deviceHealthNames[:], "device health", b, (*uint8)(h))
}

// A Device is one allocatable accelerator of a node. Its index is its place in
// the node's list, which is sorted by ID and at most MaxGPUs long.
type Device struct {
	ID     DeviceID     `json:"id"`
	Vendor string       `json:"vendor"` // "nvidia", "amd", "intel", "sim"
	Model  string       `json:"model"`  // "H100-SXM5-80GB"
	Memory Bytes        `json:"memory_bytes"`
	Health DeviceHealth `json:"health,omitzero"`
	// HealthCode is the driver's reason, such as "xid:79", or the agent's, such as
	// "agent:unclean"; behind a colon and a space it may say why.
	HealthCode string `json:"health_code,omitzero"`
	// Free is what no lease holds, filled by the region only.
	Free Milli `json:"free_milli,omitzero"`
	DevicePlace
}

// A Node is a host as the region knows it.
type Node struct {
	NodeSpec
	Region      RegionID    `json:"region"`
	State       NodeState   `json:"state"`
	Drained     bool        `json:"drained,omitzero"` // by its operator
	Incarnation Incarnation `json:"incarnation"`
	BootID      string      `json:"boot_id"`
	FreeCPU     MilliCPU    `json:"free_cpu_milli"`
	FreeMemory  Bytes       `json:"free_memory_bytes"`
	FreeGPUs    uint32      `json:"free_gpus"` // whole, healthy ones
	Leases      uint32      `json:"leases"`    // live ones
	// Contributor is whose the node is; "" is the region's own.
	Contributor ContributorID `json:"contributor,omitzero"`
	// QuarantineUntil is the region time when a quarantine ends.
	QuarantineUntil Instant `json:"quarantine_until_ms,omitzero"`
	RegisterIndex   uint64  `json:"register_index"`
	ModifyIndex     uint64  `json:"modify_index"`
	// Schedule is when the node may be used; nil: always. Outside says that it may
	// not now, and ScheduleChanges when that changes.
	Schedule        *Schedule `json:"schedule,omitempty"`
	Outside         bool      `json:"outside_schedule,omitzero"`
	ScheduleChanges WallTime  `json:"schedule_changes_unix_ms,omitzero"`
	// Ask is the price that its contributor asks, which holds unless an operator
	// gave the node another; nil: what its agent says.
	Ask *Micros `json:"ask_micros_per_gpu_hour,omitempty"`
	// Earned is what its present contributor was paid for it.
	Earned Micros `json:"earned_micros,omitzero"`
}
