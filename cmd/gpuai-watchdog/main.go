// Command gpuai-watchdog runs the tasks of one agent and ends them at their
// leases' deadlines, whatever becomes of the agent. The agent starts it.
package main

import (
	"os"

	"github.com/gpuai/gpuai/agent/watchdog"
)

func main() { os.Exit(watchdog.Main(os.Args[1:])) }
