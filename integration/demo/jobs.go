package main

import (
	"path/filepath"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

const (
	gangSize  = 4
	arraySize = 200
	probes    = 40
	leaseTTL  = 15 * gpuai.Second
)

// A programs says where the tasks' programs and traces are, and the region's
// checkpoint store.
type programs struct {
	dir string
	// boxed has the tasks run in sandboxes, in the image of the programs.
	boxed bool
}

func (p programs) bin(name string) string { return filepath.Join(p.root(), "bin", name) }
func (p programs) root() string           { return filepath.Join(p.dir, "root") }  // of the image
func (p programs) layout() string         { return filepath.Join(p.dir, "image") } // the image
func (p programs) beats() string          { return filepath.Join(p.dir, "beats") }
func (p programs) store() string          { return filepath.Join(p.dir, "checkpoints") }

// trainingArgs are the arguments that decide what the training comes to.
var trainingArgs = []string{"-steps", "400", "-rate", "0.02", "-report-every", "10"}

// gang is four tasks of two devices each, of whichever vendor: on six devices
// a host, they are spread over two hosts at least. In sandboxes they meet in a mesh.
// Rank 0 publishes its checkpoints; all go on from the last one.
func (p programs) gang() *gpuai.JobSpec {
	args := append([]string{"-pace", "80ms", "-checkpoint-every", "10"}, trainingArgs...)
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
			Task: p.task(p.boxed, 3*gpuai.Second, "dataparallel", args...),
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
			Task:    p.task(p.boxed, gpuai.Second, "arraytask", "-work", work),
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

// task runs one of the programs: in a sandbox, where it beats to its output, or as
// a plain process, which beats to a file.
func (p programs) task(boxed bool, grace gpuai.Duration, program string, args ...string) gpuai.TaskSpec {
	t := gpuai.TaskSpec{Args: args, StopGrace: grace, Env: map[string]string{}}
	if boxed {
		t.Image, t.Command = "oci:"+p.layout(), []string{"/bin/" + program}
		t.Env[beat.EnvDir] = beat.ToStdout
		return t
	}
	t.Command, t.Args = append([]string{p.bin(program)}, args...), nil
	t.Env[beat.EnvDir] = p.beats()
	return t
}
