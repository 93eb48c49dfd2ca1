package oracle

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/gpuai/gpuai/examples/beat"
)

// EnvTask makes a program that calls TaskMain be the program of a task, when it
// is set to TaskBeat.
const (
	EnvTask  = "INTEGRATION_TASK"
	TaskBeat = "beat"
)

// TaskMain is a task: it writes its token and CLOCK_BOOTTIME every 50 ms until
// SIGTERM, and says when it begins and ends. It returns the exit code.
func TaskMain(stdout, stderr io.Writer) int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	w, err := beat.StartFromEnv(os.Getenv)
	if err != nil || w == nil {
		fmt.Fprintln(stderr, "no beats: ", err)
		return 1
	}
	fmt.Fprintln(stdout, "beating")
	<-stop
	if err := w.Stop(); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintln(stdout, "stopped")
	return 0
}
