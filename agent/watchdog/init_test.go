package watchdog_test

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai/agent/watchdog"
)

// startInit runs a shell's script under an init, and returns its output.
func startInit(t *testing.T, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(binary, watchdog.InitArg, "/bin/sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewReader(out)
}

// A signal is the program's alone, but for SIGTERM: a helper that does not know
// the signal of a checkpoint would die of it.
func TestInitPassesSignalsToTheProgram(t *testing.T) {
	cmd, out := startInit(t, `
trap 'echo program got USR1' USR1
trap 'wait; exit 7' TERM
sh -c 'trap "echo helper got USR1" USR1; trap "echo helper got TERM; exit" TERM; echo ready; while :; do sleep 0.05; done' &
while :; do wait; done`)
	signals := map[string]syscall.Signal{"ready\n": syscall.SIGUSR1, "program got USR1\n": syscall.SIGTERM}
	var all strings.Builder
	for {
		line, err := out.ReadString('\n')
		all.WriteString(line)
		if s, ok := signals[line]; ok {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	if want := "ready\nprogram got USR1\nhelper got TERM\n"; all.String() != want || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("exit code %d, and it says\n%s", cmd.ProcessState.ExitCode(), all.String())
	}
}
