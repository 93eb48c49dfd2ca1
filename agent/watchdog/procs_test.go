package watchdog_test

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// launchScript returns a launcher of three shells that run a script.
func launchScript(t *testing.T, grace gpuai.Duration, script string, before ...string) *exec.Cmd {
	t.Helper()
	p := watchdog.Procs{Vars: map[string][]string{"RANK": {"3", "4", "5"}, "LOCAL_RANK": {"0", "1", "2"}}, Grace: grace}
	args, err := p.Args([]string{"/bin/sh", "-c", script, "${LOCAL_RANK}of$RANK", "$RANKS", "${RANK"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, slices.Concat(before, args)...)
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	return cmd
}

func TestLauncherStartsAProcessForEachRank(t *testing.T) {
	for name, before := range map[string][]string{"plain": nil, "in a box": {watchdog.InitArg}} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := launchScript(t, gpuai.Minute, `echo "$RANK $LOCAL_RANK $0 $1 $2"; printf 'no end of line' >&2`, before...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatal(err, errs.String())
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			slices.Sort(lines)
			if want := []string{"[0] 3 0 0of3 $RANKS ${RANK", "[1] 4 1 1of4 $RANKS ${RANK", "[2] 5 2 2of5 $RANKS ${RANK"}; !slices.Equal(lines, want) {
				t.Errorf("they say %q", lines)
			}
			for _, want := range []string{"[0] no end of line\n", "[2] no end of line\n"} {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("%q is not in %q", want, errs.String())
				}
			}
		})
	}
}

// The first that fails ends the others, with grace and then without, and its
// code is the task's.
func TestLauncherEndsAllWhenOneFails(t *testing.T) {
	const wait = `trap 'echo told; exit 9' TERM; `
	for name, test := range map[string]struct {
		grace  gpuai.Duration
		script string
		code   int
		out    string
	}{
		"exit code": {gpuai.Minute, wait + `[ $LOCAL_RANK = 1 ] || { while :; do sleep 0.02; done; }; exit 7`, 7, "told\n"},
		"signal":    {gpuai.Minute, wait + `[ $LOCAL_RANK = 2 ] || { while :; do sleep 0.02; done; }; kill -9 $$`, 137, "told\n"},
		"deaf":      {100, `trap '' TERM; [ $LOCAL_RANK = 0 ] && exit 3; while :; do sleep 0.02; done`, 3, ""},
		"done":      {gpuai.Minute, `exit 0`, 0, ""},
		"missing":   {gpuai.Minute, `exec /no/such/program`, 127, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			cmd := launchScript(t, test.grace, test.script)
			cmd.Stdout, cmd.Stderr = &out, &errs
			_ = cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != test.code || !strings.Contains(out.String(), test.out) {
				t.Errorf("exit code %d, and it says %q, %q", got, out.String(), errs.String())
			}
			if test.code != 0 && !strings.Contains(errs.String(), "ending the others") {
				t.Errorf("its user reads %q", errs.String())
			}
		})
	}
}

func TestLauncherOfAMissingProgram(t *testing.T) {
	p := watchdog.Procs{Vars: map[string][]string{"RANK": {"0", "1"}}}
	args, err := p.Args([]string{"no-such-program"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no-such-program is not in PATH") {
		t.Errorf("%v: %s", err, out)
	}
}

// Signals are each process's, as an init's are its program's.
func TestLauncherPassesSignals(t *testing.T) {
	cmd := launchScript(t, gpuai.Minute, `trap 'echo saved' USR1; trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done`)
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(pipe)
	seen := map[string]int{}
	for out.Scan() {
		_, word, _ := strings.Cut(out.Text(), " ")
		if seen[word]++; seen[word] == 3 {
			_ = cmd.Process.Signal(map[string]syscall.Signal{"ready": syscall.SIGUSR1, "saved": syscall.SIGTERM}[word])
		}
	}
	if err := cmd.Wait(); err != nil || seen["ready"] != 3 || seen["saved"] != 3 {
		t.Errorf("%v: %v", err, seen)
	}
}
