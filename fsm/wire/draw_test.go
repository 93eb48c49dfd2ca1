package wire_test

import (
	"github.com/gpuai/gpuai"
	"pgregory.net/rapid"
)

// drawSpec draws a spec that is valid once Defaults has seen it.
func drawSpec(t *rapid.T) gpuai.JobSpec {
	s := gpuai.JobSpec{
		Name:     drawName(t, "name"),
		Type:     rapid.SampledFrom([]gpuai.JobType{gpuai.Batch, gpuai.Train}).Draw(t, "type"),
		Class:    gpuai.Class(rapid.IntRange(0, gpuai.NumClasses-1).Draw(t, "class")),
		Priority: gpuai.Priority(rapid.IntRange(0, int(gpuai.MaxPriority)).Draw(t, "priority")),
		Limits:   gpuai.Limits{QueueTime: drawDuration(t, gpuai.MaxDuration), RunTime: drawDuration(t, gpuai.MaxDuration)},
		LeaseTTL: drawDuration(t, gpuai.MaxLeaseTTL),
		Begin:    gpuai.WallTime(max(0, rapid.Int64Range(-1<<40, int64(gpuai.MaxWallTime)).Draw(t, "begin"))),
	}
	if rapid.Bool().Draw(t, "says") {
		p := rapid.Bool().Draw(t, "preemptible")
		s.Preemptible = &p
	}
	for i := range rapid.IntRange(0, gpuai.MaxAfter).Draw(t, "after") {
		s.After = append(s.After, gpuai.JobDependency{Job: gpuai.JobID{uint8(i) + 1}, On: gpuai.Stage(rapid.IntRange(0, gpuai.NumStages-1).Draw(t, "on"))})
	}
	groups := rapid.IntRange(1, gpuai.MaxGroups).Draw(t, "groups")
	if rapid.Bool().Draw(t, "array") {
		groups, s.Array.Size = 1, uint32(rapid.IntRange(1, gpuai.MaxTasks).Draw(t, "size"))
		s.Array.MaxParallel = rapid.Uint32Range(0, s.Array.Size).Draw(t, "parallel")
	}
	for i := range groups {
		g := drawGroup(t)
		g.Name = string(rune('a'+i)) + g.Name
		if s.Array.Size > 0 {
			g.Count, g.Gang = 0, false
		}
		s.Groups = append(s.Groups, g)
	}
	return s
}

