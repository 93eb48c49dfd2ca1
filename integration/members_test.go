package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// newcomer returns a server that is not started yet.
func (r *region) newcomer(id string) *member {
	r.t.Helper()
	m := &member{id: id, http: freeAddr(r.t), raft: freeAddr(r.t), dir: filepath.Join(r.dir, id)}
	m.client = newClient(r.t, nil, m.http)
	return m
}

// join starts a server that names one member, and waits until it votes.
func (r *region) join(m *member, at string) {
	r.t.Helper()
	args := []string{"server", "run", "--data", m.dir, "--http", m.http, "--raft", m.raft, "--join", at}
	if _, err := os.Stat(m.dir); err != nil { // else the directory knows
		args = append(args, "--id", m.id)
	}
	m.proc = start(r.t, "server "+m.id, "gpuai", args...)
	eventually(r.t, 2*patience, "vote of server "+m.id, func(ctx context.Context) error {
		if !m.alive() {
			return fmt.Errorf("it ended with exit code %d", m.exit(0))
		}
		if err := m.client.Ready(ctx); err != nil {
			return err
		}
		list, err := m.client.Members(ctx, false)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list.Members, func(s gpuai.MemberStatus) bool { return string(s.Server) == m.id && s.Voter }) {
			return fmt.Errorf("the members are %+v", list.Members)
		}
		return nil
	})
}

// awaitLevel waits until the region remembers its servers.
func (r *region) awaitLevel() {
	r.t.Helper()
	eventually(r.t, patience, "feature level", func(ctx context.Context) error {
		st, err := r.leader().client.Raft(ctx)
		if err == nil && st.FeatureLevel < fsm.LevelServers {
			err = fmt.Errorf("it is %d", st.FeatureLevel)
		}
		return err
	})
}

// command runs the command, which must succeed, and returns what it prints.
func (r *region) command(args ...string) string {
	r.t.Helper()
	p := start(r.t, "gpuai "+strings.Join(args[:2], " "), "gpuai", args...)
	if code := p.exit(2 * patience); code != 0 {
		r.t.Fatalf("gpuai %s ended with %d: %s", strings.Join(args, " "), code, p.err)
	}
	return p.out.String()
}

// TestCase15ReplaceAllServers replaces all three servers under load, one after
// the other and each by the command, the leader too: nothing that was
// acknowledged is lost, and each removed server stops by itself.
func TestCase15ReplaceAllServers(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.register("n1")
	r.awaitLevel()
	var fresh [members]*member
	var more []string
	for i := range fresh {
		fresh[i] = r.newcomer(fmt.Sprintf("s%d", members+i+1))
		more = append(more, fresh[i].http)
	}
	l := r.startLoad("case15", more...)
	l.await(50)
	led := 0
	for i, m := range fresh {
		old := r.servers[i]
		r.join(m, r.servers[(i+1)%members].raft)
		if old == r.leader() {
			led++
		}
		out := r.command("server", "members", "remove", old.id, "--addr", m.http+","+old.http, "--request-timeout", "30s", "-o", "name")
		if strings.Contains(out, old.id) || !strings.Contains(out, m.id) {
			t.Errorf("after the removal of %s the members are %q", old.id, out)
		}
		if code := old.exit(patience); code != exitOther || !strings.Contains(old.err.String(), "was removed from") {
			t.Errorf("the removed server %s ended with %d: %s", old.id, code, errorOf(old.err.String()))
		}
		r.servers[i] = m
		l.await(50)
	}
	t.Logf("%d of the removed servers led", led)
	acked := l.halt()
	leases := r.nothingLost(acked)
	if leases < 150 {
		t.Errorf("only %d acknowledged leases: the test shows too little", leases)
	}
	r.equalDigests(newest(acked))
	list, err := r.client().Members(t.Context(), false)
	if err != nil || len(list.Members) != members || len(list.Removed) != members {
		t.Errorf("the members are %+v, %v", list, err)
	}
	// The old servers come back, as a forgotten unit file would have them.
	r.command("server", "members", "list", "--addr", fresh[0].http, "--jq", ".removed")
	again := &refusal{
		name: "a removed server", code: exitOther, want: []string{"was removed from"},
		args: []string{"server", "run", "--data", filepath.Join(r.dir, "s1"), "--http", freeAddr(t), "--raft", freeAddr(t), "--join", fresh[0].raft},
	}
	again.check(t)
	reused := &refusal{
		name: "a removed ID", code: exitOther, want: []string{"its ID is never used again"},
		args: []string{"server", "run", "--id", "s1", "--data", filepath.Join(r.dir, "empty"), "--http", freeAddr(t), "--raft", freeAddr(t), "--join", fresh[0].raft},
	}
	reused.check(t)
}

