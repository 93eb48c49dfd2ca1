package nvidia

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai/plugins"
)

//go:embed xids.txt
var xidTable string

// An xid is a row of xids.txt with what it means for a device.
type xid struct {
	mnemonic string
	bucket   string // NVIDIA's immediate action
	verdict
}

// A verdict is what becomes of a device. A verdict of state OK and action none is
// only logged.
type verdict struct {
	state  plugins.HealthState
	action plugins.HealthAction
}

// buckets says what NVIDIA's immediate actions are in the terms of the contract.
//
// Most errors of RESTART_APP are made by programs (an access out of bounds is Xid
// 31): they end the program by themselves, and the device is as good as before.
// The agent is told, and takes no task from a tenant who may run it again.
var buckets = map[string]verdict{
	"IGNORE":               {plugins.HealthOK, plugins.ActionNone},
	"RESTART_APP":          {plugins.HealthOK, plugins.ActionWarn},
	"RESET_GPU":            {plugins.HealthUnhealthy, plugins.ActionResetDevice},
	"RESTART_VM":           {plugins.HealthUnhealthy, plugins.ActionRebootNode},
	"RESTART_BM":           {plugins.HealthUnhealthy, plugins.ActionRebootNode},
	"CHECK_MECHANICALS":    {plugins.HealthUnhealthy, plugins.ActionReplace},
	"UPDATE_SWFW":          {plugins.HealthDegraded, plugins.ActionWarn},
	"CHECK_UVM":            {plugins.HealthDegraded, plugins.ActionWarn},
	"CONTACT_SUPPORT":      {plugins.HealthDegraded, plugins.ActionWarn},
	"WORKFLOW_XID_45":      {plugins.HealthOK, plugins.ActionNone}, // another Xid says why
	"WORKFLOW_XID_48":      {plugins.HealthUnhealthy, plugins.ActionResetDevice},
	"WORKFLOW_NVLINK_ERR":  {plugins.HealthUnhealthy, plugins.ActionResetDevice},
	"WORKFLOW_NVLINK5_ERR": {plugins.HealthDegraded, plugins.ActionWarn}, // the recovery action decides
	"XID_154":              {plugins.HealthOK, plugins.ActionNone},       // the recovery action is read
}

// unknownXid is for what the catalog does not have.
var unknownXid = xid{mnemonic: "unknown", bucket: "CONTACT_SUPPORT", verdict: buckets["CONTACT_SUPPORT"]}

// Words of xids.txt.
var (
	stateWords = map[string]plugins.HealthState{
		"degraded": plugins.HealthDegraded, "unhealthy": plugins.HealthUnhealthy, "lost": plugins.HealthLost,
	}
	actionWords = map[string]plugins.HealthAction{
		"warn": plugins.ActionWarn, "restart_task": plugins.ActionRestartTask, "reset_device": plugins.ActionResetDevice,
		"reboot_node": plugins.ActionRebootNode, "replace": plugins.ActionReplace,
	}
)

// xids is the table, by number.
var xids = parseXids(xidTable)

// parseXids reads the table, which is ours: a bad line is a bug.
func parseXids(table string) map[uint64]xid {
	out := map[uint64]xid{}
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
			n, x := parseXid(f)
			out[n] = x
		}
	}
	return out
}

func parseXid(f []string) (uint64, xid) {
	n, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil || len(f) < 3 {
		panic(fmt.Sprintf("xids.txt has the line %q", f))
	}
	v, ok := buckets[f[2]]
	if len(f) > 3 && ok {
		v.state, ok = stateWords[f[3]]
	}
	if len(f) > 4 && ok {
		v.action, ok = actionWords[f[4]]
	}
	if !ok {
		panic(fmt.Sprintf("xids.txt has an unknown word in %q", f))
	}
	return n, xid{mnemonic: f[1], bucket: f[2], verdict: v}
}

// lookupXid returns the row of an Xid, or unknownXid.
func lookupXid(n uint64) xid {
	if x, ok := xids[n]; ok {
		return x
	}
	return unknownXid
}

// fault is the fault that an Xid makes of a device; ok is false if none.
func (x xid) fault(n uint64) (f fault, ok bool) {
	if x.state == plugins.HealthOK && x.action == plugins.ActionNone {
		return fault{}, false
	}
	return fault{
		Code: fmt.Sprintf("xid:%d", n), State: x.state, Action: x.action,
		Message: fmt.Sprintf("Xid %d (%s); NVIDIA's immediate action: %s", n, x.mnemonic, x.bucket),
	}, true
}
