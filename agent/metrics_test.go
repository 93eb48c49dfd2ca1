package agent

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// page returns the series of some metrics with their values, without the
// comments.
func page(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				if l.GetName() != "node" {
					labels = append(labels, l.GetName()+"="+l.GetValue())
				}
			}
			out[family.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

func TestDeviceMetrics(t *testing.T) {
	f := newFixture(t)
	reg := prometheus.NewPedanticRegistry()
	d := newDriver("GPU-1", "GPU-2")
	f.runWith(d, func(c *Config) { c.Metrics = reg })
	lease := f.grant(testNode, gpuTask(`while [ ! -e go ]; do sleep 0.02; done`, "GPU-2"))
	f.running(lease)
	half, used := 0.5, uint64(7<<30)
	d.stats <- []plugins.Stats{
		{Device: "GPU-1", GPUUtilization: &half},
		{Device: "GPU-2", MemoryUsedBytes: &used},
		{Device: "GPU-9", GPUUtilization: &half}, // not its device
	}
	d.change(func(s *plugins.Snapshot) {
		s.Devices[0].Health = gpuai.DeviceUnhealthy
		s.Health["GPU-1"] = plugins.Health{Device: "GPU-1", State: plugins.HealthUnhealthy, Code: "xid:79"}
		s.Up, s.Restarts = false, 3
	})
	eventually(t, "the unhealthy device", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })

	got := page(t, reg)
	want := map[string]float64{
		"gpuai_agent_driver_up{driver=mem}":                                                                              0,
		"gpuai_agent_driver_restarts_total{driver=mem}":                                                                  3,
		"gpuai_agent_gpu_health{UUID=GPU-1,model=S1}":                                                                    0,
		"gpuai_agent_gpu_health{UUID=GPU-2,model=S1}":                                                                    1,
		"gpuai_agent_gpu_errors_total{UUID=GPU-1,code=xid:79}":                                                           1,
		"gpuai_agent_gpu_utilization_ratio{UUID=GPU-1}":                                                                  0.5,
		"gpuai_agent_gpu_memory_used_bytes{UUID=GPU-2}":                                                                  float64(used),
		"gpuai_gpu_busy_seconds_total{UUID=GPU-1}":                                                                       0,
		"gpuai_agent_gpu_lease{UUID=GPU-2,job=" + gpuai.JobID{}.String() + ",job_name=job,lease=" + lease.String() + "}": 1,
	}
	for series, v := range want {
		if have, ok := got[series]; !ok || have != v {
			t.Errorf("%s is %v (there: %v), want %v", series, have, ok, v)
		}
		delete(got, series)
	}
	for series := range got {
		// What was not measured is absent, not 0.
		if strings.HasPrefix(series, "gpuai_agent_gpu_") || strings.HasPrefix(series, "gpuai_gpu_") {
			t.Errorf("%s should not be there", series)
		}
	}
	f.revoke(testNode, lease)
	f.last(lease)
	eventually(t, "the lease's series to go", func() bool {
		for series := range maps.Keys(page(t, reg)) {
			if strings.HasPrefix(series, "gpuai_agent_gpu_lease") {
				return false
			}
		}
		return true
	})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestBusyTimeCountsWhatWasMeasured(t *testing.T) {
	c := newDeviceCollector(&Agent{}, nil)
	known := []gpuai.Device{{ID: "g"}}
	at := time.Now()
	take := func(after time.Duration, u float64) {
		at = at.Add(after)
		c.take(known, []plugins.Stats{{Device: "g", GPUUtilization: &u}}, at)
	}
	take(0, 1)
	take(4*time.Second, 0.25)
	take(time.Hour, 1) // the driver was away: 15 s at most
	take(time.Second, 7)
	if busy := c.measured["g"].busy; busy != 16*time.Second {
		t.Errorf("it was busy for %v, not 16s", busy)
	}
}

func TestErrorsAreCountedOnceAndUnderBoundedCodes(t *testing.T) {
	c := newDeviceCollector(&Agent{}, nil)
	say := func(state plugins.HealthState, code string) {
		c.noteErrors(&plugins.Snapshot{
			Devices: []gpuai.Device{{ID: "g"}},
			Health:  map[gpuai.DeviceID]plugins.Health{"g": {State: state, Code: code}},
		})
	}
	say(plugins.HealthOK, "")
	say(plugins.HealthUnhealthy, "xid:79")
	say(plugins.HealthUnhealthy, "xid:79") // told again
	say(plugins.HealthOK, "")
	say(plugins.HealthUnhealthy, "xid:79")
	if n := testutil.ToFloat64(c.errors.WithLabelValues("g", "xid:79")); n != 2 {
		t.Errorf("counted %v, not 2", n)
	}
	for i := range 3 * maxErrorCodes {
		say(plugins.HealthUnhealthy, "made up "+strings.Repeat("x", i))
	}
	if n := testutil.CollectAndCount(c.errors); n != maxErrorCodes+1 {
		t.Errorf("%d series", n)
	}
}
