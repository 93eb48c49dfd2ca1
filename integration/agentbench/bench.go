package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/integration/oracle"
)

// A bench is one run.
type bench struct {
	options *options
	dir     string
	nursery *nursery.Nursery
	agent   *nursery.Process
	api     *client.Client
	watcher *oracle.Watcher
	metrics string // URL
	rows    []row
}

const (
	devices = 8
	program = "arraytask"
	short   = "20ms" // of a task that is only to start
	patient = 20 * time.Second
)

func (b *bench) root() string   { return filepath.Join(b.dir, "root") }
func (b *bench) layout() string { return filepath.Join(b.dir, "image") }

// build compiles the task's program, and makes its image.
func (b *bench) build(ctx context.Context) error {
	c := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(b.root(), "bin")+"/", "github.com/gpuai/gpuai/examples/"+program)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build the task's program: %w: %s", err, out)
	}
	for _, dir := range []string{"proc", "dev", "sys"} { // for runc alone, which makes none in a root that is read-only
		if err := os.Mkdir(filepath.Join(b.root(), dir), 0o755); err != nil {
			return err
		}
	}
	local, err := image.Build(b.root(), image.Run{})
	if err != nil {
		return err
	}
	_, err = local.WriteLayout(b.layout())
	return err
}

// open starts a server and an agent, and waits until the devices are there.
func (b *bench) open(ctx context.Context) error {
	port, err := nursery.FreePorts(3)
	if err != nil {
		return err
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", port+i) }
	b.metrics = "http://" + at(2) + "/metrics"
	if b.api, err = client.New(client.Config{Addrs: []string{"http://" + at(0)}}); err != nil {
		return err
	}
	binary := filepath.Join(b.options.bin, "gpuai")
	if _, err := b.nursery.Start("server", nil, binary, "server", "run", "--id", "a", "--data", filepath.Join(b.dir, "server"),
		"--http", at(0), "--raft", at(1), "--peers", "a="+at(1), "--bootstrap"); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"seed": "host", "devices": []map[string]any{{"vendor": "nvidia", "model": "H100-SXM5-80GB", "memory_bytes": 80 << 30, "count": devices}}})
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, "devices.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return err
	}
	err = nursery.Poll(ctx, "the server to be ready", 20*time.Millisecond, func() (bool, error) { return b.api.Ready(ctx) == nil, nil })
	if err != nil {
		return err
	}
	if b.agent, err = b.nursery.Start("agent", nil, binary, "agent", "run", "--id", "host", "--data", filepath.Join(b.dir, "host"),
		"--servers", "http://"+at(0), "--driver", "sim="+filepath.Join(b.options.bin, "gpuai-driver-sim")+","+file,
		"--cpu", "16", "--memory", "8GiB", "--oci-runtime", "runc", "--image-dir", b.dir, "--metrics-http", at(2)); err != nil {
		return err
	}
	return nursery.Poll(ctx, "the agent's devices", 50*time.Millisecond, func() (bool, error) {
		nodes, _, err := b.api.Nodes(ctx, client.Page{})
		return err == nil && len(nodes) == 1 && nodes[0].State == gpuai.NodeReady && len(nodes[0].Devices) == devices, nil
	})
}

// idle measures the agent's memory when it has beaten for a while.
func (b *bench) idle(ctx context.Context) error {
	select {
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.agent.PID()))
	if err != nil {
		return err
	}
	var kb float64
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kb); err == nil {
			break
		}
	}
	b.add(row{Name: "memory of the idle agent, 8 devices", Goal: "≤ 60 MB", Measured: fmt.Sprintf("%.1f MB", kb*1024/1e6), Value: kb * 1024 / 1e6, Met: kb > 0 && kb*1024/1e6 <= 60})
	q, err := b.api.Queue(ctx)
	if err != nil {
		return err
	}
	b.watcher = oracle.NewWatcher()
	go func() { _ = b.watcher.Follow(ctx, b.api, q.Index) }() // what it misses is waited for in vain
	return nil
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// starts measures starts by the agent and by runc alone, in turns.
func (b *bench) starts(ctx context.Context) error {
	if _, _, err := b.start(ctx, short); err != nil { // brings the image
		return err
	}
	bundle, err := b.bundle(ctx)
	if err != nil {
		return err
	}
	var ours, bare []float64
	for i := range b.options.n {
		called, run, err := b.start(ctx, short)
		if err != nil {
			return err
		}
		ours = append(ours, ms(run.First-called))
		took, err := b.bare(ctx, bundle, i)
		if err != nil {
			return err
		}
		bare = append(bare, took)
	}
	beyond := median(ours) - median(bare)
	b.add(row{
		Name: "submit to the task's first line, image cached, beyond bare runc run", Goal: "p50 ≤ 150 ms",
		Measured: fmt.Sprintf("%.0f ms: p50 %.0f ms (p99 %.0f) and %.0f ms (p99 %.0f), %d each", beyond, median(ours), quantile(ours, 0.99), median(bare), quantile(bare, 0.99), len(ours)),
		Value:    beyond, Met: beyond <= 150,
	})
	return nil
}

