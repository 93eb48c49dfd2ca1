package simulate

import (
	"cmp"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// maxDemands is how many kinds of jobs fragmentation is seen by: the most
	// frequent ones.
	maxDemands = 64
	// fragLooks bounds how many nodes are looked at in one run.
	fragLooks = 2_000_000
)

// A demand is a kind of task with devices and the part of such tasks that are
// of it.
type demand struct {
	cpu    int64
	memory int64 // MiB
	gpus   int
	milli  int64 // of each device
	spec   string
	weight float64
	models []string
}

// demandsOf returns the most frequent kinds of the trace's tasks.
func demandsOf(jobs []TraceJob) []demand {
	counts := map[demandKey]float64{}
	for i := range jobs {
		if j := &jobs[i]; j.Whole == nil && j.GPUs > 0 {
			counts[demandKey{j.CPU, j.Memory, j.GPUs, j.GPUMilli, j.Spec}] += float64(max(1, j.Tasks))
		} else if j.Whole != nil {
			for g := range j.Whole.Groups {
				if r := &j.Whole.Groups[g].Resources; r.GPU.Count > 0 {
					milli := min(1000, taskMilli(&j.Whole.Groups[g]))
					counts[demandKey{int64(r.CPU), int64(r.Memory >> 20), int(r.GPU.Count), milli, ""}] += float64(j.Whole.Groups[g].Count)
				}
			}
		}
	}
	var out []demand
	for k, n := range counts { // in any order: sorted below
		out = append(out, demand{cpu: k.cpu, memory: k.memory, gpus: k.gpus, milli: k.milli, spec: k.spec, weight: n})
	}
	slices.SortFunc(out, func(a, b demand) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.gpus, b.gpus), cmp.Compare(a.milli, b.milli),
			cmp.Compare(a.cpu, b.cpu), cmp.Compare(a.memory, b.memory), strings.Compare(a.spec, b.spec))
	})
	out = out[:min(len(out), maxDemands)]
	var sum float64
	for i := range out {
		sum += out[i].weight
	}
	for i := range out {
		out[i].weight /= sum
		if out[i].spec != "" {
			out[i].models = strings.Split(out[i].spec, "|")
		}
	}
	return out
}

type demandKey struct {
	cpu, memory int64
	gpus        int
	milli       int64
	spec        string
}

// fragmentationOf returns the part of a machine's idle devices that a task of
// the demands, drawn by their weights, could not use: all of a node's that does
// not hold it, and on one that does the devices with less room than it needs of
// each (the measure of Weng et al., USENIX ATC '23, over tasks with devices).
func fragmentationOf(m *fsm.Machine, demands []demand) float64 {
	var idle, lost float64
	after := gpuai.NodeID("")
	for {
		page := m.Nodes(after, fsm.MaxScan)
		for i := range page {
			n := &page[i]
			after = n.ID
			var free float64
			for d := range n.Devices {
				free += float64(n.Devices[d].Free)
			}
			if free == 0 {
				continue
			}
			idle += free
			for d := range demands {
				lost += demands[d].weight * demands[d].unusable(n, free)
			}
		}
		if len(page) < fsm.MaxScan {
			break
		}
	}
	if idle == 0 {
		return 0
	}
	return lost / idle
}

// unusable is what of a node's idle devices a task of the demand cannot use.
func (d *demand) unusable(n *gpuai.Node, free float64) float64 {
	if int64(n.FreeCPU) < d.cpu || int64(n.FreeMemory>>20) < d.memory {
		return free
	}
	var small float64
	fits := 0
	for i := range n.Devices {
		x := &n.Devices[i]
		if len(d.models) > 0 && !slices.Contains(d.models, x.Model) || int64(x.Free) < d.milli {
			small += float64(x.Free)
			continue
		}
		fits++
	}
	if fits < d.gpus {
		return free
	}
	return small
}
