package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/oracle"
)

// A report is what the demo measured; all claims held, or there is none.
type report struct {
	Seconds float64 `json:"duration_s"`
	// Runtime is what the jobs ran in.
	Runtime string `json:"runtime"`
	// Access is who was let in, and who was not.
	Access doors `json:"access"`
	// Allocation is from the call of submit to the lease's event at a watcher,
	// Start to the task's first beat, of jobs with one task.
	Allocation latency `json:"allocation_latency_ms"`
	Start      latency `json:"start_latency_ms"`
	// ArrayWait is from the call of submit to the lease's event of each task
	// of the array, the queue and the deaths included.
	ArrayWait    latency `json:"array_wait_ms"`
	NewLeaderMS  float64 `json:"new_leader_ms"`
	FirstWriteMS float64 `json:"first_write_ms"`
	// Elections are those after the one that the demo caused, as a slow disk
	// or processor brings about: each makes the region wait longer for silent
	// agents.
	Elections    uint64         `json:"further_elections"`
	AgentDeath   agentDeath     `json:"agent_death"`
	Training     training       `json:"training"`
	Digests      digests        `json:"digests"`
	GangRestarts uint32         `json:"gang_restarts"`
	ArrayRestart uint32         `json:"array_restarts"`
	Runners      oracle.Runners `json:"runners"`
}

// A latency sums up times, in milliseconds.
type latency struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// agentDeath is what followed the agent's death; times are from then.
type agentDeath struct {
	Node  gpuai.NodeID `json:"node"`
	Tasks int          `json:"tasks"` // that ran there
	// LastBeatMS is when the last of them was fenced.
	LastBeatMS float64 `json:"last_beat_ms"`
	// GangElsewhereMS is the first beat of the last member of the gang that
	// ran there, ArrayElsewhere of the other tasks.
	GangElsewhereMS float64 `json:"gang_elsewhere_ms"`
	ArrayElsewhere  latency `json:"array_elsewhere_ms"`
}

type training struct {
	FirstLoss   string `json:"first_loss"`
	LastLoss    string `json:"last_loss"`
	ResumedStep int    `json:"resumed_step"`
	Done        string `json:"done"` // as rank 0 printed it
}

type digests struct {
	Index    uint64            `json:"index"`
	ByServer map[string]string `json:"by_server"`
}

func (r *report) restarted(gang bool, n uint32) {
	if gang {
		r.GangRestarts = n
	} else {
		r.ArrayRestart = n
	}
}

// quantiles sums up times by the nearest rank.
func quantiles(times []float64) latency {
	if len(times) == 0 {
		return latency{}
	}
	s := slices.Sorted(slices.Values(times))
	at := func(q float64) float64 { return s[max(0, int(math.Ceil(q*float64(len(s))))-1)] }
	return latency{N: len(s), P50: at(0.50), P99: at(0.99), Max: s[len(s)-1]}
}

// write prints the report as text or JSON.
func (r *report) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.text(w)
}

func (r *report) text(w io.Writer) error {
	digest := ""
	for _, v := range r.Digests.ByServer {
		digest = v
	}
	rows := [][2]string{
		{"jobs run in", r.Runtime},
		{"allocation latency", fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, from the call of submit to the lease's event at a watcher (%d jobs of one task)", r.Allocation.P50, r.Allocation.P99, r.Allocation.N)},
		{"start latency", fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, from the call of submit to the task's first beat (the same jobs)", r.Start.P50, r.Start.P99)},
		{"array's wait", fmt.Sprintf("p50 %.1f s, p99 %.1f s, from the call of submit to the lease's event, queue and deaths included (%d leases)", r.ArrayWait.P50/1e3, r.ArrayWait.P99/1e3, r.ArrayWait.N)},
		{"new leader", fmt.Sprintf("%.0f ms after kill -9 of the old one; first write acknowledged after %.0f ms; further elections: %d", r.NewLeaderMS, r.FirstWriteMS, r.Elections)},
		{"agent's death", fmt.Sprintf("%d tasks of %s ran on below its watchdog, which had fenced the last of them after %.1f s", r.AgentDeath.Tasks, r.AgentDeath.Node, r.AgentDeath.LastBeatMS/1e3)},
		{"running elsewhere", fmt.Sprintf("%.1f s after the agent's death: the gang; p50 %.1f s, max %.1f s: %d tasks of the array", r.AgentDeath.GangElsewhereMS/1e3, r.AgentDeath.ArrayElsewhere.P50/1e3, r.AgentDeath.ArrayElsewhere.Max/1e3, r.AgentDeath.ArrayElsewhere.N)},
		{"training", fmt.Sprintf("loss %s at first, %s at last, resumed at step %d; %s: as in an unbroken run", r.Training.FirstLoss, r.Training.LastLoss, r.Training.ResumedStep, r.Training.Done)},
		{"restarts", fmt.Sprintf("%d of the gang, %d of tasks of the array; both jobs succeeded", r.GangRestarts, r.ArrayRestart)},
		{"access", fmt.Sprintf("over TLS 1.3, with tokens and certificates; refused: %s", strings.Join(r.Access.Refused, ", "))},
		{"digests", fmt.Sprintf("equal on %d servers at index %d: %s", len(r.Digests.ByServer), r.Digests.Index, digest)},
		{"runners", fmt.Sprintf("no task had two runners (%d beats, %d runs of %d tasks checked)", r.Runners.Beats, r.Runners.Runs, r.Runners.Tasks)},
		{"duration", fmt.Sprintf("%.0f s", r.Seconds)},
	}
	for _, row := range rows {
		if _, err := fmt.Fprintf(w, "%-18s %s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	return nil
}
