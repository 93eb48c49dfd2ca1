package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
)

// gpuai has the bench of this project's command run a region of three servers
// and its loads: jobs one by one, jobs one request each as fast as they are
// taken, and the same number of jobs in one request.
func (o *options) gpuai(ctx context.Context, nodes int) ([]row, error) {
	if _, err := os.Stat(o.bin); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: run make build first, or name it by --gpuai", o.bin)
	}
	var rows []row
	for _, l := range []struct {
		name    string
		rate    int // jobs a second
		seconds int
		batch   int
	}{
		{"lone", 5, max(1, o.lone/5), 1},
		{"burst, a request a job", o.burst, 1, 1},
		{"burst, one request", o.burst, 1, min(o.burst, 1000)},
	} {
		progress("gpuai, %d nodes: %s", nodes, l.name)
		cmd := exec.CommandContext(ctx, o.bin, "bench", "--local", "3", "--insecure", "--sim-nodes", strconv.Itoa(nodes), "--task-time", "0", "-o", "json",
			"--rate", strconv.Itoa(l.rate), "--duration", fmt.Sprintf("%ds", l.seconds), "--batch", strconv.Itoa(l.batch))
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return rows, fmt.Errorf("%s: %w", cmd, err)
		}
		var got struct {
			Placed  int                `json:"placed"`
			Rate    float64            `json:"placements_per_second"`
			Latency map[string]float64 `json:"latency_ms"`
			CPU     float64            `json:"server_cpu_ms_per_placement"`
		}
		if err := json.Unmarshal(out, &got); err != nil {
			return rows, fmt.Errorf("%s answered %q: %w", cmd, out, err)
		}
		rows = append(rows, row{"gpuai", nodes, l.name, got.Placed, got.Latency["p50"], got.Latency["p99"], got.Rate, got.CPU})
	}
	return rows, nil
}
