package agent

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/sandbox"
)

// probeBinary builds gpuai-probe, once.
var probeBinary = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(filepath.Dir(watchdogPath), "gpuai-probe")
	cmd := exec.Command("go", "build", "-o", path, "github.com/gpuai/gpuai/cmd/gpuai-probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(path)
})

// archiveImage writes a docker archive whose image runs gpuai-probe say, with
// more files if extra names some.
func archiveImage(t *testing.T, dir string, extra ...tar.Header) string {
	t.Helper()
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	add := func(w *tar.Writer, h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(w, tar.Header{Name: "bin/gpuai-probe", Typeflag: tar.TypeReg, Mode: 0o755}, probe)
	add(w, tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n"))
	for _, h := range extra {
		add(w, h, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
		"config": map[string]any{
			"Entrypoint": []string{"gpuai-probe", "say"}, "Cmd": []string{"from the image"},
			"Env": []string{"PATH=/bin", "IMAGE=yes", "GPUAI_JOB=forged"}, "User": "app", "WorkingDir": "/etc",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fmt.Sprintf("image-%d.tar", len(extra)))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := tar.NewWriter(f)
	plain := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
	for _, m := range []struct {
		name    string
		content []byte
	}{
		{"manifest.json", []byte(`[{"Config":"config.json","RepoTags":["test:v1"],"Layers":["layer.tar"]}]`)},
		{"config.json", config}, {"layer.tar", layer.Bytes()},
	} {
		plain.Name = m.name
		add(out, plain, m.content)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return "docker-archive:" + path
}

// boxed makes an agent run sandboxes with images of dir. Where there can be none
// the test is skipped, or fails with GPUAI_NEED_SANDBOX=1.
func boxed(t *testing.T, dir string) func(*Config) {
	t.Helper()
	skip := t.Skip
	if os.Getenv("GPUAI_NEED_SANDBOX") == "1" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("a sandbox is made by root")
	}
	if _, err := sandbox.Find(t.Context(), "runc"); err != nil {
		skip("there is no runtime to test with: ", err)
	}
	return func(c *Config) {
		c.AllowProcess = false
		c.Sandbox = &SandboxConfig{Runtime: "runc", Images: ImageConfig{Files: []string{dir}}}
	}
}

// inImage makes a task run an image.
func inImage(image string, args ...string) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) {
		a.Task.Runtime, a.Task.Image, a.Task.Args = gpuai.RuntimeOCI, image, args
		a.Lease.CPU, a.Lease.Memory = 1000, 64<<20
	}
}

func TestHostnameIsCut(t *testing.T) {
	for _, c := range []struct {
		group string
		task  uint64
		want  string
	}{
		{"train", 3, "train-3"}, {strings.Repeat("x", 61), 7, strings.Repeat("x", 61) + "-7"},
		{strings.Repeat("x", 100), 12_345, strings.Repeat("x", 57) + "-12345"},
	} {
		if got := hostname(c.group, c.task); got != c.want || len(got) > 63 {
			t.Errorf("%s, %d: %s", c.group, c.task, got)
		}
	}
}

// A group may have a longer name than a host.
func TestSandboxOfAGroupWithALongName(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	f.run(boxed(t, dir))
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.GroupName = strings.Repeat("x", gpuai.MaxNameLen)
	})
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Errorf("reported %+v", r)
	}
}

// endCodes are what ended the tasks of TestSandboxedTask.
var endCodes = map[string]gpuai.EndCode{
	"out of memory": gpuai.EndOutOfMemory, "no such image": gpuai.EndImagePull, "not allowed": gpuai.EndImagePull,
	"hostile image": gpuai.EndImagePull, "failure": gpuai.EndScratchFull, "shared memory full": gpuai.EndScratchFull,
}

