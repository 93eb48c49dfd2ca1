package gpuai_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// job returns a small valid spec.
func job() *gpuai.JobSpec {
	s := &gpuai.JobSpec{Name: "j", Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}},
		Task:      gpuai.TaskSpec{Command: []string{"true"}},
	}}}
	s.Defaults()
	return s
}

func TestJobDefaults(t *testing.T) {
	s := job()
	g := &s.Groups[0]
	want := gpuai.Group{
		Name: "main", Count: 1,
		Resources: gpuai.Resources{CPU: 1_000, Memory: 1 << 30, GPU: gpuai.GPURequest{Count: 1}},
		Restart:   gpuai.Restart{Attempts: 3, Backoff: gpuai.Second, On: []gpuai.RestartCause{gpuai.CauseNodeLost, gpuai.CauseGPUError}},
		Task:      gpuai.TaskSpec{Runtime: "process", Command: []string{"true"}, StopGrace: 5 * gpuai.Second},
	}
	if !reflect.DeepEqual(*g, want) || s.Tenant != gpuai.DefaultTenant || s.Class != gpuai.ClassBatch || s.Priority != 0 || s.LeaseTTL != 0 {
		t.Errorf("defaults of a small job: %+v", s)
	}
	train := &gpuai.JobSpec{Type: gpuai.Train, Groups: make([]gpuai.Group, 2)}
	train.Defaults()
	if train.Class != gpuai.ClassTraining || train.Groups[1].Name != "group-1" {
		t.Errorf("defaults of a training: %+v", train)
	}
	array := &gpuai.JobSpec{Array: gpuai.Array{Size: 200}, Groups: make([]gpuai.Group, 1)}
	array.Defaults()
	if array.Groups[0].Count != 200 {
		t.Errorf("an array of 200 has %d tasks", array.Groups[0].Count)
	}
	never := &gpuai.JobSpec{Groups: []gpuai.Group{{Restart: gpuai.Restart{On: []gpuai.RestartCause{}}}}}
	never.Defaults()
	if r := never.Groups[0].Restart; r.Attempts != 0 || len(r.On) != 0 || r.Set() != 0 {
		t.Errorf("an empty list of causes became %+v", r)
	}
}

