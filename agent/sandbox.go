package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/cdi"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/agent/network"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
)

// A SandboxConfig turns the runtime "oci" on.
type SandboxConfig struct {
	// Runtime is the name of the OCI runtime, one of sandbox.Runtimes.
	Runtime string
	// AcceptFlaw lets a runtime with a known way out be used. Every sandbox has
	// a user namespace: who gets out is nobody on the host.
	AcceptFlaw bool
	// Optional has the agent go without sandboxes where the host lacks
	// something for them, and say so.
	Optional bool
	// Network is what tasks may reach.
	Network NetworkConfig
	// CDIDirs are the host's directories of CDI specifications, a later one over
	// an earlier; nil means cdi.HostDirs. Each driver's own come after them.
	CDIDirs []string
	// Scratch is how much of the data directory's disk is lent to tasks; 0 means
	// half of what is free.
	Scratch gpuai.Bytes
	// Images configures the image store; without Dir it is below DataDir.
	Images ImageConfig
}

// An ImageConfig says where and how large a node's images are.
type ImageConfig = image.Config

// boxes is what the agent needs to run sandboxes; nil where there are none.
type boxes struct {
	runtime *sandbox.Runtime
	images  *image.Store
	ranges  *sandbox.Ranges
	net     *network.Node
	// run is where the runtime keeps what must not outlive a boot, and where
	// tasks' roots are mounted: everybody may pass through it.
	run     string
	cdi     cdi.Finder
	scratch *sandbox.Scratches // nil: the node lends none

	mu   sync.Mutex      // guards below
	told map[string]bool // specifications whose hooks were told of
}

// runDir is a directory that a boot empties.
const runDir = "/run/gpuai"

const (
	imagesDir  = "images"
	scratchDir = "scratch"
	rangesDir  = "ranges"
	bundleDir  = "bundle"
	stateDir   = "state"
	boxDir     = "box"
	meshDir    = "mesh"
)

// openBoxes prepares the node for sandboxes.
func (a *Agent) openBoxes(ctx context.Context) error {
	if a.cfg.Sandbox == nil {
		return nil
	}
	err := a.makeBoxes(ctx, a.cfg.Sandbox)
	if a.lacks = err; err != nil && a.cfg.Sandbox.Optional {
		a.log.Warn("this node runs no images", "why", err)
		return nil
	}
	return err
}

// Sandboxes returns the runtime that runs this node's tasks with images, with its
// version, or why it runs none.
func (a *Agent) Sandboxes() (string, error) {
	switch {
	case a.boxes != nil:
		return a.boxes.runtime.Name + " " + a.boxes.runtime.Version, nil
	case a.lacks != nil:
		return "", a.lacks
	}
	return "", errors.New("its operator has turned sandboxes off")
}

// makeBoxes prepares the node for sandboxes, or says what it lacks.
func (a *Agent) makeBoxes(ctx context.Context, c *SandboxConfig) error {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes are made by root: run the agent as root, or without an OCI runtime")
	}
	r, err := sandbox.Find(ctx, c.Runtime)
	if err != nil {
		return err
	}
	if flaw := r.Flaw(); flaw != "" && !c.AcceptFlaw {
		return r.Refusal()
	}
	if err := watchdog.Static(a.cfg.Watchdog); err != nil {
		return err
	}
	b := &boxes{runtime: r, cdi: cdi.Finder{Host: c.CDIDirs, Drivers: a.driverCDI()}, told: map[string]bool{}}
	images := c.Images
	if images.Dir == "" {
		images.Dir = a.path(imagesDir)
	}
	if b.images, err = image.Open(images); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(a.cfg.DataDir))
	name := hex.EncodeToString(sum[:6])
	b.run = filepath.Join(runDir, name)
	for _, dir := range []string{runDir, b.run, b.path(boxDir), b.path(stateDir)} {
		if err := os.Mkdir(dir, 0o711); err != nil && !os.IsExist(err) {
			return fmt.Errorf("the sandboxes' directory: %w", err)
		}
		if err := os.Chmod(dir, 0o711); err != nil { // whatever the umask is
			return fmt.Errorf("the sandboxes' directory: %w", err)
		}
	}
	if b.ranges, err = sandbox.OpenRanges(filepath.Join(runDir, rangesDir), name); err != nil {
		return err
	}
	if err := a.tryRuntime(ctx, b); err != nil {
		return err
	}
	if b.scratch, err = sandbox.OpenScratches(a.path(scratchDir), c.Scratch); err != nil && c.Scratch > 0 {
		return err
	} else if err != nil {
		a.log.Warn("this node lends no scratch space", "why", err)
	}
	net := c.Network
	net.Mesh.Dir, net.Mesh.Lost = b.path(meshDir), a.unlinked
	if b.net, err = network.Open(net, name, a.log); err != nil {
		return err
	}
	for _, lack := range b.net.Lacks() {
		a.log.Warn("this node's sandboxes have less of a network", "why", lack)
	}
	a.boxes = b
	labels := b.labels()
	maps.Copy(labels, b.net.Labels())
	maps.Copy(labels, a.cfg.Labels)
	a.cfg.Labels = labels
	return nil
}

