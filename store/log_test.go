package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	hraft "github.com/hashicorp/raft"
)

func openLog(t *testing.T, d *Dir) *Log {
	t.Helper()
	l, err := OpenLog(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func entry(index uint64) *hraft.Log {
	return &hraft.Log{Index: index, Term: 1 + index/100, Data: fmt.Appendf(nil, "entry number %d of the test", index)}
}

func storeEntries(t *testing.T, l *Log, from, to uint64) {
	t.Helper()
	var batch []*hraft.Log
	for i := from; i <= to; i++ {
		batch = append(batch, entry(i))
	}
	if err := l.StoreLogs(batch); err != nil {
		t.Fatal(err)
	}
}

func TestLogKeepsEntries(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	l := openLog(t, d)
	want := []*hraft.Log{
		{Index: 1, Term: 1, Type: hraft.LogConfiguration, Data: []byte("conf")},
		{Index: 2, Term: 1, Type: hraft.LogNoop},
		{Index: 3, Term: 2, Type: hraft.LogCommand, Data: bytes.Repeat([]byte{7}, 256<<10), Extensions: []byte("ext")},
	}
	if err := l.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	if string(want[2].Extensions) != "ext" {
		t.Error("storing changed the entry")
	}
	l.Close()
	l = openLog(t, d)
	for _, w := range want {
		var got hraft.Log
		if err := l.GetLog(w.Index, &got); err != nil {
			t.Fatal(err)
		}
		if got.AppendedAt = w.AppendedAt; len(got.Data) == 0 {
			got.Data = nil
		}
		if !reflect.DeepEqual(&got, w) {
			t.Errorf("entry %d: got %.60v, want %.60v", w.Index, got, *w)
		}
	}
	if err := l.GetLog(4, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
		t.Errorf("a missing entry gave %v", err)
	}
}

func TestLogStableKeys(t *testing.T) {
	d := openDir(t, t.TempDir())
	l := openLog(t, d)
	if _, err := l.GetUint64(keyCurrentTerm); err == nil || err.Error() != "not found" {
		t.Errorf("got %v; hraft compares the text", err)
	}
	if err := errors.Join(l.SetUint64(keyCurrentTerm, 5), l.Set([]byte("k"), []byte("v"))); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = openLog(t, d)
	n, err := l.GetUint64(keyCurrentTerm)
	v, err2 := l.Get([]byte("k"))
	if n != 5 || string(v) != "v" || err != nil || err2 != nil {
		t.Errorf("got %d, %q, %v, %v", n, v, err, err2)
	}
}

func TestSealFindsEveryBit(t *testing.T) {
	e := &hraft.Log{Index: 9, Term: 3, Type: hraft.LogCommand, Data: []byte("some data"), Extensions: []byte("x")}
	sealed := seal(e)
	flips := map[string]func(*hraft.Log){
		"index":  func(l *hraft.Log) { l.Index ^= 4 },
		"term":   func(l *hraft.Log) { l.Term ^= 1 },
		"type":   func(l *hraft.Log) { l.Type ^= 2 },
		"length": func(l *hraft.Log) { l.Data = l.Data[:len(l.Data)-1] },
		"moved":  func(l *hraft.Log) { l.Extensions = append([]byte("a"), l.Extensions...); l.Data = []byte("some dat") },
		"none":   func(l *hraft.Log) { l.Extensions = nil },
	}
	for i := range sealed.Data {
		flips[fmt.Sprint("data ", i)] = func(l *hraft.Log) { l.Data[i] ^= 16 }
	}
	for i := range sealed.Extensions {
		flips[fmt.Sprint("extension ", i)] = func(l *hraft.Log) { l.Extensions[i] ^= 1 }
	}
	for name, flip := range flips {
		got := sealed
		got.Data, got.Extensions = bytes.Clone(sealed.Data), bytes.Clone(sealed.Extensions)
		flip(&got)
		if err := unseal(9, &got); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if got := sealed; unseal(9, &got) != nil || !reflect.DeepEqual(got, *e) {
		t.Errorf("got %+v, want %+v", got, *e)
	}
	if got := sealed; unseal(8, &got) == nil {
		t.Error("an entry passes for another")
	}
}

func TestLogFindsABitFlipInTheFile(t *testing.T) {
	d := openDir(t, t.TempDir())
	l := openLog(t, d)
	storeEntries(t, l, 1, 40)
	l.Close()
	b, err := os.ReadFile(d.Path(logFile))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte("entry number 17 of"))
	if at < 0 {
		t.Fatal("the entry is not in the file")
	}
	b[at+3] ^= 0x20
	if err := os.WriteFile(d.Path(logFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, d)
	var e hraft.Log
	if err := l.GetLog(16, &e); err != nil {
		t.Errorf("entry 16: %v", err)
	}
	err = l.GetLog(17, &e)
	var damage *DamageError
	if !errors.Is(err, ErrDamaged) || !errors.As(err, &damage) || damage.Index != 17 {
		t.Fatalf("got %v", err)
	}
	if !strings.HasPrefix(err.Error(), "log entry 17 fails its checksum") || !strings.Contains(err.Error(), "rejoin --wipe") {
		t.Errorf("got %q", err)
	}
}

// TestLogSurvivesRandomPages overwrites pages and asks only that nothing
// panics and nothing wrong is read.
func TestLogSurvivesRandomPages(t *testing.T) {
	d := openDir(t, t.TempDir())
	l := openLog(t, d)
	storeEntries(t, l, 1, 600)
	l.Close()
	whole, err := os.ReadFile(d.Path(logFile))
	if err != nil {
		t.Fatal(err)
	}
	for page := 0; page < len(whole)/4096; page++ {
		for _, fill := range []byte{0, 0xff, 0x5a} {
			b := bytes.Clone(whole)
			copy(b[page*4096:], bytes.Repeat([]byte{fill}, 4096))
			if err := os.WriteFile(d.Path(logFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
			checkReads(t, d, fmt.Sprintf("page %d filled with %#x", page, fill))
		}
	}
	if err := os.WriteFile(d.Path(logFile), whole[:3*4096], 0o600); err != nil {
		t.Fatal(err)
	}
	checkReads(t, d, "truncated")
}

func checkReads(t *testing.T, d *Dir, what string) {
	t.Helper()
	l, err := OpenLog(d)
	if err != nil {
		return
	}
	defer l.Close()
	for i := uint64(1); i <= 600; i++ {
		var e hraft.Log
		if err := l.GetLog(i, &e); err == nil && !bytes.Equal(e.Data, entry(i).Data) {
			t.Fatalf("%s: entry %d reads %q", what, i, e.Data)
		}
	}
}

func TestChunks(t *testing.T) {
	cases := []struct {
		lo, hi uint64
		down   bool
		want   [][2]uint64
	}{
		{1, 1, false, [][2]uint64{{1, 1}}},
		{1, 4096, false, [][2]uint64{{1, 4096}}},
		{5, 10000, false, [][2]uint64{{5, 4100}, {4101, 8196}, {8197, 10000}}},
		{5, 10000, true, [][2]uint64{{8197, 10000}, {4101, 8196}, {5, 4100}}},
		{2, 1, true, nil},
	}
	for _, c := range cases {
		if got := chunks(c.lo, c.hi, c.down); !reflect.DeepEqual(got, c.want) {
			t.Errorf("chunks(%d, %d, %v) = %v, want %v", c.lo, c.hi, c.down, got, c.want)
		}
	}
}

func TestLogDeleteRange(t *testing.T) {
	cases := []struct {
		name                string
		lo, hi, first, last uint64
	}{
		{"front", 1, 9000, 9001, 10000},
		{"end", 9001, 10000, 1, 9000},
		{"all", 1, 10000, 0, 0},
		{"beyond both ends", 0, 1 << 60, 0, 0},
		{"nothing", 20000, 30000, 1, 10000},
	}
	d := openDir(t, t.TempDir())
	l := openLog(t, d)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			storeEntries(t, l, 1, 10000)
			if err := l.DeleteRange(c.lo, c.hi); err != nil {
				t.Fatal(err)
			}
			first, err := l.FirstIndex()
			last, err2 := l.LastIndex()
			if first != c.first || last != c.last || err != nil || err2 != nil {
				t.Errorf("left %d … %d (%v, %v), want %d … %d", first, last, err, err2, c.first, c.last)
			}
			if err := l.GetLog(max(c.lo, 1), new(hraft.Log)); c.last != 10000 && !errors.Is(err, hraft.ErrLogNotFound) {
				t.Errorf("a deleted entry can be read, or %v", err)
			}
		})
	}
	l.Close()
	if err := openLog(t, d).DeleteRange(5, 2); err != nil {
		t.Error(err)
	}
}

// history is a directory with a formed identity, entries 1 … 150 and,
// perhaps, a snapshot.
func history(t *testing.T, id Identity, snapshot uint64) (*Dir, *Log, hraft.SnapshotStore) {
	t.Helper()
	d := openDir(t, t.TempDir())
	id.Cluster, id.Server, id.Region, id.Formed = "c1", "a", "local", true
	l := openLog(t, d)
	storeEntries(t, l, 1, 150)
	if err := errors.Join(l.SetUint64(keyCurrentTerm, 2), d.SetIdentity(id)); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSnapshots(d, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if snapshot > 0 {
		_, trans := hraft.NewInmemTransport("")
		sink, err := s.Create(1, snapshot, 2, hraft.Configuration{}, 1, trans)
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return d, l, s
}

func TestCheckHistory(t *testing.T) {
	cases := []struct {
		name     string
		id       Identity
		snapshot uint64
		change   func(*Log) error
		want     string // "" = accepted
	}{
		{"whole", Identity{Applied: 150, AppliedTerm: 2}, 0, nil, ""},
		{"applied nothing yet", Identity{}, 0, nil, ""},
		{"log ends before", Identity{Applied: 151, AppliedTerm: 2}, 0, nil, "its log ends at 150"},
		{"snapshot covers it", Identity{Applied: 151, AppliedTerm: 2}, 151, nil, ""},
		{"snapshot and log too short", Identity{Applied: 161, AppliedTerm: 2}, 160, nil, "its snapshot at 160"},
		{"other term", Identity{Applied: 50, AppliedTerm: 2}, 0, nil, "term 1 at index 50"},
		{"term never seen", Identity{Applied: 150, AppliedTerm: 3}, 0, nil, "knows term 2"},
		{"emptied", Identity{Applied: 1, AppliedTerm: 1}, 0, func(l *Log) error { return l.DeleteRange(1, 150) }, "ends at 0"},
		{"emptied before anything applied", Identity{}, 0, func(l *Log) error { return l.DeleteRange(1, 150) }, "ends at 0"},
		{"all in the snapshot", Identity{Applied: 150, AppliedTerm: 2}, 150, func(l *Log) error { return l.DeleteRange(1, 150) }, ""},
		{"restored, and no snapshot", Identity{Applied: 150, AppliedTerm: 2, Epoch: 1}, 0, nil, "restored from a backup (epoch 1)"},
		{"front is gone", Identity{Applied: 150, AppliedTerm: 2}, 10, func(l *Log) error { return l.DeleteRange(1, 20) }, "begins at 21"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, l, s := history(t, c.id, c.snapshot)
			if c.change != nil {
				if err := c.change(l); err != nil {
					t.Fatal(err)
				}
			}
			err := CheckHistory(d, l, s)
			if c.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "rejoin --wipe") {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestLogThatVanished(t *testing.T) {
	for name, vanish := range map[string]func(string) error{
		"is missing": os.Remove,
		"is empty":   func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			d, l, _ := history(t, Identity{Applied: 3, AppliedTerm: 1}, 0)
			l.Close()
			if err := vanish(d.Path(logFile)); err != nil {
				t.Fatal(err)
			}
			_, err := OpenLog(d)
			if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			if info, err := os.Stat(d.Path(logFile)); err == nil && info.Size() > 0 {
				t.Error("the refusal made a new log")
			}
		})
	}
}

func TestSnapshotsLiveInTheDirectory(t *testing.T) {
	d, _, s := history(t, Identity{}, 42)
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Index != 42 {
		t.Fatalf("got %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(d.Path(snapshotDir), list[0].ID)); err != nil {
		t.Error(err)
	}
}
