package wire_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"pgregory.net/rapid"
)

// sample is a spec that uses every field.
func sample() *gpuai.JobSpec {
	yes := true
	s := &gpuai.JobSpec{
		Preemptible: &yes,
		Name:        "llama-ft", Type: gpuai.Train, Class: gpuai.ClassFinetune, Priority: 70,
		Limits: gpuai.Limits{QueueTime: gpuai.Hour, RunTime: gpuai.Day}, LeaseTTL: 90 * gpuai.Second, Begin: 1_800_000_000_000,
		Placement: gpuai.Placement{Same: gpuai.TopologyZone, Near: gpuai.TopologyRack}, Together: true,
		After: []gpuai.JobDependency{{Job: gpuai.JobID{1}}, {Job: gpuai.JobID{2}, On: gpuai.StageFailed}},
		Groups: []gpuai.Group{{
			Name: "workers", Count: 4, MinCount: 2, Gang: true,
			Constraints: []gpuai.Constraint{
				{Attribute: "zone", Op: gpuai.In, Values: []string{"b", "a", "b"}},
				{Attribute: "gpu.memory_bytes", Op: gpuai.AtLeast, Values: []string{"1000"}},
				{Attribute: "zone", Op: gpuai.In, Values: []string{"a", "b"}},
			},
			Resources: gpuai.Resources{
				CPU: 8_000, Memory: 64 << 30,
				GPU: gpuai.GPURequest{Count: 8, Any: []gpuai.GPUAlternative{
					{Vendor: "nvidia", Model: "H100", MemoryMin: 80 << 30},
					{Vendor: "amd", MemoryMin: 64 << 30, MemoryMax: 192 << 30},
				}},
			},
			Restart: gpuai.Restart{Attempts: 5, Backoff: 2 * gpuai.Second, On: []gpuai.RestartCause{gpuai.CauseGPUError, gpuai.CauseFailure}},
			Task: gpuai.TaskSpec{
				Command: []string{"python3", "train.py", ""}, Cwd: "/srv", StopGrace: 9 * gpuai.Second,
				Checkpoint: gpuai.Checkpoint{Signal: gpuai.SIGUSR1, Grace: gpuai.Minute},
				Env:        map[string]string{"B": "2", "A": "1", "EMPTY": ""},
			},
		}, {
			Name: "eval", Count: 1,
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1, Share: gpuai.Share{Milli: 250}}},
			Restart:   gpuai.Restart{On: []gpuai.RestartCause{}},
			Task:      gpuai.TaskSpec{Script: "echo " + strings.Repeat("x", 700)},
		}},
	}
	s.Defaults()
	return s
}

// normal puts in one order what has none: a way of its own, not the codec's.
func normal(s gpuai.JobSpec) gpuai.JobSpec {
	s.Groups = slices.Clone(s.Groups)
	for i := range s.Groups {
		g := &s.Groups[i]
		g.Restart.On = slices.Sorted(slices.Values(g.Restart.On))
		if g.Restart.On == nil {
			g.Restart.On = []gpuai.RestartCause{}
		}
		seen := map[string]gpuai.Constraint{}
		for _, c := range g.Constraints {
			if c.Op == gpuai.In || c.Op == gpuai.NotIn {
				c.Values = slices.Compact(slices.Sorted(slices.Values(c.Values)))
			}
			seen[fmt.Sprintf("%q", c)] = c
		}
		g.Constraints = nil
		for _, k := range slices.Sorted(maps.Keys(seen)) {
			g.Constraints = append(g.Constraints, seen[k])
		}
	}
	return s
}