func (b *boxes) path(name string) string { return filepath.Join(b.run, name) }

// keepBoxes gives up what tasks held that no journal knows.
func (a *Agent) keepBoxes() error {
	if a.boxes == nil {
		return nil
	}
	keep := func(who string) bool {
		var t gpuai.Token
		return t.UnmarshalText([]byte(who)) == nil && a.records[t] != nil
	}
	err := errors.Join(a.boxes.images.Retain(keep), a.boxes.ranges.Return(keep), a.boxes.net.Retain(a.members()))
	if a.boxes.scratch != nil {
		err = errors.Join(err, a.boxes.scratch.Keep(keep))
	}
	return err
}

// labels are what the node says of its runtimes.
func (b *boxes) labels() map[string]string {
	out := map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelOCI + ".name": b.runtime.Name, gpuai.LabelOCI + ".version": b.runtime.Version}
	if b.runtime.Package != "" {
		out[gpuai.LabelOCI+".package"] = b.runtime.Package
	}
	if b.scratch != nil && b.scratch.Room() > 0 {
		out[gpuai.LabelScratch] = strconv.FormatInt(int64(b.scratch.Room()), 10)
	}
	return out
}

// prepareBox gets the image and reserves the devices of a sandboxed task.
func (w *worker) prepareBox(act decide.Start, no *decide.TaskNotStarted) (*watchdog.Spec, error) {
	b := w.a.boxes
	if b == nil {
		return nil, errors.New("this node runs no images: it has no OCI runtime")
	}
	if err := w.admit(no); err != nil {
		return nil, err
	}
	dir := w.a.taskDir(w.lease.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		no.State = gpuai.ReportLost
		return nil, fmt.Errorf("make the task's directory: %w", err)
	}
	w.a.uploads.expect(w.lease.TaskRef, w.lease.ID)
	img, err := w.pull()
	if err != nil {
		no.State, no.End = imageFault(err), gpuai.EndImagePull
		return nil, err
	}
	saved, err := w.checkpoints(no)
	if err != nil {
		return nil, err
	}
	given, err := w.secrets(no)
	if err != nil {
		return nil, err
	}
	no.State = gpuai.ReportFailed
	no.End = gpuai.EndSandbox // what fails from here on
	grant, err := reserve(w.ctx, w.a.devices.drivers, &w.lease)
	if err != nil {
		no.State, no.End = gpuai.ReportGPUError, gpuai.EndDevice
		return nil, err
	}
	edits, err := w.resolve(grant.CDI)
	if err != nil {
		no.State, no.End = gpuai.ReportLost, gpuai.EndDevice
		return nil, err
	}
	t, err := w.box(img, inside{grant, edits, saved, given})
	if err != nil {
		return nil, err
	}
	secrets, err := w.boxSecrets(t, given)
	if err != nil {
		return nil, err
	}
	scratch, err := w.scratch(t)
	if err != nil {
		no.State = gpuai.ReportLost
		return nil, err
	}
	pins, err := w.connect(t)
	if err != nil {
		no.State = gpuai.ReportLost
		return nil, err
	}
	if err := writeBundle(filepath.Join(dir, bundleDir), t); err != nil {
		return nil, fmt.Errorf("prepare the sandbox: %w", err)
	}
	return &watchdog.Spec{
		Lease: w.lease.ID, Incarnation: w.lease.Incarnation, KillBudget: int64(act.KillBudget) * 1e6,
		Argv: b.runtime.Argv(filepath.Join(dir, bundleDir), w.boxState(), w.lease.ID.String()),
		Env:  []string{"PATH=" + defaultPath}, Cwd: dir, LogDir: dir, LogBytes: w.a.cfg.LogBytes,
		CPU: w.lease.CPU, Memory: w.lease.Memory + runtimeMemory, PIDs: maxPIDs + runtimePIDs,
		Box: &watchdog.Box{Root: img.Root, Target: b.path(boxDir), Base: t.IDs.First, Size: t.IDs.Size, Nodes: nodesOf(t), Scratch: scratch, Pins: pins, Secrets: secrets},
	}, nil
}

