//go:build !cgo

// The gpuai-driver-nvidia command is the driver of NVIDIA GPUs; the agent runs it.
// This build of it cannot: it was made without cgo, which NVIDIA's library needs.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "gpuai-driver-nvidia was built without cgo and cannot load NVML: build it with CGO_ENABLED=1 and a C compiler (make build)")
	os.Exit(1)
}
