package simulate

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"runtime"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// growthSizes are the devices of the jobs of Growth, drawn with equal weight.
var growthSizes = []int{1, 1, 1, 1, 2, 2, 4, 8}

// growthFill is the part of all devices that is held while Growth measures.
const growthFill = 0.95

// A GrowthReport is what placements cost in a cluster of a size.
type GrowthReport struct {
	Policy     string `json:"policy"`
	Nodes      int    `json:"nodes"`
	GPUs       int    `json:"gpus"`
	Leases     int    `json:"leases"` // while it was measured
	Placements int    `json:"placements"`
	// PerSecond is placements per second of wall-clock time, and CPUMillis
	// what one costs in CPU time of the whole process: the end of another job,
	// the submit, both through Apply with an entry each, and the collection of
	// garbage.
	PerSecond float64 `json:"placements_per_second"`
	CPUMillis float64 `json:"cpu_ms_per_placement"`
	// SubmitMicros is the time of single submits.
	SubmitMicros map[string]float64 `json:"submit_us"`
	HeapMiB      float64            `json:"heap_mib"`
	Digest       string             `json:"digest"`
}

// Growth fills a machine with nodes of 8 devices to 95 %, then ends and submits
// a job at a time, and measures. Raft, network and agents are left out.
func Growth(ctx context.Context, nodes, placements int, p Policy) (GrowthReport, error) {
	r := GrowthReport{Policy: p.Name, Nodes: nodes, GPUs: 8 * nodes, Placements: placements}
	cluster, err := LoadCluster(fmt.Sprintf("%dx8:H100", nodes))
	if err != nil {
		return r, err
	}
	g := growing{world: newWorld(p), rand: rand.New(rand.NewSource(1)), jobs: map[gpuai.JobID]int{}}
	if err := g.setPolicy(&Config{Policy: p, Jobs: growthJobs()}); err != nil {
		return r, err
	}
	if err := g.register(cluster, sequence(nodes)); err != nil {
		return r, err
	}
	for float64(g.held) < growthFill*float64(r.GPUs) {
		if err := errors.Join(g.start(), ctx.Err()); err != nil {
			return r, err
		}
	}
	runtime.GC()
	r.Leases = len(g.leases)
	took := make([]float64, 0, placements)
	wall, cpu := time.Now(), cpuTime()
	for range placements {
		if err := errors.Join(g.end(), ctx.Err()); err != nil {
			return r, err
		}
		before := g.spent
		if err := g.start(); err != nil {
			return r, err
		}
		took = append(took, float64((g.spent-before).Nanoseconds())/1000)
	}
	used, lasted := cpuTime()-cpu, time.Since(wall)
	r.PerSecond = float64(placements) / lasted.Seconds()
	r.CPUMillis = float64(used.Nanoseconds()) / 1e6 / float64(placements)
	r.SubmitMicros = summary(took)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r.HeapMiB = float64(m.HeapAlloc) / (1 << 20)
	r.Digest = g.m.Digest().String()
	return r, nil
}

// growthJobs are the jobs of Growth, as the demand to expect.
func growthJobs() []TraceJob {
	var out []TraceJob
	for _, n := range growthSizes {
		out = append(out, TraceJob{GPUs: n, GPUMilli: 1000})
	}
	return out
}

// A growing world ends and starts jobs.
type growing struct {
	*world
	rand   *rand.Rand
	leases []gpuai.Event
	jobs   map[gpuai.JobID]int // devices
	held   int
}

// start submits a job. One that does not fit is dropped, and a smaller one
// tried.
func (g *growing) start() error {
	n := growthSizes[g.rand.Intn(len(growthSizes))]
	for ; ; n = n / 2 {
		id, leased, err := g.submit(&TraceJob{GPUs: n, GPUMilli: 1000})
		switch {
		case err != nil:
			return err
		case leased:
			for i := range g.out.Events {
				if e := g.out.Events[i]; e.Kind == gpuai.LeaseGrantedEvent {
					g.leases = append(g.leases, e)
				}
			}
			g.jobs[id], g.held = n, g.held+n
			return nil
		case n <= 1:
			return errors.New("a machine with idle devices placed no job of one")
		}
		if err := g.drop(id); err != nil {
			return err
		}
	}
}

// end ends a job and retires it.
func (g *growing) end() error {
	i := g.rand.Intn(len(g.leases))
	e := g.leases[i]
	last := len(g.leases) - 1
	g.leases[i] = g.leases[last]
	g.leases = g.leases[:last]
	rep := gpuai.Report{Lease: e.Lease, Seq: 1, Incarnation: e.Incarnation, State: gpuai.ReportDone}
	if _, err := g.apply(&fsm.ReportLease{Node: e.Node, Report: rep}); err != nil {
		return err
	}
	g.held -= g.jobs[e.Job]
	delete(g.jobs, e.Job)
	_, err := g.apply(&fsm.RetireJobs{Jobs: []gpuai.JobID{e.Job}})
	return err
}

// cpuTime is what this process has used of all processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
