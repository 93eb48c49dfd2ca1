package amd

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/amd/amdtest"
)

// healthOf judges the first device of a tree.
func healthOf(t *testing.T, tr *amdtest.Tree, was plugins.Health) plugins.Health {
	t.Helper()
	f := find(tr)
	if len(f.gpus) == 0 {
		t.Fatal(f.why)
	}
	g := f.gpus[0]
	return tree(tr.Root).health(&g, tree(tr.Root).card(g.fn), was)
}

func TestHealth(t *testing.T) {
	const mi210 = 64 << 30
	for _, c := range []struct {
		name   string
		odd    func(tr *amdtest.Tree)
		state  plugins.HealthState
		code   string
		action plugins.HealthAction
		says   string
	}{
		{"well", func(*amdtest.Tree) {}, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"no sensors, no RAS", func(tr *amdtest.Tree) { tr.Remove(tr.PCI(0)+"/ras", tr.PCI(0)+"/hwmon") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"an uncorrectable error", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/ras/umc_err_count", "ue: 2\nce: 9\n") },
			plugins.HealthUnhealthy, "ras:ue:umc", plugins.ActionRebootNode, "2 uncorrectable errors in umc"},
		{"corrected errors", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/ras/umc_err_count", "ue: 0\nce: 900\n") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"counters of noise", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/ras/umc_err_count", "ue: many\nce\n\xff") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"a retired page", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/ras/gpu_vram_bad_pages", "0x1 : 0x1000 : R\n") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"a pending page", func(tr *amdtest.Tree) {
			tr.Set(tr.PCI(0)+"/ras/gpu_vram_bad_pages", "0x1 : 0x1000 : R\n0x2 : 0x1000 : P\n")
		}, plugins.HealthDegraded, "ras:page-pending", plugins.ActionWarn, "1 bad pages"},
		{"a page that cannot be retired", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/ras/gpu_vram_bad_pages", "0x2 : 0x1000 : F\n") },
			plugins.HealthUnhealthy, "ras:bad-page", plugins.ActionResetDevice, "1 bad pages"},
		{"too many retired pages", func(tr *amdtest.Tree) {
			tr.Set(tr.PCI(0)+"/ras/gpu_vram_bad_pages", strings.Repeat("0x1 : 0x1000 : R\n", mi210/pageCover+1))
		}, plugins.HealthUnhealthy, "ras:worn", plugins.ActionReplace, "usual are at most 655"},
		{"as many as is usual", func(tr *amdtest.Tree) {
			tr.Set(tr.PCI(0)+"/ras/gpu_vram_bad_pages", strings.Repeat("0x1 : 0x1000 : R\n", mi210/pageCover))
		}, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"hot", func(tr *amdtest.Tree) { tr.Set(tr.Hwmon(0)+"/temp2_input", "100000\n") },
			plugins.HealthDegraded, "thermal:junction", plugins.ActionWarn, "junction is at 100 °C"},
		{"too hot", func(tr *amdtest.Tree) { tr.Set(tr.Hwmon(0)+"/temp2_input", "105000\n") },
			plugins.HealthUnhealthy, "thermal:junction", plugins.ActionWarn, "switches off at 105 °C"},
		{"hotter than the sun", func(tr *amdtest.Tree) { tr.Set(tr.Hwmon(0)+"/temp2_input", "6000000000\n") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"colder than ice", func(tr *amdtest.Tree) { tr.Set(tr.Hwmon(0)+"/temp2_input", "-20000\n") }, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"hot and asleep", func(tr *amdtest.Tree) {
			tr.Set(tr.Hwmon(0)+"/temp2_input", "105000\n")
			tr.Set(tr.PCI(0)+"/power/runtime_status", "suspended\n")
		}, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"off the bus", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/config", "\xff\xff\xff\xff") }, plugins.HealthLost, "amd:off-bus", plugins.ActionRebootNode, "0000:21:00.0"},
		{"asleep on the bus", func(tr *amdtest.Tree) {
			tr.Set(tr.PCI(0)+"/config", "\xff\xff\xff\xff")
			tr.Set(tr.PCI(0)+"/power/runtime_status", "suspended\n")
		}, plugins.HealthOK, "", plugins.ActionNone, ""},
		{"no render node", func(tr *amdtest.Tree) { tr.Remove("dev/dri/renderD128") }, plugins.HealthLost, "amd:no-render", plugins.ActionRebootNode, "/dev/dri/renderD128"},
		{"hot, and an error", func(tr *amdtest.Tree) {
			tr.Set(tr.Hwmon(0)+"/temp2_input", "100000\n")
			tr.Set(tr.PCI(0)+"/ras/gfx_err_count", "ue: 1\nce: 0\n")
		}, plugins.HealthUnhealthy, "ras:ue:gfx", plugins.ActionRebootNode, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := amdtest.MI210(t, 1)
			c.odd(tr)
			h := healthOf(t, tr, plugins.Health{})
			if h.State != c.state || h.Code != c.code || h.Action != c.action || !strings.Contains(h.Message, c.says) {
				t.Errorf("health is %+v", h)
			}
		})
	}
}

