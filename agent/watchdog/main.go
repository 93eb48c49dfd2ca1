package watchdog

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// Main is the program gpuai-watchdog; it returns the exit code. args are those
// after the program's name.
func Main(args []string) int {
	if len(args) == 1 && args[0] == shimArg {
		return runShim()
	}
	if len(args) == 1 && args[0] == holdArg {
		return hold()
	}
	if len(args) > 0 && args[0] == InitArg {
		return runInit(args[1:])
	}
	if len(args) > 0 && args[0] == EnvArg {
		return runWithEnv(args)
	}
	if len(args) > 0 && args[0] == ProcsArg {
		return runProcs(args[1:])
	}
	flags := flag.NewFlagSet("gpuai-watchdog", flag.ContinueOnError)
	dir := flags.String("dir", "", "the agent's data directory")
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil || *dir == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "gpuai-watchdog --dir DIR runs and fences the tasks of the agent of that data directory; the agent starts it")
		return 2
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := Run(*dir, log); err != nil {
		log.Error(err.Error())
		return 1
	}
	return 0
}
