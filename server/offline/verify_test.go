package offline

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

func TestVerifyAWholeDirectory(t *testing.T) {
	t.Parallel()
	dir, backup := history(t)
	before := tree(t, dir)
	r, err := Verify(t.Context(), dir, nil)
	if err != nil || !r.OK || len(r.Findings) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if tree(t, dir) != before {
		t.Error("verifying changed the directory")
	}
	if r.Server != "a" || r.Log.First != 1 || r.Log.Entries != r.Log.Last || r.Log.Commands < 12 || len(r.Snapshots) != 2 {
		t.Errorf("%+v", r)
	}
	if s := r.State; s == nil || s.Index != r.Log.Last || s.Level != fsm.MinLevel || s.Nodes != 1 || s.Jobs != 11 || s.Leases != 2 {
		t.Errorf("%+v", r.State)
	}
	f, err := os.Open(backup)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := fsm.InspectSnapshot(f); err != nil || info.Digest != r.Snapshots[1].Digest {
		t.Errorf("the older snapshot has digest %s, the backup %s, %v", r.Snapshots[1].Digest, info.Digest, err)
	}
	// The directory of before the log was taken away is less, and says so.
	peers, _ := peersOf(t, "a")
	m := start(t, "a", dir, peers, false)
	if _, err := Verify(t.Context(), dir, nil); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "stop that server first") {
		t.Errorf("of a running server: %v", err)
	}
	m.stop(t)
	for path, what := range map[string]string{
		t.TempDir(): "it has no file", "/nonexistent": "nothing is there", backup: "it is a file", backup + "/a": "nothing is there",
	} {
		_, err := Verify(t.Context(), path, nil)
		if !errors.Is(err, store.ErrNoDir) || !strings.Contains(err.Error(), "there is no data directory at "+path+", "+what) || !strings.Contains(err.Error(), "--data") {
			t.Errorf("of %s: %v", path, err)
		}
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]struct {
		damage  func(t *testing.T, dir string)
		file    string // of the first finding
		problem string
		all     bool // every finding is harmless
	}{
		"identity flipped":  {func(t *testing.T, d string) { flip(t, d+"/identity", nil) }, "/identity", "is damaged", false},
		"identity gone":     {func(t *testing.T, d string) { os.Remove(d + "/identity") }, "/identity", "missing", false},
		"log gone":          {func(t *testing.T, d string) { os.Remove(d + "/raft.db") }, "/raft.db", "no such file", false},
		"log empty":         {func(t *testing.T, d string) { os.Truncate(d+"/raft.db", 0) }, "/raft.db", "empty", false},
		"log truncated":     {func(t *testing.T, d string) { os.Truncate(d+"/raft.db", 8192) }, "/raft.db", "", false},
		"log of garbage":    {func(t *testing.T, d string) { os.WriteFile(d+"/raft.db", make([]byte, 65536), 0o600) }, "/raft.db", "", false},
		"entry flipped":     {func(t *testing.T, d string) { flip(t, d+"/raft.db", []byte("H100")) }, "/raft.db", "fails its checksum", false},
		"newest snapshot":   {func(t *testing.T, d string) { flip(t, states(t, d)[1], nil) }, "state.bin", "fails its checksum", true},
		"older snapshot":    {func(t *testing.T, d string) { os.Truncate(states(t, d)[0], 3) }, "state.bin", "it has 3 bytes", true},
		"description":       {func(t *testing.T, d string) { os.Remove(filepath.Dir(states(t, d)[1]) + "/meta.json") }, "state.bin", "meta.json cannot be read", true},
		"state gone":        {func(t *testing.T, d string) { os.Remove(states(t, d)[1]) }, "state.bin", "no such file", true},
		"a restore cut off": {func(t *testing.T, d string) { os.WriteFile(d+"/RESTORING", nil, 0o600) }, "/RESTORING", "half of a restore", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := history(t)
			k.damage(t, dir)
			r, err := Verify(t.Context(), dir, nil)
			if err != nil || r.OK || len(r.Findings) == 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			harmless := true
			for _, f := range r.Findings {
				if harmless = harmless && f.Harmless; f.Next == "" || f.Problem == "" {
					t.Errorf("%+v", f)
				}
			}
			if f := r.Findings[0]; !strings.HasSuffix(f.File, k.file) || !strings.Contains(f.Problem, k.problem) || harmless != k.all {
				t.Errorf("%+v, want %q of %s, harmless %v", r.Findings, k.problem, k.file, k.all)
			}
			if k.all && (r.State == nil || r.State.Jobs != 11) {
				t.Errorf("the state is %+v", r.State)
			}
		})
	}
}

// A snapshot that is whole, and not what the log gives, is found.
func TestVerifyFindsAForeignSnapshot(t *testing.T) {
	t.Parallel()
	dir, _ := history(t)
	other, _ := history(t)
	mine, theirs := filepath.Dir(states(t, dir)[0]), filepath.Dir(states(t, other)[0])
	for _, f := range []string{"state.bin", "meta.json"} {
		b, err := os.ReadFile(filepath.Join(theirs, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(mine, f), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := Verify(t.Context(), dir, nil)
	if err != nil || r.OK || len(r.Findings) != 1 || !strings.Contains(r.Findings[0].Problem, "and the log gives") {
		t.Fatalf("%+v, %v", r.Findings, err)
	}
}