var jobCases = []struct {
	name   string
	change func(s *gpuai.JobSpec, g *gpuai.Group)
	want   []string // pointers
}{
	{"untouched", func(s *gpuai.JobSpec, g *gpuai.Group) {}, nil},
	{"no name", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Name = "" }, []string{"/name"}},
	{"tenant", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Tenant = "Acme" }, []string{"/tenant"}},
	{"type and class", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Type, s.Class = 2, 5 }, []string{"/type", "/class"}},
	{"priority", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Priority = 101 }, []string{"/priority"}},
	{"times", func(s *gpuai.JobSpec, g *gpuai.Group) {
		s.Limits, s.LeaseTTL = gpuai.Limits{QueueTime: -1, RunTime: gpuai.MaxDuration + 1}, gpuai.Hour+1
	}, []string{"/limits/queue_time_ms", "/limits/run_time_ms", "/lease_ttl_ms"}},
	{"scratch of a plain process", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.Scratch = 1 << 30 }, []string{"/groups/0/resources"}},
	{"little scratch and much shm", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image = gpuai.RuntimeOCI, "debian:12"
		g.Resources.Scratch, g.Resources.Shm = gpuai.MinScratch-1, g.Resources.Memory+1
	}, []string{"/groups/0/resources/scratch_bytes", "/groups/0/resources/shm_bytes"}},
	{"no group", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Groups = nil }, []string{"/groups"}},
	{"array and count", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, g.Count = 2, 3 }, []string{"/groups/0/count"}},
	{"array of a gang", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, g.Count, g.Gang = 2, 2, true }, []string{"/groups/0/gang"}},
	{"array too large", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Array.Size, g.Count = 100_001, 100_001 },
		[]string{"/array/size", "/groups/0/count", "/groups"}},
	{"one name twice", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Groups = append(s.Groups, *g) }, []string{"/groups/1/name"}},
	{"too many tasks together", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Count = gpuai.MaxTasks
		s.Groups = append(s.Groups, *g)
		s.Groups[1].Name = "b"
	}, []string{"/groups"}},
	{"no task", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Count = 0 }, []string{"/groups/0/count"}},
	{"gang too large", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Gang, g.Count = true, 4_097 }, []string{"/groups/0/count"}},
	{"elastic gang", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Gang, g.Count, g.MinCount = true, 4, 2 }, nil},
	{"elastic gang of no room", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Gang, g.Count, g.MinCount = true, 4, 5 }, []string{"/groups/0/min_count"}},
	{"elastic without a gang", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Count, g.MinCount = 4, 2 }, []string{"/groups/0/min_count"}},
	{"placement", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Gang, s.Placement = true, gpuai.Placement{Same: gpuai.TopologyRack, Near: gpuai.TopologyNVLink}
	}, nil},
	{"placement of no gang", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Placement.Same = gpuai.TopologyRack }, []string{"/placement"}},
	{"placement of no GPU", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Gang, g.Resources.GPU.Count, s.Placement.Near = true, 0, gpuai.TopologyRack
	}, nil},
	{"placement of shares", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Gang, g.Resources.GPU.Count, g.Resources.GPU.Share.Milli, s.Placement.Same = true, 1, 500, gpuai.TopologyRack
	}, []string{"/placement"}},
	{"near wider than same", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Gang, s.Placement = true, gpuai.Placement{Same: gpuai.TopologyRack, Near: gpuai.TopologyRack}
	}, []string{"/placement/near"}},
	{"unknown levels", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Gang, s.Placement = true, gpuai.Placement{Same: 9, Near: 8}
	}, []string{"/placement/same", "/placement/near"}},
	{"together", func(s *gpuai.JobSpec, g *gpuai.Group) {
		s.Together, s.Placement.Same = true, gpuai.TopologyZone
		s.Groups = append(s.Groups, gpuai.Group{Name: "cpu", Count: 4, Resources: gpuai.Resources{CPU: 1, Memory: 1}, Restart: g.Restart, Task: g.Task})
	}, nil},
	{"an array together", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Together, s.Array.Size, g.Count = true, 2, 2 }, []string{"/together"}},
	{"too many together", func(s *gpuai.JobSpec, g *gpuai.Group) { s.Together, g.Count = true, 4_097 }, []string{"/together"}},
	{"restart", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Restart = gpuai.Restart{Attempts: 1_001, Backoff: -1, On: []gpuai.RestartCause{3, 0, 0}}
	}, []string{"/groups/0/restart/attempts", "/groups/0/restart/backoff_ms", "/groups/0/restart/on/0", "/groups/0/restart/on/2"}},
	{"constraint", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Constraints = []gpuai.Constraint{{Attribute: "cpu", Op: 9}} },
		[]string{"/groups/0/constraints/0/attribute", "/groups/0/constraints/0/op", "/groups/0/constraints/0/values"}},
	{"constraint of two values", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Attribute: "zone", Values: []string{"a", "b"}}}
	}, []string{"/groups/0/constraints/0/values"}},
	{"constraint of no number", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Attribute: "label.x", Op: gpuai.Less, Values: []string{"1.5"}}}
	}, []string{"/groups/0/constraints/0/values/0"}},
	{"constraint of a label without a key", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = []gpuai.Constraint{{Attribute: "label.", Values: []string{"1"}}}
	}, []string{"/groups/0/constraints/0/attribute"}},
	{"constraints", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Constraints = slices.Repeat([]gpuai.Constraint{{Attribute: "zone", Values: []string{"a"}}}, 17)
	}, []string{"/groups/0/constraints"}},
	{"gpus", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.GPU.Count = 65 }, []string{"/groups/0/resources/gpu/count"}},
	{"kind without a count", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU = gpuai.GPURequest{Any: []gpuai.GPUAlternative{{Vendor: "amd"}}}
	}, []string{"/groups/0/resources/gpu/any"}},
	{"share of two", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU = gpuai.GPURequest{Count: 2, Share: gpuai.Share{Milli: 1_000}}
	}, []string{"/groups/0/resources/gpu/share/milli", "/groups/0/resources/gpu/share"}},
	{"memory range", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Resources.GPU.Any = []gpuai.GPUAlternative{{MemoryMin: 2, MemoryMax: 1}, {MemoryMin: -1}}
	}, []string{"/groups/0/resources/gpu/any/0/memory_max_bytes", "/groups/0/resources/gpu/any/1/memory_min_bytes"}},
	{"cpu and memory", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.CPU, g.Resources.Memory = -1, 1<<50 },
		[]string{"/groups/0/resources/cpu_milli", "/groups/0/resources/memory_bytes"}},
	{"runtime", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Runtime = "docker" }, []string{"/groups/0/task/runtime"}},
	{"sandbox without an image", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Runtime = gpuai.RuntimeOCI }, []string{"/groups/0/task/image"}},
	{"process with an image", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Image = "debian:12" }, []string{"/groups/0/task/runtime"}},
	{"image", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Runtime, g.Task.Image = gpuai.RuntimeOCI, "a b" }, []string{"/groups/0/task/image"}},
	{"gang in sandboxes", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Gang, g.Count = gpuai.RuntimeOCI, "debian:12", true, gpuai.MaxMeshTasks
	}, nil},
	{"large gang in sandboxes", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Gang, g.Count = gpuai.RuntimeOCI, "debian:12", true, gpuai.MaxMeshTasks+1
	}, []string{"/groups/0/count"}},
	{"gang in sandboxes of one node", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Gang, g.Count = gpuai.RuntimeOCI, "debian:12", true, 2
		g.Resources.GPU = gpuai.GPURequest{Count: 1}
		s.Placement.Same = gpuai.TopologyNode
	}, nil},
	{"gang in sandboxes in their nodes' network", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Gang, g.Count, g.Resources.Network = gpuai.RuntimeOCI, "debian:12", true, 2, gpuai.NetworkHost
	}, nil},
	{"gang of one in a sandbox", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Gang, g.Count = gpuai.RuntimeOCI, "debian:12", true, 1
	}, nil},
	{"network", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Runtime, g.Task.Image, g.Resources.Network = gpuai.RuntimeOCI, "debian:12", gpuai.Network(gpuai.NumNetworks)
	}, []string{"/groups/0/resources/network"}},
	{"network of a process", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Resources.Network = gpuai.NetworkEgress },
		[]string{"/groups/0/resources/network"}},
	{"arguments", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Args = []string{"a", "\x00"} }, []string{"/groups/0/task/args/1"}},
	{"command and script", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Script = "true" }, []string{"/groups/0/task"}},
	{"nothing to run", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Command = nil }, []string{"/groups/0/task"}},
	{"empty program, NUL", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Command = []string{"", "a\x00"} },
		[]string{"/groups/0/task/command/0", "/groups/0/task/command/1"}},
	{"environment", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Env = map[string]string{"1A": "", "": "", "OK_1": "", "GPUAI_JOB": "", "N": "\x00", "A=B": ""}
	}, []string{"/groups/0/task/env", "/groups/0/task/env", "/groups/0/task/env", "/groups/0/task/env/GPUAI_JOB", "/groups/0/task/env/N"}},
	{"cwd", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.Cwd = "tmp" }, []string{"/groups/0/task/cwd"}},
	{"stop grace", func(s *gpuai.JobSpec, g *gpuai.Group) { g.Task.StopGrace = gpuai.Hour + 1 }, []string{"/groups/0/task/stop_grace_ms"}},
	{"too large in all", func(s *gpuai.JobSpec, g *gpuai.Group) {
		g.Task.Command, g.Task.Script = nil, strings.Repeat("#", gpuai.MaxSpecBytes)
	}, []string{""}},
}

