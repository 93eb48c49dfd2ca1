package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// newcomer starts a server that joins by naming one member.
func (r *region) newcomer(id gpuai.ServerID, change func(*Config)) *member {
	r.t.Helper()
	m := &member{cfg: Config{
		ID: id, DataDir: r.t.TempDir(), HTTP: listen(r.t), Raft: listen(r.t), Logger: testLogger(r.t),
		Join: []string{r.servers[0].RaftAddr()},
	}}
	if change != nil {
		change(&m.cfg)
	}
	r.start(m)
	r.servers = append(r.servers, m)
	return m
}

// awaitLevel waits until the region remembers servers.
func (r *region) awaitLevel() {
	r.t.Helper()
	eventually(r.t, "feature level that remembers servers", func() bool { return r.leader().level() >= fsm.LevelServers })
}

// awaitVoter waits until the leader counts a server's vote.
func (r *region) awaitVoter(id gpuai.ServerID) {
	r.t.Helper()
	eventually(r.t, "voter "+string(id), func() bool {
		m, ok := r.leader().node.Member(id)
		return ok && m.Voter
	})
}

// ended waits until a server's Run has returned and returns its error.
func (r *region) ended(m *member) error {
	r.t.Helper()
	select {
	case err := <-m.done:
		m.stop = nil
		return err
	case <-time.After(patience):
		r.t.Fatalf("server %s goes on", m.cfg.ID)
		return nil
	}
}

// remove asks a server that does not lead, as a command may; it passes it on.
func (r *region) remove(id gpuai.ServerID) {
	r.t.Helper()
	eventually(r.t, "removal of "+string(id), func() bool {
		err := r.leader().RemoveMember(r.t.Context(), id)
		if err != nil && !isCode(err, gpuai.NoLeader) && !isCode(err, gpuai.OutcomeUnknown) {
			r.t.Fatal(err)
		}
		return err == nil
	})
}

// TestCase15ServerJoinsAndTheLeaderLeaves adds a fourth server, removes the
// leader, and takes jobs all the time.
func TestCase15ServerJoinsAndTheLeaderLeaves(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.servers[1].Server, helloOf("n1", 8))
	defer a.keepBeating()()
	first := r.submit(jobSpec("before", 1), "")
	r.awaitLevel()
	d := r.newcomer("s4", nil)
	r.awaitVoter("s4")
	eventually(t, "ready newcomer", func() bool { return d.Status().Ready })
	old := r.leader()
	r.remove(old.cfg.ID)
	err := r.ended(old)
	if err == nil || !strings.Contains(err.Error(), "was removed from") {
		t.Errorf("the removed leader ended with %v", err)
	}
	r.submit(jobSpec("after", 1), "")
	if _, err := d.Job(first.Job.ID.String(), false); err != nil {
		t.Errorf("the newcomer lacks a job: %v", err)
	}
	list := r.leader().Members(t.Context())
	if len(list.Members) != 3 || len(list.Removed) != 1 || list.Removed[0] != old.cfg.ID || list.Cluster == "" {
		t.Errorf("the members are %+v", list)
	}
	for _, m := range list.Members {
		if !m.Voter || !m.Reachable || m.AppliedIndex == 0 || m.Server == old.cfg.ID {
			t.Errorf("member %+v", m)
		}
	}
	r.equalDigests()
	// Its ID, its directory or another one: it is refused for ever.
	old.cfg.HTTP, old.cfg.Raft, old.cfg.Peers, old.cfg.Bootstrap = listen(t), listen(t), nil, false
	old.cfg.Join = []string{d.RaftAddr()}
	r.start(old)
	if err := r.ended(old); err == nil || !strings.Contains(err.Error(), "rejoin --wipe") {
		t.Errorf("the removed server came back and ended with %v", err)
	}
	old.cfg.HTTP, old.cfg.Raft, old.cfg.DataDir = listen(t), listen(t), t.TempDir()
	r.start(old)
	if err := r.ended(old); err == nil || !strings.Contains(err.Error(), "its ID is never used again") {
		t.Errorf("its ID with an empty directory ended with %v", err)
	}
}

