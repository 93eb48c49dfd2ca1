package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/probe"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A ProbeConfig says with what to make a sandbox.
type ProbeConfig struct {
	Watchdog string // path of gpuai-watchdog
	Probe    string // path of gpuai-probe
	Runtime  string // name of the OCI runtime
	// AcceptFlaw takes a runtime with a known way out, as the agent would.
	AcceptFlaw bool
	// DataDir's file system is where the sandbox's image is, if DataDir is there.
	DataDir string

	change func(*sandbox.Task) // weakens it, in tests
}

// Probes are given so long, and so much.
const (
	probeTime   = time.Minute
	probeMemory = 64 << 20
	probePIDs   = 64
	probeLease  = gpuai.Token(1)
)

// Probe runs gpuai-probe in a sandbox and returns what came of each attempt. An
// error says why there is no sandbox to try, or that not all was tried.
func Probe(ctx context.Context, c *ProbeConfig) (out []ProbeResult, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("probes need a sandbox, and sandboxes are made by root: run doctor as root")
	}
	r, err := sandbox.Find(ctx, c.Runtime)
	if err != nil {
		return nil, err
	}
	if why := r.Refusal(); why != nil && !c.AcceptFlaw {
		return nil, why
	}
	p, err := openPlace(ctx, c.DataDir)
	if err != nil {
		return nil, err
	}
	defer p.lock.Close()
	b, err := newBench(ctx, c, r, p)
	if err == nil {
		out, err = b.probe(ctx)
	}
	return out, errors.Join(err, b.close())
}

// A bench is a node for one sandbox: directories, a range of users, a watchdog.
type bench struct {
	c       *ProbeConfig
	runtime *sandbox.Runtime
	place   *place
	dir     string // the watchdog's, and the image
	run     string // where the sandbox's root is mounted
	ranges  *sandbox.Ranges
	wd      *watchdog.Client
}

// newBench makes a bench, or as much of it as close has to give back.
func newBench(ctx context.Context, c *ProbeConfig, r *sandbox.Runtime, p *place) (b *bench, err error) {
	b = &bench{c: c, runtime: r, place: p, dir: p.dir, run: p.run()}
	if err = p.make(); err != nil {
		return b, err
	}
	if err = b.image(); err != nil {
		return b, err
	}
	if b.ranges, err = sandbox.OpenRanges(rangesDir, owner); err != nil {
		return b, err
	}
	bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if b.wd, err = watchdog.Launch(bounded, c.Watchdog, b.dir); err != nil {
		return b, err
	}
	_, _, err = b.wd.Hello(1)
	return b, err
}

// image is a root with gpuai-probe and nothing else.
func (b *bench) image() error {
	raw, err := os.ReadFile(b.c.Probe)
	if err != nil {
		return fmt.Errorf("the probes are a program of their own, beside gpuai: %w; build it with make build", err)
	}
	for _, dir := range []string{"image/bin", "image/etc"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			return err
		}
	}
	for _, path := range []string{"image", "image/bin", "image/etc"} { // whatever the umask is
		if err := os.Chmod(filepath.Join(b.dir, path), 0o755); err != nil {
			return err
		}
	}
	program := filepath.Join(b.dir, "image/bin/gpuai-probe")
	return errors.Join(os.WriteFile(program, raw, 0o755), os.Chmod(program, 0o755))
}

// task is the sandbox that a task with no wishes has, and the file of a device
// that it has no right to.
func (b *bench) task() (*sandbox.Task, error) {
	ids, err := b.ranges.Lend(probeLease.String())
	if err != nil {
		return nil, err
	}
	t := &sandbox.Task{
		Root: filepath.Join(b.run, watchdog.RootDir), Args: []string{"gpuai-probe"}, Env: []string{"PATH=/bin"},
		Hostname: "doctor-0", IDs: ids, Memory: probeMemory, PIDs: probePIDs, NoFile: 1024,
		Devices:     []sandbox.Device{{Path: probe.OtherDevice, Major: 10, Minor: 229}},
		DeviceFiles: filepath.Join(b.run, watchdog.NodesDir),
		Init:        b.c.Watchdog, InitArgs: []string{watchdog.InitArg},
	}
	if b.c.change != nil {
		b.c.change(t)
	}
	return t, nil
}