func TestJobValidate(t *testing.T) {
	for _, c := range jobCases {
		s := job()
		c.change(s, &s.Groups[0])
		errs := s.Validate()
		if got := pointers(errs); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		for _, e := range errs {
			if e.Detail == "" || len(e.Detail) > 200 {
				t.Errorf("%s: %s has the detail %q", c.name, e.Pointer, e.Detail)
			}
		}
	}
}

// TestJobValidateIsBounded gives far too much of everything: the answer stays
// small.
func TestJobValidateIsBounded(t *testing.T) {
	s := job()
	g := &s.Groups[0]
	g.Constraints = slices.Repeat([]gpuai.Constraint{{Values: slices.Repeat([]string{strings.Repeat("x", 300)}, 1_000)}}, 1_000)
	g.Resources.GPU.Any = make([]gpuai.GPUAlternative, 100_000)
	g.Restart.On = make([]gpuai.RestartCause, 100_000)
	g.Task.Command = slices.Repeat([]string{"\x00"}, 100_000)
	s.Groups = slices.Repeat(s.Groups, 1_000)
	if n := len(s.Validate()); n == 0 || n > 100_000 {
		t.Errorf("%d errors", n)
	}
}

var nodeCases = []struct {
	name   string
	change func(s *gpuai.NodeSpec)
	want   []string
}{
	{"untouched", func(s *gpuai.NodeSpec) {}, nil},
	{"id", func(s *gpuai.NodeSpec) { s.ID = "Node_1" }, []string{"/id"}},
	{"rack and NVLink domain", func(s *gpuai.NodeSpec) { s.Rack, s.NVLinkDomain = "r 1", "-" }, []string{"/rack", "/nvlink_domain"}},
	{"zone", func(s *gpuai.NodeSpec) { s.Zone = "Z" }, []string{"/zone"}},
	{"label", func(s *gpuai.NodeSpec) { s.Labels = map[string]string{"A": "", "a": strings.Repeat("x", 257)} }, []string{"/labels", "/labels/a"}},
	{"labels", func(s *gpuai.NodeSpec) {
		s.Labels = map[string]string{}
		for i := range 33 {
			s.Labels["l"+strconv.Itoa(i)] = ""
		}
	}, []string{"/labels"}},
	{"texts", func(s *gpuai.NodeSpec) { s.Address, s.Version = strings.Repeat("x", 257), strings.Repeat("x", 257) }, []string{"/address", "/version"}},
	{"capacity", func(s *gpuai.NodeSpec) { s.CPU, s.Memory, s.Price = -1, 1<<50, -1 },
		[]string{"/cpu_milli", "/memory_bytes", "/price_micros_per_gpu_hour"}},
	{"ports", func(s *gpuai.NodeSpec) { s.PortMin, s.PortCount = 65_500, 65 }, []string{"/port_count", "/port_min"}},
	{"ports up to the last", func(s *gpuai.NodeSpec) { s.PortMin, s.PortCount = 65_535, 1 }, nil},
	{"ports from 0", func(s *gpuai.NodeSpec) { s.PortMin, s.PortCount = 0, 1 }, []string{"/port_min"}},
	{"devices out of order", func(s *gpuai.NodeSpec) { slices.Reverse(s.Devices) }, []string{"/devices/1/id"}},
	{"device twice", func(s *gpuai.NodeSpec) { s.Devices[1].ID = "g0" }, []string{"/devices/1/id"}},
	{"device without anything", func(s *gpuai.NodeSpec) {
		s.Devices[0] = gpuai.Device{Memory: -1, Health: 9, HealthCode: strings.Repeat("x", 257)}
	},
		[]string{"/devices/0/id", "/devices/0/vendor", "/devices/0/model", "/devices/0/memory_bytes", "/devices/0/health", "/devices/0/health_code"}},
	{"65 devices", func(s *gpuai.NodeSpec) {
		s.Devices = nil
		for i := range 65 {
			s.Devices = append(s.Devices, gpuai.Device{ID: gpuai.DeviceID("g" + strconv.Itoa(100+i)), Vendor: "sim", Model: "m"})
		}
	}, []string{"/devices"}},
}

