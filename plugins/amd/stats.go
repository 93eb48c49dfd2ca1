package amd

import "github.com/gpuai/gpuai/plugins"

const micro = 1e6

// stats measures one device. What the card does not tell is absent. The sensors
// are the whole card's: of a partition only the memory is measured.
func (t tree) stats(g *gpu) plugins.Stats {
	s := plugins.Stats{Device: g.ID, MemoryTotalBytes: positive(uint64(g.Memory), g.Memory > 0)}
	for _, p := range t.kfdProcesses(g.GPUID) {
		if p.memory > 0 && p.pid <= 1<<32-1 {
			s.Processes = append(s.Processes, plugins.ProcessUse{PID: uint32(p.pid), Memory: memoryOf(p.memory)})
		}
	}
	if g.Kind == "partition" {
		return s
	}
	dir := g.fn.dir()
	s.GPUUtilization = t.ratio(dir, "gpu_busy_percent")
	s.MemoryUtilization = t.ratio(dir, "mem_busy_percent")
	if used, ok := t.number(dir, "mem_info_vram_used"); ok && used <= uint64(g.Memory) {
		s.MemoryUsedBytes = &used
	}
	t.errorStats(g, &s)
	if hw := t.hwmon(g.fn); hw != "" {
		t.sensorStats(g, hw, &s)
	}
	return s
}

// ratio reads a percentage. A card that sleeps is not asked: that would wake it.
func (t tree) ratio(dir, name string) *float64 {
	if t.word(dir, "power/runtime_status") == "suspended" {
		return nil
	}
	n, ok := t.number(dir, name)
	if !ok || n > 100 {
		return nil
	}
	return new(float64(n) / 100)
}

func (t tree) errorStats(g *gpu, s *plugins.Stats) {
	counts := t.rasCounts(g.fn)
	if len(counts) == 0 {
		return
	}
	s.ECCUncorrected, s.ECCCorrected = new(uint64(0)), new(uint64(0))
	for _, c := range counts {
		*s.ECCUncorrected += c.uncorrected
		*s.ECCCorrected += c.corrected
	}
}

func (t tree) sensorStats(g *gpu, hw string, s *plugins.Stats) {
	watts := func(names ...string) *float64 {
		for _, name := range names {
			if n, ok := t.number(hw, name); ok && n > 0 {
				return new(float64(n) / micro)
			}
		}
		return nil
	}
	s.PowerWatts = watts("power1_average", "power1_input")
	s.PowerLimitWatts = watts("power1_cap")
	if n, ok := t.number(hw, "freq1_input"); ok && n > 0 {
		s.SMClockHertz = new(float64(n))
	}
	for _, one := range t.sensors(g.fn) {
		hotter := s.TemperatureCelsius == nil || one.label == "junction"
		if hotter && one.now > 0 {
			s.TemperatureCelsius = new(float64(one.now) / 1000)
		}
	}
}

func positive(n uint64, ok bool) *uint64 {
	if !ok {
		return nil
	}
	return &n
}
