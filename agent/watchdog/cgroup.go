package watchdog

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// A hierarchy is one mounted tree of control groups that tasks get a group in.
type hierarchy struct {
	base        string // the watchdog's own directory; a task's is below it
	v2          bool
	controllers []string // that work in it: of cpu, memory, pids, freezer
	// extra is a tree that limits nothing and is only for boxes: an OCI runtime
	// makes a group in every tree, and finds its own by where it is itself.
	extra bool
}

// cgroups makes the control groups of tasks. Where the host does not allow
// them there are none, and notes says why; tasks run all the same, unlimited.
type cgroups struct {
	name  string // of the watchdog's directory in every tree
	trees []hierarchy
	notes string
}

// wanted are the controllers that limit a task.
var wanted = []string{"cpu", "memory", "pids"}

// openCgroups finds and prepares what the host has for the watchdog of a data
// directory. It never fails.
func openCgroups(dataDir string) *cgroups {
	g := &cgroups{name: cgroupName(dataDir)}
	mounts, err := cgroupMounts()
	if err != nil {
		g.notes = "tasks have no control groups: " + err.Error()
		return g
	}
	return g.prepare(mounts)
}

// findCgroups returns where a data directory's groups are, and makes none.
func findCgroups(dataDir string) *cgroups {
	g := &cgroups{name: cgroupName(dataDir)}
	mounts, err := cgroupMounts()
	if err != nil {
		return g
	}
	for _, m := range mounts {
		g.trees = append(g.trees, hierarchy{base: filepath.Join(m.top(), g.name), v2: m.v2})
	}
	return g
}

// cgroupName names a data directory's groups in every tree.
func cgroupName(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join("gpuai", hex.EncodeToString(sum[:6]))
}

func (g *cgroups) prepare(mounts []cgroupMount) *cgroups {
	var why []string
	for _, m := range mounts {
		h, err := m.prepare(g.name)
		if err != nil && !m.extra {
			why = append(why, err.Error())
		}
		if err != nil {
			continue
		}
		g.trees = append(g.trees, h)
	}
	// A tree with cgroup.kill goes first: it is the one to kill by.
	slices.SortStableFunc(g.trees, func(a, b hierarchy) int { return rank(b) - rank(a) })
	for _, c := range wanted {
		if !g.limits(c) {
			why = append(why, "no "+c+" limit")
		}
	}
	if !slices.ContainsFunc(g.trees, func(h hierarchy) bool { return !h.extra }) {
		g.notes = "tasks have no control groups: " + strings.Join(why, "; ")
	} else if len(why) > 0 {
		g.notes = "tasks are not limited in full: " + strings.Join(why, "; ")
	}
	return g
}

// limits reports whether some tree has a controller.
func (g *cgroups) limits(controller string) bool {
	return slices.ContainsFunc(g.trees, func(h hierarchy) bool { return slices.Contains(h.controllers, controller) })
}

func rank(h hierarchy) int {
	if h.v2 {
		return 1
	}
	return 0
}

// boxable says why a box cannot be run, if so: nothing in it may be unbounded,
// and what is in it must be found.
func (g *cgroups) boxable() error {
	for _, c := range wanted {
		if !g.limits(c) {
			return fmt.Errorf("a sandbox needs a control group with a %s limit, and this host gives none: %s", c, g.notes)
		}
	}
	return nil
}

// unified reports whether all control groups are of version 2. Then a group
// with processes has no controllers for groups below it.
func (g *cgroups) unified() bool {
	return !slices.ContainsFunc(g.trees, func(h hierarchy) bool { return !h.v2 })
}

// A cgroupMount is a mounted hierarchy and this process's place in it.
type cgroupMount struct {
	path        string
	own         string
	v2          bool
	controllers []string
	cpuset      bool // needs its CPUs to be named
	extra       bool // as in hierarchy
}

func cgroupMounts() ([]cgroupMount, error) {
	own, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []cgroupMount
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		if len(field) < 4 {
			continue
		}
		m := cgroupMount{path: field[1], v2: field[2] == "cgroup2"}
		if m.v2 {
			m.own = own[""]
		} else if field[2] != "cgroup" {
			continue
		}
		known := m.v2
		for _, o := range strings.Split(field[3], ",") {
			place, ok := own[o]
			if !ok {
				continue
			}
			known, m.own, m.cpuset = true, place, m.cpuset || o == "cpuset"
			if slices.Contains(append(wanted, "freezer"), o) {
				m.controllers = append(m.controllers, o)
			}
		}
		m.extra = !m.v2 && len(m.controllers) == 0
		if known {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroup file system is mounted")
	}
	return out, nil
}

