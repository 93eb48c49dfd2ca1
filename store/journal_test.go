package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func journalFixture(ordinal uint16) JournalLease {
	return JournalLease{
		Assignment: gpuai.Assignment{
			Lease: gpuai.Lease{
				ID: gpuai.MakeToken(1, 77, ordinal), Node: "gpu-a1", Devices: []gpuai.DeviceID{"GPU-1"},
				Incarnation: gpuai.MakeIncarnation(1, 3), TTL: 20 * gpuai.Second, CPU: 500,
			},
			JobName: "train", GroupName: "main",
			Task: gpuai.TaskSpec{Runtime: gpuai.RuntimeProcess, Command: []string{"sleep", "1"}, Env: map[string]string{"A": "b"}},
			Gang: &gpuai.GangInfo{Rank: 1, Size: 2, MasterAddr: "127.0.0.1", MasterPort: 7, NodeIPs: []string{"127.0.0.1"}},
		},
		State: JournalRunning, BootID: "boot", Cgroup: "/x", PID: 12, PIDStart: 1 << 40, Seq: 2,
		Unsent: []gpuai.Report{{Lease: gpuai.MakeToken(1, 77, ordinal), Seq: 2, State: gpuai.ReportRunning}},
	}
}

func openJournal(t *testing.T, path string) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestJournalRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "journal.db")
	j := openJournal(t, path)
	id := JournalIdentity{
		Node: "gpu-a1", Nonce: "n", Incarnation: gpuai.MakeIncarnation(2, 9), BootID: "boot", Epoch: 2, RestoreID: "r",
		Unclean: map[gpuai.DeviceID]string{"GPU-9": "holders left"},
	}
	one, two := journalFixture(1), journalFixture(2)
	if err := j.Commit(JournalChange{Identity: &id, Put: []JournalLease{one, two}}); err != nil {
		t.Fatal(err)
	}
	if err := j.Commit(JournalChange{Delete: []gpuai.Token{two.Assignment.Lease.ID, 5}}); err != nil {
		t.Fatal(err)
	}
	if err := j.Commit(JournalChange{}); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	gotID, leases, err := openJournal(t, path).Load()
	if err != nil || !reflect.DeepEqual(gotID, id) || !reflect.DeepEqual(leases, []JournalLease{one}) {
		t.Fatalf("loaded %+v, %+v, %v", gotID, leases, err)
	}
}

func TestJournalIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := openJournal(t, path)
	_, err := OpenJournal(path)
	if !errors.Is(err, ErrJournalInUse) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("a second agent got %v", err)
	}
	j.Close()
	openJournal(t, path)
}

func TestJournalDamageIsFound(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":         func([]byte) []byte { return []byte{} },
		"truncated":     func(b []byte) []byte { return b[:len(b)/2] },
		"one page":      func(b []byte) []byte { return b[:4096] },
		"one byte":      func(b []byte) []byte { return b[:1] },
		"garbage":       func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"record flip":   func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("gpu-a1"), []byte("gpu-a2")) },
		"key flip":      func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("gpu-a1"), []byte("\"pu-a1")) },
		"zeroed middle": func(b []byte) []byte { clear(b[len(b)/4 : len(b)/2]); clear(b[len(b)/2:]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			j := openJournal(t, path)
			var put []JournalLease
			for i := range uint16(50) {
				put = append(put, journalFixture(i))
			}
			if err := j.Commit(JournalChange{Put: put}); err != nil {
				t.Fatal(err)
			}
			j.Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if j, err := OpenJournal(path); !errors.Is(err, ErrJournalDamaged) {
				if err == nil {
					_, l, e := j.Load()
					j.Close()
					t.Fatalf("opened with %d leases, %v", len(l), e)
				}
				t.Fatal(err)
			}
		})
	}
}

func TestJournalFailedCommitChangesNothing(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "journal.db"))
	if err := j.Commit(JournalChange{Put: []JournalLease{journalFixture(1)}}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if err := j.Commit(JournalChange{Put: []JournalLease{journalFixture(2)}}); err == nil {
		t.Fatal("a closed journal took a write")
	}
}
