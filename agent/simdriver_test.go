package agent

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// simBinary builds gpuai-driver-sim, once.
var simBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(watchdogPath), "gpuai-driver-sim")
	out, err := exec.Command("go", "build", "-o", path, "github.com/gpuai/gpuai/cmd/gpuai-driver-sim").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// simDriver has an agent run the real simulation driver with a configuration.
func simDriver(t *testing.T, config string) func(*Config) {
	t.Helper()
	path, err := simBinary()
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) {
		c.Drivers = []plugins.HostConfig{{Name: "sim", Path: path, Config: []byte(config)}}
	}
}

// The real simulation driver, as a plugin process under its real host.
func TestRealDriver(t *testing.T) {
	f := newFixture(t)
	drivers := simDriver(t, `{"seed":"gpu-a1","devices":[{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":85899345920,"count":2}]}`)
	a := f.run(drivers)
	node := f.hellos(testNode)[0].Node
	if len(node.Devices) != 2 || !node.Simulated || node.Devices[0].Health != gpuai.DeviceHealthy {
		t.Fatalf("registered %+v", node)
	}
	id := node.Devices[1].ID
	lease := f.grant(testNode, func(as *gpuai.Assignment) {
		as.Task.Script, as.Lease.Devices, as.Lease.TTL = `env | grep DEVICES; while [ ! -e go ]; do sleep 0.02; done`, []gpuai.DeviceID{id}, gpuai.Minute
	})
	f.running(lease)
	a.stop(t) // the task goes on, and keeps its device, without agent and driver
	f.run(drivers)
	f.touch(lease, "go")
	if r := f.last(lease); r.State != gpuai.ReportDone || len(r.Unclean) > 0 {
		t.Errorf("reported %+v", r)
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout"}); !strings.Contains(string(c.Data), string(id)) {
		t.Errorf("the task saw %q", c.Data)
	}
	if r := f.last(f.grant(testNode, gpuTask("exit 0", id))); r.State != gpuai.ReportDone {
		t.Errorf("the device is not free again: %+v", r)
	}
}