func TestJobSpecRoundTrip(t *testing.T) {
	s := sample()
	if errs := s.Validate(); errs != nil {
		t.Fatal(errs)
	}
	got, err := wire.ReadJobSpec(wire.AppendJobSpec(nil, s))
	if err != nil {
		t.Fatal(err)
	}
	if want := normal(*s); !reflect.DeepEqual(normal(got), want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestJobSpecRoundTripProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t)
		s.Defaults()
		if errs := s.Validate(); errs != nil {
			t.Fatalf("the generator made an invalid spec: %v", errs)
		}
		b := wire.AppendJobSpec(nil, &s)
		if len(b) > gpuai.MaxSpecBytes {
			t.Fatalf("a valid spec has %d bytes", len(b))
		}
		got, err := wire.ReadJobSpec(b)
		if err != nil {
			t.Fatalf("a valid spec was refused: %v", err)
		}
		if want := normal(s); !reflect.DeepEqual(normal(got), want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		if errs := got.Validate(); errs != nil {
			t.Fatalf("what was read is invalid: %v", errs)
		}
		if again := wire.AppendJobSpec(nil, &got); !bytes.Equal(again, b) {
			t.Fatalf("written again: %x, was %x", again, b)
		}
	})
}

func TestJobViewAgreesWithSpec(t *testing.T) {
	s := sample()
	var v wire.JobView
	if err := wire.ReadJobView(wire.AppendJobSpec(nil, s), &v); err != nil {
		t.Fatal(err)
	}
	if string(v.Name) != s.Name || string(v.Tenant) != "default" || v.Type != uint8(s.Type) || v.Class != uint8(s.Class) ||
		v.Priority != uint8(s.Priority) || v.QueueTime != int64(s.Limits.QueueTime) || v.RunTime != int64(s.Limits.RunTime) ||
		v.LeaseTTL != int64(s.LeaseTTL) || v.ArraySize != 0 || v.NumGroups != 2 {
		t.Errorf("view %+v", v)
	}
	for i := range s.Groups {
		g, w := &s.Groups[i], &v.Groups[i]
		if string(w.Name) != g.Name || w.Count != g.Count || w.Gang != g.Gang || w.Attempts != g.Restart.Attempts ||
			w.Backoff != int64(g.Restart.Backoff) || w.On != uint8(g.Restart.Set()) || w.StopGrace != int64(g.Task.StopGrace) {
			t.Errorf("group %d: view %+v", i, w)
		}
		task, err := w.ReadTask()
		if err != nil || !reflect.DeepEqual(task, g.Task) {
			t.Errorf("group %d: task %+v, %v", i, task, err)
		}
		needs, cs, err := wire.ReadShape(w.Shape)
		if err != nil || !reflect.DeepEqual(needs, g.Resources) || len(cs) > 2 {
			t.Errorf("group %d: needs %+v, %v, %v", i, needs, cs, err)
		}
	}
}

// long is longer than every text may be.
var long = strings.Repeat("a", 70_000)

