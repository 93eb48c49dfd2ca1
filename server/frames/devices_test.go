package frames

import (
	"testing"

	"github.com/gpuai/gpuai"
)

func TestHoldsDevices(t *testing.T) {
	dev := func(id string, h gpuai.DeviceHealth) gpuai.Device {
		return gpuai.Device{ID: gpuai.DeviceID(id), Health: h}
	}
	well, sick, lost, kept := gpuai.DeviceHealthy, gpuai.DeviceUnhealthy, gpuai.DeviceLost, gpuai.DeviceQuarantined
	for _, c := range []struct {
		region, told []gpuai.Device
		want         bool
	}{
		{[]gpuai.Device{dev("a", well)}, []gpuai.Device{dev("a", well)}, true},
		{[]gpuai.Device{dev("a", sick)}, []gpuai.Device{dev("a", well)}, false},
		{[]gpuai.Device{dev("a", kept)}, []gpuai.Device{dev("a", well)}, false},
		{[]gpuai.Device{dev("a", well), dev("b", lost)}, []gpuai.Device{dev("a", well)}, true},
		{[]gpuai.Device{dev("a", well), dev("b", well)}, []gpuai.Device{dev("a", well)}, false},
		{[]gpuai.Device{dev("a", well)}, []gpuai.Device{dev("a", well), dev("b", well)}, false},
	} {
		if got := HoldsDevices(c.region, c.told); got != c.want {
			t.Errorf("the region has %v, the agent told %v: %v", c.region, c.told, got)
		}
	}
}
