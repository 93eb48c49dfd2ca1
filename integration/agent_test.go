package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/oracle"
)

// The policy of these tests: the shortest TTL that is allowed, and the shortest
// grace.
const (
	testTTL       = gpuai.MinLeaseTTL
	testGrace     = 2 * gpuai.Second
	testBeatEvery = gpuai.Second
)

// shortLeases sets that policy. Agents that join later know no other.
func (r *region) shortLeases() {
	r.t.Helper()
	r.setPolicy(func(p *gpuai.Policy) {
		p.TTLInference, p.TTLTraining, p.TTLFinetune, p.TTLBatch = testTTL, testTTL, testTTL, testTTL
		p.Grace, p.BeatEvery = testGrace, testBeatEvery
	})
}

// A node is an agent process, that may be killed and started again.
type node struct {
	*proc
	r    *region
	id   string
	args []string
}

// startNode starts an agent with so many simulated GPUs, that reaches the
// servers at addrs.
func (r *region) startNode(id string, gpus int, addrs ...string) *node {
	r.t.Helper()
	return r.startNodeIn("", id, gpus, addrs...)
}

// gangPorts is how many ports a node lends to gangs.
const gangPorts = 4

// startNodeIn is startNode in a rack.
func (r *region) startNodeIn(rack, id string, gpus int, addrs ...string) *node {
	r.t.Helper()
	dir := filepath.Join(r.dir, "node-"+id)
	config := filepath.Join(r.dir, id+".json")
	src := fmt.Sprintf(`{"seed":%q,"devices":[{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":%d,"count":%d}]}`, id, 80<<30, gpus)
	if err := os.WriteFile(config, []byte(src), 0o600); err != nil {
		r.t.Fatal(err)
	}
	port := freePorts(r.t, gangPorts)
	n := &node{r: r, id: id, args: []string{
		"agent", "run", "--id", id, "--data", dir, "--servers", strings.Join(addrs, ","), "--label", "name=" + id,
		"--driver", "sim=" + program("gpuai-driver-sim") + "," + config, "--watchdog", program("gpuai-watchdog"),
		"--cpu", "8", "--memory", "8GiB", "--allow-process-runtime", "--rack", rack,
		"--ports", fmt.Sprintf("%d-%d", port, port+gangPorts-1),
	}}
	n.start()
	return n
}

// start starts the agent, again perhaps, and waits for its node.
func (n *node) start() {
	n.r.t.Helper()
	n.proc = start(n.r.t, "agent "+n.id, "gpuai", n.args...)
	n.awaitState(gpuai.NodeReady)
}

// awaitState waits until the region has the node in a state.
func (n *node) awaitState(want gpuai.NodeState) gpuai.Node {
	n.r.t.Helper()
	var got gpuai.Node
	c := n.r.client()
	eventually(n.r.t, patience, fmt.Sprintf("%s node %s", want, n.id), func(ctx context.Context) error {
		if !n.alive() {
			return fmt.Errorf("its agent ended with exit code %d", n.exit(0))
		}
		var err error
		if got, err = c.Node(ctx, gpuai.NodeID(n.id)); err == nil && got.State != want {
			err = fmt.Errorf("it is %s", got.State)
		}
		return err
	})
	return got
}

// beatJob is a job of one task with one GPU that beats until it is stopped. It
// prefers nothing; on limits it to nodes by name.
func beatJob(t *testing.T, name, dir string, on ...string) *gpuai.JobSpec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := gpuai.Group{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 1000, Memory: 64 << 20},
		Restart:   gpuai.Restart{Attempts: 5, Backoff: 100 * gpuai.Millisecond, On: []gpuai.RestartCause{gpuai.CauseNodeLost}},
		Task:      gpuai.TaskSpec{Command: []string{self}, Env: map[string]string{oracle.EnvTask: oracle.TaskBeat, beat.EnvDir: dir}},
	}
	if len(on) > 0 {
		g.Constraints = []gpuai.Constraint{{Attribute: "label.name", Op: gpuai.In, Values: on}}
	}
	return &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{g}}
}

// submit submits a job.
func (r *region) submit(spec *gpuai.JobSpec) gpuai.Submitted {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	sub, err := r.client().Submit(ctx, client.SubmitRequest{Spec: spec})
	if err != nil {
		r.t.Fatalf("submitting %s: %v", spec.Name, err)
	}
	return sub
}

