package nvidia

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Environment of a task.
const (
	// EnvVisible names the devices to NVIDIA's own tools; CUDA reads
	// gpuai.EnvCUDADevices.
	EnvVisible = "NVIDIA_VISIBLE_DEVICES"

	envMPSPipe    = "CUDA_MPS_PIPE_DIRECTORY"
	envMPSThreads = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
	envMPSMemory  = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
)

// environment names the devices to CUDA and to NVIDIA's tools.
func environment(ids []gpuai.DeviceID) map[string]string {
	var names []string
	for _, id := range ids {
		names = append(names, string(id))
	}
	all := strings.Join(names, ",")
	return map[string]string{gpuai.EnvCUDADevices: all, EnvVisible: all}
}

// addShare adds what limits a client of MPS to its share of a GPU's threads and
// memory, both rounded down, and lets it find the daemon.
func (c *Config) addShare(g *plugins.Grant, share gpuai.Milli, memory gpuai.Bytes) {
	g.Env[envMPSPipe] = c.MPSPipe
	g.Env[envMPSThreads] = strconv.FormatUint(max(uint64(share)/10, 1), 10)
	mib := uint64(memory) / uint64(gpuai.WholeDevice) * uint64(share) >> 20
	g.Env[envMPSMemory] = fmt.Sprintf("0=%dM", max(mib, 1))
	g.Mounts = append(g.Mounts, plugins.Mount{HostPath: c.MPSPipe, ContainerPath: c.MPSPipe, Options: []string{"rw", "bind"}})
	if c.MPSShm != "" {
		g.Mounts = append(g.Mounts, plugins.Mount{HostPath: c.MPSShm, ContainerPath: "/dev/shm", Options: []string{"rw", "bind"}})
	}
}

// mpsRuns reports whether the control daemon of MPS has made its pipe.
func (c *Config) mpsRuns() bool {
	_, err := os.Stat(filepath.Join(c.MPSPipe, "control"))
	return err == nil
}

// commonNodes are what CUDA opens beside the GPU's own file.
var commonNodes = []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}

// deviceNodes are the device files of GPUs by their minor numbers and of the
// capabilities that their MIG instances need, as far as they are there.
func (c *Config) deviceNodes(minors, caps []int) []plugins.DeviceNode {
	var names []string
	for _, n := range minors {
		names = append(names, fmt.Sprintf("nvidia%d", n))
	}
	names = append(names, commonNodes...)
	for _, n := range caps {
		names = append(names, fmt.Sprintf("nvidia-caps/nvidia-cap%d", n))
	}
	var out []plugins.DeviceNode
	for _, name := range names {
		host := filepath.Join(c.DevRoot, "dev", name)
		if _, err := os.Stat(host); err != nil {
			continue
		}
		out = append(out, plugins.DeviceNode{HostPath: host, ContainerPath: "/dev/" + name, Permissions: "rw"})
	}
	return out
}

// migMinorsFile has the minor number of each MIG capability.
const migMinorsFile = "/proc/driver/nvidia-caps/mig-minors"

// migCaps finds the capabilities of one MIG instance in that file: to the GPU
// instance, and to the compute instance in it.
func migCaps(file string, gpuMinor, gi, ci int) []int {
	want := map[string]bool{
		fmt.Sprintf("gpu%d/gi%d/access", gpuMinor, gi):          true,
		fmt.Sprintf("gpu%d/gi%d/ci%d/access", gpuMinor, gi, ci): true,
	}
	var out []int
	for line := range strings.Lines(file) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.Atoi(number); err == nil && want[name] {
			out = append(out, n)
		}
	}
	return out
}
