package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		voters, forgot int
		of             string // digests by server, mine first
		want           verdict
	}{
		{3, 0, "x x y", right},
		{3, 0, "x y y", wrong},
		{3, 0, "x x", right},
		{3, 0, "x y", undecided},
		{3, 1, "x y", skipped},
		{3, 0, "x y z", undecided},
		{5, 0, "x x y y", undecided},
		{5, 0, "x y y y", wrong},
		{5, 2, "x y y", skipped},
		{5, 2, "x x x", right},
		{2, 0, "x y", undecided},
		{1, 0, "x", right},
	} {
		ds := digests{of: make(map[gpuai.ServerID]string), voters: k.voters, forgot: k.forgot}
		for i, d := range strings.Fields(k.of) {
			ds.of[gpuai.ServerID(fmt.Sprint("s", i))] = d
		}
		if got := ds.judge("x"); got != k.want {
			t.Errorf("%d voters, %d forgot, %s: %s, want %s", k.voters, k.forgot, k.of, got, k.want)
		}
	}
}

// divergeOnDisk gives a stopped server a snapshot, newer than its newest, of a
// state in which one record is another: the region's policy.
func divergeOnDisk(t *testing.T, dir string, by int) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
	if len(found) == 0 {
		t.Fatal("there is no snapshot to begin with")
	}
	from := filepath.Dir(found[len(found)-1])
	var meta map[string]any
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := json.Unmarshal(read("meta.json"), &meta); err != nil {
		t.Fatal(err)
	}
	m, err := fsm.Restore(bytes.NewReader(read("state.bin")), fsm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := m.Policy()
	p.FlapLimit += uint32(by)
	cmd := (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{})
	index, term := uint64(meta["Index"].(float64))+1, uint64(meta["Term"].(float64))
	var out fsm.Output
	if err := m.Apply(index, term, fsm.AppendEntry(nil, fsm.Header{Time: m.Time(), Term: term}, cmd), &out); err != nil || out.Results[0].Code != gpuai.OK {
		t.Fatalf("%+v, %v", out.Results, err)
	}
	var state bytes.Buffer
	if err := m.WriteSnapshot(&state); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%d-%d-9999999999999", term, index)
	meta["ID"], meta["Index"], meta["Size"] = id, index, state.Len()
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	sum.Write(state.Bytes())
	meta["CRC"] = sum.Sum(nil)
	head, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "snapshots", id)
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"meta.json": head, "state.bin": state.Bytes()} {
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// diverge restarts a server with a state that is not the region's.
func (r *region) diverge(m *member, by int) {
	r.t.Helper()
	r.submit(jobSpec("early", 1), "")
	eventually(r.t, "something to take a snapshot of", func() bool { return m.node.AppliedIndex() > 0 })
	if err := m.node.Snapshot(); err != nil {
		r.t.Fatal(err)
	}
	r.submit(jobSpec("late", 1), "") // what the snapshot says otherwise
	r.halt(m)
	divergeOnDisk(r.t, m.cfg.DataDir, by)
	m.cfg.HTTP, m.cfg.Raft = listen(r.t), nil
	m.cfg.RaftAddr = m.addr()
	r.start(m)
}

func (m *member) addr() string {
	for _, p := range m.cfg.Peers {
		if p.ID == m.cfg.ID {
			return p.Addr
		}
	}
	return ""
}

// checkpoint does what the leader does every 10 s or 1,024 entries.
func (r *region) checkpoint() {
	r.t.Helper()
	r.write(func(m *member) error {
		var c fsm.Checkpoint
		m.node.View(func(f *fsm.Machine) { c.Index, c.Digest = f.Index(), f.Digest() })
		_, err := m.node.Propose(r.t.Context(), c.Append(nil, fsm.Envelope{}))
		return err
	})
}

func httpGet(t *testing.T, m *member, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + m.HTTPAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestCase19DivergedServerRebuilds finds a follower whose state differs within
// one checkpoint, sees that it serves nothing of its own, and lets it rebuild.
func TestCase19DivergedServerRebuilds(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	bad := r.followers()[0]
	agent := join(t, bad.Server, helloOf("n1", 2))
	r.diverge(bad, 1)
	agent.awaitEnd()
	var held []func() // while others have no fork left, nobody sends a state
	for _, m := range r.servers {
		for range 2 {
			if m != bad {
				_, release := m.node.Fork()
				held = append(held, release)
				defer release() // servers do not stop without
			}
		}
	}
	eventually(t, "ready server, though its state is wrong", func() bool { return bad.Status().Ready || bad.quarantine.why() != "" })
	r.checkpoint()
	eventually(t, "quarantine", func() bool { return bad.quarantine.why() != "" && bad.node.Quarantined() })
	if why := bad.quarantine.why(); !strings.Contains(why, "differs from the majority's") || strings.Count(why, "s") < 3 {
		t.Errorf("it says %q", why)
	}
	for path, want := range map[string]int{
		"/v1/jobs?consistency=stale": 503, "/v1/jobs/early?consistency=stale": 503, "/v1/events": 503, "/readyz": 503,
		"/v1/jobs": 200, "/healthz": 200, "/metrics": 200, "/v1/operator/raft": 200,
	} {
		code, body := httpGet(t, bad, path)
		if code != want || want == 503 && !strings.Contains(body, "quarantined") {
			t.Errorf("GET %s → %d: %.300s", path, code, body)
		}
	}
	if err := bad.node.Snapshot(); err == nil {
		t.Error("it makes a snapshot of a wrong state")
	}
	a := connect(t, bad.Server, helloOf("n2", 1))
	if x := a.refusal(); x.Code != gpuai.NoLeader {
		t.Errorf("an agent is told %+v", x)
	}
	seen := false
	for _, m := range r.leader().Members(t.Context()).Members {
		seen = seen || m.Server == bad.cfg.ID && m.Quarantined != ""
	}
	if !seen {
		t.Error("the list of members does not say that it is quarantined")
	}
	r.write(func(m *member) error { return m.SetPolicy(t.Context(), gpuai.DefaultPolicy()) }) // a submit would want a fork

	for _, release := range held {
		release()
	}
	eventually(t, "rebuilt server", func() bool { return bad.quarantine.why() == "" && bad.Status().Ready })
	if n := testutil.ToFloat64(bad.metrics.divergence.WithLabelValues("wrong")); n != 1 {
		t.Errorf("gpuai_fsm_divergence_total is %v", n)
	}
	r.submit(jobSpec("after", 1), "")
	r.equalDigests()
	r.halt(bad)
	r.restart(bad)
	r.checkpoint()
	r.equalDigests()
	if why := bad.quarantine.why(); why != "" {
		t.Errorf("after a restart it is quarantined: %s", why)
	}
}

// TestCase19DivergedLeaderLetsGo makes the wrong one lead: its checkpoints are
// what the others find to differ.
func TestCase19DivergedLeaderLetsGo(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	bad := r.followers()[0]
	r.diverge(bad, 1)
	eventually(t, "leadership of the wrong one", func() bool {
		l := r.leader()
		if l == bad || bad.quarantine.why() != "" {
			return true
		}
		_ = l.node.TransferLeadership(t.Context()) // to whom is the library's choice
		return false
	})
	r.checkpoint()
	eventually(t, "verdict", func() bool { return testutil.ToFloat64(bad.metrics.divergence.WithLabelValues("wrong")) == 1 })
	eventually(t, "rebuilt server", func() bool { return bad.quarantine.why() == "" && bad.Status().Ready })
	r.submit(jobSpec("after", 1), "")
	r.equalDigests()
}

// TestCase19NoMajorityHalts makes three states of three: nobody knows which is
// right, and all servers stop with the values.
func TestCase19NoMajorityHalts(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	for i, m := range r.followers() {
		r.diverge(m, i+1)
	}
	r.checkpoint()
	for _, m := range r.servers {
		err := r.ended(m)
		if err == nil || !strings.Contains(err.Error(), "no majority has the same") || strings.Count(err.Error(), "s1 ") != 1 {
			t.Errorf("server %s ended with %v", m.cfg.ID, err)
		}
	}
}
