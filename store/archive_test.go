package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

func openTestArchive(t testing.TB, path string) *Archive {
	t.Helper()
	a, err := openArchive(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func archiveJobID(n uint64) (id gpuai.JobID) {
	for i := range 8 {
		id[15-i] = byte(n >> (8 * i))
	}
	id[0] = 1
	return id
}

// aLife is what the log says of job n: submitted and leased at one index,
// started, ended, retired, each `step` indexes later. It has one task that ran
// and one that was stopped before.
func aLife(n, at, step uint64) (entries []ArchiveEntry, job gpuai.RetiredJob) {
	id := archiveJobID(n)
	token := gpuai.MakeToken(0, at, 0)
	ref := gpuai.TaskRef{Job: id}
	spec := gpuai.JobSpec{Name: fmt.Sprintf("job-%d", n%3), Groups: []gpuai.Group{{Count: 2, Task: gpuai.TaskSpec{Command: []string{"true"}}}}}
	spec.Defaults()
	job = gpuai.RetiredJob{
		Job: gpuai.Job{
			ID: id, Name: spec.Name, Tenant: "default", Status: gpuai.JobStopped, Tasks: 2,
			SubmitIndex: at, ModifyIndex: at + 2*step, Spec: &spec,
		},
		Tasks:  []gpuai.Task{{TaskRef: ref, Status: gpuai.TaskStopped, Lease: token, Node: "n1", ExitCode: -3}},
		Leases: []gpuai.Lease{{ID: token, TaskRef: ref, Node: "n1", State: gpuai.LeaseEnded, Cause: gpuai.CauseStopped, Devices: []gpuai.DeviceID{"d"}}},
	}
	event := func(index uint64, ordinal uint32, kind gpuai.EventKind) gpuai.Event {
		e := gpuai.Event{Index: index, Ordinal: ordinal, Kind: kind, At: gpuai.Instant(index * 10), Job: id}
		if kind != gpuai.JobSubmitted && kind != gpuai.JobEnded {
			e.Lease, e.Node, e.Incarnation = token, "n1", gpuai.MakeIncarnation(3, 7)
		}
		return e
	}
	other := gpuai.Event{Index: at, Ordinal: 1, Kind: gpuai.NodeChanged, At: gpuai.Instant(at * 10), Node: "n2", NodeState: gpuai.NodeSuspect, Drained: true}
	ended := event(at+2*step, 0, gpuai.LeaseEndedEvent)
	ended.Cause, ended.ExitCode = gpuai.CauseStopped, -3
	over := event(at+2*step, 1, gpuai.JobEnded)
	over.JobStatus = gpuai.JobStopped
	return []ArchiveEntry{
		{Index: at, Events: []gpuai.Event{event(at, 0, gpuai.JobSubmitted), other, event(at, 2, gpuai.LeaseGrantedEvent)}},
		{Index: at + step, Events: []gpuai.Event{event(at+step, 0, gpuai.LeaseStarted)}},
		{Index: at + 2*step, Events: []gpuai.Event{ended, over}},
		{Index: at + 3*step, Retired: []gpuai.RetiredJob{job}},
	}, job
}

// lives is the lives of jobs 1 … n, interleaved, and the log they make.
func lives(n uint64) (entries []ArchiveEntry, jobs []gpuai.RetiredJob) {
	byIndex := make(map[uint64]*ArchiveEntry)
	last := uint64(0)
	for i := uint64(1); i <= n; i++ {
		life, job := aLife(i, 1+4*i, 4*3+1)
		jobs = append(jobs, job)
		for _, e := range life {
			byIndex[e.Index] = &e
			last = max(last, e.Index)
		}
	}
	prev := uint64(0)
	for i := uint64(1); i <= last; i++ {
		if e := byIndex[i]; e != nil {
			e.Prev, e.Upto = prev, i
			entries = append(entries, *e)
			prev = i
		}
	}
	return entries, jobs
}

// wantHistory checks that the archive tells of every job.
func wantHistory(t *testing.T, a *Archive, jobs []gpuai.RetiredJob) {
	t.Helper()
	for i := range jobs {
		want := jobs[i]
		want.Job.Archived = true
		id := want.Job.ID
		got, ok, err := a.Job(id)
		if err != nil || !ok || !reflect.DeepEqual(got, want.Job) {
			t.Fatalf("job %s reads\n%+v, %v, %v\nwant\n%+v", id, got, ok, err, want.Job)
		}
		tasks, err := a.Tasks(id, 0, 10)
		never := gpuai.Task{TaskRef: gpuai.TaskRef{Job: id, Task: 1}, Status: gpuai.TaskStopped}
		if err != nil || !reflect.DeepEqual(tasks, append(want.Tasks[:1:1], never)) {
			t.Fatalf("tasks of %s: %+v, %v", id, tasks, err)
		}
		leases, err := a.Leases(id, 0, 10)
		if err != nil || !reflect.DeepEqual(leases, want.Leases) {
			t.Fatalf("leases of %s: %+v, %v", id, leases, err)
		}
		if l, ok, err := a.Lease(want.Leases[0].ID); err != nil || !ok || !reflect.DeepEqual(l, want.Leases[0]) {
			t.Fatalf("lease %s: %+v, %v, %v", want.Leases[0].ID, l, ok, err)
		}
		wantEvents(t, a, id, i)
	}
}

// wantEvents pages through a job's five events.
func wantEvents(t *testing.T, a *Archive, id gpuai.JobID, i int) {
	t.Helper()
	var all []gpuai.Event
	var at EventPlace
	for more := true; more; {
		var page []gpuai.Event
		var err error
		if page, at, more, err = a.JobEvents(EventQuery{Job: id, Submitted: 1 + 4*uint64(i+1), After: at, Limit: 2}); err != nil || len(page) > 2 {
			t.Fatalf("%d events, %v", len(page), err)
		}
		all = append(all, page...)
	}
	life, _ := aLife(uint64(i+1), 1+4*uint64(i+1), 13)
	var want []gpuai.Event
	for _, e := range life {
		for _, x := range e.Events {
			if x.Job == id {
				want = append(want, x)
			}
		}
	}
	if !reflect.DeepEqual(all, want) {
		t.Fatalf("events of job %s:\n%+v\nwant\n%+v", id, all, want)
	}
}

func TestArchiveKeepsJobsWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	a := openTestArchive(t, path)
	entries, jobs := lives(40)
	for from := 0; from < len(entries); from += 7 {
		if err := a.Append(entries[from:min(from+7, len(entries))]); err != nil {
			t.Fatal(err)
		}
	}
	wantHistory(t, a, jobs)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = openTestArchive(t, path)
	wantHistory(t, a, jobs)
	if s := a.State(); len(s.Covered) != 1 || s.Covered[0].From != 1 || len(s.Gaps()) != 0 {
		t.Errorf("one history is covered as %+v", s)
	}
	if _, ok, err := a.Job(archiveJobID(999)); ok || err != nil {
		t.Errorf("a job that never was: %v, %v", ok, err)
	}
}

func TestArchiveFindsAndListsJobs(t *testing.T) {
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	entries, jobs := lives(40)
	if err := a.Append(entries); err != nil {
		t.Fatal(err)
	}
	last := jobs[len(jobs)-1].Job
	for ref, want := range map[string]gpuai.JobID{
		last.ID.String(): last.ID, "job-1": archiveJobID(40), "job-2": archiveJobID(38),
		last.ID.String()[:25]: {}, "job-": {}, "no": {}, "zzzz": {}, "": {},
	} {
		if got, _, err := a.FindJob(ref); err != nil || got != want {
			t.Errorf("%q finds %s, %v; want %s", ref, got, err, want)
		}
	}
	if _, ambiguous, _ := a.FindJob(last.ID.String()[:20]); !ambiguous {
		t.Error("the beginning of 40 IDs is not ambiguous")
	}
	var at gpuai.JobID
	var ids []gpuai.JobID
	for {
		page, next, err := a.Jobs(at, 7, nil)
		if err != nil || len(page) > 7 {
			t.Fatal(len(page), err)
		}
		for _, j := range page {
			if ids = append(ids, j.ID); j.Spec != nil || !j.Archived {
				t.Errorf("listed: %+v", j)
			}
		}
		if at = next; at.IsZero() {
			break
		}
	}
	for i, id := range ids {
		if id != archiveJobID(uint64(40-i)) {
			t.Fatalf("place %d of the list is %s", i, id)
		}
	}
	if len(ids) != 40 {
		t.Errorf("the list has %d jobs", len(ids))
	}
	failed := gpuai.JobFailed
	if page, next, err := a.Jobs(gpuai.JobID{}, 7, &failed); len(page) != 0 || !next.IsZero() || err != nil {
		t.Errorf("failed jobs: %d, %s, %v", len(page), next, err)
	}
	gone := archiveJobID(1 << 40) // newer than all: cannot be, but must not skip
	if page, _, _ := a.Jobs(gone, 1, nil); len(page) != 1 || page[0].ID != last.ID {
		t.Errorf("behind a newer one: %+v", page)
	}
}

// What comes again after a restart is there once, in whatever portions.
func TestArchiveIsIdempotentByIndex(t *testing.T) {
	entries, jobs := lives(30)
	rng := rand.New(rand.NewPCG(7, 7))
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	for range 60 {
		from := rng.IntN(len(entries))
		if err := a.Append(entries[from:min(len(entries), from+1+rng.IntN(12))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Append(entries); err != nil {
		t.Fatal(err)
	}
	wantHistory(t, a, jobs)
	if got := allRows(t, a); len(got) != len(entries)+len(jobs) { // each life has 3 entries with events, 1 job, 1 task
		t.Errorf("the archive has %d rows of %d", len(got), len(entries)+len(jobs))
	}
	if s := a.State(); len(s.Covered) != 1 || len(s.Gaps()) != 0 {
		t.Errorf("covered: %+v", s)
	}
}

func allRows(t *testing.T, a *Archive) (all []ArchiveRow) {
	t.Helper()
	var at ArchivePlace
	for {
		rows, next, done, err := a.Rows(at, 1<<40, 300)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, rows...); done {
			return all
		}
		if at = next; len(rows) == 0 {
			t.Fatalf("no rows at %+v", at)
		}
	}
}

func TestArchiveIsFilledFromAnother(t *testing.T) {
	entries, jobs := lives(30)
	full := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	if err := full.Append(entries); err != nil {
		t.Fatal(err)
	}
	lame := openTestArchive(t, filepath.Join(t.TempDir(), "b.db"))
	third := len(entries) / 3
	if err := errors.Join(lame.Append(entries[:third]), lame.Append(entries[2*third:])); err != nil {
		t.Fatal(err)
	}
	gap := gpuai.IndexRange{From: entries[third-1].Index + 1, To: entries[2*third-1].Index}
	if s := lame.State(); len(s.Gaps()) != 1 || s.Gaps()[0] != gap {
		t.Fatalf("gaps %+v, want %+v", s.Gaps(), gap)
	}
	at := ArchivePlace{Index: gap.From}
	for done := false; !done; {
		var rows []ArchiveRow
		var err error
		if rows, at, done, err = full.Rows(at, gap.To, 500); err != nil {
			t.Fatal(err)
		}
		wire := AppendRows(nil, rows)
		back, err := ReadRows(wire)
		if err != nil || len(back) != len(rows) {
			t.Fatal(len(back), err)
		}
		covered := gpuai.IndexRange{From: gap.From, To: gap.To}
		if !done {
			covered.To = at.Index - 1
		}
		if err := errors.Join(lame.Fill(back, covered), lame.Fill(back, covered)); err != nil {
			t.Fatal(err)
		}
	}
	wantHistory(t, lame, jobs)
	if !reflect.DeepEqual(allRows(t, lame), allRows(t, full)) || len(gapsOf(lame)) != 0 {
		t.Error("the filled archive differs")
	}
	bad := AppendRows(nil, allRows(t, full)[:1])
	bad[len(bad)-1] ^= 1
	rows, err := ReadRows(bad)
	if err == nil {
		err = lame.Fill(rows, gpuai.IndexRange{From: 1, To: 0})
	}
	if err == nil || errors.Is(err, ErrArchiveDamaged) {
		t.Errorf("a row that was damaged on the way: %v", err)
	}
}

func TestArchiveDropsTheOldest(t *testing.T) {
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	entries, jobs := lives(4_000)
	if err := a.Append(entries); err != nil {
		t.Fatal(err)
	}
	before, file := a.Size()
	limit := before / 2
	dropped, err := a.Trim(limit)
	if err != nil || dropped < 1_000 || dropped > 3_000 {
		t.Fatalf("half the bytes were %d of %d jobs, %v", dropped, len(jobs), err)
	}
	if used, now := a.Size(); used > limit || now > file+(1<<20) {
		t.Errorf("%d bytes of %d are used after trimming to %d", used, now, limit)
	}
	if _, ok, _ := a.Job(jobs[0].Job.ID); ok {
		t.Error("the oldest job is still there")
	}
	if _, ok, _ := a.Lease(jobs[0].Leases[0].ID); ok {
		t.Error("the oldest lease is still there")
	}
	if id, _, _ := a.FindJob(jobs[0].Job.ID.String()); !id.IsZero() {
		t.Error("the oldest job can be found")
	}
	if e, _, _, err := a.JobEvents(EventQuery{Job: jobs[0].Job.ID, Submitted: jobs[0].Job.SubmitIndex, Limit: 9}); len(e) != 0 || err != nil {
		t.Errorf("%d events of the oldest job, %v", len(e), err)
	}
	s := a.State()
	if s.Dropped == 0 || s.Has()[0].From != s.Dropped+1 {
		t.Errorf("dropped: %+v", s)
	}
	wantEvents(t, a, jobs[3_999].Job.ID, 3_999)
	if err := a.Append(entries); err != nil { // a replay brings nothing back
		t.Fatal(err)
	}
	if _, ok, _ := a.Job(jobs[0].Job.ID); ok {
		t.Error("a replay brought the oldest job back")
	}
	if jobs, err := a.Trim(0); err != nil || jobs == 0 {
		t.Errorf("trimming to nothing: %d, %v", jobs, err)
	}
	if rows := allRows(t, a); len(rows) != 0 {
		t.Errorf("%d rows are left", len(rows))
	}
}

func TestDamagedArchive(t *testing.T) { // case 10, of the archive
	entries, _ := lives(2_000)
	master := filepath.Join(t.TempDir(), "a.db")
	a := openTestArchive(t, master)
	if err := errors.Join(a.Append(entries), a.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(master)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 3))
	for name, damage := range map[string]func([]byte) []byte{
		"bit flips": func(b []byte) []byte {
			for range 200 {
				b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			}
			return b
		},
		"random page": func(b []byte) []byte {
			for i := range 16 {
				page := 4096 * (2 + i*(len(b)/4096-2)/16)
				for k := range 4096 {
					b[page+k] = byte(rng.Uint32())
				}
			}
			return b
		},
		"zero pages":  func(b []byte) []byte { clear(b[4096*4 : len(b)/2]); return b },
		"truncated":   func(b []byte) []byte { return b[:len(b)/3] },
		"one page":    func(b []byte) []byte { return b[:4096] },
		"no database": func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			d, err := OpenDir(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			if err := os.WriteFile(d.Path(archiveFile), damage(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := OpenArchive(d)
			if err == nil {
				err = a.Scrub(t.Context(), func() {})
				defer a.Abandon()
			}
			if !errors.Is(err, ErrArchiveDamaged) {
				t.Fatalf("the damage was not found: %v", err)
			}
			aside, err := SetArchiveAside(d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(aside); err != nil {
				t.Error(err)
			}
			fresh, err := OpenArchive(d)
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()
			if err := errors.Join(fresh.Append(entries), fresh.Scrub(t.Context(), func() {})); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestArchiveIsWrittenSmallerWhenMostIsFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	a := openTestArchive(t, path)
	entries, jobs := lives(200)
	big := bytes.Repeat([]byte("x"), 50<<10)
	for i := range entries {
		for k := range entries[i].Retired {
			entries[i].Retired[k].Job.Reason = string(big)
		}
	}
	if err := a.Append(entries); err != nil {
		t.Fatal(err)
	}
	_, before := a.Size()
	if _, err := a.Trim(before / 10); err != nil {
		t.Fatal(err)
	}
	_, trimmed := a.Size()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = openTestArchive(t, path)
	if _, same := a.Size(); same < trimmed {
		t.Errorf("a file of %d bytes is worth no copy, and has %d now", trimmed, same)
	}
	if err := a.compact(before); err != nil {
		t.Fatal(err)
	}
	used, after := a.Size()
	if after > before/4 || used > after {
		t.Errorf("of %d bytes %d are left, %d of them used", before, after, used)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > before/4 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	wantEvents(t, a, jobs[199].Job.ID, 199)
	if err := a.Scrub(context.Background(), func() {}); err != nil {
		t.Error(err)
	}
}

func TestArchiveState(t *testing.T) {
	a := openTestArchive(t, filepath.Join(t.TempDir(), "a.db"))
	r := func(from, to uint64) gpuai.IndexRange { return gpuai.IndexRange{From: from, To: to} }
	want := func(step string, gaps, has []gpuai.IndexRange) {
		t.Helper()
		s := a.State()
		if !reflect.DeepEqual(s.Gaps(), gaps) || !reflect.DeepEqual(s.Has(), has) {
			t.Errorf("%s: gaps %v, has %v; want %v, %v", step, s.Gaps(), s.Has(), gaps, has)
		}
	}
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want("new", nil, nil)
	step(a.Reached(10))
	want("reached 10", []gpuai.IndexRange{r(1, 10)}, nil)
	step(a.Append([]ArchiveEntry{{Prev: 10, Index: 12, Upto: 14}}))
	want("after a restore", []gpuai.IndexRange{r(1, 10)}, []gpuai.IndexRange{r(11, 14)})
	step(a.Fill(nil, r(1, 4)))
	step(a.GiveUp(r(5, 6)))
	want("filled and given up", []gpuai.IndexRange{r(7, 10)}, []gpuai.IndexRange{r(1, 4), r(11, 14)})
	step(a.Lack(12))
	want("lacking", nil, []gpuai.IndexRange{r(13, 14)})
}

func TestRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2_000 {
		var set, other []gpuai.IndexRange
		var in, out [40]bool
		for range rng.IntN(6) {
			x := gpuai.IndexRange{From: 1 + rng.Uint64N(35), To: rng.Uint64N(39)}
			set = addRange(set, x)
			for i := x.From; i <= x.To; i++ {
				in[i] = true
			}
			y := gpuai.IndexRange{From: rng.Uint64N(35), To: rng.Uint64N(39)}
			other = addRange(other, y)
			for i := y.From; i <= y.To; i++ {
				out[i] = true
			}
		}
		left := subtractRanges(set, other)
		for i := range uint64(40) {
			if inRanges(set, i) != in[i] || inRanges(left, i) != (in[i] && !out[i]) {
				t.Fatalf("%v less %v: %v is wrong at %d", set, other, left, i)
			}
		}
		for i := 1; i < len(set); i++ {
			if set[i].From <= set[i-1].To+1 {
				t.Fatalf("%v is not in its form", set)
			}
		}
	}
}

func FuzzArchiveRows(f *testing.F) {
	entries, _ := lives(3)
	a := openTestArchive(f, filepath.Join(f.TempDir(), "a.db"))
	if err := a.Append(entries); err != nil {
		f.Fatal(err)
	}
	rows, _, _, err := a.Rows(ArchivePlace{}, 1<<40, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendRows(nil, rows))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := ReadRows(b)
		if err != nil {
			return
		}
		back, err := ReadRows(AppendRows(nil, rows))
		if err != nil || len(back) != len(rows) {
			t.Fatalf("%d rows became %d: %v", len(rows), len(back), err)
		}
		for i := range rows {
			r := &rows[i]
			if r.check() == nil && r.Kind == ArchiveEvents {
				refileEvents(t, r)
			}
			if len(r.Value) > rowHeader { // the sum of a body that nobody wrote
				r.Value = sealRow(r.Key, bytes.Clone(r.Value))
				_ = r.check()
			}
		}
	})
}

// refileEvents checks that events are read as they were written.
func refileEvents(t *testing.T, r *ArchiveRow) {
	var events, again []gpuai.Event
	_ = r.Events(func(e *gpuai.Event) bool { events = append(events, *e); return true })
	if len(events) == 0 {
		return
	}
	copied := ArchiveRow{Key: r.Key, Value: sealEvents(r.Key, events)}
	if err := copied.Events(func(e *gpuai.Event) bool { again = append(again, *e); return true }); err != nil || !reflect.DeepEqual(events, again) {
		t.Fatalf("%+v became %+v: %v", events, again, err)
	}
}

// Two events a job, 100 jobs an entry, 40 entries a transaction: submits that
// are placed at once.
func BenchmarkArchive(b *testing.B) {
	a := openTestArchive(b, filepath.Join(b.TempDir(), "a.db"))
	events, index := 0, uint64(0)
	var entries []ArchiveEntry
	for b.Loop() {
		b.StopTimer()
		entries = entries[:0]
		for range 40 {
			index++
			e := ArchiveEntry{Prev: index - 1, Index: index, Upto: index}
			for k := range uint32(100) {
				id := archiveJobID(index*100 + uint64(k))
				e.Events = append(e.Events,
					gpuai.Event{Index: index, Ordinal: 2 * k, Kind: gpuai.JobSubmitted, Job: id},
					gpuai.Event{Index: index, Ordinal: 2*k + 1, Kind: gpuai.LeaseGrantedEvent, Job: id, Node: "node-000123", Incarnation: 1, Lease: gpuai.MakeToken(0, index, uint16(k))})
			}
			events += len(e.Events)
			entries = append(entries, e)
		}
		b.StartTimer()
		if err := a.Append(entries); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
	_, file := a.Size()
	b.ReportMetric(float64(file)/float64(events), "file-B/event")
}

func gapsOf(a *Archive) []gpuai.IndexRange {
	s := a.State()
	return s.Gaps()
}
