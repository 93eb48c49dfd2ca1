package loadgen

import (
	"math"
	"slices"
	"sync"

	"github.com/gpuai/gpuai"
)

// A Result is what was measured.
type Result struct {
	Submitted int `json:"submitted"` // jobs whose submit was called
	Placed    int `json:"placed"`    // of those, how many got a lease that reached an agent
	// PlacementsPerSecond is placed ÷ (first submit → last lease received).
	PlacementsPerSecond float64  `json:"placements_per_second"`
	LatencyMs           Quantile `json:"latency_ms"`
	// ServerCPUMs is CPU time of all servers for one placement, RSSPerNode the
	// resident memory of one server, the mean of all, for one node.
	ServerCPUMs float64 `json:"server_cpu_ms_per_placement"`
	RSSPerNode  float64 `json:"rss_bytes_per_node"`
	// Refused jobs are those that the region did not accept, or whose answer
	// did not arrive; Why is what the first of them was told.
	Refused int   `json:"-"`
	Why     error `json:"-"`
}

// Quantile is the distribution of a latency, in milliseconds.
type Quantile struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

// A Recorder joins submits and leases by job. It is safe for concurrent use.
type Recorder struct {
	mu      sync.Mutex // guards below
	due     map[gpuai.JobID]int64
	leases  map[gpuai.JobID]int64
	called  int
	first   int64 // when the first submit was due, 0 = none yet
	placed  int   // jobs of due that are in leases
	refused int
	err     error
}

// NewRecorder returns an empty recorder.
func NewRecorder() *Recorder {
	return &Recorder{due: map[gpuai.JobID]int64{}, leases: map[gpuai.JobID]int64{}}
}

// Lease notes that a job's lease was read from a session, at a CLOCK_MONOTONIC
// in nanoseconds. Only the first lease of a job counts. It may come before the
// submit's answer, and of jobs that nobody here submitted.
func (r *Recorder) Lease(job gpuai.JobID, at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.leases[job]; again {
		return
	}
	r.leases[job] = at
	if _, ours := r.due[job]; ours {
		r.placed++
	}
}

// call notes that the submit of n jobs is due.
func (r *Recorder) call(n int, due int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == 0 || due < r.first {
		r.first = due
	}
	r.called += n
}

// accepted notes jobs whose submit was due at a moment.
func (r *Recorder) accepted(jobs []gpuai.JobID, due int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range jobs {
		if _, again := r.due[id]; again {
			continue
		}
		r.due[id] = due
		if _, ok := r.leases[id]; ok {
			r.placed++
		}
	}
}

// failed notes n jobs that were not accepted.
func (r *Recorder) failed(n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused += n
	if r.err == nil {
		r.err = err
	}
}

// counts returns how many jobs were submitted, refused and placed.
func (r *Recorder) counts() (called, refused, placed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.called, r.refused, r.placed
}

// Result sums up what was recorded until now.
func (r *Recorder) Result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Result{Submitted: r.called, Refused: r.refused, Why: r.err}
	took := make([]int64, 0, r.placed)
	last := r.first
	for id, due := range r.due {
		if at, ok := r.leases[id]; ok {
			took = append(took, at-due)
			last = max(last, at)
		}
	}
	if out.Placed = len(took); out.Placed == 0 {
		return out
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[rank(len(took), q)]) / 1e6 }
	out.LatencyMs = Quantile{at(0.5), at(0.9), at(0.99), at(0.999)}
	if span := float64(last-r.first) / 1e9; span > 0 {
		out.PlacementsPerSecond = float64(out.Placed) / span
	}
	return out
}

// rank is the place of a quantile among n sorted values: the first that at
// least q of all do not exceed.
func rank(n int, q float64) int {
	return min(n, max(1, int(math.Ceil(q*float64(n))))) - 1
}

// Spend fills in what the servers used between two readings.
func (r *Result) Spend(before, after Usage, nodes int) {
	if r.Placed > 0 {
		r.ServerCPUMs = (after.CPUSeconds - before.CPUSeconds) * 1000 / float64(r.Placed)
	}
	if nodes > 0 {
		r.RSSPerNode = after.RSS / float64(nodes)
	}
}
