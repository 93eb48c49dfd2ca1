package watchdog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A task is started in two steps, since its control groups and limits must be
// in force before its program's first instruction: the watchdog forks itself as
// a shim, moves that into the groups, and then tells it through a pipe what to
// become.

// shimArg makes the watchdog's binary a shim.
const shimArg = "--exec-task"

// The shim's files beside stdin, stdout and stderr.
const (
	gateFD   = 3 // read: a shimOrder, or end of file when the start is off
	statusFD = 4 // written: why exec failed; closed by a successful exec
)

type shimOrder struct {
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
	Cwd    string   `json:"cwd"`
	NoFile uint64   `json:"nofile"`
	// NProc bounds the user's processes, where no control group bounds the
	// task's; 0 bounds nothing. It has no effect on root.
	NProc uint64 `json:"nproc,omitzero"`
	// Parent is the watchdog: the task dies with it.
	Parent int  `json:"parent"`
	Box    *Box `json:"box,omitempty"`
	// TTY says that stdin is the terminal that the program is to control.
	TTY bool `json:"tty,omitzero"`
	// Beside is the first process of a box, whose mount namespace the program
	// runs in: there alone an OCI runtime finds what the box has; 0 for none.
	Beside int `json:"beside,omitzero"`
}

// rlimitNProc is RLIMIT_NPROC, which syscall leaves out.
const rlimitNProc = unix.RLIMIT_NPROC

// exitNotStarted is the shim's exit code when there is nothing to run.
const exitNotStarted = 127

// runShim becomes the task, or reports why not.
func runShim() int {
	gate, status := os.NewFile(gateFD, "gate"), os.NewFile(statusFD, "status")
	syscall.CloseOnExec(gateFD)
	syscall.CloseOnExec(statusFD)
	var o shimOrder
	b, err := io.ReadAll(gate)
	if err != nil || len(b) == 0 {
		return exitNotStarted
	}
	if err = json.Unmarshal(b, &o); err == nil {
		err = o.exec()
	}
	fmt.Fprint(status, err)
	return exitNotStarted
}

func (o *shimOrder) exec() error {
	if err := os.Chdir(o.Cwd); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if o.TTY {
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return fmt.Errorf("take the terminal: %w", err)
		}
	}
	path, err := lookPath(o.Argv[0], o.Env)
	if err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := limit(syscall.RLIMIT_NOFILE, o.NoFile); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	if err := limit(rlimitNProc, o.NProc); err != nil {
		return fmt.Errorf("limit processes: %w", err)
	}
	if err := dieWith(o.Parent); err != nil {
		return err
	}
	if o.Beside != 0 {
		if err := joinMounts(o.Beside); err != nil {
			return fmt.Errorf("enter the box's mounts: %w", err)
		}
	}
	if o.Box == nil {
		if err := unprotect(); err != nil {
			return err
		}
	} else if err := o.Box.enter(); err != nil {
		return fmt.Errorf("mount the task's image: %w", err)
	}
	if err := syscall.Exec(path, o.Argv, o.Env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// joinMounts moves this thread, which the caller has locked, into the mount
// namespace of a process.
func joinMounts(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
}

// unprotect takes away what keeps the kernel from killing the watchdog for want
// of memory: a task would inherit it.
func unprotect() error {
	const file = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(file)
	if err == nil && strings.HasPrefix(string(b), "-") {
		err = os.WriteFile(file, []byte("0"), 0)
	}
	if err != nil {
		return fmt.Errorf("expose the task to the kernel's want of memory: %w", err)
	}
	return nil
}

// dieWith has the kernel kill this process when its parent dies. The signal
// that was set at the fork belongs to the first thread, and Go may have moved us
// to another, whose exec would drop it: it is set anew, on the thread that execs.
func dieWith(parent int) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("bind the task to its watchdog: %w", err)
	}
	if os.Getppid() != parent {
		return errors.New("the watchdog died before the task started")
	}
	return nil
}

// limit lowers a resource limit to n, if it is higher; 0 leaves it.
func limit(resource int, n uint64) error {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(resource, &now); err != nil || n == 0 {
		return err
	}
	n = min(n, now.Max)
	return syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: n})
}

// lookPath finds a program in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", errors.New(name + " is not in PATH (" + path + ")")
}