func (b *bench) bundle() string { return filepath.Join(b.dir, "bundle") }

// probe runs the program to its end and reads what it says.
func (b *bench) probe(ctx context.Context) ([]ProbeResult, error) {
	t, err := b.task()
	if err != nil {
		return nil, err
	}
	spec, err := sandbox.Spec(t)
	if err == nil {
		err = sandbox.WriteBundle(b.bundle(), spec)
	}
	if err != nil {
		return nil, err
	}
	var nodes []watchdog.Node
	for _, d := range t.Devices {
		nodes = append(nodes, watchdog.Node{Block: d.Block, Major: d.Major, Minor: d.Minor})
	}
	_, err = b.wd.Start(&watchdog.Spec{
		Lease: probeLease, Incarnation: 1, Deadline: watchdog.Boottime() + int64(probeTime), KillBudget: int64(5 * time.Second),
		Argv: b.runtime.Argv(b.bundle(), filepath.Join(b.run, "state"), probeLease.String()), Env: []string{"PATH=" + os.Getenv("PATH")},
		Cwd: b.dir, LogDir: b.dir, LogBytes: 1 << 20, CPU: 2000, Memory: probeMemory + 32<<20, PIDs: probePIDs + 64,
		Box: &watchdog.Box{Root: filepath.Join(b.dir, "image"), Target: b.run, Base: t.IDs.First, Size: t.IDs.Size, Nodes: nodes},
	})
	if err != nil {
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	end, err := b.ended(ctx)
	if err != nil {
		return nil, err
	}
	said, _, _, err := watchdog.ReadLog(b.dir, "stdout", 0, 1<<20)
	if err != nil {
		return nil, err
	}
	out, err := results(said)
	if err != nil {
		return out, fmt.Errorf("%w; the sandbox ended with %s%s", err, end.Reason, b.complaint())
	}
	return out, nil
}

// ended waits for the end of the sandbox.
func (b *bench) ended(ctx context.Context) (watchdog.Task, error) {
	for {
		select {
		case t := <-b.wd.News():
			if t.Lease == probeLease && t.State == watchdog.Exited {
				return t, nil
			}
		case <-b.wd.Done():
			return watchdog.Task{}, watchdog.ErrGone
		case <-ctx.Done():
			return watchdog.Task{}, ctx.Err()
		}
	}
}

// complaint is what the runtime and the program said of what went wrong.
func (b *bench) complaint() string {
	why := sandbox.Failure(b.bundle())
	if text, _, _, err := watchdog.ReadLog(b.dir, "stderr", 0, 4096); err == nil {
		why += " " + string(text)
	}
	if why = strings.TrimSpace(why); why == "" {
		return ""
	}
	return ": " + why
}

// results reads what gpuai-probe printed, a line for each probe. That one is
// missing is an error: the sandbox may be closed to what was not tried, or not.
func results(said []byte) (out []ProbeResult, err error) {
	seen := map[string]bool{}
	for line := range strings.Lines(string(said)) {
		var r probe.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return out, fmt.Errorf("gpuai-probe printed %q", strings.TrimSpace(line))
		}
		seen[r.Name] = true
		out = append(out, ProbeResult{Name: r.Name, Control: r.Control, Expected: strings.Join(r.Want, " or "), Got: r.Got, Open: r.Open})
	}
	var missing []string
	for _, p := range probe.All() {
		if !seen[p.Name] {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 {
		return out, fmt.Errorf("%d of %d probes were not tried, %q first", len(missing), len(probe.All()), missing[0])
	}
	return out, nil
}

// close ends the sandbox and the watchdog, and gives back what they had.
func (b *bench) close() error {
	if b.wd != nil {
		b.wd.Close()
	}
	return b.place.empty()
}
