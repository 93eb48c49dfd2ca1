package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/plugins/amd/amdtest"
	"github.com/gpuai/gpuai/plugins/nvidia/nvidiatest"
)

// gpuNode is a node with two GPUs of one vendor under the driver that is shipped,
// and what becomes of it. The device files of its GPUs are two that this host has,
// which no sandbox may open by itself.
type gpuNode struct {
	name, vendor, model string
	memory              gpuai.Bytes
	driver              string   // binary
	config              string   // of the driver, a file's text
	cdiDir              string   // of the host
	nodes               []string // device files of the two GPUs, in the sandbox
	common              string   // device file that both have
	env                 string   // variable that names a task's device
	library             string   // of the vendor, mounted read-only; "" for none
	says                string   // line of the environment that shows whose CDI specification it is
	// crash kills the driver. It stays away until it is mended, or comes back by
	// itself: then mend is nil.
	crash func() (mend func())
	// fault has a device fail, with what its users are told.
	fault func(gpuai.DeviceID) (code, says string)
}

// foreign are device numbers of this host that root may open.
var foreign = []uint64{unix.Mkdev(10, 229), unix.Mkdev(10, 237)} // fuse, loop-control

const holderJob = `name: %s
type: batch
groups:
  - resources: {gpu: {count: %d, model: %s}, cpu: 0.1, memory: 64MiB}
    restart: {attempts: 0, on: []}
    task: {image: %q, args: %s}
`

// A region of one server with nodes of real drivers, each on a host that the test
// makes: a task in a sandbox gets its own devices and no other's, a driver that
// crashes leaves it alone, and a GPU that fails ends it with what to do.
func TestCase29GPUNodes(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc: ", err)
	}
	for i, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Rdev != foreign[i] {
			t.Skip("this host has no such device to give: ", path, err)
		}
	}
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.client = newClient(t, nil, d.addr)
	d.proc = start(t, "server", "gpuai", "server", "run", "--id", "a", "--data", d.data, "--http", d.addr, "--raft", freeAddr(t), "--bootstrap", "--insecure-plaintext")
	eventually(t, patience, "ready region", d.client.Ready)
	image := pushProbe(t)
	for name, make := range map[string]func(*testing.T) *gpuNode{
		"nvidia with the host's CDI": func(t *testing.T) *gpuNode { return nvidiaNode(t, true) },
		"nvidia with the driver's":   func(t *testing.T) *gpuNode { return nvidiaNode(t, false) },
		"amd":                        amdNode,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := make(t)
			own := *d
			own.t = t
			n.start(&own, dir)
			n.holds(&own, image, dir)
		})
	}
}

