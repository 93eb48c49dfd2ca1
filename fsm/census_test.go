package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// kindState is one label set of a count.
type kindState struct{ vendor, model, state string }

// countByNodes counts devices as the edge type of every node shows them.
func countByNodes(m *Machine) map[kindState]uint32 {
	out := map[kindState]uint32{}
	var after gpuai.NodeID
	for {
		nodes := m.Nodes(after, MaxScan)
		for i := range nodes {
			for k := range nodes[i].Devices {
				d := &nodes[i].Devices[k]
				state := d.Health.String()
				switch {
				case d.Health != gpuai.DeviceHealthy:
				case d.Free == gpuai.WholeDevice:
					state = "free"
				case d.Free == 0:
					state = "allocated"
				default:
					state = "shared"
				}
				out[kindState{d.Vendor, d.Model, state}]++
			}
		}
		if len(nodes) < MaxScan {
			return out
		}
		after = nodes[len(nodes)-1].ID
	}
}

// countByIndex counts devices with CountDevices.
func countByIndex(m *Machine) map[kindState]uint32 {
	out := map[kindState]uint32{}
	for from := uint32(0); ; {
		counts, next := m.CountDevices(from)
		for i := range counts {
			c := &counts[i]
			add := func(state string, n uint32) {
				if n > 0 {
					out[kindState{c.Vendor, c.Model, state}] += n
				}
			}
			add("free", c.Free)
			add("shared", c.Shared)
			add("allocated", c.Allocated)
			for h, n := range c.Unhealthy {
				add(gpuai.DeviceHealth(h).String(), n)
			}
		}
		if next == 0 {
			return out
		}
		from = next
	}
}

func TestCountDevicesAgreesWithTheNodes(t *testing.T) {
	lengthy(t)
	for seed := range uint64(20) {
		w := newWalk(t, seed)
		for range 150 {
			w.step()
		}
		want, got := countByNodes(w.m), countByIndex(w.m)
		if fmt.Sprint(want) != fmt.Sprint(got) {
			t.Fatalf("seed %d: counted %v, the nodes show %v", seed, got, want)
		}
	}
}

// BenchmarkCountDevices counts the devices of all nodes, by the index and by
// reading every node's description.
func BenchmarkCountDevices(b *testing.B) {
	r := filled(b, 10_000)
	for _, c := range []struct {
		name  string
		count func(*Machine) map[kindState]uint32
	}{{"index", countByIndex}, {"descriptions", countByNodes}} {
		b.Run("by="+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				c.count(r.m)
			}
		})
	}
}

func TestQueueCountsByClassAndReason(t *testing.T) {
	r := newRegion(t)
	r.do(&RegisterNode{Spec: nodeSpec("n", 2, "H100"), BootID: "b", Nonce: "n"})
	submit := func(class gpuai.Class, p gpuai.Priority, gpus uint32) {
		s := jobSpec("j", 1, gpus)
		s.Class, s.Priority = class, p
		r.do(&SubmitJob{ID: r.newID(), Spec: s, HoldAnyway: true})
	}
	submit(gpuai.ClassTraining, 50, 2) // takes the node
	submit(gpuai.ClassTraining, 50, 1)
	submit(gpuai.ClassTraining, 50, 1)
	submit(gpuai.ClassInference, 80, 2)
	submit(gpuai.ClassBatch, 20, 4)
	got := map[QueueCount]bool{}
	for _, c := range r.m.QueueCounts() {
		got[c] = true
	}
	want := map[QueueCount]bool{
		{gpuai.ClassTraining, gpuai.InsufficientGPUs, 2}:  true,
		{gpuai.ClassInference, gpuai.InsufficientGPUs, 1}: true,
		{gpuai.ClassBatch, gpuai.NoSuchDevice, 1}:         true,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestOutputNamesCommandsAndWhatIsHeld(t *testing.T) {
	r := newRegion(t)
	r.do(&RegisterNode{Spec: nodeSpec("n", 3, "H100"), BootID: "b", Nonce: "n"})
	out := r.apply(&SubmitJob{ID: r.newID(), Spec: jobSpec("j", 2, 1)}, &Tick{})
	if k := out.Results[0].Kind.String(); k != "submit_job" {
		t.Errorf("the first command is %q", k)
	}
	if k := out.Results[1].Kind.String(); k != "tick" {
		t.Errorf("the second command is %q", k)
	}
	if out.GPUMilli != 2_000 {
		t.Errorf("%d milli are held, of two devices", out.GPUMilli)
	}
	for k := range CommandKind(NumCommandKinds) {
		if name := commandNames[k]; name != "" && k.String() != name || (name == "") != unknownType(uint8(k)) {
			t.Errorf("command type %d is called %q: see commandNames", k, k)
		}
	}
}