func TestNodeValidate(t *testing.T) {
	for _, c := range nodeCases {
		s := &gpuai.NodeSpec{ID: "n", Address: "127.0.0.1", CPU: 1_000, Memory: 1, Devices: []gpuai.Device{
			{ID: "g0", Vendor: "sim", Model: "m"}, {ID: "g1", Vendor: "sim", Model: "m"},
		}}
		c.change(s)
		if got := pointers(s.Validate()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestCanonicalJSON pins the names, units and forms of the wire.
func TestCanonicalJSON(t *testing.T) {
	got, err := json.Marshal(job())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"j","tenant":"default","type":"batch","class":"batch","groups":[{"name":"main","count":1,` +
		`"resources":{"gpu":{"count":1},"cpu_milli":1000,"memory_bytes":1073741824},` +
		`"restart":{"attempts":3,"backoff_ms":1000,"on":["node_lost","gpu_error"]},` +
		`"task":{"runtime":"process","command":["true"],"stop_grace_ms":5000}}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	lease, err := json.Marshal(gpuai.Event{Job: vector, Lease: 1 << 60, Incarnation: 1 << 57, Kind: gpuai.LeaseGrantedEvent})
	const event = `{"index":0,"ordinal":0,"kind":"lease_granted","at_ms":0,"job":"01ARZ3NDEKTSV4RRFFQ69G5FAV",` +
		`"lease":"1152921504606846976","incarnation":"144115188075855872"}`
	if err != nil || string(lease) != event {
		t.Errorf("got  %s\nwant %s\n%v", lease, event, err)
	}
}

func FuzzJobValidate(f *testing.F) {
	for _, c := range jobCases[:8] {
		s := job()
		c.change(s, &s.Groups[0])
		b, err := json.Marshal(s)
		if err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s gpuai.JobSpec
		if json.Unmarshal(b, &s) != nil {
			return
		}
		s.Defaults()
		once, err := json.Marshal(&s)
		if err != nil {
			t.Fatal(err)
		}
		s.Defaults()
		if twice, _ := json.Marshal(&s); string(once) != string(twice) {
			t.Errorf("Defaults is not idempotent: %s, then %s", once, twice)
		}
		for _, e := range s.Validate() {
			if e.Pointer != "" && e.Pointer[0] != '/' || e.Detail == "" {
				t.Errorf("%+v", e)
			}
		}
	})
}
