package sim

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai/plugins"
)

// cdiKind qualifies the names of simulated devices.
const cdiKind = "gpuai.dev/sim"

// The form of a CDI specification, as far as it is written here.
type (
	cdiSpec struct {
		Version string      `json:"cdiVersion"`
		Kind    string      `json:"kind"`
		Devices []cdiDevice `json:"devices"`
	}
	cdiDevice struct {
		Name  string   `json:"name"`
		Edits cdiEdits `json:"containerEdits"`
	}
	cdiEdits struct {
		Env   []string  `json:"env"`
		Nodes []cdiNode `json:"deviceNodes"`
	}
	cdiNode struct {
		Path     string `json:"path"`
		HostPath string `json:"hostPath"`
	}
)

// writeCDI writes the specification of the devices to the state directory, if the
// configuration asks for one, and gives each device its name in it.
func (d *Driver) writeCDI(stateDir string) error {
	dir := filepath.Join(stateDir, "cdi")
	if len(d.config.CDINodes) == 0 {
		return os.RemoveAll(dir)
	}
	spec := cdiSpec{Version: "0.6.0", Kind: cdiKind}
	for i := range d.all {
		v := &d.all[i]
		v.CDIName = cdiKind + "=" + string(v.ID)
		spec.Devices = append(spec.Devices, cdiDevice{string(v.ID), cdiEdits{
			Env:   []string{fmt.Sprintf("GPUAI_SIM_NODE_%d=/dev/gpuai-sim%d", v.place, v.place)},
			Nodes: []cdiNode{{fmt.Sprintf("/dev/gpuai-sim%d", v.place), d.config.CDINodes[v.place]}},
		}})
	}
	src, err := json.Marshal(spec)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = plugins.ReplaceFile(filepath.Join(dir, "sim.json"), src)
	}
	if err != nil {
		return fmt.Errorf("writing the CDI specification: %w", err)
	}
	return nil
}

// names are the CDI names of devices that have one.
func names(ds []device) (out []string) {
	for _, d := range ds {
		if d.CDIName != "" {
			out = append(out, d.CDIName)
		}
	}
	return out
}
