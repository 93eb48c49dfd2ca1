package raft

import (
	"encoding/json"
	"hash/crc64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/store"
)

// reseal changes a byte of a snapshot's state and gives it the checksum that
// the library then expects: what is wrong is the content.
func reseal(t *testing.T, state string, at int, to byte) {
	t.Helper()
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	b[at] = to
	if err := os.WriteFile(state, b, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(state), "meta.json")
	var meta map[string]any
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &meta)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	h.Write(b)
	meta["CRC"] = h.Sum(nil)
	if raw, err = json.Marshal(meta); err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func damageMeta(t *testing.T, state string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(state), "meta.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// emptyLog deletes every entry of a stopped member's log: what an installed
// snapshot does.
func emptyLog(t *testing.T, path string) {
	t.Helper()
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := store.OpenLog(d)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.DeleteRange(0, 1<<40); err != nil {
		t.Fatal(err)
	}
}

// raiseEpoch has a stopped member remember that its region was restored from a
// backup: its first state is in no log.
func raiseEpoch(t *testing.T, path string) {
	t.Helper()
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Update(func(id *store.Identity) { id.Epoch = 1 }); err != nil {
		t.Fatal(err)
	}
}

// TestCase11DamagedSnapshot: the older snapshot is used where the log covers
// the gap; otherwise the server refuses to start, and says so.
func TestCase11DamagedSnapshot(t *testing.T) {
	t.Parallel()
	const all = 1000 // trailing logs: the log keeps everything
	cases := []struct {
		name     string
		trailing uint64
		damage   func(t *testing.T, dir string, files []string)
		want     string // "" = starts, with all that was acknowledged
	}{
		{"newest, and the log covers the gap", all, func(t *testing.T, _ string, f []string) { flip(t, f[1]) }, ""},
		{"newest truncated", all, func(t *testing.T, _ string, f []string) { os.Truncate(f[1], 10) }, ""},
		{"newest empty", all, func(t *testing.T, _ string, f []string) { os.Truncate(f[1], 0) }, ""},
		{"state of newest gone", all, func(t *testing.T, _ string, f []string) { os.Remove(f[1]) }, ""},
		{"meta of newest damaged", all, func(t *testing.T, _ string, f []string) { damageMeta(t, f[1]) }, ""},
		{"newest of another format", all, func(t *testing.T, _ string, f []string) { reseal(t, f[1], 8, 2) }, ""},
		{"content of newest contradicts itself", all, func(t *testing.T, _ string, f []string) { reseal(t, f[1], 400, 0xee) }, ""},
		{"newest, and the log does not cover the gap", 1, func(t *testing.T, _ string, f []string) { flip(t, f[1]) }, "its log begins at"},
		{"newest, and the log is empty", all, func(t *testing.T, d string, f []string) { emptyLog(t, d); flip(t, f[1]) }, "its log ends at 0 and its snapshot at"},
		{"meta of newest damaged, and the log is empty", all, func(t *testing.T, d string, f []string) { emptyLog(t, d); damageMeta(t, f[1]) }, "its log ends at 0 and its snapshot at"},
		{"newest of a newer level", all, func(t *testing.T, _ string, f []string) { reseal(t, f[1], 12, 99) }, "this server is too old for its region"},
		{"all, and the log reaches back to its beginning", all, func(t *testing.T, _ string, f []string) { flip(t, f[0]); flip(t, f[1]) }, ""},
		{"all truncated, and the log reaches back", all, func(t *testing.T, _ string, f []string) { os.Truncate(f[0], 10); os.Truncate(f[1], 0) }, ""},
		{"all, and the log does not reach back", 1, func(t *testing.T, _ string, f []string) { flip(t, f[0]); flip(t, f[1]) }, "none of the snapshots"},
		{"all, and the log is empty", all, func(t *testing.T, d string, f []string) { emptyLog(t, d); flip(t, f[0]); flip(t, f[1]) }, "none of the snapshots"},
		{"all, and the region was restored from a backup", all, func(t *testing.T, d string, f []string) { raiseEpoch(t, d); flip(t, f[0]); flip(t, f[1]) }, "none of the snapshots"},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { damagedSnapshot(t, k.trailing, k.damage, k.want) })
		})
	}
}

func damagedSnapshot(t *testing.T, trailing uint64, damage func(*testing.T, string, []string), want string) {
	c := newVirtual(t, 1)
	c.tune.trailingLogs = trailing
	c.start("a")
	var acked []gpuai.JobID
	for range 2 {
		for range 20 {
			_, id := c.submit(c.leader())
			acked = append(acked, id)
		}
		if err := c.leader().Snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	c.kill("a")
	files := c.snapshotFiles("a")
	if len(files) != 2 {
		t.Fatalf("snapshots: %v", files)
	}
	damage(t, c.path["a"], files)
	err := c.tryStart("a")
	if want != "" {
		next := "rejoin --wipe"
		if strings.Contains(want, "too old") {
			next = "run a newer version"
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), next) {
			t.Errorf("got %v, want %q and %q in it", err, want, next)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n := c.leader()
		for _, id := range acked {
			if !c.has(n, id) {
				t.Fatalf("job %s is lost", id)
			}
		}
		_, id := c.submit(n)
		acked = append(acked, id)
		if err := n.Snapshot(); err != nil {
			t.Fatal(err)
		}
		if r, err := n.OpenSnapshot(); err != nil {
			t.Errorf("the new snapshot: %v", err)
		} else {
			r.Close()
		}
		c.kill("a")
		c.start("a")
	}
}
