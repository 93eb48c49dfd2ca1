package frames

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
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

func TestTellable(t *testing.T) {
	ds := []gpuai.Device{{ID: "a"}, {ID: "b", DevicePlace: gpuai.DevicePlace{LinkIsland: 1}}}
	why := &gpuai.Refusal{Code: gpuai.DiskFull, Detail: "full"}
	if now, r := Tellable(fsm.LevelTenants, ds, why); !gpuai.Places(now) || !HoldsRefusal(r, why) {
		t.Errorf("%+v, %+v", now, r)
	}
	if now, r := Tellable(fsm.LevelTenants-1, ds, why); gpuai.Places(now) || len(now) != 2 || r != nil || HoldsRefusal(why, r) {
		t.Errorf("%+v, %+v", now, r)
	}
	if !gpuai.Places(ds) {
		t.Error("what the agent said is changed")
	}
}
