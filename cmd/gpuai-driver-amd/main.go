// The gpuai-driver-amd command is the driver of AMD's GPUs; the agent runs it.
// See package plugins/amd.
package main

import (
	"os"

	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/amd"
)

func main() { os.Exit(plugins.Serve(amd.New(plugins.Logger()))) }
