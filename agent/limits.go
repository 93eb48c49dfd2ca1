package agent

import (
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// who names the task in what its user reads.
func (w *worker) who() string {
	if g := w.assign.Gang; g != nil {
		return fmt.Sprintf("rank %d", g.Rank)
	}
	return fmt.Sprintf("task %d", w.lease.Task)
}

// limited says which limit ended a task, on which rank, and what to do; "" when
// none is known to have.
func (w *worker) limited(task *watchdog.Task) string {
	if task.By != watchdog.ByItself || task.Code == 0 {
		return ""
	}
	boxed := w.assign.Task.Runtime == gpuai.RuntimeOCI
	switch task.Limit {
	case watchdog.LimitMemory:
		part := ""
		if boxed && w.assign.Scratch == 0 {
			part = ", of which /work and /tmp are part without resources.scratch"
		}
		return fmt.Sprintf("memory: %s used its %s%s; ask for more resources.memory (exit code %d, out of memory)", w.who(), size(w.lease.Memory), part, task.Code)
	case watchdog.LimitProcesses:
		return fmt.Sprintf("processes: %s reached the limit of %d processes and threads; start fewer at a time (exit code %d)", w.who(), maxPIDs, task.Code)
	}
	if !boxed {
		return ""
	}
	return w.full(task.Code)
}

// full says which directory was full when a sandboxed task failed: its first
// process looked, and wrote so to stderr.
func (w *worker) full(code int32) string {
	const tail = 4 << 10
	b, _, _, err := watchdog.ReadLog(w.a.taskDir(w.lease.ID), "stderr", -tail, tail)
	if err != nil {
		return ""
	}
	_, dir, ok := strings.Cut(string(b), "\n"+watchdog.FullNote)
	if !ok {
		dir, ok = strings.CutPrefix(string(b), watchdog.FullNote)
	}
	dir, _, _ = strings.Cut(dir, "\n")
	half := w.lease.Memory / 2
	switch {
	case !ok:
		return ""
	case w.assign.Scratch > 0 && (dir == sandbox.WorkDir || dir == sandbox.TmpDir):
		return fmt.Sprintf("scratch: %s filled its %s (/work and /tmp); ask for more resources.scratch (exit code %d)", w.who(), size(w.assign.Scratch), code)
	case dir == sandbox.ShmDir && w.assign.Shm > 0:
		return fmt.Sprintf("shm: %s filled /dev/shm of %s; ask for more resources.shm (exit code %d)", w.who(), size(w.assign.Shm), code)
	case dir == sandbox.ShmDir:
		return fmt.Sprintf("shm: %s filled /dev/shm of %s, half of its memory; ask for resources.shm (exit code %d)", w.who(), size(half), code)
	case dir == sandbox.WorkDir || dir == sandbox.TmpDir || dir == sandbox.RunDir:
		return fmt.Sprintf("scratch: %s filled %s of %s, which is in half of its memory; ask for resources.scratch, which is on the disk (exit code %d)", w.who(), dir, size(half), code)
	}
	return ""
}

// size writes a size for people.
func size(n gpuai.Bytes) string {
	for _, u := range []struct {
		unit gpuai.Bytes
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.unit {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.unit), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