// ownCgroups returns this process's place by controller; "" is version 2.
func ownCgroups() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if p := strings.SplitN(strings.TrimSpace(line), ":", 3); len(p) == 3 {
			for _, c := range strings.Split(p[1], ",") {
				out[c] = p[2]
			}
		}
	}
	return out, nil
}

// prepare makes the watchdog's directory in a hierarchy. In version 1 it is
// below this process's own place. In version 2 a group with processes cannot
// give controllers to groups below it, so it is below the root.
func (m cgroupMount) prepare(name string) (hierarchy, error) {
	top := m.top()
	h := hierarchy{base: filepath.Join(top, name), v2: m.v2, controllers: m.controllers, extra: m.extra}
	if err := os.MkdirAll(h.base, 0o755); err != nil {
		return h, fmt.Errorf("cannot make %s: %w", h.base, errors.Unwrap(err))
	}
	if m.cpuset {
		if err := inheritCPUs(top, h.base); err != nil {
			return h, err
		}
	}
	if !m.v2 {
		return h, nil
	}
	for _, c := range wanted {
		ok := true
		for _, dir := range []string{top, filepath.Dir(h.base), h.base} {
			ok = ok && os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0) == nil
		}
		if ok {
			h.controllers = append(h.controllers, c)
		}
	}
	return h, nil
}

// top is the directory below which groups are made.
func (m cgroupMount) top() string {
	own := filepath.Join(m.path, m.own)
	if fi, err := os.Stat(own); !m.v2 && err == nil && fi.IsDir() {
		return own
	}
	return m.path
}

// inheritCPUs gives the groups from top down to dir the CPUs and memory nodes
// of the group above, where they have none: no process may enter those.
func inheritCPUs(top, dir string) error {
	if dir == top {
		return nil
	}
	above := filepath.Dir(dir)
	if err := inheritCPUs(top, above); err != nil {
		return err
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(strings.TrimSpace(string(b))) > 0 {
			continue
		}
		if b, err = os.ReadFile(filepath.Join(above, name)); err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0)
		}
		if err != nil {
			return fmt.Errorf("give a control group its CPUs: %w", err)
		}
	}
	return nil
}

// A group is one task's control groups, one directory in each hierarchy.
type group struct {
	dirs []string
	home string // below each, where the first process is; "" is the group itself
}

func (g *cgroups) of(t gpuai.Token) group {
	var out group
	for _, h := range g.trees {
		out.dirs = append(out.dirs, filepath.Join(h.base, t.String()))
	}
	return out
}

// leaseOf returns the lease in whose group a process is; 0 if it is in none.
func (g *cgroups) leaseOf(pid int) (t gpuai.Token) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		_, below, ok := strings.Cut(strings.TrimSpace(line), g.name+"/")
		name, _, _ := strings.Cut(below, "/")
		if ok && t.UnmarshalText([]byte(name)) == nil {
			return t
		}
	}
	return 0
}

// create makes a task's groups with its limits.
func (g *cgroups) create(s *Spec) (out group, err error) {
	if s.Box != nil {
		if err := g.boxable(); err != nil {
			return out, err
		}
		if g.unified() {
			out.home = "run"
		}
	}
	for i, dir := range g.of(s.Lease).dirs {
		h := &g.trees[i]
		if h.extra && s.Box == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(dir, out.home), 0o755); err != nil {
			return out, fmt.Errorf("make a control group: %w", err)
		}
		out.dirs = append(out.dirs, dir)
		if h.extra {
			_ = inheritCPUs(h.base, dir) // only cpuset has the files; entering says what is wrong
		}
		for _, set := range h.limits(s) {
			err := os.WriteFile(filepath.Join(dir, set[0]), []byte(set[1]), 0)
			if err != nil && set[2] == "" {
				return out, fmt.Errorf("limit a task: %w", err)
			}
		}
	}
	return out, nil
}