func TestSandboxedTask(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	command := func(argv ...string) func(*gpuai.Assignment) {
		return func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Task.Command = argv
		}
	}
	for name, test := range map[string]struct {
		change func(*gpuai.Assignment)
		state  gpuai.ReportState
		code   int32
		reason string
		out    []string
	}{
		"as the image says": {inImage(image), gpuai.ReportDone, 0, "", []string{
			`args ["from the image"]`, "dir /etc", "user 7:8", "env IMAGE=yes", "env GPUAI_TASK_DIR=/work", "env HOME=/work", "env PATH=/bin\n"}},
		"with arguments": {inImage(image, "$GPUAI_RESTART", "$UNSET"), gpuai.ReportDone, 0, "", []string{`args ["0" "$UNSET"]`}},
		"with a command": {command("/bin/gpuai-probe", "say", "x"), gpuai.ReportDone, 0, "", []string{`args ["x"]`}},
		"launched": {func(a *gpuai.Assignment) {
			inImage(image, "$RANK")(a)
			a.Task.Launcher = gpuai.Launcher{Kind: gpuai.LauncherEnv, ProcsPerNode: 2}
		}, gpuai.ReportDone, 0, "", []string{`[0] args ["0"]`, `[1] args ["1"]`, "[1] env LOCAL_RANK=1", "[0] env WORLD_SIZE=2"}},
		"missing program":       {command("none"), gpuai.ReportFailed, 127, "exit code 127", nil},
		"directory in the root": {func(a *gpuai.Assignment) { inImage(image)(a); a.Task.Cwd = "/none/../../../etc/new" }, gpuai.ReportDone, 0, "", []string{"dir /etc/new"}},
		"failure":               {func(a *gpuai.Assignment) { command("gpuai-probe", "disk")(a); a.Task.Cwd = "/work" }, gpuai.ReportFailed, 5, "scratch: task 0 filled /work of 32 MiB, which is in half of its memory; ask for resources.scratch", []string{"no space left"}},
		"shared memory full": {func(a *gpuai.Assignment) {
			command("gpuai-probe", "disk")(a)
			a.Task.Cwd, a.Shm, a.Gang = "/dev/shm", 4<<20, &gpuai.GangInfo{Rank: 3, Size: 4}
		}, gpuai.ReportFailed, 5, "shm: rank 3 filled /dev/shm of 4 MiB; ask for more resources.shm", []string{"no space left"}},
		"out of memory":   {command("gpuai-probe", "memory"), gpuai.ReportFailed, 137, "memory: task 0 used its 64 MiB", nil},
		"no such image":   {inImage("docker-archive:" + dir + "/none.tar"), gpuai.ReportFailed, 0, "task 0: image docker-archive:" + dir + "/none.tar", nil},
		"not allowed":     {inImage("oci:/etc"), gpuai.ReportFailed, 0, "has not allowed", nil},
		"hostile image":   {inImage(archiveImage(t, dir, tar.Header{Name: "dev/mem", Typeflag: tar.TypeChar})), gpuai.ReportFailed, 0, `entry "dev/mem" is a device node`, nil},
		"no script shell": {func(a *gpuai.Assignment) { inImage(image)(a); a.Task.Script = "true" }, gpuai.ReportFailed, 127, "exit code 127", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			a := f.run(boxed(t, dir))
			lease := f.grant(testNode, test.change)
			r := f.last(lease)
			if want := endCodes[name]; r.EndCode != want {
				t.Errorf("its end code is %q, want %q", r.EndCode, want)
			}
			if r.State != test.state || r.ExitCode != test.code || !strings.Contains(r.Reason, test.reason) {
				c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stderr", Limit: 10_000})
				t.Errorf("reported %+v\n%s", r, c.Data)
			}
			c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 10_000})
			for _, want := range test.out {
				if !strings.Contains(string(c.Data), want) {
					t.Errorf("%q is not in\n%s", want, c.Data)
				}
			}
			last := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stderr", Offset: -1000, Limit: 1000})
			if plain := strings.HasPrefix(test.reason, "exit code"); test.reason != "" && strings.Contains(string(last.Data), "gpuai: "+r.Reason) == plain {
				t.Errorf("its user reads %q", last.Data)
			}
			if strings.Contains(string(c.Data), "forged") {
				t.Error("an image says what only the region may say")
			}
			checkClosed(t, a.Agent, lease)
		})
	}
}

// checkClosed checks that a sandboxed task left nothing but its output.
func checkClosed(t *testing.T, a *Agent, lease gpuai.Token) {
	t.Helper()
	eventually(t, "the sandbox to be cleared away", func() bool {
		var left []string
		for _, glob := range []string{a.boxes.path(stateDir) + "/*", a.path(imagesDir) + "/holds/*", a.path(scratchDir) + "/*", a.taskDir(lease) + "/" + bundleDir} {
			found, err := filepath.Glob(glob)
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return len(left) == 0
	})
}

func TestNodeWithoutRuntimeRunsNoImages(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	if r := f.last(f.grant(testNode, inImage("debian:12"))); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "has no OCI runtime") {
		t.Errorf("reported %+v", r)
	}
}

