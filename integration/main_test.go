package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai/integration/oracle"
)

// bins is the directory of the programs under test.
var bins string

func TestMain(m *testing.M) {
	if os.Getenv(oracle.EnvTask) == oracle.TaskBeat {
		os.Exit(oracle.TaskMain(os.Stdout, os.Stderr))
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
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./cmd/...", "./examples/dataparallel")
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
