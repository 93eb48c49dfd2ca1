package simulate

import (
	"maps"
	"slices"
)

// A CurvePoint is the mean allocation at a load, both in percent of all devices.
type CurvePoint struct {
	Load       int     `json:"load"`
	Allocation float64 `json:"gpu_allocation"`
}

// curveOf divides the sums at each load by their counts.
func curveOf(sums map[int]float64, counts map[int]int) []CurvePoint {
	var out []CurvePoint
	for _, load := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, CurvePoint{load, sums[load] / float64(counts[load])})
	}
	return out
}