// TestNonVoterIsPromotedOnCommand keeps a server from asking for its vote.
func TestNonVoterIsPromotedOnCommand(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	l := r.leader()
	if err := l.AddMember(t.Context(), "dead", "127.0.0.1:9"); err != nil {
		t.Fatal(err)
	}
	if err := l.PromoteMember(t.Context(), "dead"); !isCode(err, gpuai.Conflict) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a server that is not there: %v", err)
	}
	if err := l.RemoveMember(t.Context(), "dead"); err != nil {
		t.Errorf("removing a non-voter that is not there: %v", err)
	}
	m := r.newcomer("s2", func(c *Config) { c.NonVoter = true })
	eventually(t, "ready newcomer", func() bool { return m.Status().Ready })
	if got, _ := l.node.Member("s2"); got.Voter {
		t.Error("it votes unasked")
	}
	if err := l.PromoteMember(t.Context(), "s2"); err != nil {
		t.Fatal(err)
	}
	r.awaitVoter("s2")
	if err := l.RemoveMember(t.Context(), "s3"); !isCode(err, gpuai.NotFound) {
		t.Errorf("a stranger: %v", err)
	}
}

// TestPromotionWaitsForTheLog asks for a vote while a server cannot apply.
func TestPromotionWaitsForTheLog(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	m := r.newcomer("s2", func(c *Config) { c.NonVoter = true })
	eventually(t, "ready newcomer", func() bool { return m.Status().Ready })
	held, let := make(chan struct{}), make(chan struct{})
	go m.node.View(func(*fsm.Machine) { close(held); <-let }) // Apply waits for it
	<-held
	r.submit(jobSpec("j", 1), "hold")
	err := r.leader().PromoteMember(t.Context(), "s2")
	close(let)
	if !isCode(err, gpuai.Conflict) || !strings.Contains(err.Error(), "is not caught up") {
		t.Errorf("got %v", err)
	}
}

// TestCase14MemberMoves restarts a follower on other ports, without telling it
// or anybody else where the members are.
func TestCase14MemberMoves(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	r.awaitLevel()
	m := r.followers()[0]
	was := m.RaftAddr()
	r.halt(m)
	m.cfg.HTTP, m.cfg.Raft, m.cfg.RaftAddr, m.cfg.Peers, m.cfg.Bootstrap = listen(t), listen(t), "", nil, false
	r.start(m)
	eventually(t, "ready server at its new address", func() bool { return m.Status().Ready })
	eventually(t, "new address in the configuration", func() bool {
		got, _ := r.leader().node.Member(m.cfg.ID)
		return got.Addr == m.RaftAddr()
	})
	if m.RaftAddr() == was {
		t.Fatal("it did not move")
	}
	// Requests go to and from it as before: both directions of forwarding.
	r.submit(jobSpec("j", 1), "")
	if err := r.leader().node.TransferLeadership(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.submit(jobSpec("k", 1), "")
	for _, s := range r.servers {
		eventually(t, "position of the moved server at "+string(s.cfg.ID), func() bool { return s.positionOf(t.Context(), m.cfg.ID, 1) != nil })
	}
	r.equalDigests()
}

// TestCase14ForeignServerIsRefused names a member of another cluster.
func TestCase14ForeignServerIsRefused(t *testing.T) {
	t.Parallel()
	ours, theirs := startRegion(t, 1), startRegion(t, 1)
	m := theirs.servers[0]
	theirs.halt(m)
	m.cfg.HTTP, m.cfg.Raft, m.cfg.Peers, m.cfg.Bootstrap = listen(t), listen(t), nil, false
	m.cfg.Join = []string{ours.servers[0].RaftAddr()}
	theirs.start(m) // it is a region of its own, and goes on
	eventually(t, "obstacle", func() bool { return m.node.IsLeader() || m.announcer.obstacle() != "" })
	if _, err := post(t.Context(), m.announcer.http, ours.servers[0].RaftAddr(), "the other", pathJoin, []byte("{}")); err == nil ||
		!strings.Contains(err.Error(), "this server belongs to cluster "+string(ours.servers[0].cluster())) {
		t.Errorf("a join across clusters: %v", err)
	}
	if got := ours.servers[0].node.Members(); len(got) != 1 {
		t.Errorf("the members are %+v", got)
	}
	for _, k := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"a name in use", func(c *Config) { c.ID = "s1" }, "could vote twice"},
		{"another region", func(c *Config) { c.Region = "mars" }, "is of region mars"},
	} {
		m := ours.newcomer("s9", k.change)
		if err := ours.ended(m); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: it ended with %v, want %q", k.name, err, k.want)
		}
		ours.servers = ours.servers[:1]
	}
}

