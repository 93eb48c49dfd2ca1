package watchdog

import (
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// Sweep kills what is left of a lease's task without the watchdog, which may be
// gone or stopped: by the task's control groups, by the process that is known
// to have been its first, and by the environment of every process of this
// host. tasks is the directory that holds all task directories. It reports
// whether nothing is left after at most budget.
func Sweep(dataDir, tasks string, t Task, budget gpuai.Duration) bool {
	g := findCgroups(dataDir).of(t.Lease)
	since, pause := Boottime(), huntAgain
	for {
		g.kill()
		left := remains(g, tasks, t)
		for _, p := range left {
			_ = signalProcess(p, unix.SIGKILL) // the next look says if it worked
		}
		if len(left) == 0 {
			g.remove()
			return true
		}
		if Boottime()-since > int64(budget)*1e6 {
			return false
		}
		time.Sleep(pause)
		pause = min(2*pause, huntCalm)
	}
}

// remains returns the processes of a lease that can be found.
func remains(g group, tasks string, t Task) []process {
	all, err := processes()
	if err != nil {
		return nil
	}
	in := map[int]bool{}
	for _, pid := range g.procs() {
		in[pid] = true
	}
	for pid, p := range all {
		switch lease, dir := leaseOf(pid); {
		case pid == t.PID && p.start == t.PIDStart && t.PIDStart != 0:
			in[pid] = true
		case lease == t.Lease && lease != 0 && strings.HasPrefix(dir, filepath.Clean(tasks)+"/"):
			in[pid] = true
		}
	}
	var out []process
	for pid := range in {
		if p, ok := all[pid]; ok && !p.zombie {
			out = append(out, p)
		}
	}
	return out
}
