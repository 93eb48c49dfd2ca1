package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

// cli runs the client to its end and returns what it printed.
func (r *region) cli(want int, args ...string) (stdout, stderr string) {
	r.t.Helper()
	p := start(r.t, "gpuai "+strings.Join(args[:2], " "), "gpuai", args...)
	if code := p.exit(time.Minute); code != want {
		r.t.Fatalf("gpuai %s: exit code %d, want %d: %s", strings.Join(args, " "), code, want, p.err)
	}
	return p.out.String(), p.err.String()
}

// restored is what the tests read of a restore's answer.
type restored struct {
	Epoch     uint8          `json:"epoch"`
	RestoreID string         `json:"restore_id"`
	Digest    string         `json:"digest"`
	Quiet     gpuai.Duration `json:"quiet_ms"`
}

// restore stops every server, restores a backup into all of their directories,
// and starts them again. It returns when the region serves.
func (r *region) restore(file string) (out restored) {
	r.t.Helper()
	for _, m := range r.servers {
		m.kill()
	}
	args := []string{"operator", "snapshot", "restore", file, "--peers", r.peers, "--longest-ttl", testTTL.String(), "-o", "json"}
	for _, m := range r.servers {
		args = append(args, "--data", m.dir)
	}
	text, _ := r.cli(0, args...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		r.t.Fatalf("%v: %s", err, text)
	}
	for _, m := range r.servers {
		r.verify(m, out.Digest)
	}
	for _, m := range r.servers {
		r.start(m)
	}
	r.awaitReady()
	return out
}

// verify has a stopped server's directory verified, and compares the digest
// unless want is "".
func (r *region) verify(m *member, want string) {
	r.t.Helper()
	digest, _ := r.cli(0, "operator", "verify", "--data", m.dir, "-o", "json", "--jq", ".state.digest")
	if digest = strings.TrimSpace(digest); len(digest) != 32 || want != "" && digest != want {
		r.t.Errorf("server %s has digest %q, want %q", m.id, digest, want)
	}
}

// TestCase38BackupRestored restores a backup of a region with a running job
// into its servers, twice, while the agents go on: the task never has two
// runners, its tokens grow, and what came behind the backup is gone.
func TestCase38BackupRestored(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.shortLeases()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "region.snap")
	nodes := []*node{r.startNode("n1", 1, r.addrs()...), r.startNode("n2", 1, r.addrs()...)}
	job := r.submit(beatJob(t, "backed-up", dir)).Job.ID
	task := r.awaitRunning(job, dir, 0, patience)
	r.cli(0, "operator", "snapshot", "save", file, "--addr", "http://"+r.servers[0].http)
	r.cli(0, "operator", "snapshot", "inspect", file)
	later := r.submit(beatJob(t, "later", dir)).Job.ID
	r.awaitRunning(later, dir, 0, patience)
	if _, errs := r.cli(1, "operator", "snapshot", "restore", file, "--data", r.servers[0].dir, "--peers", r.peers); !strings.Contains(errs, "already in use by process") {
		t.Errorf("into a running server: %s", errs)
	}
	if _, errs := r.cli(1, "operator", "verify", "--data", r.servers[0].dir); !strings.Contains(errs, "already in use by process") {
		t.Errorf("verify of a running server: %s", errs)
	}
	last := task.Lease
	for epoch := uint8(1); epoch <= 2; epoch++ {
		began := beat.Boottime()
		out := r.restore(file)
		if out.Epoch != epoch {
			t.Fatalf("epoch %d, want %d", out.Epoch, epoch)
		}
		for _, n := range nodes {
			if got := n.awaitState(gpuai.NodeReady); got.Incarnation.Epoch() != epoch {
				t.Errorf("node %s has incarnation %s", n.id, got.Incarnation)
			}
		}
		if _, err := r.client().Job(t.Context(), later.String()); err == nil {
			t.Error("a job from behind the backup is there")
		}
		task = r.awaitRunning(job, dir, last, away)
		if task.Lease <= last || task.Lease.Epoch() != epoch {
			t.Errorf("token %s after %s", task.Lease, last)
		}
		run, _ := runOf(t, dir, task.Lease)
		if at := ms(run.First - began); at < out.Quiet {
			t.Errorf("the task ran %s after the restore began, and nothing is granted for %s", at, out.Quiet)
		}
		last = task.Lease
		st, err := r.servers[0].client.Raft(t.Context())
		if err != nil || st.Epoch != epoch || st.RestoreID != out.RestoreID || string(st.Cluster) != out.RestoreID {
			t.Errorf("%+v, %v", st, err)
		}
	}
	runs := oneRunner(t, dir)
	if len(runs) != 4 { // three of the job, one of the later
		t.Errorf("there are %d runs: %+v", len(runs), runs)
	}
	for _, n := range nodes {
		if !n.alive() {
			t.Errorf("agent %s has ended", n.id)
		}
	}
	r.equalDigests(0)
}

// TestCase38OneServerRestored restores a backup into one server of a region
// that runs: it is another cluster's member from then on, and is kept apart.
func TestCase38OneServerRestored(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	file := filepath.Join(t.TempDir(), "region.snap")
	r.submit(idleJob("before"))
	r.cli(0, "operator", "snapshot", "save", file, "--addr", "http://"+r.servers[0].http)
	m := r.servers[0]
	m.kill()
	r.cli(0, "operator", "snapshot", "restore", file, "--data", m.dir, "--peers", r.peers)
	r.start(m)
	if code := m.exit(patience); code == 0 || !strings.Contains(m.err.String(), "belongs to cluster") {
		t.Errorf("exit code %d: %s", code, m.err)
	}
	r.submit(idleJob("after"))
}

// idleJob is a job that waits for a node.
func idleJob(name string) *gpuai.JobSpec {
	return &gpuai.JobSpec{Name: name, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 1000, Memory: 64 << 20}, Task: gpuai.TaskSpec{Command: []string{"true"}},
	}}}
}

// levelOf waits until a server's state is of a feature level.
func (r *region) levelOf(m *member, want uint32) {
	r.t.Helper()
	eventually(r.t, patience, fmt.Sprintf("feature level %d on server %s", want, m.id), func(ctx context.Context) error {
		st, err := m.client.Raft(ctx)
		if err == nil && st.FeatureLevel != want {
			err = fmt.Errorf("it is %d, and the newest is %d", st.FeatureLevel, st.MaxFeatureLevel)
		}
		return err
	})
}

// restart stops a server as planned and starts it with other flags.
func (r *region) restart(m *member, flags ...string) {
	r.t.Helper()
	m.signal(syscall.SIGTERM)
	if code := m.exit(patience); code != 0 {
		r.t.Errorf("server %s ended with exit code %d", m.id, code)
	}
	m.flags = flags
	r.start(m)
	r.awaitReady()
}
