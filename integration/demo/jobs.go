package main

import (
	"path/filepath"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

const (
	gangSize  = 4
	arraySize = 200
	probes    = 75
	leaseTTL  = 15 * gpuai.Second
)

// A programs says where the tasks' programs, traces and checkpoint are.
type programs struct{ dir string }

func (p programs) bin(name string) string { return filepath.Join(p.dir, "programs", name) }
func (p programs) beats() string          { return filepath.Join(p.dir, "beats") }
func (p programs) checkpoint() string     { return filepath.Join(p.dir, "checkpoint") }

// trainingArgs are the arguments that decide what the training comes to.
var trainingArgs = []string{"-steps", "400", "-rate", "0.02", "-report-every", "10"}

// gang is four tasks of two devices each, of whichever vendor: on six devices
// a host, they are spread over two hosts at least.
func (p programs) gang() *gpuai.JobSpec {
	argv := append([]string{p.bin("dataparallel"), "-pace", "100ms", "-checkpoint-every", "10"}, trainingArgs...)
	return &gpuai.JobSpec{
		Name: "training", Type: gpuai.Train,
		Groups: []gpuai.Group{{
			Name: "worker", Count: gangSize, Gang: true,
			Resources: gpuai.Resources{
				GPU: gpuai.GPURequest{Count: 2, Any: []gpuai.GPUAlternative{{Vendor: "nvidia"}, {Vendor: "amd"}}},
				CPU: 500, Memory: 128 << 20,
			},
			Restart: gpuai.Restart{
				Attempts: 10, Backoff: gpuai.Second,
				On: []gpuai.RestartCause{gpuai.CauseFailure, gpuai.CauseNodeLost, gpuai.CauseGPUError},
			},
			Task: gpuai.TaskSpec{Command: argv, Env: p.env(), StopGrace: 3 * gpuai.Second},
		}},
	}
}

// array is so many elements that compute for a while, on half a device each.
func (p programs) array(size uint32, work string) *gpuai.JobSpec {
	return &gpuai.JobSpec{
		Name: "array", Type: gpuai.Batch, Array: gpuai.Array{Size: size},
		Groups: []gpuai.Group{{
			Resources: gpuai.Resources{
				GPU: gpuai.GPURequest{Count: 1, Share: gpuai.Share{Milli: 500}},
				CPU: 500, Memory: 64 << 20,
			},
			Restart: gpuai.Restart{Attempts: 10, Backoff: gpuai.Second},
			Task: gpuai.TaskSpec{
				Command: []string{p.bin("arraytask"), "-work", work}, Env: p.env(), StopGrace: gpuai.Second,
			},
		}},
	}
}

// probe is a job of one short task, with time enough on the processor to start
// at once.
func (p programs) probe() *gpuai.JobSpec {
	s := p.array(1, "50ms")
	s.Name = "probe"
	s.Groups[0].Resources.CPU = 1000
	return s
}

func (p programs) env() map[string]string {
	return map[string]string{beat.EnvDir: p.beats(), "CHECKPOINT": p.checkpoint()}
}