// limits returns file, value and "optional" of each setting.
func (h *hierarchy) limits(s *Spec) (out [][3]string) {
	const period = 100_000 // µs
	quota := max(int64(s.CPU)*period/1000, 1000)
	for _, c := range h.controllers {
		switch {
		case c == "cpu" && s.CPU > 0 && h.v2:
			out = append(out, [3]string{"cpu.max", fmt.Sprintf("%d %d", quota, period)})
		case c == "cpu" && s.CPU > 0:
			out = append(out, [3]string{"cpu.cfs_period_us", strconv.Itoa(period)}, [3]string{"cpu.cfs_quota_us", strconv.FormatInt(quota, 10)})
		case c == "memory" && s.Memory > 0 && h.v2:
			out = append(out, [3]string{"memory.max", strconv.FormatInt(int64(s.Memory), 10)}, [3]string{"memory.swap.max", "0", "optional"})
		case c == "memory" && s.Memory > 0:
			limit := strconv.FormatInt(int64(s.Memory), 10)
			out = append(out, [3]string{"memory.limit_in_bytes", limit}, [3]string{"memory.memsw.limit_in_bytes", limit, "optional"})
		case c == "pids" && s.PIDs > 0:
			out = append(out, [3]string{"pids.max", strconv.FormatInt(s.PIDs, 10)})
		}
	}
	return out
}

// add moves a process into every group.
func (g group) add(pid int) error {
	for _, d := range g.dirs {
		if err := os.WriteFile(filepath.Join(d, g.home, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("put a task into its control group: %w", err)
		}
	}
	return nil
}

// main is the group that stands for the task in reports; "" without one.
func (g group) main() string {
	if len(g.dirs) == 0 {
		return ""
	}
	return g.dirs[0]
}

// kill kills what is in the groups: at once and atomically where the kernel
// has cgroup.kill.
func (g group) kill() {
	for _, d := range g.dirs {
		_ = os.WriteFile(filepath.Join(d, "cgroup.kill"), []byte("1"), 0) // else one by one
	}
	for _, pid := range g.procs() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// procs returns the processes in the groups and below them.
func (g group) procs() []int {
	var out []int
	for _, d := range g.dirs {
		_ = filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				out = append(out, readPIDs(filepath.Join(path, "cgroup.procs"))...)
			}
			return nil // a group may go while it is read
		})
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func readPIDs(path string) (out []int) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// oom reports whether the kernel killed something for want of memory: in
// version 1 only the group of what was killed counts it.
func (g group) oom() bool {
	return g.counted("memory.events", "oom_kill ") || g.counted("memory.oom_control", "oom_kill ")
}

// crowded reports whether a process could not be made for the limit of them.
func (g group) crowded() bool { return g.counted("pids.events", "max ") }

// counted reports whether a file of the groups, or of one below, counts
// something other than 0.
func (g group) counted(file, what string) (found bool) {
	for _, d := range g.dirs {
		_ = filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return nil // a group may go while it is read
			}
			b, _ := os.ReadFile(filepath.Join(path, file))
			for line := range strings.Lines(string(b)) {
				n, ok := strings.CutPrefix(strings.TrimSpace(line), what)
				found = found || ok && n != "0"
			}
			return nil
		})
	}
	return found
}

// remove removes the groups, those that the task made below them first. A
// process that was just killed may hold one for a moment.
func (g group) remove() {
	for range removeTries {
		left := false
		for _, d := range g.dirs {
			left = !removeTree(d) || left
		}
		if !left {
			return
		}
		time.Sleep(huntAgain)
	}
}

// removeTries bounds how often an occupied group is tried again.
const removeTries = 100

// removeTree reports whether the group at dir is gone.
func removeTree(dir string) bool {
	var below []string
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			below = append(below, path)
		}
		return nil
	})
	gone := true
	for _, path := range slices.Backward(below) {
		gone = unix.Rmdir(path) == nil
	}
	return gone
}

// close removes the watchdog's own directories.
func (g *cgroups) close() {
	for _, h := range g.trees {
		if (group{dirs: []string{h.base}}).remove(); unix.Access(h.base, unix.F_OK) != nil {
			_ = unix.Rmdir(filepath.Dir(h.base)) // unless another watchdog's are there
		}
	}
}
