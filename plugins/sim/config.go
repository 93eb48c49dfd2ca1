package sim

import (
	_ "embed"
	"fmt"
	"path/filepath"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A Config describes the simulated devices of one node.
type Config struct {
	// Seed makes the device IDs: the same seed and groups give the same IDs,
	// two seeds give different ones. Use the node's name.
	Seed   string  `json:"seed"`
	Groups []Group `json:"devices"`
	Faults []Fault `json:"faults,omitempty"`
	// CDINodes are device files of the host that stand for the devices': the
	// i-th for that of the i-th whole device and its partitions. With them the
	// driver writes a CDI specification, in which it is /dev/gpuai-sim<i>, and
	// grants by it. Absolute paths, one for each whole device.
	CDINodes []string `json:"cdi_nodes,omitempty"`
}

// A Group is a number of equal devices.
type Group struct {
	Vendor string      `json:"vendor"` // "nvidia", "amd", or any other
	Model  string      `json:"model"`
	Memory gpuai.Bytes `json:"memory_bytes"`
	Count  uint32      `json:"count"`
	// Link joins all devices of the group with one another: "nvlink" or
	// "xgmi", or "pcie" for one PCIe switch above them; "" for none. LinkWidth is
	// the number of links of each pair, 1 when it is left out.
	Link      string `json:"link,omitzero"`
	LinkWidth uint32 `json:"link_width,omitzero"`
	// NUMANode is that of all devices of the group; absent: not known.
	NUMANode *uint8 `json:"numa_node,omitempty"`
	// Partitions splits every device into so many equal ones, which exclude
	// the whole device; 0 for none.
	Partitions uint32 `json:"partitions,omitzero"`
}

// Kinds of faults.
const (
	FaultUnhealthy      = "unhealthy"       // the device reports State, Code, Message, Action
	FaultVanish         = "vanish"          // the device leaves the inventory
	FaultCrash          = "crash"           // the process exits with status 3
	FaultHang           = "hang"            // the process stops itself (SIGSTOP)
	FaultSlowReserve    = "slow_reserve"    // the reservation is made, its answer comes Delay later
	FaultUncleanRelease = "unclean_release" // a released device is not clean, and unhealthy from then on
)

// A Fault is something that goes wrong: After the process has started and, with
// For, only so long; or while the file OnFile exists.
type Fault struct {
	Kind string `json:"kind"`
	// Device is the place of a device in the configuration, from 0, whole
	// devices only; absent means all. Not for crash and hang.
	Device *uint32        `json:"device,omitzero"`
	After  gpuai.Duration `json:"after_ms,omitzero"`
	For    gpuai.Duration `json:"for_ms,omitzero"` // 0: for good
	OnFile string         `json:"on_file,omitzero"`
	// Repeat leaves OnFile in place when a crash or hang is triggered by it:
	// the next process does it again. Without it the file is removed first.
	Repeat bool `json:"repeat,omitzero"`
	// State is "degraded", "unhealthy" (also when left out) or "lost".
	State   string         `json:"state,omitzero"`
	Code    string         `json:"code,omitzero"` // "sim:fault" when left out
	Message string         `json:"message,omitzero"`
	Action  string         `json:"action,omitzero"` // none, warn, restart_task, reset_device, reboot_node, replace
	Delay   gpuai.Duration `json:"delay_ms,omitzero"`
}

//go:embed schema.json
var schema string

var healthStates = map[string]plugins.HealthState{
	"": plugins.HealthUnhealthy, "degraded": plugins.HealthDegraded,
	"unhealthy": plugins.HealthUnhealthy, "lost": plugins.HealthLost,
}

var healthActions = map[string]plugins.HealthAction{
	"": plugins.ActionNone, "none": plugins.ActionNone, "warn": plugins.ActionWarn,
	"restart_task": plugins.ActionRestartTask, "reset_device": plugins.ActionResetDevice,
	"reboot_node": plugins.ActionRebootNode, "replace": plugins.ActionReplace,
}

var linkKinds = map[string]plugins.LinkKind{"nvlink": plugins.LinkNVLink, "xgmi": plugins.LinkXGMI, "pcie": plugins.LinkPCIeSwitch}

// parse reads and checks a configuration. Errors wrap plugins.ErrInvalid and
// name the field.
func parse(src []byte) (*Config, error) {
	c := new(Config)
	if err := plugins.DecodeConfig(src, c); err != nil {
		return nil, err
	}
	if c.Seed == "" || len(c.Seed) > gpuai.MaxTextLen {
		return nil, invalid("/seed", "must be 1 to %d bytes, such as the node's name", gpuai.MaxTextLen)
	}
	if len(c.Groups) == 0 {
		return nil, invalid("/devices", "must name at least one group of devices")
	}
	total, whole := uint64(0), uint64(0)
	for i := range c.Groups {
		if err := c.Groups[i].check(fmt.Sprintf("/devices/%d", i)); err != nil {
			return nil, err
		}
		whole += uint64(c.Groups[i].Count)
		total += uint64(c.Groups[i].Count) * (1 + uint64(c.Groups[i].Partitions))
	}
	if total > gpuai.MaxGPUs {
		return nil, invalid("/devices", "are %d with their partitions, a node has at most %d", total, gpuai.MaxGPUs)
	}
	if n := uint64(len(c.CDINodes)); n > 0 && n != whole {
		return nil, invalid("/cdi_nodes", "must name a device file for each of the %d whole devices, not %d", whole, n)
	}
	for i, path := range c.CDINodes {
		if !filepath.IsAbs(path) {
			return nil, invalid(fmt.Sprintf("/cdi_nodes/%d", i), "must be an absolute path, not %q", path)
		}
	}
	for i := range c.Faults {
		if err := c.Faults[i].check(fmt.Sprintf("/faults/%d", i), whole); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func invalid(pointer, format string, args ...any) error {
	return fmt.Errorf("%w: configuration: %s %s", plugins.ErrInvalid, pointer, fmt.Sprintf(format, args...))
}

func (g *Group) check(at string) error {
	_, linked := linkKinds[g.Link]
	switch {
	case g.Vendor == "" || len(g.Vendor) > gpuai.MaxTextLen:
		return invalid(at+"/vendor", "must be 1 to %d bytes", gpuai.MaxTextLen)
	case g.Model == "" || len(g.Model) > gpuai.MaxTextLen:
		return invalid(at+"/model", "must be 1 to %d bytes", gpuai.MaxTextLen)
	case g.Memory <= 0 || g.Memory >= gpuai.MaxMemory:
		return invalid(at+"/memory_bytes", "must be between 1 and 2^50-1, not %d", g.Memory)
	case g.Count < 1 || g.Count > gpuai.MaxGPUs:
		return invalid(at+"/count", "must be between 1 and %d, not %d", gpuai.MaxGPUs, g.Count)
	case g.Link != "" && !linked:
		return invalid(at+"/link", "must be nvlink, xgmi or pcie, not %q", g.Link)
	case g.NUMANode != nil && *g.NUMANode == 255:
		return invalid(at+"/numa_node", "must be at most 254")
	case g.LinkWidth > 0 && g.Link == "":
		return invalid(at+"/link_width", "needs a link")
	case g.Partitions == 1 || g.Partitions > 16:
		return invalid(at+"/partitions", "must be between 2 and 16, or 0 for none")
	}
	return nil
}

func (f *Fault) check(at string, devices uint64) error {
	process := f.Kind == FaultCrash || f.Kind == FaultHang
	_, state := healthStates[f.State]
	_, action := healthActions[f.Action]
	switch f.Kind {
	case FaultUnhealthy, FaultVanish, FaultCrash, FaultHang, FaultSlowReserve, FaultUncleanRelease:
	default:
		return invalid(at+"/kind", "must be unhealthy, vanish, crash, hang, slow_reserve or unclean_release, not %q", f.Kind)
	}
	switch {
	case f.Device != nil && (process || uint64(*f.Device) >= devices):
		return invalid(at+"/device", "must be the place of a device, 0 to %d, and is not for crash and hang", devices-1)
	case f.After < 0 || f.After > gpuai.MaxDuration || f.For < 0 || f.For > gpuai.MaxDuration:
		return invalid(at+"/after_ms", "and for_ms must not be negative or longer than 10 years")
	case f.OnFile != "" && (f.After != 0 || f.For != 0):
		return invalid(at+"/on_file", "cannot be combined with after_ms and for_ms")
	case f.OnFile != "" && !filepath.IsAbs(f.OnFile):
		return invalid(at+"/on_file", "must be an absolute path")
	case process && f.For != 0:
		return invalid(at+"/for_ms", "is not for crash and hang")
	case f.Repeat && (!process || f.OnFile == ""):
		return invalid(at+"/repeat", "is for crash and hang with on_file")
	case f.Kind != FaultUnhealthy && (f.State != "" || f.Code != "" || f.Message != "" || f.Action != ""):
		return invalid(at, "state, code, message and action are for unhealthy")
	case !state || !action:
		return invalid(at, "has the unknown state %q or action %q", f.State, f.Action)
	case len(f.Code) > gpuai.MaxTextLen || len(f.Message) > gpuai.MaxTextLen:
		return invalid(at, "code and message have at most %d bytes", gpuai.MaxTextLen)
	case (f.Kind == FaultSlowReserve) != (f.Delay > 0) || f.Delay > gpuai.Hour:
		return invalid(at+"/delay_ms", "is for slow_reserve, 1 ms to 1 h")
	}
	return nil
}