// hostile are changes that make a valid spec one that no Validate passes.
var hostile = map[string]func(s *gpuai.JobSpec, g *gpuai.Group){
	"no name":             func(s *gpuai.JobSpec, g *gpuai.Group) { s.Name = "" },
	"long name":           func(s *gpuai.JobSpec, g *gpuai.Group) { s.Name = long[:64] },
	"malformed name":      func(s *gpuai.JobSpec, g *gpuai.Group) { s.Name = "A" },
	"malformed tenant":    func(s *gpuai.JobSpec, g *gpuai.Group) { s.Tenant = "-a" },
	"malformed group":     func(s *gpuai.JobSpec, g *gpuai.Group) { g.Name = "a-" },
	"type":                func(s *gpuai.JobSpec, g *gpuai.Group) { s.Type = gpuai.Train + 1 },
	"class unset":         func(s *gpuai.JobSpec, g *gpuai.Group) { s.Class = gpuai.ClassUnset },
	"class":               func(s *gpuai.JobSpec, g *gpuai.Group) { s.Class = gpuai.ClassBatch + 1 },
	"priority":            func(s *gpuai.JobSpec, g *gpuai.Group) { s.Priority = gpuai.MaxPriority + 1 },
	"negative queue time": func(s *gpuai.JobSpec, g *gpuai.Group) { s.Limits.QueueTime = -1 },
	"queue time":          func(s *gpuai.JobSpec, g *gpuai.Group) { s.Limits.QueueTime = gpuai.MaxDuration + 1 },
	"run time":            func(s *gpuai.JobSpec, g *gpuai.Group) { s.Limits.RunTime = 1 << 62 },
	"negative lease ttl":  func(s *gpuai.JobSpec, g *gpuai.Group) { s.LeaseTTL = -1 },
	"lease ttl":           func(s *gpuai.JobSpec, g *gpuai.Group) { s.LeaseTTL = gpuai.MaxLeaseTTL + 1 },
	"array":               func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size = gpuai.MaxTasks + 1 },
	"array and count":     func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, g.Count = 3, 2 },
	"array of a gang":     func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, g.Count, g.Gang = 2, 2, true },
	"array of two groups": func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, s.Groups = 1, append(s.Groups, s.Groups...) },
	"no group":            func(s *gpuai.JobSpec, g *gpuai.Group) { s.Groups = nil },
	"groups":              func(s *gpuai.JobSpec, g *gpuai.Group) { s.Groups = slices.Repeat(s.Groups, 17) },
	"256 groups":          func(s *gpuai.JobSpec, g *gpuai.Group) { s.Groups = slices.Repeat(s.Groups, 256) },
	"no task":             func(s *gpuai.JobSpec, g *gpuai.Group) { g.Count = 0 },
	"tasks":               func(s *gpuai.JobSpec, g *gpuai.Group) { g.Count = gpuai.MaxTasks + 1 },
	"gang":                func(s *gpuai.JobSpec, g *gpuai.Group) { g.Count, g.Gang = gpuai.MaxGangTasks+1, true },
	"attempts":            func(s *gpuai.JobSpec, g *gpuai.Group) { g.Restart.Attempts = gpuai.MaxAttempts + 1 },
	"negative back-off":   func(s *gpuai.JobSpec, g *gpuai.Group) { g.Restart.Backoff = -1 },
	"back-off":            func(s *gpuai.JobSpec, g *gpuai.Group) { g.Restart.Backoff = gpuai.MaxBackoff + 1 },
	"restart cause":       func(s *gpuai.JobSpec, g *gpuai.Group) { g.Restart.On = []gpuai.RestartCause{3} },
	"negative stop grace": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.StopGrace = -1 },
	"stop grace":          func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.StopGrace = gpuai.Hour + 1 },
	"no such launcher":    func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Launcher.Kind = 200 },
	"too many processes": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Launcher = gpuai.Launcher{Kind: gpuai.LauncherEnv, ProcsPerNode: gpuai.MaxProcs + 1}
	},
	"no such signal":     func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Checkpoint.Signal = 200 },
	"keeps too many":     func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Checkpoint.Keep = gpuai.MaxCheckpointKeep + 1 },
	"grace of no signal": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Checkpoint.Grace = 1 },
	"checkpoint grace": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Checkpoint = gpuai.Checkpoint{Signal: 1, Grace: gpuai.Hour + 1}
	},
	"negative cpu":       func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.CPU = -1 },
	"cpu":                func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.CPU = gpuai.MaxCPU },
	"negative memory":    func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.Memory = -1 },
	"memory":             func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.Memory = gpuai.MaxMemory },
	"gpus":               func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Count = gpuai.MaxGPUs + 1 },
	"gpus beyond a byte": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Count = 1 << 31 },
	"share":              func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Share.Milli = 1_000 },
	"share of none": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU = gpuai.GPURequest{Share: gpuai.Share{Milli: 1}}
	},
	"share of two": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU = gpuai.GPURequest{Count: 2, Share: gpuai.Share{Milli: 1}}
	},
	"kind of no gpu": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU = gpuai.GPURequest{Any: alternatives(1)} },
	"kinds":          func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Any = alternatives(9) },
	"long vendor": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU.Any = []gpuai.GPUAlternative{{Vendor: long[:257]}}
	},
	"long model":          func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Any = []gpuai.GPUAlternative{{Model: long}} },
	"negative gpu memory": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Any = []gpuai.GPUAlternative{{MemoryMin: -1}} },
	"gpu memory": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU.Any = []gpuai.GPUAlternative{{MemoryMax: 1 << 60}}
	},
	"empty memory range": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU.Any = []gpuai.GPUAlternative{{MemoryMin: 2, MemoryMax: 1}}
	},
	"constraints":                   func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = zones(gpuai.MaxConstraints + 1) },
	"constraints without a sandbox": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = zones(gpuai.MaxOwnConstraints + 1) },
	"operator":                      func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = []gpuai.Constraint{{Op: 8, Values: texts(1)}} },
	"no value":                      func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = []gpuai.Constraint{{Op: gpuai.In}} },
	"two values": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Values: []string{"a", "b"}}}
	},
	"long value": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = []gpuai.Constraint{{Values: []string{long}}} },
	"long attribute": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Attribute: long, Values: texts(1)}}
	},
	"values": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Op: gpuai.In, Values: numbers(33)}}
	},
	"arguments":            func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Command = texts(gpuai.MaxCommand + 1) },
	"arguments beyond u16": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Command = texts(1<<16 + 1) },
	"environment":          func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Env = environment(gpuai.MaxEnv + 1) },
	"long variable":        func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Env = map[string]string{long: ""} },
	"long runtime":         func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Runtime = long },
	"two groups of too many tasks": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Count, g.Name = gpuai.MaxTasks, "a"
		s.Groups = append(s.Groups, *g)
		s.Groups[1].Name, s.Groups[1].Count = "b", 1
	},
	"long script": func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Command, g.Task.Script = nil, strings.Repeat("x", gpuai.MaxSpecBytes)
	},
	"long cwd": func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Cwd = long[:4_097] },
}

