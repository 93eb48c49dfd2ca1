package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/store"
)

// retainShort has the members of a region retire jobs about a second after
// their end.
func retainShort(c *Config) { c.Retain = time.Second }

// finish lets a job of a name run to its success on an agent's devices, and
// returns it as it was then.
func (r *region) finish(a *testAgent, name string, tasks uint32) (job gpuai.Job, leases []gpuai.Lease) {
	r.t.Helper()
	sub := r.submit(jobSpec(name, tasks), "")
	for _, l := range a.awaitLeases(int(tasks)) {
		a.report(l, 1, gpuai.ReportRunning)
		a.report(l, 2, gpuai.ReportDone)
	}
	a.awaitLeases(0)
	m := r.leader()
	m.node.View(func(f *fsm.Machine) {
		job, _ = f.Job(sub.Job.ID, true)
		leases = f.LeasesOfJob(sub.Job.ID, 0, 100)
	})
	if job.Status != gpuai.JobSucceeded || len(leases) != int(tasks) {
		r.t.Fatalf("the job ended as %+v, with %d leases", job, len(leases))
	}
	return job, leases
}

// awaitRetired waits until no running server's machine has a job.
func (r *region) awaitRetired(id gpuai.JobID) {
	r.t.Helper()
	eventually(r.t, "retirement of "+id.String(), func() bool {
		kept := false
		for _, m := range r.servers {
			if m.stop != nil {
				m.node.View(func(f *fsm.Machine) { kept = kept || f.HasJob(id) })
			}
		}
		return !kept
	})
}

// wantArchived checks that one server tells of a job that left the machine what
// it told before.
func (m *member) wantArchived(t *testing.T, job gpuai.Job, leases []gpuai.Lease) {
	t.Helper()
	job.Archived = true
	for _, ref := range []string{job.ID.String(), job.Name} {
		if got, err := m.Job(ref, true); err != nil || !reflect.DeepEqual(got, job) {
			t.Errorf("server %s: job %s reads\n%+v, %v\nwant\n%+v", m.cfg.ID, ref, got, err, job)
		}
	}
	tasks, next, err := m.Tasks(job.Name, httpd.Page{})
	if err != nil || len(tasks) != int(job.Tasks) || next != "" || tasks[0].Status != gpuai.TaskSucceeded || tasks[0].Lease != leases[0].ID {
		t.Errorf("server %s: tasks %+v, %v", m.cfg.ID, tasks, err)
	}
	if got, _, err := m.Leases(httpd.LeaseQuery{Job: job.Name}); err != nil || !reflect.DeepEqual(got, leases) {
		t.Errorf("server %s: leases %+v, %v", m.cfg.ID, got, err)
	}
	if l, err := m.Lease(leases[0].ID, ""); err != nil || !reflect.DeepEqual(l, leases[0]) {
		t.Errorf("server %s: lease %+v, %v", m.cfg.ID, l, err)
	}
	m.wantEvents(t, job)
	if x, err := m.Explain(t.Context(), job.Name, 0); err != nil || x.Status != job.Status || len(x.Tasks) != int(job.Tasks) {
		t.Errorf("server %s: explanation %+v, %v", m.cfg.ID, x, err)
	}
}

// wantEvents reads a job's events a few at a time: per task it was granted,
// started and ended, between the submit and the job's end.
func (m *member) wantEvents(t *testing.T, job gpuai.Job) {
	t.Helper()
	var events []gpuai.Event
	cursor := ""
	for {
		page, next, err := m.JobEvents(t.Context(), job.ID.String(), httpd.Page{Limit: 2, Cursor: cursor})
		if err != nil {
			t.Errorf("server %s: events: %v", m.cfg.ID, err)
			return
		}
		events = append(events, page...)
		if cursor = next; cursor == "" {
			break
		}
	}
	count := make(map[gpuai.EventKind]uint32)
	for i, e := range events {
		count[e.Kind]++
		if e.Job != job.ID || i > 0 && (e.Index < events[i-1].Index || e.Index == events[i-1].Index && e.Ordinal <= events[i-1].Ordinal) {
			t.Errorf("server %s: event %d is %+v", m.cfg.ID, i, e)
		}
	}
	want := map[gpuai.EventKind]uint32{
		gpuai.JobSubmitted: 1, gpuai.LeaseGrantedEvent: job.Tasks, gpuai.LeaseStarted: job.Tasks, gpuai.LeaseEndedEvent: job.Tasks, gpuai.JobEnded: 1,
	}
	if !reflect.DeepEqual(count, want) || events[0].Kind != gpuai.JobSubmitted || events[len(events)-1].Kind != gpuai.JobEnded {
		t.Errorf("server %s: events %+v", m.cfg.ID, events)
	}
}

