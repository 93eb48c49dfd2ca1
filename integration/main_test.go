package integration

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai/examples/beat"
)

// bins is the directory of the programs under test.
var bins string

// envRole makes this test binary be something else than a test: the program of
// a task.
const envRole = "INTEGRATION_ROLE"

// roleBeat beats until it is told to stop.
const roleBeat = "beat"

func TestMain(m *testing.M) {
	if os.Getenv(envRole) == roleBeat {
		os.Exit(beatMain())
	}
	os.Exit(testMain(m))
}

// testMain builds the programs once, as the Makefile does, and runs the tests.
func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gpuai-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bins = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./cmd/...")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the programs under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// program returns the path of a program under test.
func program(name string) string { return filepath.Join(bins, name) }

// beatMain is a task: it writes (token, CLOCK_BOOTTIME) every 50 ms until
// SIGTERM, and says when it begins and ends.
func beatMain() int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	w, err := beat.StartFromEnv(os.Getenv)
	if err != nil || w == nil {
		fmt.Fprintln(os.Stderr, "no beats: ", err)
		return 1
	}
	fmt.Println("beating")
	<-stop
	if err := w.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("stopped")
	return 0
}
