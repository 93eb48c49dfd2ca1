package watchdog

import (
	"bytes"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// A process is one line of /proc.
type process struct {
	pid, parent int
	zombie      bool
	start       uint64
}

// readProcess reads /proc/<pid>/stat.
func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The command's name is in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return process{}, false
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return process{}, false
	}
	p := process{pid: pid, zombie: f[0][0] == 'Z' || f[0][0] == 'X'}
	p.parent, _ = strconv.Atoi(string(f[1]))
	p.start, _ = strconv.ParseUint(string(f[19]), 10, 64)
	return p, true
}

// processes returns every process by its ID.
func processes() (map[int]process, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[int]process, len(names))
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			all[pid] = p
		}
	}
	return all, nil
}

// rootOf returns the ancestor of pid, or pid, whose parent is top; 0 if none.
func rootOf(all map[int]process, pid, top int) int {
	for range len(all) {
		p, ok := all[pid]
		if !ok || p.parent == 0 {
			return 0
		}
		if p.parent == top {
			return pid
		}
		pid = p.parent
	}
	return 0
}

// leaseOf returns the lease and the task directory in whose environment pid was
// started; zero if none can be seen.
func leaseOf(pid int) (t gpuai.Token, dir string) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return 0, ""
	}
	for v := range bytes.SplitSeq(b, []byte{0}) {
		if text, ok := bytes.CutPrefix(v, []byte(gpuai.EnvToken+"=")); ok && t.UnmarshalText(text) != nil {
			t = 0
		} else if text, ok := bytes.CutPrefix(v, []byte(gpuai.EnvTaskDir+"=")); ok {
			dir = string(text)
		}
	}
	return t, dir
}

// signalProcess sends a signal to p if it is still the same process.
func signalProcess(p process, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return unix.Kill(p.pid, sig) // a kernel before 5.3
	}
	defer unix.Close(fd)
	if now, ok := readProcess(p.pid); !ok || now.start != p.start {
		return nil
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}
