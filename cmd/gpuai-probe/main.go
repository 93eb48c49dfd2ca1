// Gpuai-probe tries, from inside a task's sandbox, what the sandbox forbids,
// and prints what it got. See package probe.
package main

import (
	"os"

	"github.com/gpuai/gpuai/agent/probe"
)

func main() { os.Exit(probe.Main(os.Args[1:])) }
