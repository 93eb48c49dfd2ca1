package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// pushProbe pushes an image with gpuai-probe to a registry of the test, and
// returns its name.
func pushProbe(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	raw, err := os.ReadFile(program("gpuai-probe"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "probe", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(raw))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config := &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: v1.Config{Entrypoint: []string{"/probe"}}}
	if img, err = mutate.Config(img, config.Config); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/team/probe:v1")
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

const sandboxedJob = `name: %s
type: batch
groups:
  - resources: {cpu: 0.5, memory: 128MiB}
    restart: {attempts: 0}
    task: {image: %q, args: %s}
`

// gangJob is a gang whose members meet; what follows its gang says where.
const gangJob = `name: %s
type: train
%s
groups:
  - gang: true
    count: 3
    resources: {gpu: {count: 1}, cpu: 0.25, memory: 64MiB, network: %s}
    restart: {attempts: 0, on: []}
    task: {image: %q, args: [meet]}
`

// simGPUs writes a configuration of simulated devices.
func simGPUs(t *testing.T, dir string, count int) string {
	t.Helper()
	path := filepath.Join(dir, "sim.json")
	src := fmt.Sprintf(`{"seed":"sandboxes","devices":[{"vendor":"nvidia","model":"H100-SXM5-80GB","memory_bytes":%d,"count":%d}]}`, 80<<30, count)
	if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An image goes the whole way: from a registry, by a job file, to the one node
// that has a runtime, into a sandbox that is closed; and its output back.
func TestCase35SandboxedJobFromARegistry(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc: ", err)
	}
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.client = newClient(t, nil, d.addr)
	d.start("--sandbox", "none")
	image := pushProbe(t)
	submit := func(name, args string) string {
		path := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(path, fmt.Appendf(nil, sandboxedJob, name, image, args), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// No host of gpuai dev runs images: it can never fit, and nothing is kept.
	p := start(t, "gpuai run", "gpuai", "run", submit("early", "[]"), "--addr", "http://"+d.addr)
	if code := p.exit(patience); code != 7 || !strings.Contains(p.err.String(), "runtime.oci") {
		t.Errorf("exit code %d: %s", code, p.err)
	}
	start(t, "agent", "gpuai", "agent", "run", "--id", "sandboxes", "--data", filepath.Join(dir, "agent"),
		"--servers", "http://"+d.addr, "--oci-runtime", "runc", "--local-registry", "--cpu", "2", "--memory", "1GiB", "--ports", "29500-29503",
		"--driver", "sim="+program("gpuai-driver-sim")+","+simGPUs(t, dir, 3), "--network-host")
	eventually(t, patience, "the node", func(ctx context.Context) error {
		n, err := d.client.Node(ctx, "sandboxes")
		if err == nil && n.Labels[gpuai.LabelOCI] != gpuai.LabelYes {
			err = fmt.Errorf("labels %v", n.Labels)
		}
		return err
	})
	ends := func(job string, want gpuai.JobStatus) {
		t.Helper()
		eventually(t, patience, "end of "+job, func(ctx context.Context) error {
			j, err := d.client.Job(ctx, job)
			if err == nil && j.Status != want {
				err = fmt.Errorf("%s is %s: %+v", job, j.Status, j.Counts)
			}
			return err
		})
	}
	d.run("run", submit("probes", "[]"))
	ends("probes", gpuai.JobSucceeded) // 3 if any is open
	if out := d.run("logs", "probes"); strings.Count(out, `"open":false`) < 70 {
		t.Errorf("the probes say\n%s", out)
	}
	d.run("run", submit("hungry", "[memory]"))
	ends("hungry", gpuai.JobFailed)
	leases, _, err := d.client.Leases(t.Context(), client.LeaseQuery{Job: "hungry"})
	if err != nil || len(leases) != 1 || leases[0].Node != "sandboxes" || leases[0].ExitCode != 128+9 {
		t.Errorf("%+v, %v", leases, err)
	}
	p = start(t, "gpuai logs", "gpuai", "logs", "hungry", "--addr", "http://"+d.addr)
	if code := p.exit(patience); code != 0 || !strings.Contains(p.err.String(), "gpuai: memory: task 0 used its") {
		t.Errorf("exit code %d, its user reads %q", code, p.err.String())
	}
	gangsMeet(t, d, image, ends)
}

// gangsMeet runs gangs in sandboxes where they meet, in a network of their own or
// in their node's, and tries what is refused.
func gangsMeet(t *testing.T, d *dev, image string, ends func(job string, want gpuai.JobStatus)) {
	t.Helper()
	dir := filepath.Dir(d.data)
	gang := func(name, placement, network string) string {
		path := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(path, fmt.Appendf(nil, gangJob, name, placement, network, image), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct{ path, by string }{
		"private":  {gang("private", "placement: {same: node}", "none"), "asked by 100."},
		"anywhere": {gang("anywhere", "", "none"), "asked by 100."},
		"shared":   {gang("shared", "", "host"), "asked by 127.0.0.1:"},
	} {
		d.run("run", c.path)
		ends(name, gpuai.JobSucceeded)
		if out := d.run("logs", name); strings.Count(out, c.by) != 2 {
			t.Errorf("%s: the first member says\n%s", name, out)
		}
	}
	for name, want := range map[string]struct {
		path, says string
		code       int
	}{
		"egress that no node lets": {gang("egress", "placement: {same: node}", "egress"), "network.egress", 7},
	} {
		p := start(t, "gpuai run", "gpuai", "run", want.path, "--addr", "http://"+d.addr)
		if code := p.exit(patience); code != want.code || !strings.Contains(p.err.String(), want.says) {
			t.Errorf("%s: exit code %d: %s", name, code, p.err)
		}
	}
}
