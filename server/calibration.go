package server

import (
	"slices"
	"sync"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// keptEstimates bounds the estimates whose job has not started.
	keptEstimates = 4_096
	// keptErrors is how many starts a calibration looks back.
	keptErrors = 256
)

// A calibration compares estimates of starts with the starts. It is this
// server's own memory: what it has said, while it led or not, and what followed.
type calibration struct {
	mu     sync.Mutex
	open   map[gpuai.JobID]gpuai.Instant // when the first estimate said that the job starts
	errors []gpuai.Duration              // start - estimate, a ring
	next   int                           // place of the oldest
}

func newCalibration() *calibration { return &calibration{open: map[gpuai.JobID]gpuai.Instant{}} }

// said notes an estimate made at a region time: the first of each job, which is
// the boldest.
func (c *calibration) said(id gpuai.JobID, now gpuai.Instant, e *gpuai.StartEstimate) {
	if e == nil || !e.Known {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[id]; !ok && len(c.open) < keptEstimates {
		c.open[id] = now.Add(e.In)
	}
}

// saw notes the starts in an output.
func (c *calibration) saw(out *fsm.Output) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == 0 {
		return
	}
	for i := range out.Events {
		e := &out.Events[i]
		switch at, ok := c.open[e.Job]; {
		case !ok:
		case e.Kind == gpuai.LeaseGrantedEvent:
			c.add(gpuai.Duration(e.At - at))
			delete(c.open, e.Job)
		case e.Kind == gpuai.JobEnded: // before it started
			delete(c.open, e.Job)
		}
	}
}

func (c *calibration) add(d gpuai.Duration) {
	if len(c.errors) < keptErrors {
		c.errors = append(c.errors, d)
		return
	}
	c.errors[c.next] = d
	c.next = (c.next + 1) % keptErrors
}

// sum returns the medians; nil without history.
func (c *calibration) sum() *gpuai.Calibration {
	c.mu.Lock()
	bias := slices.Clone(c.errors)
	c.mu.Unlock()
	if len(bias) == 0 {
		return nil
	}
	off := slices.Clone(bias)
	for i := range off {
		off[i] = max(off[i], -off[i])
	}
	slices.Sort(bias)
	slices.Sort(off)
	return &gpuai.Calibration{Starts: uint32(len(off)), Error: off[len(off)/2], Bias: bias[len(bias)/2]}
}

// calibrate adds to an estimate how far past ones were off.
func (s *Server) calibrate(e *gpuai.StartEstimate) {
	if e != nil {
		e.Calibration = s.calibration.sum()
	}
}