func writeBundle(dir string, t *sandbox.Task) error {
	spec, err := sandbox.Spec(t)
	if err != nil {
		return err
	}
	return sandbox.WriteBundle(dir, spec)
}

// What a runtime and a sandbox's first process need beside the task.
const (
	runtimeMemory = 32 << 20
	runtimePIDs   = 64
)

func (w *worker) boxState() string {
	return filepath.Join(w.a.boxes.path(stateDir), w.lease.ID.String())
}

// inside is what a sandbox has of its node.
type inside struct {
	grant plugins.Grant
	edits *cdiEdits
	saved places
	given []givenSecret
}

// Where a sandboxed task has its checkpoints.
const (
	boxCheckpoint = "/.gpuai/checkpoint"
	boxResume     = "/.gpuai/resume"
)

// box is the sandbox of the task in an image.
func (w *worker) box(img *image.Image, has inside) (*sandbox.Task, error) {
	grant, edits := has.grant, has.edits
	who, err := sandbox.Lookup(img.Root, img.Run.User)
	if err != nil {
		return nil, err
	}
	ids, err := w.a.boxes.ranges.Lend(w.lease.ID.String())
	if err != nil {
		return nil, err
	}
	base := imageEnv(img.Run.Env)
	edits.granted(base, grant.Env)
	env := w.boxEnv(base, w.boxPlace(grant.Env))
	has.saved.env(env, boxCheckpoint, boxResume)
	sayWhere(env, has.given, gpuai.SecretsDir)
	argv, _, err := launched(&w.assign, w.boxArgs(&img.Run, env), env)
	if err != nil {
		return nil, err
	}
	t := &sandbox.Task{
		Args: argv,
		Root: filepath.Join(w.a.boxes.path(boxDir), watchdog.RootDir), Env: envList(env), Cwd: img.Run.WorkingDir,
		User: who.User, Group: who.Group, Groups: who.Groups, IDs: ids,
		Hostname: hostname(w.assign.GroupName, uint64(w.lease.Task)),
		Shm:      w.assign.Shm, Memory: w.lease.Memory, PIDs: maxPIDs, NoFile: fileLimit(),
		Init: w.a.cfg.Watchdog, InitArgs: []string{watchdog.InitArg},
	}
	if w.assign.Task.Cwd != "" {
		t.Cwd = w.assign.Task.Cwd
	}
	if t.Files, err = w.boxFiles(t.Hostname); err != nil {
		return nil, err
	}
	t.DeviceFiles = filepath.Join(w.a.boxes.path(boxDir), watchdog.NodesDir)
	edits.add(t)
	if err := w.mountCheckpoints(t, has.saved); err != nil {
		return nil, err
	}
	return t, grantBox(t, grant)
}

// mountCheckpoints gives the sandbox its checkpoint directory, owned by its own
// user, and what it goes on from.
func (w *worker) mountCheckpoints(t *sandbox.Task, p places) error {
	if p.resume != "" {
		t.Mounts = append(t.Mounts, sandbox.Mount{Path: boxResume, HostPath: p.resume})
	}
	if p.saver == nil {
		return nil
	}
	if err := os.Chown(p.saver.dir, int(t.IDs.First+t.User), int(t.IDs.First+t.Group)); err != nil {
		return fmt.Errorf("give the task its checkpoint directory: %w", err)
	}
	t.Mounts = append(t.Mounts, sandbox.Mount{Path: boxCheckpoint, HostPath: p.saver.dir, Writable: true})
	w.startSaver(p.saver)
	return nil
}

// maxHostname is what a host's name may have, in bytes: a label of the DNS, and
// one less than Linux takes.
const maxHostname = 63

// scratch makes the task's room on the disk, if it asks for some.
func (w *worker) scratch(t *sandbox.Task) (*watchdog.Scratch, error) {
	if w.assign.Scratch == 0 {
		return nil, nil
	}
	if w.a.boxes.scratch == nil {
		return nil, errors.New("scratch: this node lends no scratch space; its agent's log says why")
	}
	image, err := w.a.boxes.scratch.Make(w.ctx, w.lease.ID.String(), w.assign.Scratch)
	if err != nil {
		return nil, err
	}
	t.Scratch = filepath.Join(w.a.boxes.path(boxDir), watchdog.ScratchDir)
	return &watchdog.Scratch{Image: image, User: t.IDs.First + t.User, Group: t.IDs.First + t.Group}, nil
}

// hostname names a task's sandbox GROUP-TASK; a long group's name is cut.
func hostname(group string, task uint64) string {
	number := "-" + strconv.FormatUint(task, 10)
	return group[:min(len(group), maxHostname-len(number))] + number
}

