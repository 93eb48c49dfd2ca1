package offline

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

func mustRestore(t *testing.T, c RestoreConfig) Restored {
	t.Helper()
	r, err := Restore(&c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Servers {
		v, err := Verify(t.Context(), s.Dir, nil)
		if err != nil || !v.OK || v.State.Digest != r.Digest || v.State.Epoch != r.Epoch || v.Cluster != r.Cluster {
			t.Fatalf("server %s: %+v, %v", s.Server, v, err)
		}
	}
	return r
}

// Case 38, the files' half: a backup becomes three servers that agree, elect a
// leader and go on; an older one restored again begins a later epoch.
func TestCase38RestoreIntoAFreshCluster(t *testing.T) {
	t.Parallel()
	old, backup := history(t)
	peers, members := peersOf(t, "a", "b", "c")
	base := t.TempDir()
	dirs := []Target{{"", old}, {"b", base + "/b"}, {"c", base + "/c"}}
	for epoch := uint8(1); epoch <= 2; epoch++ {
		r := mustRestore(t, RestoreConfig{File: backup, Targets: dirs[:2], Members: members})
		if r.Epoch != epoch || r.Ended != 2 || len(r.Missing) != 1 || r.Missing[0] != "c" || r.Level != fsm.LevelRestore {
			t.Fatalf("%+v", r)
		}
		if r.Quiet != gpuai.Hour+3*gpuai.Minute {
			t.Errorf("quiet for %s", r.Quiet)
		}
		// The third machine knows nothing, and is told.
		third := mustRestore(t, RestoreConfig{File: backup, Targets: dirs[2:], Members: members, Epoch: r.Epoch, RestoreID: r.RestoreID})
		if third.Digest != r.Digest || third.Cluster != r.Cluster {
			t.Fatalf("%+v beside %+v", third, r)
		}
		if _, err := os.Stat(filepath.Join(r.Servers[0].Aside, "raft.db")); err != nil {
			t.Errorf("what was there is gone: %v", err)
		}
		// Again, as after a cut: the same.
		if again := mustRestore(t, RestoreConfig{File: backup, Targets: dirs[2:], Members: members, Epoch: r.Epoch, RestoreID: r.RestoreID}); again.Digest != r.Digest {
			t.Fatalf("%+v beside %+v", again, r)
		}
		nodes := []*member{
			start(t, "a", old, peers, false), start(t, "b", base+"/b", peers, true), start(t, "c", base+"/c", peers, false),
		}
		at := submit(t, nodes...)
		digests := map[string]bool{}
		for _, n := range nodes {
			if err := n.WaitApplied(t.Context(), at.Index); err != nil {
				t.Fatal(err)
			}
			n.View(func(m *fsm.Machine) {
				digests[m.Digest().String()] = true
				if m.Epoch() != epoch || m.RestoreID() != r.RestoreID || m.Counts().Jobs != 6 || m.Counts().Leases != 0 || m.QuietUntil() == 0 {
					t.Errorf("epoch %d, %+v", m.Epoch(), m.Counts())
				}
			})
		}
		if len(digests) != 1 {
			t.Errorf("the digests differ: %v", digests)
		}
		for _, n := range nodes {
			n.stop(t)
		}
		for _, d := range []string{old, base + "/b", base + "/c"} {
			if v, err := Verify(t.Context(), d, nil); err != nil || !v.OK {
				t.Errorf("%+v, %v", v.Findings, err)
			}
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	dir, backup := history(t)
	peers, members := peersOf(t, "a", "b")
	torn := filepath.Join(t.TempDir(), "torn.snap")
	b, err := os.ReadFile(backup)
	if err == nil {
		err = os.WriteFile(torn, b[:len(b)-5], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(foreign+"/photo.jpg", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	for name, k := range map[string]struct {
		c    RestoreConfig
		want string
	}{
		"torn backup":      {RestoreConfig{File: torn, Targets: []Target{{"", dir}}}, "is not a whole snapshot"},
		"no backup":        {RestoreConfig{File: torn + "x", Targets: []Target{{"", dir}}}, "no such file"},
		"nobody's":         {RestoreConfig{File: backup, Targets: []Target{{"", t.TempDir()}}}, "say whose it is"},
		"somebody else's":  {RestoreConfig{File: backup, Targets: []Target{{"b", dir}}}, "belongs to server a and not to b"},
		"not a peer":       {RestoreConfig{File: backup, Targets: []Target{{"x", t.TempDir()}}}, "not among the peers"},
		"twice":            {RestoreConfig{File: backup, Targets: []Target{{"b", t.TempDir()}, {"b", t.TempDir()}}}, "two directories"},
		"no restore ID":    {RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Epoch: 2, RestoreID: "zz"}, "is not one"},
		"ID without epoch": {RestoreConfig{File: backup, Targets: []Target{{"", dir}}, RestoreID: strings.Repeat("ab", 16)}, "goes with the epoch"},
		"short TTL":        {RestoreConfig{File: backup, Targets: []Target{{"", dir}}, MaxTTL: gpuai.Second}, "must be"},
		"foreign files":    {RestoreConfig{File: backup, Targets: []Target{{"b", foreign}}}, "holds photo.jpg"},
	} {
		k.c.Members = members
		if _, err := Restore(&k.c); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v, want %q", name, err, k.want)
		}
	}
	dry := RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members, DryRun: true}
	if r, err := Restore(&dry); err != nil || r.Epoch != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	m := start(t, "a", dir, peers[:1], false)
	running := RestoreConfig{File: backup, Targets: []Target{{"b", t.TempDir()}, {"", dir}}, Members: members}
	if _, err := Restore(&running); !errors.Is(err, store.ErrInUse) {
		t.Errorf("into a running server: %v", err)
	}
	m.stop(t)
	if tree(t, dir) == before {
		t.Log("a start changed nothing")
	}
	mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members, Epoch: 9})
	low := RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members, Epoch: 9}
	if _, err := Restore(&low); err == nil || !strings.Contains(err.Error(), "epoch 9 is too low") {
		t.Errorf("an epoch that is known: %v", err)
	}
}

// A restore that is cut off leaves a directory that no server starts on, until
// it is run again.
func TestRestoreCutOff(t *testing.T) {
	t.Parallel()
	dir, backup := history(t)
	_, members := peersOf(t, "a")
	id, _, err := store.Owner(dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Cluster, id.Epoch = "c2", 1
	img := &store.Image{Identity: id, Members: members, Index: 5, Term: 1, Write: func(io.Writer) error { return errors.New("cut off") }}
	if err := store.Install(dir, store.AsidePrefix+"x", img); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Fatalf("%v", err)
	}
	if _, err := store.OpenDir(dir); !errors.Is(err, store.ErrRestoring) {
		t.Fatalf("a server starts on half a restore: %v", err)
	}
	r := mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members})
	if r.Epoch != 1 || r.Servers[0].Server != "a" {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(dir, store.AsidePrefix+"x", "raft.db")); err != nil {
		t.Errorf("what was there is gone: %v", err)
	}
	d, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}