func texts(n int) []string { return slices.Repeat([]string{"v"}, n) }

func alternatives(n int) []gpuai.GPUAlternative { return make([]gpuai.GPUAlternative, n) }

func environment(n int) map[string]string {
	env := map[string]string{}
	for i := range n {
		env[fmt.Sprint("E", i)] = ""
	}
	return env
}

func zones(n int) (cs []gpuai.Constraint) {
	for _, v := range numbers(n) {
		cs = append(cs, gpuai.Constraint{Attribute: "zone", Values: []string{v}})
	}
	return cs
}

// TestJobViewRefusesEveryLimit takes specs that no Validate saw.
func TestJobViewRefusesEveryLimit(t *testing.T) {
	for name, change := range hostile {
		t.Run(name, func(t *testing.T) {
			s := &gpuai.JobSpec{Name: "j", Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Command: []string{"true"}}}}}
			s.Defaults()
			var v wire.JobView
			if err := wire.ReadJobView(wire.AppendJobSpec(nil, s), &v); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			change(s, &s.Groups[0])
			if s.Validate() == nil {
				t.Error("Validate passes it: the codec is the stricter")
			}
			b := wire.AppendJobSpec(nil, s)
			if err := wire.ReadJobView(b, &v); err == nil {
				t.Error("the view was taken")
			}
			if _, err := wire.ReadJobSpec(b); err == nil {
				t.Error("the spec was taken")
			}
		})
	}
}

func numbers(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func TestJobViewTruncatedAndChanged(t *testing.T) {
	b := wire.AppendJobSpec(nil, sample())
	var v wire.JobView
	for n := range b {
		if wire.ReadJobView(b[:n], &v) != nil {
			continue
		}
		// A spec with fewer extension fields is one too, if it is written so.
		if s, err := wire.ReadJobSpec(b[:n]); err != nil || !bytes.Equal(wire.AppendJobSpec(nil, &s), b[:n]) {
			t.Errorf("%d of %d bytes were taken", n, len(b))
		}
	}
	if err := wire.ReadJobView(append(slices.Clone(b), 0), &v); err == nil {
		t.Error("a byte behind the spec was taken")
	}
	for i := range b {
		for _, x := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			bad := slices.Clone(b)
			bad[i] = x
			checkSpec(t, bad)
		}
	}
}

