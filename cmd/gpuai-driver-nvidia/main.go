//go:build cgo

// The gpuai-driver-nvidia command is the driver of NVIDIA GPUs; the agent runs it.
// It is the one program that loads NVIDIA's library, and the one that needs cgo.
// See package plugins/nvidia.
package main

import (
	"os"

	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/nvidia"
)

func main() {
	nvidia.ProbeIfAsked()
	os.Exit(plugins.Serve(nvidia.New(plugins.Logger())))
}