// TestRejoinMintsANewServer wipes a stopped server and starts it as a new one.
func TestRejoinMintsANewServer(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	r.awaitLevel()
	r.submit(jobSpec("before", 1), "")
	m := r.followers()[0]
	old := m.cfg.ID
	cfg := RejoinConfig{DataDir: m.cfg.DataDir, Join: []string{r.leader().RaftAddr()}}
	if _, err := Rejoin(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("a running server's directory: %v", err)
	}
	r.halt(m)
	if _, err := Rejoin(t.Context(), RejoinConfig{DataDir: m.cfg.DataDir, Join: cfg.Join, Server: "other"}); err == nil || !strings.Contains(err.Error(), "belongs to server") {
		t.Errorf("another server's directory: %v", err)
	}
	if _, err := Rejoin(t.Context(), RejoinConfig{DataDir: m.cfg.DataDir, Join: cfg.Join, NewID: old}); err == nil || !strings.Contains(err.Error(), "an ID is never used again") {
		t.Errorf("the old ID: %v", err)
	}
	done, err := Rejoin(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if done.Old != old || !strings.HasPrefix(string(done.New), string(old)+"-") || done.Cluster == "" || done.Region == "" {
		t.Errorf("it says %+v", done)
	}
	if _, err := os.Stat(filepath.Join(done.Kept, "raft.db")); err != nil {
		t.Errorf("the old log: %v", err)
	}
	if again, err := Rejoin(t.Context(), cfg); err == nil {
		t.Errorf("a server that never was a member rejoins: %+v", again)
	}
	m.cfg.ID, m.cfg.Peers, m.cfg.Bootstrap, m.cfg.HTTP, m.cfg.Raft, m.cfg.RaftAddr = done.New, nil, false, listen(t), listen(t), ""
	m.cfg.Join = cfg.Join
	r.start(m)
	r.awaitVoter(done.New)
	eventually(t, "ready again", func() bool { return m.Status().Ready })
	r.submit(jobSpec("after", 1), "")
	r.equalDigests()
	eventually(t, "end of what was kept", func() bool { _, err := os.Stat(done.Kept); return errors.Is(err, os.ErrNotExist) })
	if list := r.leader().Members(t.Context()); len(list.Members) != 3 || len(list.Removed) != 1 || list.Removed[0] != old {
		t.Errorf("the members are %+v", list)
	}
}

// TestRejoinNeverLosesTheLastCopy is refused while the others have no majority.
func TestRejoinNeverLosesTheLastCopy(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	var job gpuai.Submitted
	r.write(func(m *member) (err error) {
		job, err = m.Submit(t.Context(), httpd.SubmitRequest{Spec: jobSpec("j", 1)})
		return err
	})
	stopped := r.followers()
	left := r.leader()
	for _, m := range stopped {
		r.halt(m)
	}
	cfg := RejoinConfig{DataDir: stopped[0].cfg.DataDir, Join: []string{left.RaftAddr(), stopped[1].cfg.RaftAddr}}
	if stopped[1].cfg.RaftAddr == "" {
		cfg.Join = cfg.Join[:1]
	}
	_, err := Rejoin(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "last copy") {
		t.Errorf("without a majority: %v", err)
	}
	cfg.Join = []string{"127.0.0.1:9"}
	if _, err := Rejoin(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("nobody answers: %v", err)
	}
	for _, m := range stopped {
		r.restart(m)
	}
	if _, err := stopped[0].Job(job.Job.ID.String(), false); err != nil {
		t.Errorf("the copy is gone: %v", err)
	}
}

func TestMintedNames(t *testing.T) {
	t.Parallel()
	for _, old := range []gpuai.ServerID{"a", "rack-2", "a-abcdef", gpuai.ServerID(strings.Repeat("x", 63))} {
		id := mintServerID(old)
		if !gpuai.ValidName(string(id)) || id == old {
			t.Errorf("%s became %s", old, id)
		}
	}
	if id := mintServerID("a-abcdef"); len(id) != len("a-abcdef") || !strings.HasPrefix(string(id), "a-") {
		t.Errorf("the ends add up: %s", id)
	}
}
