package simulate

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
)

// ErrUntimed is returned when a trace has no times to replay.
var ErrUntimed = errors.New("mode time needs the columns creation_time, deletion_time and scheduled_time")

// Ways in which the jobs of mode time arrive.
const (
	ArrivalsTrace   = "trace"   // each job of the trace once, in its own order and rhythm
	ArrivalsPoisson = "poisson" // jobs drawn from the trace, with replacement, independent of each other
)

// A TimedConfig says how the jobs of mode time arrive and what is measured.
type TimedConfig struct {
	Arrivals string // ArrivalsTrace or ArrivalsPoisson
	Count    int    // of jobs that are drawn; of ArrivalsPoisson only
	// Load is the device time that the jobs of the measured window need, over
	// the device time that all devices have in it: the arrivals' rate is set
	// by it. 0 leaves the rhythm of ArrivalsTrace as it was recorded.
	Load float64
	// ClipMin and ClipMax bound each job's duration; 0 does not.
	ClipMin, ClipMax gpuai.Duration
	// WarmUp is the part of the arrivals before the measured window, which
	// ends with the last arrival.
	WarmUp float64
	// Alter, if there is one, changes each job after the arrivals were made
	// for the jobs as they were: an experiment on equal arrivals.
	Alter func(*TraceJob)
}

// An arrival is a job that arrives, and what became of it.
type arrival struct {
	job      *TraceJob
	at       gpuai.Instant
	measured bool
	started  bool
	start    gpuai.Instant
	ended    bool
	end      gpuai.Instant
	took     float64 // µs in the machine for its submit
	elastic  *elastic
	// preempted counts its tasks that had to make room; lost is the device time,
	// in milli-GPU × ms, of what had to be done again.
	preempted int
	lost      float64
	saved     map[saved]gpuai.Duration // of its tasks
}

// saved names a task whose work is saved.
type saved struct {
	group uint16
	task  uint32
}

// load makes the arrivals of a run, the first at 0, and the window that is
// measured.
func (c *Config) load() (as []arrival, window [2]gpuai.Instant, err error) {
	jobs, err := c.clipped()
	if err != nil {
		return nil, window, err
	}
	var at []float64
	if c.Arrivals == ArrivalsPoisson {
		as, at = drawn(jobs, c)
	} else {
		as, at = replayed(jobs)
	}
	warm := min(int(c.WarmUp*float64(len(as))), len(as)-1)
	var work float64
	for i := warm; i < len(as); i++ {
		as[i].measured = true
		work += as[i].job.work()
	}
	scale := 1.0
	if c.Load > 0 {
		capacity := float64(totalMilli(c.Nodes)) * (at[len(at)-1] - at[warm])
		if capacity <= 0 || work <= 0 {
			return nil, window, errors.New("mode time with a load needs nodes with devices, and jobs that use them and arrive over some time")
		}
		scale = work / capacity / c.Load
	}
	for i := range as {
		as[i].at = gpuai.Instant((at[i] - at[0]) * scale)
	}
	for i := range jobs {
		if c.Alter != nil {
			c.Alter(&jobs[i])
		}
	}
	if last := as[len(as)-1].at; last > maxSeconds*1000 {
		return nil, window, fmt.Errorf("the arrivals would go on for %s: that is no trace that can be replayed", gpuai.Duration(last))
	}
	return as, [2]gpuai.Instant{as[warm].at, as[len(as)-1].at}, nil
}

// clipped returns the jobs with their durations within bounds.
func (c *Config) clipped() ([]TraceJob, error) {
	if len(c.Jobs) == 0 {
		return nil, errors.New("the trace has no jobs")
	}
	clip := func(d gpuai.Duration) gpuai.Duration {
		if d = max(d, c.ClipMin); c.ClipMax > 0 {
			d = min(d, c.ClipMax)
		}
		return d
	}
	out := slices.Clone(c.Jobs)
	for i := range out {
		j := &out[i]
		if !j.Timed {
			return nil, fmt.Errorf("job %s: %w", j.Name, ErrUntimed)
		}
		j.Run = clip(j.Run)
		j.Runs = slices.Clone(j.Runs)
		for g := range j.Runs {
			j.Runs[g] = slices.Clone(j.Runs[g])
			for t := range j.Runs[g] {
				j.Runs[g][t] = clip(j.Runs[g][t])
			}
		}
	}
	return out, nil
}

// replayed returns each job once, by its own time.
func replayed(jobs []TraceJob) (as []arrival, at []float64) {
	slices.SortStableFunc(jobs, func(a, b TraceJob) int {
		return cmp.Or(cmp.Compare(a.Arrive, b.Arrive), strings.Compare(a.Name, b.Name))
	})
	for i := range jobs {
		as, at = append(as, arrival{job: &jobs[i]}), append(at, float64(jobs[i].Arrive))
	}
	return as, at
}

// drawn returns jobs drawn from the trace, with gaps between them that are
// exponential with mean 1.
func drawn(jobs []TraceJob, c *Config) (as []arrival, at []float64) {
	slices.SortStableFunc(jobs, func(a, b TraceJob) int { return strings.Compare(a.Name, b.Name) })
	r := rand.New(rand.NewSource(c.Seed))
	now := 0.0
	for range max(1, c.Count) {
		as, at = append(as, arrival{job: &jobs[r.Intn(len(jobs))]}), append(at, now)
		now += r.ExpFloat64()
	}
	return as, at
}
