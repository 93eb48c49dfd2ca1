package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// bundleOf unpacks a bundle: its files by their name without the directory.
func bundleOf(t *testing.T, file string) map[string][]byte {
	t.Helper()
	src, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	z, err := gzip.NewReader(src)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		out[name] = data
	}
}

// secretJob is a job that carries a secret wherever a user may put one.
func secretJob(secret string) *gpuai.JobSpec {
	return &gpuai.JobSpec{Name: "careless", Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 1000, Memory: 64 << 20},
		Task: gpuai.TaskSpec{
			Script: "echo " + secret + "; echo $DB_PASSWORD >&2; exec sleep 300",
			Env:    map[string]string{"DB_PASSWORD": secret, "PLAIN": secret},
		},
	}}}
}

// Case 37, of a bundle: no secret of a task leaves the region, and what cannot
// be had is named. One server is dead, and of the others one is asked.
func TestCase37BundleHasNoSecretsAndNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.startNode("n1", 2, r.addrs()...)
	const secret = "hush-4711-do-not-tell"
	sub := r.submit(secretJob(secret))
	eventually(t, patience, "running job", func(ctx context.Context) error {
		c := r.client()
		l, err := c.Lease(ctx, sub.Leases[0].ID)
		if err == nil && l.State != gpuai.LeaseRunning {
			err = fmt.Errorf("its lease is %s", l.State)
		}
		return err
	})
	lead := r.leader()
	var dead, asked *member
	for _, m := range r.servers {
		if m != lead && dead == nil {
			dead = m
		} else {
			asked = m
		}
	}
	dead.kill()
	out := filepath.Join(r.dir, "fault.tgz")
	args := []string{"operator", "bundle", "--addr", asked.http, "--out", out, "--data", asked.dir}
	p := start(t, "bundle", "gpuai", args...)
	if code := p.exit(patience); code != 0 {
		t.Fatalf("it ends with %d", code)
	}
	files := bundleOf(t, out)
	checkBundle(t, files, lead.id, asked.id, dead.id)
	for name, data := range files {
		if bytes.Contains(data, []byte("hush")) {
			t.Errorf("%s tells the secret:\n%s", name, data)
		}
	}
	if !bytes.Contains(files["jobs.json"], []byte(sub.Job.ID.String())) || !bytes.Contains(files["leases.json"], []byte(sub.Leases[0].ID.String())) {
		t.Error("the job and its lease are not there")
	}
	again := start(t, "bundle", "gpuai", args...)
	if code := again.exit(patience); code != 2 {
		t.Errorf("over a file that is there it ends with %d, not 2", code)
	}
}

func checkBundle(t *testing.T, files map[string][]byte, lead, asked, dead string) {
	t.Helper()
	want := []string{
		"manifest.json", "raft.json", "digests.json", "policy.json", "queue.json", "pending.json", "jobs.json", "leases.json", "nodes.json",
		"events.jsonl", "local/files.json", "local/identity", "local/FORMAT",
	}
	for _, id := range []string{lead, asked} {
		for _, f := range []string{"server.json", "metrics.txt", "logs.txt", "goroutines.txt", "heap.txt", "cpu.pprof"} {
			want = append(want, path.Join("servers", id, f))
		}
	}
	for _, name := range want {
		if len(files[name]) == 0 {
			t.Errorf("%s is not there, or empty", name)
		}
		if path.Ext(name) == ".json" && !json.Valid(files[name]) {
			t.Errorf("%s is no JSON: %.200s", name, files[name])
		}
	}
	var manifest struct {
		Servers []string
		Missing []struct{ What, Why string }
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Servers) != 2 || len(manifest.Missing) != 1 || manifest.Missing[0].What != "server "+dead {
		t.Errorf("the manifest names the servers %v and misses %v", manifest.Servers, manifest.Missing)
	}
	var digests struct{ Agree bool }
	if err := json.Unmarshal(files["digests.json"], &digests); err != nil || !digests.Agree {
		t.Errorf("digests: %s, %v", files["digests.json"], err)
	}
}