// start runs a task to its end, and returns when it was submitted and its beats.
func (b *bench) start(ctx context.Context, work string) (called int64, run beat.Run, err error) {
	called = beat.Boottime()
	job, lease, err := b.submit(ctx, work)
	if err != nil {
		return 0, run, err
	}
	if err := b.ended(ctx, lease); err != nil {
		return 0, run, err
	}
	run, err = b.beats(ctx, job, lease)
	return called, run, err
}

func (b *bench) submit(ctx context.Context, work string) (job string, lease gpuai.Token, err error) {
	s, err := b.api.Submit(ctx, client.SubmitRequest{Spec: &gpuai.JobSpec{
		Name: "bench", Type: gpuai.Batch, Array: gpuai.Array{Size: 1},
		Groups: []gpuai.Group{{
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 2000, Memory: 64 << 20},
			Task: gpuai.TaskSpec{
				Image: "oci:" + b.layout(), Command: []string{"/bin/" + program, "-work", work},
				Env: map[string]string{beat.EnvDir: beat.ToStdout},
			},
		}},
	}})
	if err != nil {
		return "", 0, fmt.Errorf("submit a task: %w", err)
	}
	if len(s.Leases) != 1 {
		return "", 0, fmt.Errorf("the task has %d leases at once", len(s.Leases))
	}
	return s.Job.ID.String(), s.Leases[0].ID, nil
}

func (b *bench) ended(ctx context.Context, lease gpuai.Token) error {
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	return nursery.Poll(ctx, "the end of lease "+lease.String(), 5*time.Millisecond, func() (bool, error) { return b.lease(lease).Ended != 0, nil })
}

func (b *bench) lease(t gpuai.Token) oracle.Lease {
	all := b.watcher.All(func(l *oracle.Lease) bool { return l.Token == t })
	if len(all) == 0 {
		return oracle.Lease{}
	}
	return all[0]
}

// beats reads what a task wrote.
func (b *bench) beats(ctx context.Context, job string, lease gpuai.Token) (beat.Run, error) {
	c, err := b.api.Logs(ctx, client.LogQuery{Job: job, Lease: lease, Limit: 1 << 20})
	if err != nil {
		return beat.Run{}, err
	}
	run, err := beat.ReadOutput("lease "+lease.String(), c.Data)
	if err == nil && run.Beats == 0 {
		t, _, _ := b.api.Tasks(ctx, job, client.Page{})
		err = fmt.Errorf("a task has written no beat: %+v", t)
	}
	return run, err
}

// bundle makes what runc runs by itself: its default specification, with our
// program, which beats as a task does.
func (b *bench) bundle(ctx context.Context) (string, error) {
	dir := filepath.Join(b.dir, "bundle")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc spec: %w: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var spec map[string]any
	if err := json.Unmarshal(raw, &spec); err != nil {
		return "", err
	}
	spec["root"].(map[string]any)["path"] = b.root()
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/" + program, "-work", short}
	process["env"] = []string{
		"PATH=/bin", beat.EnvDir + "=" + beat.ToStdout, gpuai.EnvToken + "=1", gpuai.EnvJob + "=bare", gpuai.EnvTaskGroup + "=main",
		gpuai.EnvTaskIndex + "=0", gpuai.EnvArrayIndex + "=0", gpuai.EnvArraySize + "=1",
	}
	if raw, err = json.Marshal(spec); err != nil {
		return "", err
	}
	return dir, os.WriteFile(path, raw, 0o644)
}

