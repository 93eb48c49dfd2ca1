package nursery

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Listed process is one that /proc lists.
type Listed struct {
	PID  int
	Line string // its command line
}

// String names the process in a failure.
func (l Listed) String() string { return fmt.Sprintf("%d (%s)", l.PID, l.Line) }

// Naming returns the processes, zombies and this one aside, whose command line,
// working directory or environment names dir.
func Naming(dir string) []Listed {
	var out []Listed
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, d := range dirs {
		line, _ := os.ReadFile(d + "/cmdline") // empty for a zombie, an error for one that is gone
		env, _ := os.ReadFile(d + "/environ")
		cwd, _ := os.Readlink(d + "/cwd")
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() || len(line) == 0 {
			continue
		}
		if bytes.Contains(line, []byte(dir)) || bytes.Contains(env, []byte(dir)) || strings.HasPrefix(cwd, dir) {
			out = append(out, Listed{pid, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))})
		}
	}
	return out
}

// KillNaming kills with -9 what Naming returns until there is nothing left, or
// an error after so long.
func KillNaming(dir string, within time.Duration) error {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		left := Naming(dir)
		if len(left) == 0 {
			return nil
		}
		if time.Since(began) > within {
			return fmt.Errorf("these processes cannot be killed: %v", left)
		}
		for _, l := range left {
			_ = syscall.Kill(l.PID, syscall.SIGKILL) // it may have ended
		}
	}
}
