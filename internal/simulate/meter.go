package simulate

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// points is how many points a series over time has.
const points = 300

// A Series is what was seen at equal distances over a run, its warm-up
// included.
type Series struct {
	Seconds    []float64 `json:"t_s"`
	Allocation []float64 `json:"gpu_allocation_ratio"`
	Queue      []int     `json:"queue_jobs"`
	// QueueGPUs is what the waiting jobs ask for, in devices.
	QueueGPUs []float64 `json:"queue_gpus"`
	// Fragmentation is the part of the idle devices that a job drawn from the
	// trace could not use where they are; -1 where it was not looked at.
	Fragmentation []float64 `json:"fragmentation_ratio"`
}

// A meter sums up over time what is allocated and what waits.
type meter struct {
	window     [2]gpuai.Instant // that is measured
	since      gpuai.Instant
	milli      int64 // allocated now
	queue      int   // jobs that wait now
	queueMilli int64 // and what they ask for
	area       float64
	queueArea  float64
	queueMax   int
	series     Series
	every      gpuai.Duration // between two points
	next       gpuai.Instant  // of the next point
	total      int64          // milli of all devices
	// fragmentation looks at the machine; nil does not.
	fragmentation func() float64
	fragEvery     int // points between two looks
}

// advance counts what held until an instant.
func (p *meter) advance(to gpuai.Instant) {
	for p.every > 0 && p.next <= to && len(p.series.Seconds) <= points {
		p.point()
		p.next = p.next.Add(p.every)
	}
	from, until := max(p.since, p.window[0]), min(to, p.window[1])
	if until > from {
		p.area += float64(p.milli) * float64(until-from)
		p.queueArea += float64(p.queue) * float64(until-from)
	}
	p.since = to
}

// point takes a point of the series.
func (p *meter) point() {
	s := &p.series
	frag := -1.0
	if p.fragmentation != nil && len(s.Seconds)%p.fragEvery == 0 {
		frag = p.fragmentation()
	}
	s.Seconds = append(s.Seconds, float64(p.next)/1000)
	s.Allocation = append(s.Allocation, float64(p.milli)/float64(max(1, p.total)))
	s.Queue = append(s.Queue, p.queue)
	s.QueueGPUs = append(s.QueueGPUs, float64(p.queueMilli)/1000)
	s.Fragmentation = append(s.Fragmentation, frag)
}

// waits counts a job that arrived, or with -1 one that started.
func (p *meter) waits(a *arrival, n int) {
	p.queue += n
	p.queueMilli += int64(n) * a.job.Milli()
	if p.since >= p.window[0] {
		p.queueMax = max(p.queueMax, p.queue)
	}
}

// quantiles of a summary.
var quantiles = []struct {
	name string
	q    float64
}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}}

// summary sums up values: quantiles, mean and max. It sorts them.
func summary(v []float64) map[string]float64 {
	if len(v) == 0 {
		return nil
	}
	slices.Sort(v)
	out := map[string]float64{"max": v[len(v)-1]}
	for _, x := range quantiles {
		out[x.name] = v[min(len(v)-1, int(x.q*float64(len(v))))]
	}
	var sum float64
	for _, x := range v {
		sum += x
	}
	out["mean"] = sum / float64(len(v))
	return out
}

// cdf returns n+1 quantiles of values that are sorted, from the least to the
// greatest.
func cdf(v []float64, n int) []float64 {
	if len(v) == 0 {
		return nil
	}
	out := make([]float64, n+1)
	for i := range out {
		out[i] = v[min(len(v)-1, i*len(v)/n)]
	}
	return out
}
