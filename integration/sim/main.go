// Command sim runs the region in a seeded simulation.
package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/gpuai/gpuai"
)

func nodeName(i int) gpuai.NodeID { return gpuai.NodeID("n" + strconv.Itoa(i)) }

func (v variant) bias(w *world, p *profile) {}

func main() {
	seed, _ := strconv.ParseUint(os.Args[1], 10, 64)
	n := 1
	if len(os.Args) > 2 {
		n, _ = strconv.Atoi(os.Args[2])
	}
	for i := range n {
		var tr *tracer
		if n == 1 {
			tr = &tracer{print: func(s string) { fmt.Println(s) }}
		}
		r := runSeed(seed+uint64(i), sound, tr)
		if len(r.Violations) > 0 || n == 1 {
			fmt.Printf("%+v\n", r)
		}
	}
}
