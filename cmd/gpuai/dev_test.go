package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestDev runs scripts against the real thing: a "gpuai dev" of the binaries of
// this tree, with its drivers and watchdogs.
func TestDev(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bin")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../gpuai", "../gpuai-watchdog", "../gpuai-driver-sim", "../gpuai-probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the binaries: %v\n%s", err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/dev", UpdateScripts: *rewrite, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			addr, err := freeAddr()
			e.Setenv("ADDR", addr)
			e.Setenv("GPUAI_ADDR", "http://"+addr) // "": by the context of gpuai dev
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("BIN", bin)
			if err == nil {
				addr, err = freeAddr()
			}
			e.Setenv("REGISTRY", addr)
			e.Defer(func() { endStarted(e.WorkDir) })
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			return err
		},
		Condition: func(cond string) (bool, error) {
			if cond != "sandbox" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := exec.LookPath("runc")
			return os.Geteuid() == 0 && err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "gone": gone, "nodes": nodes, "archived": archived, "exits": exitsReal},
	})
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// exitsReal CODE ARGS... runs the gpuai that was built and checks its exit code.
func exitsReal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	err := ts.Exec(filepath.Join(ts.Getenv("BIN"), "gpuai"), args[1:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("gpuai %s exits with %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// gpuaiOf is a command of the gpuai that was built, in the script's environment.
func gpuaiOf(ts *testscript.TestScript, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(ts.Getenv("BIN"), "gpuai"), args...)
	for _, name := range [...]string{"GPUAI_ADDR", "XDG_CONFIG_HOME"} {
		c.Env = append(c.Env, name+"="+ts.Getenv(name))
	}
	return c
}

// untrusting does not look at certificates: the commands of the scripts do.
var untrusting = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// ready SECONDS waits until the region says that it is ready.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: ready SECONDS")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	poll(ts, time.Duration(seconds)*time.Second, func() error {
		res, err := untrusting.Get(cmp.Or(ts.Getenv("GPUAI_ADDR"), "https://"+ts.Getenv("ADDR")) + "/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", res.Status)
		}
		return nil
	})
}

// archived JOB waits until a job has left the region's memory.
func archived(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: archived JOB")
	}
	poll(ts, 30*time.Second, func() error {
		out, err := gpuaiOf(ts, "job", "status", args[0], "--jq", ".job.archived").Output()
		if err == nil && strings.TrimSpace(string(out)) != "true" {
			err = fmt.Errorf("job %s is still in memory", args[0])
		}
		return err
	})
}

// nodes N waits until the region has so many nodes.
func nodes(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, 30*time.Second, func() error {
		out, err := gpuaiOf(ts, "node", "list", "-o", "name").Output()
		if n := len(strings.Fields(string(out))); err == nil && strconv.Itoa(n) != args[0] {
			return fmt.Errorf("the region has %d nodes", n)
		}
		return err
	})
}

// gone waits until no process that the script started is left, nor one that
// those started.
func gone(ts *testscript.TestScript, _ bool, _ []string) {
	poll(ts, 10*time.Second, func() error {
		for pid, cmd := range started(ts.Getenv("WORK")) {
			return fmt.Errorf("process %d is left: %s", pid, cmd)
		}
		return nil
	})
}

// started returns the processes, with their command lines, that have the
// script's directory in their environment.
func started(work string) map[int]string {
	out := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(dir + "/environ")
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if err == nil && strings.Contains(string(env), work+"/") && pid != os.Getpid() {
			cmd, _ := os.ReadFile(dir + "/cmdline")
			out[pid] = strings.ReplaceAll(string(cmd), "\x00", " ")
		}
	}
	return out
}

// endStarted ends what a script that failed left behind; a watchdog then ends
// its tasks.
func endStarted(work string) {
	for pid := range started(work) {
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended by now
	}
}

// poll calls f until it succeeds, for so long.
func poll(ts *testscript.TestScript, d time.Duration, f func() error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after %v: %v", d, err)
		}
		<-tick.C
	}
}
