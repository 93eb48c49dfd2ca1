package offline

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// retire stops a job that waits, and takes it out of the machine.
func retire(t *testing.T, m *member, id gpuai.JobID) {
	t.Helper()
	propose(t, &fsm.StopJob{Job: id}, m)
	propose(t, &fsm.RetireJobs{Jobs: []gpuai.JobID{id}}, m)
}

// lived makes the directory of a stopped server with a history archive. Job
// early left the machine before the backup, late and newest behind it.
func lived(t *testing.T) (dir, backup string, early, late gpuai.JobID) {
	t.Helper()
	dir, backup = filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "region.snap")
	peers, _ := peersOf(t, "a")
	m := start(t, "a", dir, peers, true)
	register(t, m)
	var jobs []gpuai.JobID
	for range 6 { // the first two have the devices
		jobs = append(jobs, submit(t, m).Result.Job)
	}
	early, late = jobs[3], jobs[4]
	retire(t, m, early)
	save(t, m, backup)
	retire(t, m, late)
	retire(t, m, submit(t, m).Result.Job)
	m.stop(t)
	archive(t, dir)
	return dir, backup, early, late
}

// archive writes the archive of a stopped server, from its log.
func archive(t *testing.T, dir string) {
	t.Helper()
	look, err := store.OpenLook(dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := look.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	machine := fsm.New(fsm.Options{Region: "local"})
	var entries []store.ArchiveEntry
	for i := log.First; i <= log.Last; i++ {
		e, err := log.Read(i)
		if err != nil {
			t.Fatal(err)
		}
		var out fsm.Output
		if !e.Command {
			continue
		}
		if err := machine.Apply(e.Index, e.Term, e.Data, &out); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, store.ArchiveEntry{Prev: out.Prev, Index: out.Index, Upto: out.Index, Events: out.Events, Retired: out.Retired})
	}
	if err := errors.Join(log.Close(), look.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, err := store.OpenArchive(d)
	if err == nil {
		err = errors.Join(a.Append(entries), a.Close())
	}
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
}

// remembers says which of the jobs the archive of a directory has, and checks
// that it is whole.
func remembers(t *testing.T, dir string, jobs ...gpuai.JobID) string {
	t.Helper()
	r, err := Verify(t.Context(), dir, nil)
	if err != nil || !r.OK || r.Archive == nil || !r.Archive.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	a, err := store.OpenArchiveToRead(filepath.Join(dir, "archive.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	out := ""
	for _, id := range jobs {
		_, ok, err := a.Job(id)
		if err != nil {
			t.Fatal(err)
		}
		out += map[bool]string{true: "+", false: "-"}[ok]
	}
	return out
}

// Case 38: the history up to the backup stays readable, and what the region did
// behind it, which never was in the restored one, does not.
func TestCase38RestoreKeepsTheHistory(t *testing.T) {
	t.Parallel()
	dir, backup, early, late := lived(t)
	_, members := peersOf(t, "a", "b")
	if got := remembers(t, dir, early, late); got != "++" {
		t.Fatalf("before: %s", got)
	}
	dry := RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members, DryRun: true}
	planned, err := Restore(&dry)
	if err != nil || planned.Servers[0].History.Upto != planned.Backup.Index {
		t.Fatalf("%+v, %v", planned, err)
	}
	fresh := filepath.Join(t.TempDir(), "b")
	for epoch := uint8(1); epoch <= 2; epoch++ { // the second from what the first has set aside
		r := mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", dir}, {"b", fresh}}, Members: members})
		h := r.Servers[0].History
		if r.Epoch != epoch || h.Upto != r.Backup.Index || h.Indexes != h.Upto || !strings.Contains(h.From, "before-restore-") {
			t.Fatalf("epoch %d: %+v", r.Epoch, h)
		}
		if _, err := os.Stat(h.From); err != nil {
			t.Errorf("the old archive is gone: %v", err)
		}
		if got := remembers(t, dir, early, late); got != "+-" {
			t.Errorf("epoch %d: %s", epoch, got)
		}
		if h := r.Servers[1].History; h.From != "" || epoch == 1 && !strings.Contains(h.Why, "no history archive") {
			t.Errorf("of a fresh server: %+v", h)
		}
		if got := remembers(t, fresh, early, late); got != "--" { // it asks the others
			t.Errorf("of a fresh server: %s", got)
		}
		// Again, as after a cut: the same.
		again := mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members, Epoch: r.Epoch, RestoreID: r.RestoreID})
		if got := remembers(t, dir, early, late); got != "+-" || again.Servers[0].History != h {
			t.Errorf("again: %s, %+v", got, again.Servers[0].History)
		}
	}
	// A backup of the restored region finds its own history.
	peers, members := peersOf(t, "a")
	mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", dir}}, Members: members})
	m := start(t, "a", dir, peers, false)
	submit(t, m)
	second := filepath.Join(t.TempDir(), "second.snap")
	save(t, m, second)
	m.stop(t)
	r := mustRestore(t, RestoreConfig{File: second, Targets: []Target{{"", dir}}, Members: members})
	if h := r.Servers[0].History; r.Epoch != 4 || h.Indexes != planned.Backup.Index+1 || h.Upto != r.Backup.Index {
		t.Errorf("epoch %d: %+v", r.Epoch, h)
	}
	if got := remembers(t, dir, early, late); got != "+-" {
		t.Errorf("of the second backup: %s", got)
	}
}