// start starts the node's agent and waits for its devices.
func (n *gpuNode) start(d *dev, dir string) {
	d.t.Helper()
	config := filepath.Join(dir, n.name+".json")
	if err := os.WriteFile(config, []byte(n.config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	start(d.t, "agent "+n.name, "gpuai", "agent", "run", "--id", n.name, "--data", filepath.Join(dir, n.name), "--servers", "http://"+d.addr,
		"--oci-runtime", "runc", "--local-registry", "--cpu", "1", "--memory", "1GiB", "--cdi-dir", n.cdiDir,
		"--driver", n.vendor+"="+n.driver+","+config)
	eventually(d.t, patience, "the driver's version", func(ctx context.Context) error {
		node, err := d.client.Node(ctx, gpuai.NodeID(n.name))
		if err == nil && node.Labels["driver."+n.vendor+".version"] == "" {
			err = fmt.Errorf("labels %v", node.Labels)
		}
		return err
	})
	n.await(d, "two healthy devices", func(i int, dev gpuai.Device) bool {
		return dev.Health == gpuai.DeviceHealthy && dev.Vendor == n.vendor && dev.Model == n.model && dev.Memory == n.memory
	})
}

// await waits until the node has two devices that are as ok wants.
func (n *gpuNode) await(d *dev, what string, ok func(int, gpuai.Device) bool) []gpuai.Device {
	d.t.Helper()
	var devices []gpuai.Device
	eventually(d.t, patience, what, func(ctx context.Context) error {
		node, err := d.client.Node(ctx, gpuai.NodeID(n.name))
		if err != nil {
			return err
		}
		if devices = node.Devices; len(devices) != 2 || !ok(0, devices[0]) || !ok(1, devices[1]) {
			return fmt.Errorf("the node has %+v", devices)
		}
		return nil
	})
	return devices
}

// job writes a job file for the node's GPUs.
func (n *gpuNode) job(t *testing.T, dir, name string, count int, image, args string) string {
	t.Helper()
	path := filepath.Join(dir, n.name+"-"+name+".yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, holderJob, n.name+"-"+name, count, n.model, image, args), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// holder starts a job with one device and waits until its task runs.
func (n *gpuNode) holder(d *dev, job, image, dir string) gpuai.Lease {
	t := d.t
	t.Helper()
	d.run("run", n.job(t, dir, "holder", 1, image, "[sleep]"), "--wait=running", "--timeout", "20s")
	eventually(t, patience, "task of "+job, func(ctx context.Context) error {
		j, err := d.client.Job(ctx, job)
		if err == nil && j.Counts.Running != 1 {
			err = fmt.Errorf("it is %s: %+v", j.Status, j.Counts)
		}
		return err
	})
	leases, _, err := d.client.Leases(t.Context(), client.LeaseQuery{Job: job})
	if err != nil || len(leases) != 1 || len(leases[0].Devices) != 1 {
		t.Fatalf("%+v, %v", leases, err)
	}
	return leases[0]
}

// sees checks which device files a task opens that holds a device.
func (n *gpuNode) sees(d *dev, job string, held gpuai.DeviceID) {
	t := d.t
	t.Helper()
	out := inTask(d, job, "/probe", "open", n.nodes[0], n.nodes[1], n.common)
	own := n.nodes[slices.IndexFunc(n.await(d, "devices", func(int, gpuai.Device) bool { return true }), func(dev gpuai.Device) bool { return dev.ID == held })]
	for _, path := range n.nodes {
		want := path + " ENOENT\n"
		if path == own {
			want = path + " open\n"
		}
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if !strings.Contains(out, n.common+" open\n") {
		t.Errorf("%s is not open:\n%s", n.common, out)
	}
}

// holds has a task hold a device through a crash of the driver and a fault of the
// device.
func (n *gpuNode) holds(d *dev, image, dir string) {
	t, job := d.t, n.name+"-holder"
	lease := n.holder(d, job, image, dir)
	held := lease.Devices[0]
	n.sees(d, job, held)
	if out := inTask(d, job, "/probe", "say"); !strings.Contains(out, "env "+n.env+"="+string(held)+"\n") || !strings.Contains(out, n.says) {
		t.Errorf("%s does not name %s, or %q is not in\n%s", n.env, held, n.says, out)
	}
	if n.library != "" {
		if out := inTask(d, job, "/probe", "open", n.library); out != n.library+" EACCES\n" {
			t.Errorf("opening the driver's library: %s", out)
		}
	}

	if mend := n.crash(); mend != nil {
		n.await(d, "devices of a driver that is away", func(_ int, dev gpuai.Device) bool { return dev.Health != gpuai.DeviceHealthy })
		n.sees(d, job, held)
		mend()
	}
	n.await(d, "devices of a driver that is back", func(_ int, dev gpuai.Device) bool { return dev.Health == gpuai.DeviceHealthy })
	if l, err := d.client.Lease(t.Context(), lease.ID); err != nil || l.State != gpuai.LeaseRunning {
		t.Fatalf("after the crash of the driver the task's lease is %+v, %v", l, err)
	}
	n.sees(d, job, held)

	code, says := n.fault(held)
	n.await(d, "one device that is sick", func(_ int, dev gpuai.Device) bool {
		sick := dev.Health != gpuai.DeviceHealthy && strings.HasPrefix(dev.HealthCode, code+": "+says)
		return dev.ID == held && sick || dev.ID != held && dev.Health == gpuai.DeviceHealthy
	})
	eventually(t, patience, "end of "+job, func(ctx context.Context) error {
		j, err := d.client.Job(ctx, job)
		if err == nil && j.Status != gpuai.JobFailed {
			err = fmt.Errorf("it is %s: %+v", j.Status, j.Counts)
		}
		return err
	})
	out := d.run("job", "status", job)
	for _, want := range []string{string(held), code, says} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if out := d.run("node", "devices", n.name); !strings.Contains(out, code+": "+says) {
		t.Errorf("%s: %s is not in\n%s", code, says, out)
	}
	// The next one gets the other.
	d.run("run", n.job(t, dir, "next", 1, image, `[say]`), "--wait=done", "--timeout", "20s")
	if leases, _, err := d.client.Leases(t.Context(), client.LeaseQuery{Job: n.name + "-next"}); err != nil || len(leases) != 1 || slices.Contains(leases[0].Devices, held) {
		t.Errorf("%+v, %v", leases, err)
	}
}

// inTask runs a command beside the job's one task and returns its output.
func inTask(d *dev, job string, command ...string) string {
	d.t.Helper()
	p := start(d.t, "gpuai job exec", "gpuai", append([]string{"job", "exec", job, "--addr", "http://" + d.addr, "--"}, command...)...)
	if code := p.exit(patience); code != 0 {
		d.t.Fatalf("%v: exit code %d: %s", command, code, p.err)
	}
	return p.out.String()
}

// nvidiaPrograms builds the driver as make build does, and a library for it to load.
var nvidiaPrograms = sync.OnceValues(func() (library string, err error) {
	if err := os.Mkdir(program("nvidia"), 0o755); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", program("nvidia/gpuai-driver-nvidia"), "./cmd/gpuai-driver-nvidia")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=1", "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the driver: %w: %s", err, out)
	}
	library = program("nvidia/library")
	return library, nvidiatest.Build(library)
})

// nvidiaNode is a host of two NVIDIA GPUs, with a CDI specification as NVIDIA's
// toolkit writes it or without one.
func nvidiaNode(t *testing.T, specification bool) *gpuNode {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("the driver is built with a C compiler: ", err)
	}
	n := &gpuNode{name: "nvidia-own", vendor: "nvidia", model: "H100-80GB-HBM3", memory: 85520809984,
		driver: program("nvidia/gpuai-driver-nvidia"), nodes: []string{"/dev/nvidia0", "/dev/nvidia1"}, common: "/dev/nvidiactl", env: gpuai.EnvCUDADevices}
	library, err := nvidiaPrograms()
	if err != nil {
		t.Fatal(err)
	}
	n.library = "/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15"
	model := func(line string) string { return line }
	if specification {
		n.says, n.name, n.model = "env FROM=host\n", "nvidia-host", "A100-SXM4-80GB"
		model = func(line string) string {
			return strings.Replace(line, "NVIDIA_H100_80GB_HBM3", "NVIDIA_A100-SXM4-80GB", 1)
		}
	}
	good := []string{nvidiatest.Versions, model(nvidiatest.Line(0, "")), model(nvidiatest.Line(1, "")), "link 0 0 1", "link 1 0 0", "topo 0 1 10"}
	m := nvidiatest.New(t, library, good...)
	null := unix.Mkdev(1, 3)
	m.InstallNodes(map[string]uint64{"nvidiactl": null, "nvidia-uvm": null, "nvidia-uvm-tools": null, "nvidia0": foreign[0], "nvidia1": foreign[1]})
	n.config, n.cdiDir = string(m.JSON()), m.Path("etc-cdi")
	if specification {
		m.Write("etc-cdi/nvidia.yaml", fmt.Sprintf(toolkitSpec, m.Path("root"), nvidiatest.UUID(0), nvidiatest.UUID(1)))
	}
	n.crash = func() func() {
		m.Set(append(slices.Clone(good), "crash nvmlDeviceGetName")...)
		return func() { m.Set(good...) }
	}
	n.fault = func(id gpuai.DeviceID) (string, string) {
		i := slices.Index([]string{nvidiatest.UUID(0), nvidiatest.UUID(1)}, string(id))
		m.Set(append(slices.Clone(good), fmt.Sprintf("event %d 8 79 4294967295", i))...)
		return "xid:79", "reboot the node"
	}
	return n
}

// toolkitSpec is what nvidia-ctk cdi generate writes, shortened: devices by their
// index, hooks, a library.
const toolkitSpec = `---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0, hostPath: %[1]s/dev/nvidia0}]
- name: "1"
  containerEdits:
    deviceNodes: [{path: /dev/nvidia1, hostPath: %[1]s/dev/nvidia1}]
- name: all
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0, hostPath: %[1]s/dev/nvidia0}, {path: /dev/nvidia1, hostPath: %[1]s/dev/nvidia1}]
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void, FROM=host]
  deviceNodes:
  - {path: /dev/nvidiactl, hostPath: %[1]s/dev/nvidiactl}
  hooks:
  - {hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]}
  mounts:
  - hostPath: %[1]s/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
    containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
    options: [ro, nosuid, nodev, rbind, rprivate]
`

// amdNode is a host of two MI210.
func amdNode(t *testing.T) *gpuNode {
	t.Helper()
	tr := amdtest.MI210(t, 2)
	for path, number := range map[string]uint64{"dev/kfd": unix.Mkdev(1, 3), "dev/dri/renderD128": foreign[0], "dev/dri/renderD129": foreign[1]} {
		tr.Remove(path)
		if err := unix.Mknod(filepath.Join(tr.Root, path), unix.S_IFCHR|0o600, int(number)); err != nil {
			t.Fatal(err)
		}
	}
	n := &gpuNode{name: "amd", vendor: "amd", model: "MI210", memory: 64 << 30, cdiDir: t.TempDir(), driver: filepath.Join(t.TempDir(), "gpuai-driver-amd"),
		config: fmt.Sprintf(`{"root":%q,"period_ms":100}`, tr.Root), nodes: []string{"/dev/dri/renderD128", "/dev/dri/renderD129"}, common: "/dev/kfd", env: gpuai.EnvROCRDevices}
	if err := os.Link(program("gpuai-driver-amd"), n.driver); err != nil {
		t.Fatal(err)
	}
	n.crash = func() func() {
		old := driverProcess(t, n.driver, 0)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		driverProcess(t, n.driver, old)
		return nil
	}
	n.fault = func(id gpuai.DeviceID) (string, string) {
		card := slices.IndexFunc(tr.Cards, func(c amdtest.Card) bool { return strings.Contains(string(id), fmt.Sprintf("%016x", c.UniqueID)) })
		tr.Set(tr.PCI(card)+"/ras/umc_err_count", "ue: 2\nce: 9\n")
		return "ras:ue:umc", "reboot the node"
	}
	return n
}

// driverProcess waits for a driver's process that is another than old.
func driverProcess(t *testing.T, binary string, old int) (pid int) {
	t.Helper()
	eventually(t, patience, "process of "+binary, func(context.Context) error {
		for _, l := range nursery.Naming(binary) {
			if strings.HasPrefix(l.Line, binary) && l.PID != old {
				pid = l.PID
				return nil
			}
		}
		return errors.New("there is none")
	})
	return pid
}
