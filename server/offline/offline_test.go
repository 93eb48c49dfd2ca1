package offline

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/store"
)

// A member is a server of a region, as far as Raft goes.
type member struct {
	*raft.Node
	dir *store.Dir
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(m.Close(), m.dir.Close()); err != nil {
		t.Error(err)
	}
}

// start runs a server on a directory until the test stops it.
func start(t *testing.T, id gpuai.ServerID, path string, peers []raft.Peer, bootstrap bool) *member {
	t.Helper()
	dir, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var ln net.Listener
	for _, p := range peers {
		if p.ID == id {
			if ln, err = net.Listen("tcp", p.Addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	n, err := raft.Open(raft.Config{ID: id, Region: "local", Dir: dir, Listener: ln, Peers: peers, Bootstrap: bootstrap})
	if err != nil {
		dir.Close()
		t.Fatal(err)
	}
	return &member{n, dir}
}

func peersOf(t *testing.T, ids ...gpuai.ServerID) (peers []raft.Peer, members []store.Member) {
	t.Helper()
	for _, id := range ids {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peers = append(peers, raft.Peer{ID: id, Addr: ln.Addr().String()})
		members = append(members, store.Member{Server: id, Addr: ln.Addr().String()})
		ln.Close()
	}
	return peers, members
}

// submit stores a job on whichever leads.
func submit(t *testing.T, nodes ...*member) raft.Applied {
	t.Helper()
	var id gpuai.JobID
	rand.Read(id[:])
	spec := &gpuai.JobSpec{Name: "j", Groups: []gpuai.Group{{
		Count: 1, Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 1000, Memory: 1 << 30}, Task: gpuai.TaskSpec{Command: []string{"true"}},
	}}}
	spec.Defaults()
	return propose(t, &fsm.SubmitJob{ID: id, Spec: spec, HoldAnyway: true}, nodes...)
}

func propose(t *testing.T, c fsm.Command, nodes ...*member) raft.Applied {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		for _, n := range nodes {
			if !n.IsLeader() {
				continue
			}
			if a, err := n.Propose(ctx, c.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant})); err == nil && a.Result.Code == gpuai.OK {
				return a
			}
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			t.Fatal("nobody takes the command")
		}
	}
}

func register(t *testing.T, nodes ...*member) {
	t.Helper()
	propose(t, &fsm.RegisterNode{BootID: "b", Nonce: "n", Spec: gpuai.NodeSpec{
		ID: "n1", Address: "10.0.0.1:1", CPU: 64_000, Memory: 512 << 30,
		Devices: []gpuai.Device{{ID: "g0", Vendor: "nvidia", Model: "H100", Memory: 80 << 30}, {ID: "g1", Vendor: "nvidia", Model: "H100", Memory: 80 << 30}},
	}}, nodes...)
}

// history makes the directory of a stopped server with two snapshots and a log
// from the first entry on. Its backup is of the first snapshot.
func history(t *testing.T) (dir, backup string) {
	t.Helper()
	dir, backup = filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "region.snap")
	peers, _ := peersOf(t, "a")
	m := start(t, "a", dir, peers, true)
	register(t, m)
	for i := range 2 {
		for range 5 {
			submit(t, m)
		}
		if err := m.Snapshot(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			save(t, m, backup)
		}
	}
	submit(t, m)
	m.stop(t)
	return dir, backup
}

func save(t *testing.T, m *member, to string) {
	t.Helper()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	fork, release := m.Fork()
	defer release()
	if err := errors.Join(fork.WriteSnapshot(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// flip changes a bit in the middle of a file; of find, wherever that is in it:
// bbolt leaves old copies in pages that nobody reads.
func flip(t *testing.T, path string, find []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if find == nil {
		b[len(b)/2] ^= 1
	} else {
		other := slices.Clone(find)
		other[0] ^= 1
		b = bytes.ReplaceAll(b, find, other)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func states(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	return files
}

// tree sums up a directory's files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out.WriteString(path + "\x00" + string(b) + "\x00")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
