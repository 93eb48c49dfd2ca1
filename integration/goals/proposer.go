package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// figure is a measurement of a benchmark, as go test prints it.
var figure = regexp.MustCompile(`([0-9.e+]+) (commands/s|p50-ms|p99-ms|cpu-µs)\b`)

// proposer runs the benchmark of package raft, whose members live in one
// process: the proposer has no door to the outside.
func proposer(ctx context.Context, b *bed, x *row) error {
	o := b.r.o
	cmd := exec.CommandContext(ctx, "go", "test", "./raft", "-run", "^$", "-bench", "^BenchmarkCommit3$/^placements$",
		"-benchtime", strconv.Itoa(o.proposed)+"x", "-args", "-callers", strconv.Itoa(o.callers))
	cmd.Dir, cmd.Stderr = o.source, os.Stderr
	x.How = fmt.Sprintf("%d callers of the proposer in the leader's process, which wait for each answer before they propose again; %d jobs of one GPU; three members in one process over TCP, files with fsync, no HTTP and no agents (BenchmarkCommit3/placements of package raft)",
		o.callers, o.proposed)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	for _, m := range figure.FindAllSubmatch(out, -1) {
		if x.Values[string(m[2])], err = strconv.ParseFloat(string(m[1]), 64); err != nil {
			return err
		}
	}
	rate, p99 := x.Values["commands/s"], x.Values["p99-ms"]
	if rate == 0 || p99 == 0 {
		return fmt.Errorf("%s printed no rate: %s", cmd, bytes.TrimSpace(out))
	}
	x.Measured = fmt.Sprintf("%.0f/s, p50 %.1f ms, p99 %.1f ms, %.1f CPU-µs each", rate, x.Values["p50-ms"], p99, x.Values["cpu-µs"])
	x.Met = rate >= 100_000 && p99 <= 10
	return nil
}
