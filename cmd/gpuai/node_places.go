package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// placeText says where a device is within its node; "" when nothing is known.
func placeText(p gpuai.DevicePlace) string {
	var out []string
	if n, known := p.NUMA.Number(); known {
		out = append(out, fmt.Sprintf("numa %d", n))
	}
	if p.LinkIsland > 0 {
		out = append(out, fmt.Sprintf("link %d", p.LinkIsland))
	}
	if p.PCIeGroup > 0 {
		out = append(out, fmt.Sprintf("pcie %d", p.PCIeGroup))
	}
	return strings.Join(out, ", ")
}

// topologyRows say which devices of a node are near one another, by their indexes.
func topologyRows(n *gpuai.Node) (rows [][]string) {
	for _, level := range []struct {
		title, of string
		group     func(*gpuai.DevicePlace) int // 0: none
		first     int                          // number of group 1
	}{
		{"links", "island", func(p *gpuai.DevicePlace) int { return int(p.LinkIsland) }, 1},
		{"PCIe", "group", func(p *gpuai.DevicePlace) int { return int(p.PCIeGroup) }, 1},
		{"NUMA", "node", func(p *gpuai.DevicePlace) int { return int(p.NUMA) }, 0},
	} {
		groups, most := map[int][]int{}, 0
		for i := range n.Devices {
			if g := level.group(&n.Devices[i].DevicePlace); g > 0 {
				groups[g] = append(groups[g], i)
				most = max(most, g)
			}
		}
		var out []string
		for g := 1; g <= most; g++ {
			if len(groups[g]) > 0 {
				out = append(out, fmt.Sprintf("%s %d: %s", level.of, g-1+level.first, indexesText(groups[g])))
			}
		}
		if len(out) > 0 {
			rows = append(rows, []string{level.title, strings.Join(out, "; ")})
		}
	}
	return rows
}

// indexesText writes ascending numbers as "0-3,6".
func indexesText(ns []int) string {
	var out []string
	for i := 0; i < len(ns); {
		end := i
		for end+1 < len(ns) && ns[end+1] == ns[end]+1 {
			end++
		}
		text := strconv.Itoa(ns[i])
		if end > i {
			text += "-" + strconv.Itoa(ns[end])
		}
		out = append(out, text)
		i = end + 1
	}
	return strings.Join(out, ",")
}