// fileLimit is how many files a sandboxed task may open: its runtime cannot
// raise what the host allows its processes.
func fileLimit() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return min(maxFiles, l.Max)
}

// scriptPath is where a sandboxed task has its script.
const scriptPath = "/.gpuai/script"

// boxArgs is the program: the task's own or the image's.
func (w *worker) boxArgs(run *image.Run, env map[string]string) []string {
	task := &w.assign.Task
	switch {
	case task.Script != "":
		return append([]string{"/bin/sh", scriptPath}, expandAll(task.Args, env)...)
	case len(task.Command) > 0:
		return torch(task, append(expandAll(task.Command, env), expandAll(task.Args, env)...))
	case len(task.Args) > 0:
		return append(append([]string{}, run.Entrypoint...), expandAll(task.Args, env)...)
	}
	return append(append([]string{}, run.Entrypoint...), run.Cmd...)
}

// boxFiles writes the files of the host that the sandbox sees.
func (w *worker) boxFiles(hostname string) (map[string]string, error) {
	content := map[string]string{
		"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n" + w.hosts(hostname),
		"/etc/hostname":    hostname + "\n",
		"/etc/resolv.conf": w.a.boxes.net.ResolvConf(w.assign.Network),
	}
	if w.assign.Task.Script != "" {
		content[scriptPath] = w.assign.Task.Script
	}
	dir := filepath.Join(w.a.taskDir(w.lease.ID), bundleDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare the sandbox: %w", err)
	}
	out := map[string]string{}
	for at, text := range content {
		path := filepath.Join(dir, filepath.Base(at))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("prepare the sandbox: %w", err)
		}
		out[at] = path
	}
	return out, nil
}

// closeBox gives back what a sandboxed task had, when it is gone.
func (w *worker) closeBox() {
	b := w.a.boxes
	if b == nil || w.assign.Task.Runtime != gpuai.RuntimeOCI {
		return
	}
	who := w.lease.ID.String()
	var err error
	if b.scratch != nil {
		err = b.scratch.Keep(func(other string) bool { return other != who })
	}
	err = errors.Join(
		err,
		b.net.Leave(who),
		b.images.Release(who),
		b.ranges.Return(func(other string) bool { return other != who }),
		os.RemoveAll(w.boxState()),
		os.RemoveAll(filepath.Join(w.a.taskDir(w.lease.ID), bundleDir)),
	)
	if err != nil {
		w.a.log.Warn("something of a task's sandbox stays until the agent's next start", "lease", w.lease.ID, "error", err)
	}
}

// explain adds to what the watchdog says of a task's end which limit it reached, or
// why its sandbox did not come up, tells the task's user, too, in the last line
// of a sandboxed one's stderr, and returns the code of what it found.
func (w *worker) explain(task *watchdog.Task) (code gpuai.EndCode) {
	if task.Code == 0 || task.By != watchdog.ByItself {
		return gpuai.EndOther
	}
	plain := task.Reason == fmt.Sprintf("exit code %d", task.Code)
	if why := w.limited(task); why != "" {
		task.Reason, plain = why, false
		code = limitCode(task.Limit)
	} else if why := w.notUp(); why != "" {
		task.Reason, plain = w.who()+": the sandbox could not be started: "+why, false
		code = gpuai.EndSandbox
	}
	if !plain {
		w.note(task.Reason)
	}
	return code
}

// limitCode is the code of a limit that a task reached; what has no limit of the
// control groups is its room in files.
func limitCode(l watchdog.Limit) gpuai.EndCode {
	switch l {
	case watchdog.LimitMemory:
		return gpuai.EndOutOfMemory
	case watchdog.LimitProcesses:
		return gpuai.EndProcessLimit
	default:
		return gpuai.EndScratchFull
	}
}

// notUp says why a task's sandbox did not come up, or "".
func (w *worker) notUp() string {
	if w.assign.Task.Runtime != gpuai.RuntimeOCI {
		return ""
	}
	return sandbox.Failure(filepath.Join(w.a.taskDir(w.lease.ID), bundleDir))
}

// note writes a line to what a sandboxed task wrote to stderr.
func (w *worker) note(reason string) {
	if w.assign.Task.Runtime != gpuai.RuntimeOCI {
		return
	}
	if err := watchdog.AppendLog(w.a.taskDir(w.lease.ID), "gpuai: "+reason); err != nil {
		w.a.log.Warn("the task's log lacks why it ended", "lease", w.lease.ID, "error", err)
	}
}