// An archive of another past is set aside, and the reason told.
func TestCase38RestoreKeepsNoOtherHistory(t *testing.T) {
	t.Parallel()
	dir, backup, _, _ := lived(t)
	other, _, _, _ := lived(t)
	_, members := peersOf(t, "a")
	for name, k := range map[string]struct {
		dir  string
		harm func(dir string) error
		want string
	}{
		"of another cluster": {other, func(string) error { return nil }, "it tells of another past"},
		"damaged":            {dir, func(d string) error { return os.Truncate(d+"/archive.db", 9000) }, "damaged"},
	} {
		if err := k.harm(k.dir); err != nil {
			t.Fatal(err)
		}
		r := mustRestore(t, RestoreConfig{File: backup, Targets: []Target{{"", k.dir}}, Members: members})
		if h := r.Servers[0].History; h.From != "" || !strings.Contains(h.Why, k.want) || !strings.Contains(h.Why, k.dir) {
			t.Errorf("%s: %+v", name, h)
		}
		if _, err := os.Stat(filepath.Join(r.Servers[0].Aside, "archive.db")); err != nil {
			t.Errorf("%s: the archive is gone: %v", name, err)
		}
	}
}

// A damaged archive is reported, and the rest of the directory is judged on its
// own.
func TestVerifyLooksAtTheArchive(t *testing.T) {
	t.Parallel()
	dir, _, _, _ := lived(t)
	r, err := Verify(t.Context(), dir, nil)
	if err != nil || !r.OK || r.Archive == nil || r.Archive.Jobs != 3 || r.Archive.Entries < 8 || r.Archive.Bytes == 0 || r.Archive.End() != r.State.Index {
		t.Fatalf("%+v, %v", r, err)
	}
	flip(t, dir+"/archive.db", []byte(`"submit_index"`))
	r, err = Verify(t.Context(), dir, nil)
	if err != nil || r.OK || r.Archive.OK || len(r.Findings) == 0 || r.State == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	if f := r.Findings[0]; !strings.HasSuffix(f.File, "/archive.db") || !strings.Contains(f.Problem, "fails its checksum") || !strings.Contains(f.Next, "sets a damaged archive aside") {
		t.Errorf("%+v", f)
	}
	if err := os.Truncate(dir+"/archive.db", 0); err != nil {
		t.Fatal(err)
	}
	if r, err = Verify(t.Context(), dir, nil); err != nil || r.OK || r.Archive != nil || len(r.Findings) != 1 || !strings.Contains(r.Findings[0].Problem, "the file is empty") {
		t.Errorf("%+v, %v", r, err)
	}
}