// bare runs the program by runc alone, and returns when it wrote its first line.
func (b *bench) bare(ctx context.Context, bundle string, i int) (float64, error) {
	began := beat.Boottime()
	out, err := exec.CommandContext(ctx, "runc", "run", "--bundle", bundle, "agentbench-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i)).Output()
	if err != nil {
		return 0, fmt.Errorf("runc run: %w: %s", err, out)
	}
	run, err := beat.ReadOutput("runc", out)
	if err != nil {
		return 0, err
	}
	return ms(run.First - began), nil
}

// stops measures how long the devices of tasks that were stopped stay held.
func (b *bench) stops(ctx context.Context) error {
	var held []float64
	for range b.options.n {
		job, lease, err := b.submit(ctx, "1h")
		if err != nil {
			return err
		}
		err = nursery.Poll(ctx, "a task to beat", 20*time.Millisecond, func() (bool, error) {
			c, err := b.api.Logs(ctx, client.LogQuery{Job: job, Lease: lease})
			return err == nil && len(c.Data) > 0, nil
		})
		if err != nil {
			return err
		}
		if _, err := b.api.StopJob(ctx, job, ""); err != nil {
			return err
		}
		if err := b.ended(ctx, lease); err != nil {
			return err
		}
		run, err := b.beats(ctx, job, lease)
		if err != nil {
			return err
		}
		held = append(held, ms(b.lease(lease).Ended-run.Last))
	}
	p50 := median(held)
	b.add(row{
		Name: "end of a stopped task to its devices free", Goal: "p50 ≤ 1 s",
		Measured: fmt.Sprintf("p50 %.0f ms, p99 %.0f ms, %d stops", p50, quantile(held, 0.99), len(held)), Value: p50, Met: p50 <= 1000,
	})
	return nil
}

// crashes measures how long a driver is away that was killed. Its host waits
// longer after each death in a row: they are few.
func (b *bench) crashes(ctx context.Context) error {
	var away []float64
	for range 3 {
		_, before, err := b.driver(ctx)
		if err != nil {
			return err
		}
		pid, err := b.driverPID()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill the driver: %w", err)
		}
		err = nursery.Poll(ctx, "the driver to be back", 5*time.Millisecond, func() (bool, error) {
			up, restarts, err := b.driver(ctx)
			return up && restarts > before, err
		})
		if err != nil {
			return err
		}
		away = append(away, float64(time.Since(began).Microseconds())/1e3)
	}
	b.add(row{
		Name: "kill of a driver to a new one up", Goal: "≤ 1 s for the first", Measured: fmt.Sprintf("%.0f ms; %.0f and %.0f ms at the next deaths in a row", away[0], away[1], away[2]),
		Value: away[0], Met: away[0] <= 1000,
	})
	return nil
}

// driver reads the agent's metrics of its driver.
func (b *bench) driver(ctx context.Context) (up bool, restarts float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.metrics, nil)
	if err != nil {
		return false, 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, 0, err
	}
	lines := bufio.NewScanner(strings.NewReader(string(body)))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "} ")
		v, _ := strconv.ParseFloat(value, 64)
		switch {
		case !ok:
		case strings.HasPrefix(name, "gpuai_agent_driver_up{"):
			up = v == 1
		case strings.HasPrefix(name, "gpuai_agent_driver_restarts_total{"):
			restarts = v
		}
	}
	return up, restarts, lines.Err()
}

// driverPID finds the driver among the agent's children.
func (b *bench) driverPID() (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", b.agent.PID()))
	all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", b.agent.PID()))
	for _, path := range all {
		more, _ := os.ReadFile(path) // of a thread that has ended
		raw = append(append(raw, ' '), more...)
	}
	for f := range strings.FieldsSeq(string(raw)) {
		name, _ := os.ReadFile("/proc/" + f + "/comm")
		if strings.HasPrefix(string(name), "gpuai-driver") {
			return strconv.Atoi(f)
		}
	}
	return 0, fmt.Errorf("the agent has no driver among its children: %w", err)
}

func ms(ns int64) float64 { return float64(ns) / 1e6 }

func median(v []float64) float64 { return quantile(v, 0.5) }

func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