// checkSpec asserts what holds of any bytes: they are refused by both readers,
// or read the same, in range, and written again as they were.
func checkSpec(t *testing.T, b []byte) {
	t.Helper()
	var v wire.JobView
	s, err := wire.ReadJobSpec(b)
	if viewErr := wire.ReadJobView(b, &v); (err == nil) != (viewErr == nil) {
		t.Fatalf("%x: spec %v, view %v", b, err, viewErr)
	}
	if err != nil {
		return
	}
	if again := wire.AppendJobSpec(nil, &s); !bytes.Equal(again, b) {
		t.Fatalf("%x was written again as %x", b, again)
	}
	for i := range v.Groups[:v.NumGroups] {
		g := &v.Groups[i]
		if g.Count < 1 || g.Count > gpuai.MaxTasks || g.Gang && g.Count > gpuai.MaxGangTasks || g.Backoff < 0 || g.StopGrace < 0 {
			t.Fatalf("%x: group %+v", b, g)
		}
	}
}

func TestShapeIsCanonical(t *testing.T) {
	zone := gpuai.Constraint{Attribute: "zone", Op: gpuai.NotIn, Values: []string{"a", "b"}}
	zoneTwice := gpuai.Constraint{Attribute: "zone", Op: gpuai.NotIn, Values: []string{"b", "a", "a"}}
	label := gpuai.Constraint{Attribute: "label.x", Op: gpuai.Equal, Values: []string{"1"}}
	other := gpuai.Constraint{Attribute: "label.x", Op: gpuai.NotEqual, Values: []string{"1"}}
	h100, a100 := gpuai.GPUAlternative{Model: "H100"}, gpuai.GPUAlternative{Model: "A100"}
	gpu := func(any ...gpuai.GPUAlternative) *gpuai.Resources {
		return &gpuai.Resources{CPU: 1, Memory: 1, GPU: gpuai.GPURequest{Count: 1, Any: any}}
	}
	base := wire.AppendShape(nil, gpu(h100, a100), []gpuai.Constraint{zone, label})
	for _, c := range []struct {
		name  string
		r     *gpuai.Resources
		cs    []gpuai.Constraint
		equal bool
	}{
		{"same", gpu(h100, a100), []gpuai.Constraint{zone, label}, true},
		{"order of constraints", gpu(h100, a100), []gpuai.Constraint{label, zone}, true},
		{"constraint twice", gpu(h100, a100), []gpuai.Constraint{label, zone, label}, true},
		{"order and repetition of values", gpu(h100, a100), []gpuai.Constraint{label, zoneTwice}, true},
		{"order of alternatives", gpu(a100, h100), []gpuai.Constraint{zone, label}, false},
		{"one alternative", gpu(h100), []gpuai.Constraint{zone, label}, false},
		{"operator", gpu(h100, a100), []gpuai.Constraint{zone, other}, false},
		{"one constraint less", gpu(h100, a100), []gpuai.Constraint{zone}, false},
	} {
		b := wire.AppendShape(nil, c.r, c.cs)
		if bytes.Equal(b, base) != c.equal {
			t.Errorf("%s: equal bytes: %v", c.name, !c.equal)
		}
		r, cs, err := wire.ReadShape(b)
		if err != nil || !bytes.Equal(wire.AppendShape(nil, &r, cs), b) {
			t.Errorf("%s: read back %+v %+v, %v", c.name, r, cs, err)
		}
	}
	if zoneTwice.Values[0] != "b" {
		t.Error("AppendShape sorted its argument")
	}
}