func TestRetiredJobsStayReadable(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		r := startRegionWith(t, n, retainShort)
		a := join(t, r.servers[0].Server, helloOf("n1", 4))
		a.keepBeating()
		job, leases := r.finish(a, "train", 3)
		r.awaitRetired(job.ID)
		for _, m := range r.servers {
			m.wantArchived(t, job, leases)
			if c := m.counts(); c.Jobs != 0 || c.Leases != 0 {
				t.Errorf("server %s still has %d jobs", m.cfg.ID, c.Jobs)
			}
		}
		r.equalDigests()
		for _, m := range r.servers { // one after the other: each replays what is in its log
			r.halt(m)
			r.restart(m)
			m.wantArchived(t, job, leases)
		}
	}
}

func (m *member) counts() (c fsm.Counts) {
	m.node.View(func(f *fsm.Machine) { c = f.Counts() })
	return c
}

func TestListsGoOnInTheArchive(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, retainShort)
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	a.keepBeating()
	want := make(map[gpuai.JobID]bool)
	for i := range 5 {
		job, _ := r.finish(a, fmt.Sprintf("j%d", i), 1)
		want[job.ID] = true
	}
	for id := range want {
		r.awaitRetired(id)
	}
	live := r.submit(jobSpec("live", 1), "")
	var all []gpuai.Job
	cursor := ""
	for {
		page, next, err := s.Jobs(httpd.JobQuery{Page: httpd.Page{Limit: 1, Cursor: cursor}, Archived: true})
		if err != nil || len(page) > 1 {
			t.Fatal(len(page), err)
		}
		all = append(all, page...)
		if cursor = next; cursor == "" {
			break
		}
	}
	if len(all) != 6 || all[0].ID != live.Job.ID || all[0].Archived || !all[1].Archived || all[1].Name != "j4" || all[5].Name != "j0" {
		t.Errorf("the list: %+v", all)
	}
	succeeded := gpuai.JobSucceeded
	if page, next, err := s.Jobs(httpd.JobQuery{Archived: true, Status: &succeeded}); err != nil || len(page) != 5 || next != "" {
		t.Errorf("%d succeeded jobs, %q, %v", len(page), next, err)
	}
	if page, _, err := s.Jobs(httpd.JobQuery{}); err != nil || len(page) != 1 {
		t.Errorf("without the archive: %d jobs, %v", len(page), err)
	}
	for _, bad := range []string{makeCursor("archive", "x"), makeCursor("jobs", "x"), "%"} {
		if _, _, err := s.Jobs(httpd.JobQuery{Page: httpd.Page{Cursor: bad}, Archived: true}); !isCode(err, gpuai.InvalidSpec) {
			t.Errorf("cursor %q: %v", bad, err)
		}
	}
}

