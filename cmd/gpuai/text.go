package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// num returns n in decimal.
func num[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int32 | ~int64 | ~int](n T) string {
	return fmt.Sprintf("%d", n)
}

// age returns how long ago a wall time was, in one unit.
func (a *app) age(t gpuai.WallTime) string {
	if t == 0 {
		return ""
	}
	d := gpuai.Duration(max(0, a.now().UnixMilli()-int64(t)))
	switch {
	case d < 2*gpuai.Minute:
		return num(int64(d/gpuai.Second)) + "s"
	case d < 2*gpuai.Hour:
		return num(int64(d/gpuai.Minute)) + "m"
	case d < 2*gpuai.Day:
		return num(int64(d/gpuai.Hour)) + "h"
	}
	return num(int64(d/gpuai.Day)) + "d"
}

// short returns a duration in its two largest units: "1h30m", "12m04s", "3s".
func short(d gpuai.Duration) string {
	switch {
	case d < gpuai.Second:
		return strconv.FormatInt(int64(d), 10) + "ms"
	case d < gpuai.Minute:
		return strconv.FormatInt(int64(d/gpuai.Second), 10) + "s"
	case d < gpuai.Hour:
		return fmt.Sprintf("%dm%02ds", d/gpuai.Minute, d%gpuai.Minute/gpuai.Second)
	case d < gpuai.Day:
		return fmt.Sprintf("%dh%02dm", d/gpuai.Hour, d%gpuai.Hour/gpuai.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/gpuai.Day, d%gpuai.Day/gpuai.Hour)
}

// bytesText returns memory in its largest whole unit, or with one decimal.
func bytesText(b gpuai.Bytes) string {
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB"}
	i, v := 0, b
	for i < len(units)-1 && v >= 1024 {
		v /= 1024
		i++
	}
	if whole := v << (10 * i); whole == b {
		return strconv.FormatInt(int64(v), 10) + units[i]
	}
	return strconv.FormatFloat(float64(b)/float64(int64(1)<<(10*i)), 'f', 1, 64) + units[i]
}

// cpuText returns cores with as many decimals as it takes.
func cpuText(c gpuai.MilliCPU) string {
	return strconv.FormatFloat(float64(c)/1000, 'f', -1, 64)
}

// gpuText returns a request for devices: "2 H100-SXM5-80GB or MI300X".
func gpuText(g gpuai.GPURequest) string {
	if g.Count == 0 {
		return "0"
	}
	out := strconv.Itoa(int(g.Count))
	if g.Share.Milli > 0 {
		out = "0." + strings.TrimRight(fmt.Sprintf("%03d", g.Share.Milli), "0")
	}
	var kinds []string
	for _, alt := range g.Any {
		var parts []string
		if alt.Vendor != "" {
			parts = append(parts, alt.Vendor)
		}
		if alt.Model != "" {
			parts = append(parts, alt.Model)
		}
		if r := rangeText(alt.MemoryMin, alt.MemoryMax); r != "" {
			parts = append(parts, r)
		}
		kinds = append(kinds, strings.Join(parts, " "))
	}
	if len(kinds) > 0 {
		out += " " + strings.Join(kinds, " or ")
	}
	return out
}

// rangeText returns a memory range as a job file writes it; "" for none.
func rangeText(lo, hi gpuai.Bytes) string {
	switch {
	case lo == 0 && hi == 0:
		return ""
	case hi == 0:
		return bytesText(lo) + ".."
	case lo == 0:
		return ".." + bytesText(hi)
	}
	return bytesText(lo) + ".." + bytesText(hi)
}

// needsText returns what one task needs, in the words of an explanation.
func needsText(r gpuai.Resources) string {
	var parts []string
	if r.GPU.Count > 0 {
		parts = append(parts, gpuNeed(r.GPU))
	}
	parts = append(parts, cpuText(r.CPU)+" CPU", bytesText(r.Memory))
	return strings.Join(parts, ", ")
}

// gpuNeed returns "2 GPU of 40GiB..80GiB" or "1 GPU H100-SXM5-80GB".
func gpuNeed(g gpuai.GPURequest) string {
	n, kind, _ := strings.Cut(gpuText(g), " ")
	switch {
	case kind == "":
		return n + " GPU"
	case len(g.Any) == 1 && g.Any[0].Vendor == "" && g.Any[0].Model == "":
		return n + " GPU of " + kind
	}
	return n + " GPU " + kind
}

// duration returns a duration of the API as a time.Duration.
func duration(d gpuai.Duration) time.Duration { return time.Duration(d) * time.Millisecond }
