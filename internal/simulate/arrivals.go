package simulate

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand"
	"slices"
	"strings"
)

// Arrivals is the load of one Fill: which jobs arrive in which order, and in
// which order the nodes register.
type Arrivals struct {
	Jobs  []TraceJob
	Ranks []int // Ranks[i] is the rank of node i, by name; nodes register by rank
}

// NewArrivals draws the arrivals of a seed exactly as FGD's own simulator does
// (Weng et al., USENIX ATC '23; hkust-adsl/kubernetes-scheduler-simulator), so
// that results can be compared: both lists sorted by name, one number of the
// generator burnt, the jobs shuffled, then removed or drawn again until they
// ask for inflate × all devices.
func NewArrivals(nodes []TraceNode, jobs []TraceJob, inflate float64, seed int64) Arrivals {
	nodes, jobs = slices.Clone(nodes), slices.Clone(jobs)
	slices.SortFunc(jobs, func(a, b TraceJob) int { return strings.Compare(a.Name, b.Name) })
	sorted := slices.Clone(jobs)
	r := rand.New(rand.NewSource(seed))
	r.Int()
	r.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
	var total, sum int64
	for i := range nodes {
		total += int64(nodes[i].GPUs) * 1000
	}
	for i := range jobs {
		sum += jobs[i].Milli()
	}
	target := int64(inflate * float64(total))
	grow := sum > 0 && sum <= target // jobs without GPUs would never fill it
	for sum > target && len(jobs) > 0 {
		i := r.Intn(len(jobs))
		sum -= jobs[i].Milli()
		jobs = slices.Delete(jobs, i, i+1)
	}
	for grow {
		p := sorted[r.Intn(len(sorted))]
		// One device's share is added here, and all of them below: the
		// reference's own quirk.
		if sum+p.GPUMilli > target {
			break
		}
		sum += p.Milli()
		jobs = append(jobs, p)
	}
	return Arrivals{Jobs: jobs, Ranks: r.Perm(len(nodes))}
}

// Checks returns what identifies the arrivals: FNV-1a of the jobs and of the
// nodes in the order of their ranks, and the devices that are asked for.
func (a *Arrivals) Checks() (jobs, nodes uint64, milli int64) {
	h := fnv.New64a()
	for i := range a.Jobs {
		j := &a.Jobs[i]
		fmt.Fprintf(h, "%d,%d,%d,%d,%s\n", j.CPU, j.Memory, j.GPUs, j.GPUMilli, j.Spec)
		milli += j.Milli()
	}
	n := fnv.New64a()
	for _, i := range a.order() {
		io.WriteString(n, fmt.Sprintln(i))
	}
	return h.Sum64(), n.Sum64(), milli
}

// order returns the nodes' indexes in the order of their ranks.
func (a *Arrivals) order() []int {
	out := make([]int, len(a.Ranks))
	for i, rank := range a.Ranks {
		out[rank] = i
	}
	return out
}