func TestRetiredJobsAndCommands(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 3, retainShort)
	a := join(t, r.servers[0].Server, helloOf("n1", 4))
	a.keepBeating()
	first := r.submit(jobSpec("keyed", 1), "key")
	l := a.awaitLeases(1)[0]
	a.report(l, 1, gpuai.ReportRunning)
	a.report(l, 2, gpuai.ReportDone)
	r.awaitRetired(first.Job.ID)
	again := r.submit(jobSpec("keyed", 1), "key")
	if again.Job.ID != first.Job.ID || again.Job.Status != gpuai.JobSucceeded || !again.Job.Archived || again.Index != first.Index || len(again.Leases) != 1 {
		t.Errorf("the key answers %+v", again)
	}
	for _, ref := range []string{first.Job.ID.String(), "keyed"} {
		if _, err := r.leader().StopJob(t.Context(), ref, ""); !isCode(err, gpuai.Conflict) {
			t.Errorf("stopping %s: %v", ref, err)
		}
	}
	if _, err := r.leader().StopJob(t.Context(), gpuai.JobID{1}.String(), ""); !isCode(err, gpuai.NotFound) {
		t.Errorf("stopping what never was: %v", err)
	}
	if code := a.report(l, 3, gpuai.ReportDone); code != gpuai.NotFound {
		t.Errorf("a report about a retired job's lease: %s", code)
	}
	if x, err := r.leader().Plan(t.Context(), jobSpec("keyed", 1)); err != nil || len(x.Leases) != 1 {
		t.Errorf("a plan of a job of the same name: %+v, %v", x, err)
	}
	second := r.submit(jobSpec("keyed", 1), "")
	if job, err := r.leader().Job("keyed", false); err != nil || job.ID != second.Job.ID {
		t.Errorf("the name stands for %s, %v", job.ID, err)
	}
}

// A server that comes by a snapshot has not seen what happened before it.
func TestHistoryAfterASnapshotInstall(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 3, retainShort)
	away := r.followers()[0]
	r.halt(away)
	a := join(t, r.leader().Server, helloOf("n1", 4))
	a.keepBeating()
	job, leases := r.finish(a, "train", 2)
	r.awaitRetired(job.ID)
	lead := r.leader()
	if err := lead.node.Snapshot(); err != nil {
		t.Fatal(err)
	}
	// What an installed snapshot leaves: no log before it, and no history. (The
	// leader's log is long enough to send entries instead.)
	for _, err := range []error{
		os.RemoveAll(away.cfg.DataDir), os.Mkdir(away.cfg.DataDir, 0o700),
		os.WriteFile(filepath.Join(away.cfg.DataDir, "FORMAT"), []byte("1\n"), 0o600),
		os.CopyFS(filepath.Join(away.cfg.DataDir, "snapshots"), os.DirFS(filepath.Join(lead.cfg.DataDir, "snapshots"))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	away.cfg.Bootstrap = false
	r.restart(away)
	if at := away.node.RestoredIndex(); at < leases[0].ModifyIndex {
		t.Fatalf("it was restored at index %d, before the job ended", at)
	}
	eventually(t, "history on "+string(away.cfg.ID), func() bool {
		_, err := away.Job(job.ID.String(), false)
		if err != nil && !isCode(err, gpuai.NoLeader) && !isCode(err, gpuai.NotFound) {
			t.Fatal(err)
		}
		return err == nil
	})
	away.wantArchived(t, job, leases)
}

func TestDamagedHistoryIsRebuilt(t *testing.T) { // case 10, of the archive
	t.Parallel()
	r := startRegionWith(t, 3, retainShort)
	a := join(t, r.leader().Server, helloOf("n1", 4))
	a.keepBeating()
	job, leases := r.finish(a, "train", 2)
	r.awaitRetired(job.ID)
	hurt := r.followers()[0]
	hurt.wantArchived(t, job, leases)
	if err := hurt.node.Snapshot(); err != nil { // or its log would tell it all again
		t.Fatal(err)
	}
	r.halt(hurt)
	path := filepath.Join(hurt.cfg.DataDir, "archive.db")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.restart(hurt)
	eventually(t, "rebuilt history", func() bool {
		_, err := hurt.Job(job.ID.String(), false)
		if err != nil && !isCode(err, gpuai.NoLeader) {
			t.Fatalf("meanwhile it says %v", err)
		}
		return err == nil
	})
	hurt.wantArchived(t, job, leases)
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
	if n := hurt.archive.rebuilds.Load(); n != 1 {
		t.Errorf("%d rebuilds", n)
	}
	next, more := r.finish(a, "further", 1)
	r.awaitRetired(next.ID)
	hurt.wantArchived(t, next, more)
}

func TestDamageWhileRunning(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, func(c *Config) { c.Retain = -1 })
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	job, _ := r.finish(a, "train", 2)
	s.archive.fix(s.archive.current(), fmt.Errorf("a test says so: %w", store.ErrArchiveDamaged))
	if _, err := s.Job(job.ID.String(), false); err != nil {
		t.Errorf("a job in memory: %v", err)
	}
	later, _ := r.finish(a, "later", 2)
	s.wantEvents(t, later)
	eventually(t, "end of the search for what is lost", func() bool { return s.archive.gapIndexes() == 0 })
	s.wantEvents(t, job) // from this server's log: there is no other
	if _, err := s.Job("no-such-job", false); !isCode(err, gpuai.NotFound) {
		t.Errorf("what never was: %v", err)
	}
}