// awaitTask waits until the first task of a job is as asked for.
func (r *region) awaitTask(job gpuai.JobID, d time.Duration, what string, ok func(gpuai.Task) bool) gpuai.Task {
	r.t.Helper()
	var got gpuai.Task
	c := r.client()
	eventually(r.t, d, what+" of job "+job.String(), func(ctx context.Context) error {
		tasks, _, err := c.Tasks(ctx, job.String(), client.Page{Limit: 1})
		if err != nil {
			return err
		}
		if got = tasks[0]; !ok(got) {
			return fmt.Errorf("task %+v", got)
		}
		return nil
	})
	return got
}

// awaitRunning waits until the first task of a job runs and beats under a lease
// other than not.
func (r *region) awaitRunning(job gpuai.JobID, dir string, not gpuai.Token, d time.Duration) gpuai.Task {
	r.t.Helper()
	task := r.awaitTask(job, d, "running task", func(k gpuai.Task) bool {
		return k.Status == gpuai.TaskRunning && k.Lease != not
	})
	r.awaitBeats(dir, task.Lease, 3)
	return task
}

// awaitBeats waits until a lease's task has beaten n times more than now.
func (r *region) awaitBeats(dir string, lease gpuai.Token, n int) beat.Run {
	r.t.Helper()
	before, _ := runOf(r.t, dir, lease)
	var now beat.Run
	eventually(r.t, patience, fmt.Sprintf("%d beats of lease %s", n, lease), func(context.Context) error {
		var ok bool
		if now, ok = runOf(r.t, dir, lease); !ok || now.Beats < before.Beats+n {
			return fmt.Errorf("%d came, there were %d", now.Beats, before.Beats)
		}
		return nil
	})
	return now
}

// runOf returns the one trace of a lease's task.
func runOf(t *testing.T, dir string, lease gpuai.Token) (beat.Run, bool) {
	t.Helper()
	runs, err := beat.ReadRuns(dir)
	if err != nil {
		t.Fatal(err)
	}
	of := slices.DeleteFunc(runs, func(r beat.Run) bool { return r.Token != lease })
	if len(of) > 1 {
		t.Fatalf("lease %s had %d runners: %+v", lease, len(of), of)
	}
	if len(of) == 0 {
		return beat.Run{}, false
	}
	return of[0], true
}

// oneRunner checks that no two runners of one task overlapped, and that their
// tokens are in the order of their time. It returns the runs in that order.
func oneRunner(t *testing.T, dir string) []beat.Run {
	t.Helper()
	runs, err := beat.ReadRuns(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oracle.OneRunner(runs); err != nil {
		t.Error(err)
	}
	slices.SortFunc(runs, func(a, b beat.Run) int { return cmp.Compare(a.First, b.First) })
	return runs
}

// longestGap is the longest time between two beats of a trace.
func longestGap(t *testing.T, file string) gpuai.Duration {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var gap, last int64
	for line := range strings.Lines(string(src)) {
		b, err := beat.Parse(strings.TrimSuffix(line, "\n"))
		if err != nil {
			break // the line that is being written
		}
		if last > 0 {
			gap = max(gap, b.At-last)
		}
		last = b.At
	}
	return ms(gap)
}

// ms is a span of CLOCK_BOOTTIME.
func ms(ns int64) gpuai.Duration { return gpuai.Duration(ns / int64(time.Millisecond)) }

// eventsUntil returns the events after an index, up to the first that is last.
func (r *region) eventsUntil(index uint64, last func(gpuai.Event) bool) (out []gpuai.Event) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	enough := errors.New("enough")
	err := r.client().Events(ctx, client.EventQuery{From: index}, func(events []gpuai.Event, _ uint64) error {
		out = append(out, events...)
		if slices.ContainsFunc(events, last) {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		r.t.Fatalf("reading the events after index %d: %v", index, err)
	}
	return out
}

// stop stops a job and waits for its end.
func (r *region) stop(job gpuai.JobID) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if _, err := r.client().StopJob(ctx, job.String(), ""); err != nil {
		r.t.Fatalf("stopping job %s: %v", job, err)
	}
	eventually(r.t, patience, "end of job "+job.String(), func(ctx context.Context) error {
		j, err := r.client().Job(ctx, job.String())
		if err == nil && j.Status != gpuai.JobStopped {
			err = errors.New("it is " + j.Status.String())
		}
		return err
	})
}
