package watchdog

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitArg makes the watchdog's binary the first process of a box. The kernel
// drops signals to a first process that has no handler for them, and its
// orphans fall to it: few programs are made for that. This one runs the program
// behind InitArg, hands it signals, reaps what falls to it, and ends with the
// program's code.
const InitArg = "--init"

// Exit codes of an init that has nothing to run, as a shell's.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// forwarded are the signals that a task may be sent.
var forwarded = []os.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
	syscall.SIGCONT, syscall.SIGWINCH, syscall.SIGALRM, syscall.SIGTSTP,
}

// runInit runs argv and returns its exit code.
func runInit(argv []string) int {
	if len(argv) == 0 {
		fmt.Fprintln(os.Stderr, "gpuai: there is no program to run")
		return exitNotFound
	}
	if err := dieWithRuntime(); err != nil {
		fmt.Fprintln(os.Stderr, "gpuai:", err)
		return exitNotRunnable
	}
	argv, err := readEnv(argv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpuai:", err)
		return exitNotRunnable
	}
	if argv[0] == ProcsArg {
		return runProcs(argv[1:])
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded...)
	path, err := lookPath(argv[0], os.Environ())
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpuai:", err)
		return exitNotFound
	}
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "gpuai: run %s: %v\n", path, err)
		if errors.Is(err, syscall.ENOENT) {
			return exitNotFound
		}
		return exitNotRunnable
	}
	go func() {
		for s := range signals {
			if s, ok := s.(syscall.Signal); ok {
				forward(pid, s)
			}
		}
	}()
	code := reapUntil(pid)
	if code != 0 {
		noteFull()
	}
	return code
}

// FullNote precedes, in a line of stderr, the directory that was full when the
// program of a box failed. Only a process of the box sees what is in it.
const FullNote = "gpuai: no space left in "

// noteFull says which directory of the box that programs write to is full.
func noteFull() {
	for _, dir := range []string{"/work", "/tmp", "/run", "/dev/shm"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || st.Blocks == 0 {
			continue
		}
		// The last write found less than it asked for, which may be a block of some
		// size; ext4 keeps a few hundred blocks back, more than 1 % of a small one.
		if st.Bavail <= min(st.Blocks/50, fullBytes/uint64(st.Bsize)) || st.Files > 0 && st.Ffree == 0 {
			fmt.Fprintln(os.Stderr, FullNote+dir)
			return
		}
	}
}

// fullBytes is how much a directory that is full may still have free.
const fullBytes = 1 << 20

// dieWithRuntime has the kernel kill this process when the runtime that made the
// box dies, which dies with the watchdog: with this process go all of the box,
// also where no agent is left to sweep. The signal belongs to this thread, which
// must not end: the caller's goroutine stays on it.
func dieWithRuntime() error {
	runtime.LockOSThread()
	before := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("bind the box to its runtime: %w", err)
	}
	// The tenant's processes have this one's user: they must not trace it, and
	// take the signal away.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep the first process to itself: %w", err)
	}
	if os.Getppid() != before || unread() {
		return errors.New("the runtime died before the task started")
	}
	return nil
}

// unread reports whether nobody reads what is written to stdout. In a namespace
// of processes every parent is 0, dead or alive, but runc reads this pipe.
func unread() bool {
	fds := []unix.PollFd{{Fd: 1}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLERR != 0
}

// forward hands a signal to the program. Only SIGTERM is for its whole process
// group: another, as the one that asks for a checkpoint, kills helpers of the
// program that do not know it.
func forward(pid int, s syscall.Signal) {
	if s == syscall.SIGTERM {
		pid = -pid
	}
	_ = syscall.Kill(pid, s) // gone already is as good
}

// reapUntil reaps every child until pid has ended.
func reapUntil(pid int) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return exitNotRunnable
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid && status.Exited():
			return status.ExitStatus()
		}
	}
}