func TestOutputsThatFindTheQueueFull(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, func(c *Config) { c.Retain = -1 })
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	s.archive.mu.Lock()
	s.archive.weight += maxArchiveQueue // as if it were full
	s.archive.queue = append(s.archive.queue, store.ArchiveEntry{Prev: s.archive.offered, Index: s.archive.offered, Upto: s.archive.offered})
	s.archive.mu.Unlock()
	lost, _ := r.finish(a, "train", 2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.archive.await(ctx, s.machineIndex()); err != nil {
		t.Fatal(err)
	}
	if n := s.archive.overflows.Load(); n == 0 {
		t.Error("nothing overflowed")
	}
	eventually(t, "what was lost", func() bool { return s.archive.gapIndexes() == 0 })
	s.wantEvents(t, lost)
	later, _ := r.finish(a, "later", 2)
	s.wantEvents(t, later)
}

func TestArchiveMakesRoom(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, func(c *Config) { c.Retain, c.ArchiveMax = time.Second, MinArchiveMax })
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 1))
	a.keepBeating()
	first, _ := r.finish(a, "first", 1)
	r.awaitRetired(first.ID)
	script := make([]byte, 100<<10)
	for i := range script {
		script[i] = 'x'
	}
	for i := range 16 {
		spec := jobSpec(fmt.Sprintf("big-%d", i), 1)
		spec.Groups[0].Task = gpuai.TaskSpec{Script: string(script)}
		r.submit(spec, "")
		for _, l := range a.awaitLeases(1) {
			a.report(l, 1, gpuai.ReportDone)
		}
		a.awaitLeases(0)
	}
	eventually(t, "room", func() bool {
		used, _ := s.archive.size()
		return s.counts().Jobs == 0 && s.archive.dropped.Load() > 0 && used <= MinArchiveMax
	})
	if _, err := s.Job(first.ID.String(), false); !isCode(err, gpuai.NotFound) {
		t.Errorf("the oldest job: %v", err)
	}
	if job, err := s.Job("big-15", false); err != nil || !job.Archived {
		t.Errorf("the newest job: %+v, %v", job, err)
	}
}

func TestExportIsWhole(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, retainShort)
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	a.keepBeating()
	gone, leases := r.finish(a, "gone", 2)
	r.awaitRetired(gone.ID)
	live := r.submit(jobSpec("live", 1), "")
	export := func(since uint64) (lines []gpuai.ExportLine) {
		err := s.Export(t.Context(), since, func(l *gpuai.ExportLine) error {
			x := *l
			if l.Event != nil {
				e := *l.Event
				x.Event = &e
			}
			lines = append(lines, x)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return lines
	}
	lines := export(0)
	seen := make(map[string]int)
	last := uint64(0)
	for _, l := range lines {
		if l.Archived {
			if l.Index < last {
				t.Errorf("index %d comes behind %d", l.Index, last)
			}
			last = l.Index
		}
		switch {
		case l.Event != nil && l.Event.Job == gone.ID:
			seen["event"]++
		case l.Job != nil && l.Job.ID == gone.ID && l.Archived && l.Job.Spec != nil:
			seen["job"]++
		case l.Lease != nil && l.Lease.ID == leases[0].ID && l.Archived:
			seen["lease"]++
		case l.Task != nil && l.Task.Job == gone.ID:
			seen["task"]++
		case l.Job != nil && l.Job.ID == live.Job.ID && !l.Archived:
			seen["live job"]++
		case l.Lease != nil && l.Lease.Job == live.Job.ID && !l.Archived:
			seen["live lease"]++
		}
	}
	want := map[string]int{"event": 8, "job": 1, "lease": 1, "task": 2, "live job": 1, "live lease": 1}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("the export has %v, want %v", seen, want)
	}
	if lines[0].Kind != gpuai.ExportBegin || lines[len(lines)-1].Kind != gpuai.ExportEnd || lines[len(lines)-1].Index < last {
		t.Errorf("it begins with %+v and ends with %+v", lines[0], lines[len(lines)-1])
	}
	for _, l := range export(last) {
		if l.Archived && l.Index <= last {
			t.Errorf("after index %d came %+v", last, l)
		}
	}
}

