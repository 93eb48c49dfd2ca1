package simulate

import (
	"github.com/gpuai/gpuai"
)

// cdfSteps is how many steps the distribution of waits has.
const cdfSteps = 200

// A TimedReport is what mode time finds beside what all modes do. Unless it
// says otherwise, it is of the measured window.
type TimedReport struct {
	Arrivals string         `json:"arrivals"`
	ClipMin  gpuai.Duration `json:"clip_min_ms"`
	ClipMax  gpuai.Duration `json:"clip_max_ms"`
	WarmUp   float64        `json:"warm_up_ratio"`
	// WindowFrom and WindowTo bound the window, in seconds from the first
	// arrival.
	WindowFrom float64 `json:"window_from_s"`
	WindowTo   float64 `json:"window_to_s"`
	// Offered is the device time that the jobs which arrived in the window
	// need, over that of all devices in it.
	Offered  float64 `json:"offered_load"`
	Measured int     `json:"measured_jobs"`
	// Waiting is how many of them had not started at the end.
	Waiting   int     `json:"waiting_at_end"`
	QueueMean float64 `json:"queue_jobs_mean"`
	QueueMax  int     `json:"queue_jobs_max"`
	// Preempted and LostGPUHours are as in ClassStats.
	Preempted    int     `json:"preempted_tasks"`
	LostGPUHours float64 `json:"lost_gpu_hours"`
	// CompletionSeconds is of the measured jobs that ended: from the arrival
	// to the end.
	CompletionSeconds map[string]float64 `json:"completion_s,omitempty"`
	// FragmentationMean is over the points of Series in the window.
	FragmentationMean float64 `json:"fragmentation_ratio_mean"`
	// SubmitMicros is the machine's time for one submit.
	SubmitMicros map[string]float64    `json:"submit_us,omitempty"`
	Classes      map[string]ClassStats `json:"classes,omitempty"` // where the trace has any
	WaitCDF      []float64             `json:"wait_cdf_s"`        // equal steps of probability from 0 to 1
	Series       Series                `json:"series"`
}

// ClassStats are of the measured jobs of one class.
type ClassStats struct {
	Jobs              int                `json:"jobs"`
	Waiting           int                `json:"waiting_at_end"`
	WaitSeconds       map[string]float64 `json:"wait_s"`
	CompletionSeconds map[string]float64 `json:"completion_s,omitempty"`
	SubmitMicros      map[string]float64 `json:"submit_us,omitempty"`
	// Preempted is how many of their tasks had to make room for jobs of higher
	// priority, and LostGPUHours what they had done by then, to be done again.
	Preempted    int     `json:"preempted_tasks"`
	LostGPUHours float64 `json:"lost_gpu_hours"`
}

// samples are what is known of some jobs.
type samples struct {
	wait, completion, decision []float64
	jobs, waiting, preempted   int
	lost                       float64
}

// add counts a job, at the end of a run.
func (s *samples) add(a *arrival, now gpuai.Instant) {
	s.jobs++
	s.preempted += a.preempted
	s.lost += a.lost
	switch {
	case a.started:
		s.wait = append(s.wait, float64(a.start-a.at)/1000)
	default:
		s.waiting++
		s.wait = append(s.wait, float64(now-a.at)/1000)
	}
	if a.ended {
		s.completion = append(s.completion, float64(a.end-a.at)/1000)
	}
	if a.took > 0 {
		s.decision = append(s.decision, a.took)
	}
}

func (s *samples) stats() ClassStats {
	return ClassStats{
		Jobs: s.jobs, Waiting: s.waiting, WaitSeconds: summary(s.wait),
		CompletionSeconds: summary(s.completion), SubmitMicros: summary(s.decision),
		Preempted: s.preempted, LostGPUHours: s.lost / 1000 / float64(gpuai.Hour),
	}
}

// report sums a run up.
func (p *replay) report(c *Config, nodes []TraceNode, as []arrival) Report {
	var all samples
	classes := map[string]*samples{}
	var work float64
	for i := range as {
		a := &as[i]
		if !a.measured {
			continue
		}
		work += a.job.work()
		all.add(a, p.now)
		if class := a.job.Class; class != gpuai.ClassUnset {
			if classes[class.String()] == nil {
				classes[class.String()] = new(samples)
			}
			classes[class.String()].add(a, p.now)
		}
	}
	stats := all.stats()
	r := Report{
		Mode: "time", Seed: c.Seed, Policy: c.Policy.Name, Load: c.Load, Nodes: len(nodes),
		GPUs: int(p.total / 1000), Jobs: len(as), Placed: p.placed,
		Digest: p.m.Digest().String(), WaitSeconds: stats.WaitSeconds,
		TimedReport: &TimedReport{
			Arrivals: c.Arrivals, ClipMin: c.ClipMin, ClipMax: c.ClipMax, WarmUp: c.WarmUp,
			WindowFrom: float64(p.window[0]) / 1000, WindowTo: float64(p.window[1]) / 1000,
			Measured: stats.Jobs, Waiting: stats.Waiting, QueueMax: p.queueMax,
			Preempted: stats.Preempted, LostGPUHours: stats.LostGPUHours,
			CompletionSeconds: stats.CompletionSeconds, SubmitMicros: stats.SubmitMicros,
			WaitCDF: cdf(all.wait, cdfSteps), Series: p.series,
		},
	}
	if s := p.spent.Seconds(); s > 0 {
		r.Decisions = float64(p.decided) / s
	}
	if span := float64(p.window[1] - p.window[0]); span > 0 && p.total > 0 {
		r.Allocation = p.area / float64(p.total) / span
		r.Offered = work / float64(p.total) / span
		r.QueueMean = p.queueArea / span
	}
	r.FragmentationMean = p.series.meanFragmentation(r.WindowFrom)
	for name, s := range classes { // into another map
		if r.Classes == nil {
			r.Classes = map[string]ClassStats{}
		}
		r.Classes[name] = s.stats()
	}
	return r
}

// meanFragmentation is over the points from a second on.
func (s *Series) meanFragmentation(from float64) float64 {
	var sum float64
	n := 0
	for i, f := range s.Fragmentation {
		if f >= 0 && s.Seconds[i] >= from {
			sum += f
			n++
		}
	}
	return sum / float64(max(1, n))
}
