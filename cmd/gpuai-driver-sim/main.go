// The gpuai-driver-sim command is a driver whose devices are made up; the agent
// runs it. See package plugins/sim.
package main

import (
	"os"

	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/sim"
)

func main() { os.Exit(plugins.Serve(sim.New(plugins.Logger()))) }
