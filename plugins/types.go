package plugins

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
)

// An Info says who a driver is.
type Info struct {
	Name         string // "nvidia", "amd", "sim"
	Version      string // of the driver, semver
	Simulated    bool   // its devices are made up
	Capabilities []string
	ConfigSchema string // JSON Schema of its configuration
}

// Capabilities of a driver.
const (
	CapShare     = "share"     // reserves shares of a device
	CapTopology  = "topology"  // reports links
	CapPartition = "partition" // has devices that exclude one another
)

// Can reports whether the driver has a capability.
func (i Info) Can(capability string) bool { return slices.Contains(i.Capabilities, capability) }

// A Config is what a driver is configured with.
type Config struct {
	JSON []byte
	// StateDir is a directory of the driver's own that outlives its process
	// and the agent's. Reservations are kept there.
	StateDir string
}

// An Inventory is what a driver has. All of it is the driver's word.
type Inventory struct {
	// Generation counts changes, from 1. Serve fills it.
	Generation uint64
	Devices    []Device
	Links      []Link
	Simulated  bool
	Err        string // why there is no device, "" when all is well
	// DriverVersion is the vendor's kernel driver's, RuntimeVersion what it
	// supports ("CUDA 12.4"); "" if not known.
	DriverVersion  string
	RuntimeVersion string
}

// A Device is one allocatable accelerator as its driver describes it.
type Device struct {
	ID       gpuai.DeviceID // stable across reboots
	Vendor   string
	Kind     string // "gpu", "mig"
	Model    string
	Memory   gpuai.Bytes
	Index    uint32 // the vendor's, for display only
	PCIBusID string
	NUMANode int32 // -1: not known
	CDIName  string
	Serial   string
	Parent   gpuai.DeviceID // the physical device of a partition
	// Conflicts are the devices that exclude this one; the relation is
	// symmetric.
	Conflicts []gpuai.DeviceID
	// Partitioned says that it is split into partitions, which are handed out
	// in its place: it is listed for its measurements and its health.
	Partitioned bool
}

// LinkKind says how two devices are joined.
type LinkKind uint8

// The kinds, as in driver.proto.
const (
	LinkSameBoard LinkKind = iota + 1
	LinkPCIeSwitch
	LinkPCIeMultiSwitch
	LinkHostBridge
	LinkNUMA
	LinkSystem
	LinkNVLink
	LinkXGMI
	LinkNIC
	numLinkKinds
)

// A Link joins two devices; A < B.
type Link struct {
	A, B  gpuai.DeviceID
	Kind  LinkKind
	Width uint32 // number of NVLink or XGMI links
}

// HealthState is a driver's verdict on a device.
type HealthState uint8

// The states, as in driver.proto.
const (
	HealthUnknown HealthState = iota
	HealthOK
	HealthDegraded
	HealthUnhealthy
	HealthLost
	numHealthStates
)

// HealthAction is what should be done about a device.
type HealthAction uint8

// The actions, as in driver.proto.
const (
	ActionNone HealthAction = iota
	ActionWarn
	ActionRestartTask
	ActionResetDevice
	ActionRebootNode
	ActionReplace
	numHealthActions
)

// A Health is the state of one device.
type Health struct {
	Device  gpuai.DeviceID
	State   HealthState
	Code    string // "xid:79"
	Message string
	Action  HealthAction
}

// A Reservation asks for devices on behalf of a lease.
type Reservation struct {
	// ID names the reservation, the lease's token. Reserve is idempotent on it.
	ID      string
	Devices []gpuai.DeviceID
	// Share is gpuai.WholeDevice, or 0 for the same, or less for a part of
	// the one device.
	Share gpuai.Milli
	// Incarnation is the node's. A driver refuses one that is older than the
	// newest it has seen, so that a superseded agent reserves nothing.
	Incarnation gpuai.Incarnation
}