func TestReadShapeTakesCanonicalOnly(t *testing.T) {
	head := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 1), 1)
	head = append(head, 0, 0, 0, 0)
	eq := func(v string) string { return "\x01z\x00\x01\x01" + v }
	for body, ok := range map[string]bool{
		"\x00":                             true,
		"\x02" + eq("a") + eq("b"):         true,
		"\x02" + eq("b") + eq("a"):         false,
		"\x02" + eq("a") + eq("a"):         false,
		"\x01\x01z\x02\x02\x01a\x01b":      true,
		"\x01\x01z\x02\x02\x01b\x01a":      false,
		"\x01\x01z\x02\x02\x01a\x01a":      false,
		"\x01\x01z\x00\x02\x01a\x01b":      false,
		"\x01\x01z\x02\x02\x00\x01a":       true,
		"\x01\x01z\x02\x02\x00\x00":        false,
		"\x00\x00":                         false,
		"":                                 false,
		"\x02" + eq("a") + "\x01z\x00\x01": false,
	} {
		if _, _, err := wire.ReadShape(append(slices.Clone(head), body...)); (err == nil) != ok {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestReadTaskWantsItsEnvironmentInOrder(t *testing.T) {
	task := func(env string) []byte {
		return []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + env + "\x00")
	}
	for env, ok := range map[string]bool{
		"\x00\x00":                     true,
		"\x02\x00\x01A\x00\x01B\x01b":  true,
		"\x02\x00\x01B\x00\x01A\x00":   false,
		"\x02\x00\x01A\x00\x01A\x00":   false,
		"\x02\x00\x01A\x00":            false,
		"\xff\xff\x01A\x00":            false,
		"\x01\x00\xff\x01\x00\x00\x00": false,
	} {
		if _, err := wire.ReadTask(task(env)); (err == nil) != ok {
			t.Errorf("%q: %v", env, err)
		}
	}
}

func TestReadJobViewAllocatesNothing(t *testing.T) {
	b := wire.AppendJobSpec(nil, sample())
	var v wire.JobView
	if n := testing.AllocsPerRun(100, func() {
		if err := wire.ReadJobView(b, &v); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzJobSpec(f *testing.F) {
	f.Add(wire.AppendJobSpec(nil, sample()))
	small := &gpuai.JobSpec{Name: "j", Array: gpuai.Array{Size: 9}, Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Script: "true"}}}}
	small.Defaults()
	f.Add(wire.AppendJobSpec(nil, small))
	f.Fuzz(checkSpec)
}

func FuzzShape(f *testing.F) {
	s := sample()
	f.Add(wire.AppendShape(nil, &s.Groups[0].Resources, s.Groups[0].Constraints))
	f.Add(wire.AppendShape(nil, &s.Groups[1].Resources, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, cs, err := wire.ReadShape(b)
		if err != nil {
			return
		}
		if again := wire.AppendShape(nil, &r, cs); !bytes.Equal(again, b) {
			t.Errorf("%x was written again as %x", b, again)
		}
	})
}

func FuzzTask(f *testing.F) {
	var v wire.JobView
	if err := wire.ReadJobView(wire.AppendJobSpec(nil, sample()), &v); err != nil {
		f.Fatal(err)
	}
	f.Add(v.Groups[0].Task)
	f.Add(v.Groups[1].Task)
	f.Fuzz(func(t *testing.T, b []byte) {
		task, err := wire.ReadTask(b)
		if err != nil {
			return
		}
		s := &gpuai.JobSpec{Name: "j", Groups: []gpuai.Group{{Task: task}}}
		s.Defaults()
		s.Groups[0].Task = task
		var w wire.JobView
		if err := wire.ReadJobView(wire.AppendJobSpec(nil, s), &w); err != nil || !bytes.Equal(w.Groups[0].Task, b) {
			t.Errorf("%x was written again as %x, %v", b, w.Groups[0].Task, err)
		}
	})
}

func BenchmarkReadJobView(b *testing.B) {
	spec := wire.AppendJobSpec(nil, sample())
	var v wire.JobView
	b.ReportAllocs()
	for b.Loop() {
		if err := wire.ReadJobView(spec, &v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJobSpec(b *testing.B) {
	s := sample()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = wire.AppendJobSpec(buf[:0], s)
	}
}
