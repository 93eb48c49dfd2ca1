package integration

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/agent/network/netspace"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/cable"
)

// A meshHost is a host in a network namespace, with an agent that reaches the
// region by a cable, and the other host directly.
type meshHost struct {
	t      *testing.T
	id     string
	addr   netip.Prefix
	space  *os.File
	region *cable.Cable
	args   []string
	agent  *proc
}

// newMeshHosts makes two hosts.
func newMeshHosts(t *testing.T, d *dev, images string) (hosts []*meshHost) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Dir(d.data)
	gpus := simGPUs(t, dir, 2)
	for i := range 2 {
		h := &meshHost{t: t, id: fmt.Sprintf("mesh-%d", i), addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, 0, byte(i + 1)}), 24)}
		var err error
		h.space, err = netspace.New()
		must(err)
		t.Cleanup(func() { h.space.Close() })
		must(netspace.Settle(h.space))
		must(netspace.Within(h.space, func() (err error) {
			h.region, err = cable.To(d.addr)
			return err
		}))
		t.Cleanup(h.region.Close)
		h.args = []string{"agent", "run", "--id", h.id, "--data", filepath.Join(dir, h.id), "--servers", "http://" + h.region.Addr,
			"--address", h.addr.Addr().String(), "--oci-runtime", "runc", "--image-dir", images, "--cpu", "4", "--memory", "1GiB",
			"--ports", "29500-29503", "--driver", "sim=" + program("gpuai-driver-sim") + "," + gpus}
		hosts = append(hosts, h)
	}
	must(netspace.Within(hosts[0].space, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(hosts[1].space.Fd())
		return netlink.LinkAdd(veth)
	}))
	for _, h := range hosts {
		must(netspace.Within(h.space, func() error { return netspace.Bring("eth0", h.addr) }))
		h.run()
	}
	for _, h := range hosts {
		eventually(t, patience, "the node "+h.id, func(ctx context.Context) error {
			n, err := d.client.Node(ctx, gpuai.NodeID(h.id))
			if err == nil && n.Labels[gpuai.LabelMesh] != gpuai.LabelYes {
				err = fmt.Errorf("labels %v", n.Labels)
			}
			return err
		})
	}
	return hosts
}

// run starts the host's agent.
func (h *meshHost) run() {
	_ = netspace.Within(h.space, func() error {
		h.agent = start(h.t, "agent "+h.id, "gpuai", h.args...)
		return nil
	})
}

// meshes are the processes of gpuai-mesh in the host's network.
func (h *meshHost) meshes() (pids []int) {
	h.t.Helper()
	var own string
	if err := netspace.Within(h.space, func() (err error) {
		own, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well formed
	for _, f := range files {
		name, _ := os.ReadFile(f)
		at, _ := os.Readlink(filepath.Join(filepath.Dir(f), "ns/net"))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && string(name) == "gpuai-mesh\n" && at == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

const meshJob = `name: %s
type: train
groups:
  - gang: true
    count: 4
    resources: {gpu: {count: 1}, cpu: 0.25, memory: 64MiB}
    restart: {attempts: 1, on: [node_lost], backoff: 1s}
    task: {image: %q, command: [/bin/dataparallel, -pace, 50ms, -steps, "%d", -report-every, "5"]}
`

// A gang trains in sandboxes on two hosts: it goes on while an agent is gone and
// comes back, and is placed anew when the mesh of a host dies.
func TestCase35GangInSandboxesAcrossHosts(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc: ", err)
	}
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.client = newClient(t, nil, d.addr)
	d.start("--sandbox", "none")
	root := filepath.Join(dir, "root", "bin")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(program("dataparallel"), filepath.Join(root, "dataparallel")); err != nil {
		t.Fatal(err)
	}
	built, err := image.Build(filepath.Dir(root), image.Run{})
	if err == nil {
		_, err = built.WriteLayout(filepath.Join(dir, "image"))
	}
	if err != nil {
		t.Fatal(err)
	}
	hosts := newMeshHosts(t, d, dir)
	submit := func(name string, steps int) {
		path := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(path, fmt.Appendf(nil, meshJob, name, "oci:"+filepath.Join(dir, "image"), steps), 0o600); err != nil {
			t.Fatal(err)
		}
		d.run("run", path)
	}
	ends := func(name string, restarts uint32) {
		t.Helper()
		eventually(t, patience, "end of "+name, func(ctx context.Context) error {
			j, err := d.client.Job(ctx, name)
			if err == nil && (j.Status != gpuai.JobSucceeded || j.Restarts != restarts) {
				err = fmt.Errorf("it is %s after %d restarts: %s", j.Status, j.Restarts, j.Reason)
			}
			return err
		})
	}
	submit("training", 80)
	first := d.reaches("training", 10)
	away := hosts[0] // the one without rank 0, whose output is read
	if string(first) == away.id {
		away = hosts[1]
	}
	before := away.meshes()
	away.agent.signal(syscall.SIGKILL)
	<-away.agent.done
	d.reaches("training", 50)
	away.run()
	ends("training", 0)
	if len(before) != 1 {
		t.Errorf("the meshes of one gang on a host are %v", before)
	}
	eventually(t, patience, "end of the mesh with its gang", func(context.Context) error {
		if left := away.meshes(); len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		return nil
	})
	submit("again", 30)
	d.reaches("again", 10)
	for _, pid := range away.meshes() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	ends("again", 1)
}

// reaches waits until a training has come to a step, and returns where its rank 0 is.
func (d *dev) reaches(job string, step int) (node gpuai.NodeID) {
	d.t.Helper()
	eventually(d.t, patience, fmt.Sprintf("step %d of %s", step, job), func(ctx context.Context) error {
		leases, _, err := d.client.Leases(ctx, client.LeaseQuery{Job: job, Live: true})
		if err != nil {
			return err
		}
		for _, l := range leases {
			if l.Task != 0 {
				continue
			}
			node = l.Node
			c, err := d.client.Logs(ctx, client.LogQuery{Job: job, Lease: l.ID})
			if err != nil {
				return err
			}
			if !strings.Contains(string(c.Data), fmt.Sprintf("step %d ", step)) {
				return fmt.Errorf("rank 0 says %q", c.Data)
			}
			return nil
		}
		return fmt.Errorf("no rank 0 among %d leases", len(leases))
	})
	return node
}
