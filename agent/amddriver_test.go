package agent

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/amd/amdtest"
)

// The driver of AMD's GPUs under its real host, on a tree that stands for "/": a
// task finds its device, and one that a process still computes on when its task
// has ended is not given to the next.
func TestRealAMDDriver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpuai-driver-amd")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/gpuai/gpuai/cmd/gpuai-driver-amd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tr := amdtest.MI210(t, 2)
	f := newFixture(t)
	f.run(func(c *Config) {
		c.Drivers = []plugins.HostConfig{{Name: "amd", Path: path, Config: fmt.Appendf(nil, `{"root":%q,"period_ms":100}`, tr.Root)}}
	})
	node := f.hellos(testNode)[0].Node
	if len(node.Devices) != 2 || node.Simulated || node.Devices[0].Model != "MI210" || node.Devices[0].Health != gpuai.DeviceHealthy {
		t.Fatalf("registered %+v", node)
	}
	id := node.Devices[1].ID
	lease := f.grant(testNode, gpuTask("echo $ROCR_VISIBLE_DEVICES", id))
	if r := f.last(lease); r.State != gpuai.ReportDone || len(r.Unclean) > 0 {
		t.Errorf("reported %+v", r)
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout"}); strings.TrimSpace(string(c.Data)) != string(id) {
		t.Errorf("the task saw %q", c.Data)
	}
	lease = f.grant(testNode, gpuTask("while [ ! -e go ]; do sleep 0.02; done", id))
	f.running(lease)
	tr.Run(amdtest.Process{PID: 7, Memory: map[int]uint64{1: 1 << 30}})
	f.touch(lease, "go")
	if r := f.last(lease); len(r.Unclean) != 1 || r.Unclean[0] != id {
		t.Errorf("reported %+v", r)
	}
}