// Normal returns r with the devices sorted and Share filled, or says what is
// wrong with r. Serve and Host call it: a Driver only sees normal reservations.
func (r Reservation) Normal() (Reservation, error) {
	if r.Share == 0 {
		r.Share = gpuai.WholeDevice
	}
	r.Devices = slices.Sorted(slices.Values(r.Devices))
	switch {
	case r.ID == "" || len(r.ID) > gpuai.MaxTextLen:
		return r, fmt.Errorf("%w: a reservation's ID has 1 to %d bytes, not %d", ErrInvalid, gpuai.MaxTextLen, len(r.ID))
	case len(r.Devices) == 0 || len(r.Devices) > gpuai.MaxGPUs:
		return r, fmt.Errorf("%w: a reservation names 1 to %d devices, not %d", ErrInvalid, gpuai.MaxGPUs, len(r.Devices))
	case len(slices.Compact(slices.Clone(r.Devices))) != len(r.Devices):
		return r, fmt.Errorf("%w: reservation %s names a device twice", ErrInvalid, r.ID)
	case r.Share > gpuai.WholeDevice:
		return r, fmt.Errorf("%w: reservation %s asks for %d/1000 of a device", ErrInvalid, r.ID, r.Share)
	case r.Share < gpuai.WholeDevice && len(r.Devices) != 1:
		return r, fmt.Errorf("%w: reservation %s asks for a share of %d devices, a share is of one", ErrInvalid, r.ID, len(r.Devices))
	}
	return r, nil
}

// A Grant is what a task needs to use its devices.
type Grant struct {
	Env         map[string]string
	CDI         []string // qualified names, preferred to Mounts and DeviceNodes
	Mounts      []Mount
	DeviceNodes []DeviceNode
	CPUSet      string // CPUs near the devices, "" for any
	MemSet      string
}

// A Mount is a path of the host that the task sees.
type Mount struct {
	HostPath, ContainerPath string
	Options                 []string
}

// A DeviceNode is a device file that the task may open.
type DeviceNode struct{ HostPath, ContainerPath, Permissions string }

// Stats are measurements of one device. Nil is "not measured", which is not 0.
type Stats struct {
	Device             gpuai.DeviceID
	GPUUtilization     *float64 // 0…1
	MemoryUtilization  *float64 // 0…1
	MemoryUsedBytes    *uint64
	MemoryTotalBytes   *uint64
	PowerWatts         *float64
	PowerLimitWatts    *float64
	EnergyMillijoules  *uint64
	TemperatureCelsius *float64
	SMClockHertz       *float64
	PCIeRxBytes        *uint64
	PCIeTxBytes        *uint64
	LinkBytes          *uint64
	ECCUncorrected     *uint64
	ECCCorrected       *uint64
	ThrottleReasons    *uint64
	Processes          []ProcessUse
}

// A ProcessUse is the device memory of one process.
type ProcessUse struct {
	PID    uint32
	Memory gpuai.Bytes
}

// Errors of the contract. What Reserve and Configure return wraps one of them,
// on both sides of the process border.
var (
	// ErrInvalid is returned when a request or a configuration is refused as
	// it stands: repeating it is of no use.
	ErrInvalid = errors.New("refused")
	// ErrHeld is returned when a device is held by another reservation.
	ErrHeld = errors.New("device is held")
	// ErrMismatch is returned when a reservation's ID is held with other
	// devices or another share.
	ErrMismatch = errors.New("reservation differs from the one held")
	// ErrNoDevice is returned when there is no such device.
	ErrNoDevice = errors.New("no such device")
	// ErrStale is returned when a newer incarnation has reserved before.
	ErrStale = errors.New("incarnation is stale")
	// ErrUnusable is returned when a device cannot be used now, or the driver
	// is not in a state to answer.
	ErrUnusable = errors.New("not usable now")
	// ErrUnsupported is returned for what the driver's capabilities lack.
	ErrUnsupported = errors.New("not supported by this driver")
	// ErrDown is returned when the driver's process is not there, or went
	// away during the call: what the call did is not known, repeat it.
	ErrDown = errors.New("driver is down")
	// ErrTimeout is returned when the driver did not answer in time: what the
	// call did is not known, repeat it.
	ErrTimeout = errors.New("driver did not answer in time")
	// ErrGarbage is returned when a driver breaks the contract.
	ErrGarbage = errors.New("driver broke the contract")
)