// A sensor at its limit does not make a device change its health every second.
func TestHeatSettles(t *testing.T) {
	tr := amdtest.MI210(t, 1)
	was := plugins.Health{}
	for i, c := range []struct {
		temp  string
		state plugins.HealthState
	}{
		{"99000", plugins.HealthOK}, {"100000", plugins.HealthDegraded}, {"99000", plugins.HealthDegraded}, {"95000", plugins.HealthDegraded},
		{"94999", plugins.HealthOK}, {"99000", plugins.HealthOK}, {"106000", plugins.HealthUnhealthy}, {"103000", plugins.HealthUnhealthy},
		{"99999", plugins.HealthDegraded}, {"103000", plugins.HealthDegraded}, {"90000", plugins.HealthOK},
	} {
		tr.Set(tr.Hwmon(0)+"/temp2_input", c.temp)
		if was = healthOf(t, tr, was); was.State != c.state {
			t.Errorf("%d: at %s it is %+v", i, c.temp, was)
		}
	}
}

func TestStats(t *testing.T) {
	tr := amdtest.MI210(t, 1)
	task := amdtest.Process{PID: 4711, Memory: map[int]uint64{0: 5 << 30}}
	tr.Run(task)
	tr.Set(tr.PCI(0)+"/ras/umc_err_count", "ue: 1\nce: 9\n")
	g := find(tr).gpus[0]
	s := tree(tr.Root).stats(&g)
	for name, c := range map[string]struct {
		got  *float64
		want float64
	}{
		"utilization": {s.GPUUtilization, 0.37}, "memory utilization": {s.MemoryUtilization, 0.12}, "power": {s.PowerWatts, 142},
		"limit": {s.PowerLimitWatts, 750}, "temperature of the junction": {s.TemperatureCelsius, 46}, "clock": {s.SMClockHertz, 1.3e9},
	} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s is %v, want %v", name, c.got, c.want)
		}
	}
	if s.MemoryUsedBytes == nil || *s.MemoryUsedBytes != 294912 || *s.MemoryTotalBytes != 64<<30 || *s.ECCUncorrected != 1 || *s.ECCCorrected != 9 {
		t.Errorf("stats are %+v", s)
	}
	if len(s.Processes) != 1 || s.Processes[0] != (plugins.ProcessUse{PID: 4711, Memory: 5 << 30}) {
		t.Errorf("processes are %+v", s.Processes)
	}
}

// What is not measured is absent.
func TestStatsOfLittle(t *testing.T) {
	for name, odd := range map[string]func(tr *amdtest.Tree){
		"nothing there": func(tr *amdtest.Tree) {
			tr.Remove(tr.Hwmon(0), tr.PCI(0)+"/ras", tr.PCI(0)+"/gpu_busy_percent", tr.PCI(0)+"/mem_busy_percent", tr.PCI(0)+"/mem_info_vram_used")
		},
		"garbage": func(tr *amdtest.Tree) {
			for _, f := range []string{"temp1_input", "temp2_input", "temp3_input", "power1_average", "power1_cap", "freq1_input"} {
				tr.Set(tr.Hwmon(0)+"/"+f, "0x\x00")
			}
			for _, f := range []string{"ras/umc_err_count", "ras/gfx_err_count", "ras/sdma_err_count"} {
				tr.Set(tr.PCI(0)+"/"+f, "\n")
			}
			tr.Set(tr.PCI(0)+"/gpu_busy_percent", "101")
			tr.Set(tr.PCI(0)+"/mem_busy_percent", "-1")
			tr.Set(tr.PCI(0)+"/mem_info_vram_used", "18446744073709551615")
		},
		"zeroes": func(tr *amdtest.Tree) {
			for _, f := range []string{"temp1_input", "temp2_input", "temp3_input", "power1_average", "power1_cap", "freq1_input"} {
				tr.Set(tr.Hwmon(0)+"/"+f, "0\n")
			}
			tr.Remove(tr.PCI(0)+"/ras", tr.PCI(0)+"/gpu_busy_percent", tr.PCI(0)+"/mem_busy_percent", tr.PCI(0)+"/mem_info_vram_used")
		},
	} {
		tr := amdtest.MI210(t, 1)
		odd(tr)
		g := find(tr).gpus[0]
		s := tree(tr.Root).stats(&g)
		if s.GPUUtilization != nil || s.MemoryUtilization != nil || s.MemoryUsedBytes != nil || s.PowerWatts != nil || s.PowerLimitWatts != nil ||
			s.TemperatureCelsius != nil || s.SMClockHertz != nil || s.ECCCorrected != nil || s.ECCUncorrected != nil || s.Processes != nil {
			t.Errorf("%s: measured all the same: %+v", name, s)
		}
	}
}