func drawName(t *rapid.T, label string) string {
	return rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?`).Draw(t, label)
}

func drawDuration(t *rapid.T, most gpuai.Duration) gpuai.Duration {
	return gpuai.Duration(rapid.Int64Range(0, int64(most)).Draw(t, "duration"))
}

// drawText draws any bytes that make no NUL.
func drawText(t *rapid.T, most int) string {
	b := rapid.SliceOfN(rapid.ByteRange(1, 255), 0, most).Draw(t, "text")
	return string(b)
}

func drawGroup(t *rapid.T) gpuai.Group {
	g := gpuai.Group{
		Name: rapid.StringMatching(`[a-z0-9]{0,8}`).Draw(t, "group"), Gang: rapid.Bool().Draw(t, "gang"),
		Count:     uint32(rapid.IntRange(1, gpuai.MaxGangTasks).Draw(t, "count")),
		Resources: drawResources(t), Task: drawTask(t),
		Restart: gpuai.Restart{
			Attempts: uint32(rapid.IntRange(0, gpuai.MaxAttempts).Draw(t, "attempts")), Backoff: drawDuration(t, gpuai.MaxBackoff),
		},
	}
	if !g.Gang && rapid.Bool().Draw(t, "sandboxed") {
		g.Task.Image = rapid.StringMatching(`[a-z]{1,9}(/[a-z]{1,9}){0,3}(:[a-z0-9.]{1,9})?`).Draw(t, "image")
		if rapid.Bool().Draw(t, "on disk") {
			g.Resources.Scratch = gpuai.Bytes(rapid.Int64Range(int64(gpuai.MinScratch), int64(gpuai.MaxMemory)-1).Draw(t, "scratch"))
		}
		if g.Resources.Memory > 0 && rapid.Bool().Draw(t, "shared memory") {
			g.Resources.Shm = gpuai.Bytes(rapid.Int64Range(0, int64(g.Resources.Memory)).Draw(t, "shm"))
		}
		g.Resources.Network = gpuai.Network(rapid.IntRange(0, gpuai.NumNetworks-1).Draw(t, "network"))
		if rapid.Bool().Draw(t, "as the image says") {
			g.Task.Command, g.Task.Script = nil, ""
		}
	}
	if kind := gpuai.LauncherKind(rapid.IntRange(0, gpuai.NumLauncherKinds-1).Draw(t, "launcher")); kind != gpuai.LauncherNone {
		g.Task.Launcher.Kind = kind
		if n := max(g.Resources.GPU.Count, 1); rapid.Bool().Draw(t, "fixed") {
			g.Task.Launcher.ProcsPerNode = n
		}
		if kind == gpuai.LauncherTorchrun {
			g.Task.Launcher.MaxRestarts = rapid.Uint32Range(0, gpuai.MaxProcRestart).Draw(t, "restarts")
		}
	}
	if rapid.Bool().Draw(t, "causes") {
		causes := []gpuai.RestartCause{gpuai.CauseFailure, gpuai.CauseNodeLost, gpuai.CauseGPUError}
		g.Restart.On = rapid.Permutation(causes).Draw(t, "on")[:rapid.IntRange(0, 3).Draw(t, "n")]
	}
	for range rapid.IntRange(0, gpuai.MaxConstraints/2).Draw(t, "constraints") {
		g.Constraints = append(g.Constraints, drawConstraint(t))
	}
	return g
}

func drawConstraint(t *rapid.T) gpuai.Constraint {
	c := gpuai.Constraint{
		Attribute: rapid.SampledFrom([]string{"zone", "gpu.vendor", "gpu.model", "gpu.memory_bytes", "label.a", "label.a.b/c"}).Draw(t, "attribute"),
		Op:        gpuai.Op(rapid.IntRange(0, int(gpuai.AtLeast)).Draw(t, "op")),
	}
	switch {
	case c.Op == gpuai.In || c.Op == gpuai.NotIn:
		for range rapid.IntRange(1, gpuai.MaxValues).Draw(t, "values") {
			c.Values = append(c.Values, drawText(t, 3))
		}
	case c.Op >= gpuai.Less:
		c.Values = []string{rapid.StringMatching(`-?[0-9]{1,18}`).Draw(t, "number")}
	default:
		c.Values = []string{drawText(t, gpuai.MaxTextLen)}
	}
	return c
}

func drawResources(t *rapid.T) gpuai.Resources {
	r := gpuai.Resources{
		CPU:    gpuai.MilliCPU(rapid.Int64Range(0, int64(gpuai.MaxCPU)-1).Draw(t, "cpu")),
		Memory: gpuai.Bytes(rapid.Int64Range(0, int64(gpuai.MaxMemory)-1).Draw(t, "memory")),
	}
	r.GPU.Count = uint32(rapid.IntRange(0, gpuai.MaxGPUs).Draw(t, "gpus"))
	if r.GPU.Count == 0 {
		return r
	}
	if r.GPU.Count == 1 {
		r.GPU.Share.Milli = gpuai.Milli(rapid.IntRange(0, 999).Draw(t, "share"))
	}
	for range rapid.IntRange(0, gpuai.MaxAlternatives).Draw(t, "alternatives") {
		a := gpuai.GPUAlternative{Vendor: drawText(t, 10), Model: drawText(t, gpuai.MaxTextLen)}
		a.MemoryMin = gpuai.Bytes(rapid.Int64Range(0, int64(gpuai.MaxMemory)-1).Draw(t, "min"))
		if rapid.Bool().Draw(t, "bounded") {
			a.MemoryMax = gpuai.Bytes(rapid.Int64Range(int64(a.MemoryMin), int64(gpuai.MaxMemory)-1).Draw(t, "max"))
		}
		r.GPU.Any = append(r.GPU.Any, a)
	}
	return r
}

func drawTask(t *rapid.T) gpuai.TaskSpec {
	s := gpuai.TaskSpec{StopGrace: drawDuration(t, gpuai.Hour)}
	if s.Checkpoint.Signal = gpuai.Signal(rapid.IntRange(0, gpuai.NumSignals-1).Draw(t, "signal")); s.Checkpoint.Signal != 0 {
		s.Checkpoint.Grace = drawDuration(t, gpuai.Hour)
	}
	s.Checkpoint.Keep = rapid.Uint32Range(0, gpuai.MaxCheckpointKeep).Draw(t, "keep")
	if rapid.Bool().Draw(t, "script") {
		s.Script = "x" + drawText(t, 600)
	} else {
		s.Command = append([]string{"x"}, rapid.SliceOfN(rapid.StringMatching(`[ -~]{0,9}`), 0, 20).Draw(t, "args")...)
	}
	if rapid.Bool().Draw(t, "arguments") {
		s.Args = rapid.SliceOfN(rapid.StringMatching(`[ -~]{0,9}`), 1, 20).Draw(t, "list")
	}
	if rapid.Bool().Draw(t, "cwd") {
		s.Cwd = "/" + drawText(t, 300)
	}
	if names := rapid.SliceOfN(rapid.StringMatching(`[a-z_][A-Za-z0-9_]{0,20}`), 0, 9).Draw(t, "env"); len(names) > 0 {
		s.Env = map[string]string{}
		for _, k := range names {
			s.Env[k] = drawText(t, 20)
		}
	}
	return s
}
