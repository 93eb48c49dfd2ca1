package amd

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/gpuai/gpuai"
)

// kfdProcs has a directory for each process that has /dev/kfd open.
const kfdProcs = kfdClass + "/proc"

// A use is what KFD knows of one process on one device.
type use struct {
	pid    uint64
	memory uint64 // bytes on the device
	queues int
}

// kfdProcesses returns the processes that KFD knows. One that computes on another
// GPU is among them, with neither memory nor queues on this one.
func (t tree) kfdProcesses(gpuID uint64) []use {
	var out []use
	id := strconv.FormatUint(gpuID, 10)
	for _, name := range t.list(kfdProcs) {
		pid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		u := use{pid: pid}
		u.memory, _ = t.number(kfdProcs, name, "vram_"+id)
		for _, q := range t.list(kfdProcs, name, "queues") {
			if t.word(kfdProcs, name, "queues", q, "gpuid") == id {
				u.queues++
			}
		}
		out = append(out, u)
	}
	return out
}

// computing says which process computes on a device, or "".
func (t tree) computing(g *gpu) string {
	for _, u := range t.kfdProcesses(g.GPUID) {
		if u.memory > 0 || u.queues > 0 {
			return fmt.Sprintf("process %d%s has %d bytes and %d queues on it", u.pid, t.command(u.pid), u.memory, u.queues)
		}
	}
	return ""
}

func (t tree) command(pid uint64) string {
	if comm := t.word("proc", strconv.FormatUint(pid, 10), "comm"); comm != "" {
		return fmt.Sprintf(" (%q)", comm)
	}
	return ""
}

// holder says which process holds a device: one that computes on it, or one that
// has its render node open, is not known to KFD, and is younger than the
// reservation. ROCm opens the render nodes of all GPUs that it sees, so KFD's word
// counts for its processes; a display server or an exporter of metrics that was
// there before is no task's.
func (t tree) holder(g *gpu, since gpuai.Duration) string {
	if who := t.computing(g); who != "" {
		return who
	}
	fs, err := procfs.NewFS(t.path("proc"))
	if err != nil {
		return fmt.Sprintf("who has it open cannot be seen: %v", err)
	}
	all, err := fs.AllProcs()
	if err != nil {
		return fmt.Sprintf("who has it open cannot be seen: %v", err)
	}
	known := t.kfdProcesses(g.GPUID)
	render := filepath.Base(g.renderNode())
	for _, p := range all {
		if slices.ContainsFunc(known, func(u use) bool { return u.pid == uint64(p.PID) }) || !opened(p, render) || before(p, since) {
			continue
		}
		return fmt.Sprintf("process %d%s has /%s open", p.PID, t.command(uint64(p.PID)), g.renderNode())
	}
	return ""
}

// opened reports whether a process has a file of that name open. One that has
// ended meanwhile, or is another user's, has not: without root the agent's tasks
// are processes of its own user.
func opened(p procfs.Proc, name string) bool {
	targets, err := p.FileDescriptorTargets()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(targets, func(to string) bool {
		return filepath.Base(strings.TrimSuffix(to, " (deleted)")) == name
	})
}

// ticksPerSecond is the kernel's USER_HZ, the same on every architecture that we
// build for.
const ticksPerSecond = 100

// before reports whether a process is older than an instant since the boot.
func before(p procfs.Proc, since gpuai.Duration) bool {
	st, err := p.Stat()
	if err != nil {
		return true // it has ended
	}
	return st.Starttime < uint64(max(since, 0))*ticksPerSecond/1000
}
