package raft

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gpuai/gpuai"
)

// snapshotFiles returns the state files of a member's snapshots, oldest first.
func (c *cluster) snapshotFiles(id gpuai.ServerID) []string {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.path[id], "snapshots", "*", "state.bin"))
	if err != nil {
		c.t.Fatal(err)
	}
	return files
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		t.Fatalf("%s: %d bytes, %v", path, len(b), err)
	}
	b[len(b)/2] ^= 8
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOneBootstraps has the other members learn cluster and configuration.
func TestOneBootstraps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		c.tweak = func(cfg *Config) { cfg.Bootstrap = cfg.ID == "a" }
		c.start("c", "b") // in any order
		c.start("a")
		c.converged()
		for _, id := range c.ids {
			if i, _ := c.dirs[id].Identity(); i.Cluster != c.nodes["a"].cluster() || i.Cluster == "" {
				t.Errorf("server %s is in cluster %q", id, i.Cluster)
			}
		}
	})
}

// TestHalfBootstrap continues a bootstrap that stopped between its writes.
func TestHalfBootstrap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 1)
		c.tweak = func(cfg *Config) { cfg.Bootstrap = false }
		c.start("a")
		if err := c.nodes["a"].log.SetUint64([]byte("CurrentTerm"), 1); err != nil {
			t.Fatal(err)
		}
		c.kill("a")
		c.tweak = nil
		c.start("a")
		c.submit(c.leader())
	})
}

func TestStrangerIsNotAdmitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		n := c.leader()
		cases := []struct {
			h    hello
			want string
		}{
			{hello{kindRaft, n.cluster(), "a", "a"}, ""},
			{hello{kindRaft, "", "a", ""}, ""},
			{hello{kindRaft, "", "x", "a"}, "server x is not among the members"},
			{hello{kindRaft, "other", "a", "a"}, "this server belongs to cluster"},
			{hello{kindRaft, n.cluster(), "a", "b"}, "this is server a, not b"},
		}
		for _, k := range cases {
			_, _, err := n.admit(k.h)
			if (err == nil) != (k.want == "") || err != nil && !strings.Contains(err.Error(), k.want) {
				t.Errorf("%+v: %v, want %q", k.h, err, k.want)
			}
		}
	})
}