func TestRuntimeIsALabelOfTheNode(t *testing.T) {
	f := newFixture(t)
	f.run(boxed(t, t.TempDir()))
	hellos := f.hellos(testNode)
	labels := hellos[len(hellos)-1].Node.Labels
	if labels[gpuai.LabelOCI] != gpuai.LabelYes || labels[gpuai.LabelOCI+".name"] != "runc" || labels[gpuai.LabelOCI+".version"] == "" {
		t.Errorf("labels %v", labels)
	}
	cfg := testConfig(t.TempDir(), f.addr(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	cfg.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "agent's own") {
		t.Errorf("a label that is not true: %v", err)
	}
}

// The sandbox outlives its agent, with what it holds, and the next one has it.
func TestSandboxOutlivesTheAgent(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	sandboxes := boxed(t, dir)
	change := func(c *Config) {
		sandboxes(c)
		c.Sandbox.Scratch = 128 << 20
	}
	first := f.run(change)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Task.Command, a.Scratch = []string{"gpuai-probe", "family"}, gpuai.MinScratch
	})
	f.running(lease)
	eventually(t, "its output", func() bool {
		c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 100})
		return strings.Contains(string(c.Data), "ready")
	})
	first.stop(t)
	second := f.run(change)
	holds, err := filepath.Glob(second.path(imagesDir) + "/holds/*")
	if err != nil || !slices.Equal(holds, []string{second.path(imagesDir) + "/holds/" + lease.String()}) {
		t.Errorf("held: %v, %v", holds, err)
	}
	if _, err := os.Stat(second.path(scratchDir) + "/" + lease.String()); err != nil {
		t.Error("its scratch space is gone: ", err)
	}
	f.revoke(testNode, lease)
	if r := f.last(lease); r.State != gpuai.ReportStopped || r.ExitCode != 128+15 {
		t.Errorf("reported %+v", r)
	}
	checkClosed(t, second.Agent, lease)
}

// Case 23: what is left of a sandbox after the watchdog's death is killed.
func TestCase23SandboxWithoutItsWatchdog(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	a := f.run(boxed(t, dir))
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Task.Command = []string{"gpuai-probe", "family"}
	})
	f.running(lease)
	ids, err := a.boxes.ranges.Lend(lease.String())
	if err != nil {
		t.Fatal(err)
	}
	killWatchdog(t, f.dir)
	if r := f.last(lease); r.State != gpuai.ReportLost {
		t.Errorf("reported %+v", r)
	}
	if left := processesOf(ids); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	checkClosed(t, a.Agent, lease)
}

// processesOf returns the processes of a range of users.
func processesOf(ids sandbox.Range) (out []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		b, err := os.ReadFile(p + "/status")
		if err != nil || bytes.Contains(b, []byte("\nState:\tZ")) {
			continue
		}
		for line := range strings.Lines(string(b)) {
			var uid uint32
			if _, err := fmt.Sscanf(line, "Uid:\t%d", &uid); err == nil && uid >= ids.First && uid-ids.First < ids.Size {
				out = append(out, p)
			}
		}
	}
	return out
}

// A file that is not what the job's other tasks run is not run.
func TestImageOfAnotherDigestIsRefused(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	f.run(boxed(t, dir))
	own := f.grant(testNode, inImage(image))
	if r := f.last(own); r.State != gpuai.ReportDone {
		t.Fatalf("reported %+v", r)
	}
	first := f.reports(own)[0]
	if first.State != gpuai.ReportResolved || !gpuai.ValidDigest(first.Image) {
		t.Errorf("first %+v", first)
	}
	again := f.grant(testNode, func(a *gpuai.Assignment) { inImage(image)(a); a.Image = first.Image })
	if r := f.last(again); r.State != gpuai.ReportDone || r.Seq != 2 {
		t.Errorf("with the digest known: %+v", r)
	}
	f.set(func(r *region) { r.full = 1 })
	later := f.grant(testNode, inImage(image))
	if r := f.last(later); r.State != gpuai.ReportDone || len(f.reports(later)) < 2 || f.reports(later)[1].State != gpuai.ReportResolved {
		t.Errorf("with no room for the digest at first: %+v", f.reports(later))
	}
	other := "sha256:" + strings.Repeat("a", 64)
	f.set(func(r *region) { r.image = other })
	for name, change := range map[string]func(*gpuai.Assignment){
		"answered": inImage(image),
		"assigned": func(a *gpuai.Assignment) { inImage(image)(a); a.Image = other },
	} {
		if r := f.last(f.grant(testNode, change)); r.State != gpuai.ReportFailed || r.EndCode != gpuai.EndImagePull || !strings.Contains(r.Reason, "run "+other) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
