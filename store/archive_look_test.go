package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/gpuai/gpuai"
)

// filled writes the lives of n jobs into the archive at a path.
func filled(t *testing.T, path string, n uint64) (entries []ArchiveEntry, jobs []gpuai.RetiredJob) {
	t.Helper()
	a, err := openArchive(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, jobs = lives(n)
	if err := errors.Join(a.Append(entries), a.Close()); err != nil {
		t.Fatal(err)
	}
	return entries, jobs
}

// problems checks the archive at a path.
func problems(t *testing.T, path string) (out []string, c ArchiveCounts) {
	t.Helper()
	a, err := OpenArchiveToRead(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c, err = a.Check(t.Context(), func(place string, err error) { out = append(out, place+": "+err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	return out, c
}

func TestArchiveIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	entries, jobs := filled(t, path, 40)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	withEvents := uint64(0)
	for i := range entries {
		if len(entries[i].Events) > 0 {
			withEvents++
		}
	}
	if wrong, c := problems(t, path); len(wrong) > 0 || c != (ArchiveCounts{withEvents, 40, 40, 0}) {
		t.Fatalf("of a whole one: %v, %+v", wrong, c)
	}
	a, err := OpenArchiveToRead(path)
	if err != nil {
		t.Fatal(err)
	}
	wantHistory(t, a, jobs)
	if err := a.Append(entries); err == nil {
		t.Error("it was written")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Check(ctx, func(string, error) { t.Error("found something") }); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	a.Close()
	if now, err := os.Stat(path); err != nil || !now.ModTime().Equal(info.ModTime()) {
		t.Errorf("checking it changed it: %v", err)
	}
	if _, err := OpenArchiveToRead(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of none: %v", err)
	}
}

// Case 10, of the archive: what is wrong in one that nobody has open is found,
// row by row, where the file can be read.
func TestCase10ArchiveCheckFindsDamage(t *testing.T) {
	first := func(tx *bbolt.Tx, bucket []byte) (k, v []byte) {
		k, v = tx.Bucket(bucket).Cursor().First()
		return slices.Clone(k), slices.Clone(v)
	}
	drop := func(bucket []byte) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { k, _ := first(tx, bucket); return tx.Bucket(bucket).Delete(k) }
	}
	flipIn := func(bucket []byte) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			k, v := first(tx, bucket)
			v[len(v)/2] ^= 4
			return tx.Bucket(bucket).Put(k, v)
		}
	}
	for name, k := range map[string]struct {
		damage func(tx *bbolt.Tx) error
		want   string
	}{
		"events flipped":    {flipIn(bucketEntries), "entries, key 0000000000000005: a row fails its checksum"},
		"job flipped":       {flipIn(bucketJobs), "jobs, key 01000000000000000000000000000001: a row fails its checksum"},
		"task flipped":      {flipIn(bucketTasks), "a row fails its checksum"},
		"events gone":       {drop(bucketEntries), ""}, // the entry of a submit only: no row names it
		"job gone":          {drop(bucketJobs), "its job is missing"},
		"task gone":         {drop(bucketTasks), "the lease's task is missing"},
		"index of ends":     {drop(bucketRetired), "another job or none is filed there"},
		"index of leases":   {drop(bucketTokens), "what files it under its lease is missing"},
		"index of names":    {drop(bucketNames), "what files it under its name is missing"},
		"index of events":   {drop(bucketJobEvents), "what files its events under their job is missing"},
		"a name of no job":  {func(tx *bbolt.Tx) error { return tx.Bucket(bucketNames).Put([]byte("x"), nil) }, "the job of that name is missing"},
		"a lease of a task": {func(tx *bbolt.Tx) error { return tx.Bucket(bucketTokens).Put(indexKey(9), []byte("x")) }, "the lease's task is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.db")
			filled(t, path, 10)
			db, err := bbolt.Open(path, 0o600, nil)
			if err == nil {
				err = errors.Join(db.Update(k.damage), db.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			wrong, _ := problems(t, path)
			if k.want == "" && len(wrong) > 0 || k.want != "" && !strings.Contains(strings.Join(wrong, "\n"), k.want) {
				t.Errorf("found %q, want %q", wrong, k.want)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "a.db")
	filled(t, path, 10)
	for what, damage := range map[string]func() error{
		"cut off":  func() error { return os.Truncate(path, 8192) },
		"empty":    func() error { return os.Truncate(path, 0) },
		"no pages": func() error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenArchiveToRead(path); !errors.Is(err, ErrArchiveDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What a restored server keeps is the history up to an index, whole, and
// nothing behind it.
func TestHistoryIsKeptUpToAnIndex(t *testing.T) {
	from := filepath.Join(t.TempDir(), "old.db")
	entries, jobs := filled(t, from, 300)
	at := len(entries) / 2
	upto := entries[at].Index
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	begun := ArchiveEntry{Prev: upto, Index: upto + 1, Upto: upto + 1, Events: []gpuai.Event{{
		Kind: gpuai.LeaseEndedEvent, Index: upto + 1, Job: jobs[299].Job.ID, Lease: jobs[299].Leases[0].ID, Cause: gpuai.CauseRestored,
	}}}
	if err := keepHistory(d, &History{From: from, Upto: upto, Begun: begun}); err != nil {
		t.Fatal(err)
	}
	want := openTestArchive(t, filepath.Join(t.TempDir(), "want.db"))
	if err := want.Append(append(slices.Clone(entries[:at+1]), begun)); err != nil {
		t.Fatal(err)
	}
	path := d.Path(archiveFile)
	if wrong, _ := problems(t, path); len(wrong) > 0 {
		t.Errorf("what was kept has %v", wrong)
	}
	got := openTestArchive(t, path)
	if a, b := allRows(t, got), allRows(t, want); len(a) < 300 || !slices.EqualFunc(a, b, func(x, y ArchiveRow) bool {
		return x.Kind == y.Kind && x.Index == y.Index && string(x.Key) == string(y.Key) && string(x.Value) == string(y.Value)
	}) {
		t.Errorf("%d rows were kept, want %d", len(a), len(b))
	}
	if s := got.State(); len(s.Gaps()) > 0 || s.End() != upto+1 || !s.Knows(1) || s.Knows(upto+2) || s.Within(upto) != upto {
		t.Errorf("it knows %+v", s)
	}
}