func TestKeepFor(t *testing.T) {
	for _, x := range []struct {
		retain time.Duration
		age    gpuai.Duration
		full   uint32
		want   gpuai.Duration
	}{
		{time.Hour, gpuai.Day, 0, gpuai.Hour},
		{time.Hour, gpuai.Day, 699, gpuai.Hour},
		{time.Hour, gpuai.Day, 800, gpuai.Hour / 2},
		{time.Hour, gpuai.Minute, 800, gpuai.Minute / 2},
		{time.Hour, gpuai.Day, 900, 0},
		{time.Hour, gpuai.Day, 1000, 0},
		{-1, gpuai.Day, 0, -1},
		{-time.Hour, gpuai.Day, 800, gpuai.Day / 2},
		{-1, gpuai.Day, 950, 0},
	} {
		got := keepFor(x.retain, x.age, x.full)
		if got != x.want && (got >= 0 || x.want >= 0) {
			t.Errorf("retain %s in a region of %s full to %d: %s, want %s", x.retain, x.age, x.full, got, x.want)
		}
	}
}

// A server alone that lost its archive goes on with what its snapshots and log
// can tell, and says what they cannot.
func TestLostHistoryOfAServerAlone(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, retainShort)
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	a.keepBeating()
	job, leases := r.finish(a, "train", 2)
	r.awaitRetired(job.ID)
	if err := s.node.Snapshot(); err != nil {
		t.Fatal(err)
	}
	r.halt(s)
	if err := os.Remove(filepath.Join(s.cfg.DataDir, "archive.db")); err != nil {
		t.Fatal(err)
	}
	r.restart(s)
	eventually(t, "history from the log", func() bool {
		_, err := s.Job(job.ID.String(), false)
		return err == nil
	})
	s.wantArchived(t, job, leases)
}

// Who watched before a restart, or long ago, goes on without a loss. (Events
// before the snapshot that a server started from were passed over silently.)
func TestEventsResumeFromTheArchive(t *testing.T) {
	t.Parallel()
	r := startRegionWith(t, 1, retainShort)
	s := r.servers[0]
	a := join(t, s.Server, helloOf("n1", 4))
	a.keepBeating()
	job, _ := r.finish(a, "train", 2)
	r.awaitRetired(job.ID)
	if err := s.node.Snapshot(); err != nil {
		t.Fatal(err)
	}
	r.halt(s)
	r.restart(s)
	var got []gpuai.Event
	enough := errors.New("enough")
	watch := func(q httpd.EventQuery, until gpuai.EventKind) {
		got = nil
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		err := s.Events(ctx, q, func(events []gpuai.Event, _ uint64) error {
			got = append(got, events...)
			for _, e := range events {
				if e.Kind == until {
					return enough
				}
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("watching from %d: %v", q.From, err)
		}
	}
	watch(httpd.EventQuery{From: job.SubmitIndex - 1, Job: job.ID.String()}, gpuai.JobEnded)
	if len(got) != 8 || got[0].Kind != gpuai.JobSubmitted {
		t.Errorf("events of the job: %+v", got)
	}
	watch(httpd.EventQuery{From: 0}, gpuai.JobEnded)
	registered := slices.ContainsFunc(got, func(e gpuai.Event) bool { return e.Kind == gpuai.NodeRegistered })
	if len(got) < 10 || !registered || got[0].Index >= job.SubmitIndex {
		t.Errorf("events from the beginning: %+v", got)
	}
	next := r.submit(jobSpec("next", 1), "")
	watch(httpd.EventQuery{From: next.Index - 1}, gpuai.JobSubmitted)
}
