// Command gpuai-mesh links the network of a gang on one host with those on others,
// by WireGuard in user space. The agent starts one for each gang that needs it.
package main

import (
	"os"

	"github.com/gpuai/gpuai/agent/network/mesh"
)

func main() { os.Exit(mesh.Main(os.Args[1:])) }
