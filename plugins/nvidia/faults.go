package nvidia

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A fault is something that happened to a device and does not show by reading it.
type fault struct {
	Code    string               `json:"code"`
	Message string               `json:"message"`
	State   plugins.HealthState  `json:"state"`
	Action  plugins.HealthAction `json:"action"`
}

// lasting reports whether the fault stays when the task that met it is gone: until
// the GPU is reset or the host is booted.
func (f fault) lasting() bool { return f.Action >= plugins.ActionResetDevice }

// worse orders by how bad: by state, then by action.
func worse(a, b fault) int {
	return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(a.Action, b.Action))
}

// Faults are what is remembered of devices, each by its code, on disk: a driver
// that is started again hears of no Xid of before. Those of an earlier boot are
// forgotten. The caller locks.
type faults struct {
	path string
	// noted is when those of this process were noted, see key.
	noted map[string]time.Time
	faultsFile
}

// key names a fault of a device in noted.
func key(id gpuai.DeviceID, code string) string { return string(id) + " " + code }

// A faultsFile is its form on disk.
type faultsFile struct {
	Boot string                              `json:"boot_id"`
	By   map[gpuai.DeviceID]map[string]fault `json:"faults"`
}

// openFaults reads the faults of a state directory; boot is the boot's ID. Damage
// is no reason not to start: they are forgotten, and the error says so.
func openFaults(dir, boot string) (*faults, error) {
	f := &faults{path: filepath.Join(dir, "faults.json"), noted: map[string]time.Time{}}
	src, err := os.ReadFile(f.path)
	if err == nil {
		err = json.Unmarshal(src, &f.faultsFile, json.RejectUnknownMembers(true))
	}
	if err != nil || f.Boot != boot || f.By == nil {
		f.faultsFile = faultsFile{Boot: boot, By: map[gpuai.DeviceID]map[string]fault{}}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, fmt.Errorf("reading %s: %w: what happened to devices before is forgotten", f.path, err)
	}
	return f, nil
}

// add remembers a fault of a device; it is there even if it cannot be written.
func (f *faults) add(id gpuai.DeviceID, one fault) error {
	if f.By[id] == nil {
		f.By[id] = map[string]fault{}
	}
	f.By[id][one.Code] = one
	f.noted[key(id, one.Code)] = time.Now()
	return f.write()
}

// passing is how long a fault that does not last stays on a device that nobody
// holds: the region places nothing on it, so no release would end it.
const passing = 10 * time.Minute

// over reports whether a fault of a device that nobody holds has passed.
func (f *faults) over(id gpuai.DeviceID, one fault, now time.Time) bool {
	return !one.lasting() && now.Sub(f.noted[key(id, one.Code)]) > passing
}

// drop forgets the faults of a device that match.
func (f *faults) drop(id gpuai.DeviceID, match func(fault) bool) error {
	before := len(f.By[id])
	maps.DeleteFunc(f.By[id], func(_ string, one fault) bool { return match(one) })
	if len(f.By[id]) == before {
		return nil
	}
	return f.write()
}

// of returns the faults of a device.
func (f *faults) of(id gpuai.DeviceID) []fault {
	return slices.Collect(maps.Values(f.By[id]))
}

func (f *faults) write() error {
	src, err := json.Marshal(f.faultsFile)
	if err == nil {
		err = plugins.ReplaceFile(f.path, src)
	}
	if err != nil {
		return fmt.Errorf("writing the faults of devices: %w", err)
	}
	return nil
}

// health is the verdict on a device with these faults: the worst, and how many
// more there are.
func health(id gpuai.DeviceID, all []fault) plugins.Health {
	if len(all) == 0 {
		return plugins.Health{Device: id, State: plugins.HealthOK}
	}
	slices.SortFunc(all, func(a, b fault) int { return cmp.Or(-worse(a, b), strings.Compare(a.Code, b.Code)) })
	h := plugins.Health{Device: id, State: all[0].State, Code: all[0].Code, Message: all[0].Message, Action: all[0].Action}
	for _, f := range all[1:] {
		h.Message += "; also " + f.Code
	}
	h.Message = h.Message[:min(len(h.Message), 4*gpuai.MaxTextLen)]
	return h
}