// TestRejoinWipe loses a server's log and rebuilds it under a new ID.
func TestRejoinWipe(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.register("n1")
	r.awaitLevel()
	l := r.startLoad("rejoin")
	l.await(30)
	m := r.servers[2]
	eventually(t, patience, "recorded identity", func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(m.dir, "identity"))
		if err == nil && !strings.Contains(string(b), "formed true") {
			err = errors.New("it has recorded nothing of its log yet")
		}
		return err
	})
	m.kill()
	if err := os.Truncate(filepath.Join(m.dir, "raft.db"), 0); err != nil {
		t.Fatal(err)
	}
	lost := &refusal{name: "a lost log", args: r.args(m), code: exitOther, want: []string{"gpuai server rejoin --wipe"}}
	lost.check(t)
	early := &refusal{
		name: "no --wipe", code: exitUsage, want: []string{"--wipe", "--join"}, args: []string{"server", "rejoin", "--data", m.dir},
	}
	early.check(t)
	nobody := &refusal{
		name: "nobody to join", code: exitOther, want: []string{"nothing was changed"},
		args: []string{"server", "rejoin", "--wipe", "--data", m.dir, "--join", freeAddr(t)},
	}
	nobody.check(t)
	var done struct {
		Old  string `json:"old_server"`
		New  string `json:"server"`
		Kept string `json:"kept"`
	}
	out := r.command("server", "rejoin", "--wipe", "--data", m.dir, "--join", r.servers[0].raft+","+r.servers[1].raft, "-o", "json")
	if err := json.Unmarshal([]byte(out), &done); err != nil || done.Old != m.id || !strings.HasPrefix(done.New, m.id+"-") {
		t.Fatalf("it printed %s: %v", out, err)
	}
	m.id = done.New
	r.join(m, r.servers[0].raft)
	l.await(30)
	acked := l.halt()
	r.nothingLost(acked)
	r.equalDigests(newest(acked))
	eventually(t, patience, "end of what was kept", func(context.Context) error {
		if _, err := os.Stat(done.Kept); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there: %v", done.Kept, err)
		}
		return nil
	})
}

// TestCase14ServerMoves restarts a server on other ports without --peers: it
// tells the others, and serves as before.
func TestCase14ServerMoves(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.awaitLevel()
	m := r.servers[1]
	m.signal(sigTerm)
	if code := m.exit(patience); code != 0 {
		t.Fatalf("a planned stop ended with %d", code)
	}
	m.http, m.raft = freeAddr(t), freeAddr(t)
	m.client = newClient(t, nil, m.http)
	m.proc = start(t, "server "+m.id, "gpuai", "server", "run", "--data", m.dir, "--http", m.http, "--raft", m.raft)
	r.awaitReady()
	eventually(t, patience, "new address of server "+m.id, func(ctx context.Context) error {
		list, err := r.servers[0].client.Members(ctx, false)
		if err != nil {
			return err
		}
		for _, s := range list.Members {
			if string(s.Server) == m.id && s.Address == m.raft && s.Reachable {
				return nil
			}
		}
		return fmt.Errorf("the members are %+v", list.Members)
	})
	r.register("n1") // an entry that all must have
	r.equalDigests(1)
}
