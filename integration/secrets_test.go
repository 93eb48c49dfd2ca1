package integration

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// filesWith returns the files below dir that hold any of the texts.
func filesWith(t *testing.T, dir string, texts ...string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // it went meanwhile
		}
		b, err := os.ReadFile(path)
		for _, s := range texts {
			if err == nil && bytes.Contains(b, []byte(s)) {
				out = append(out, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const secretsJob = `name: wants
type: batch
groups:
  - resources: {gpu: {count: 1}, cpu: 1, memory: 64MiB}
    restart: {attempts: 1, on: [failure], backoff: 1ms}
    task:
      runtime: process
      script: |
        echo "$TOKEN" | sha256sum | cut -c1-8
        [ "$TOKEN" = "$(cat $GPUAI_SECRETS_DIR/f/key)" ] || exit 5
      env: {TOKEN: {secret: token}}
      secrets: [{name: token, path: f/key}]
`

// TestSecrets sets a secret from a file that is gone then, gives it to tasks, and
// looks for it everywhere: in what commands print, in all files of the region, in a
// snapshot, a report and a bundle.
func TestSecrets(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.start()
	const first, second = "hush-4711-first", "hush-4712-second"
	var said strings.Builder
	run := func(args ...string) string {
		out := d.run(args...)
		said.WriteString(out)
		return out
	}
	put := func(value string) {
		file := filepath.Join(dir, "value")
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		run("secret", "put", "token", "--from-file", file)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	job := filepath.Join(dir, "wants.yaml")
	if err := os.WriteFile(job, []byte(secretsJob), 0o600); err != nil {
		t.Fatal(err)
	}
	p := d.call("run", job)
	if code := p.exit(patience); code == 0 || !strings.Contains(p.err.String(), "/groups/0/task/env/TOKEN/secret") && !strings.Contains(p.err.String(), "gpuai secret put token") {
		t.Errorf("without the secret: %d, %s", code, p.err)
	}
	for version, value := range []string{first, second} {
		put(value)
		run("run", job, "--wait=done", "--timeout", "20s")
		if got := run("logs", "wants"); len(got) != 9 {
			t.Errorf("the task printed %q", got)
		}
		j, err := d.client.Job(t.Context(), "wants")
		if err != nil || j.Status != gpuai.JobSucceeded {
			t.Fatalf("%+v, %v", j, err)
		}
		leases, _, err := d.client.Leases(t.Context(), client.LeaseQuery{Job: j.ID.String()})
		if err != nil || len(leases) != 1 || len(leases[0].Secrets) != 2 || leases[0].Secrets[1] != (gpuai.LeaseSecret{Name: "token", Version: uint32(version + 1)}) {
			t.Errorf("its leases are %+v, %v", leases, err)
		}
	}
	run("job", "status", "wants", "-o", "json")
	run("secret", "list", "-o", "json")
	run("operator", "snapshot", "save", filepath.Join(dir, "region.snap"))
	bundle := filepath.Join(dir, "fault.tgz")
	run("operator", "bundle", "--out", bundle)
	for name, data := range bundleOf(t, bundle) {
		if bytes.Contains(data, []byte("hush-")) {
			t.Errorf("%s of the bundle has the secret", name)
		}
	}
	if strings.Contains(said.String(), "hush-") {
		t.Error("a command printed the secret")
	}
	if got := filesWith(t, dir, "hush-", "aHVzaC0"); got != nil {
		t.Errorf("the secret is in %v", got)
	}
	run("secret", "delete", "token")
	d.endsWithout(dir, "hush-", "aHVzaC0")
}

// endsWithout ends the region, which has left none of some texts.
func (d *dev) endsWithout(dir string, texts ...string) {
	d.t.Helper()
	d.proc.signal(syscall.SIGTERM)
	if code := d.proc.exit(20 * time.Second); code != 0 {
		d.t.Errorf("it ended with %d", code)
	}
	if got := filesWith(d.t, dir, texts...); got != nil {
		d.t.Errorf("behind the end a secret is in %v", got)
	}
	for _, s := range texts {
		if strings.Contains(d.proc.err.String()+d.proc.out.String(), s) {
			d.t.Error("the region's log has a secret")
		}
	}
}
