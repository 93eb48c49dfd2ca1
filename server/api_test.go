package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/server/hub"
	"github.com/gpuai/gpuai/store"
)

var hubAll = hub.Filter{}

func TestAnswersOfASubmit(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	empty := r.submit(jobSpec("early", 1), "")
	if empty.Job.Status != gpuai.JobPending || len(empty.Reasons) == 0 || empty.Reasons[0].Code != gpuai.NoNodes || empty.QueuePosition != 1 {
		t.Errorf("in a region without nodes: %+v", empty)
	}
	a := join(t, s.Server, helloOf("n1", 4))
	a.awaitLeases(1)
	half := r.submit(jobSpec("half", 5), "")
	if len(half.Leases) != 3 || half.Job.Counts.Pending != 2 || len(half.Reasons) == 0 || half.QueuePosition == 0 {
		t.Errorf("with room for three of five tasks: %+v", half)
	}
	never := jobSpec("never", 1)
	never.Groups[0].Resources.GPU.Count = 8
	_, err := s.Submit(t.Context(), httpd.SubmitRequest{Spec: never})
	var e *gpuai.Error
	if !errors.As(err, &e) || e.Code != gpuai.Unschedulable || len(e.Reasons) == 0 || e.Index == 0 {
		t.Errorf("what can never fit: %v", err)
	}
	if _, err := s.Plan(t.Context(), never); !errors.As(err, &e) || e.Code != gpuai.Unschedulable || len(e.Reasons) == 0 {
		t.Errorf("a plan of what can never fit: %v", err)
	}
	held, err := s.Submit(t.Context(), httpd.SubmitRequest{Spec: never, HoldAnyway: true})
	if err != nil || held.Job.Status != gpuai.JobPending {
		t.Errorf("held anyway: %+v, %v", held, err)
	}
	x, err := s.Explain(t.Context(), "half", 0)
	if err != nil || x.Job != half.Job.ID || len(x.Groups) != 1 || x.Groups[0].Pending != 2 {
		t.Errorf("explanation %+v, %v", x, err)
	}
	if _, err := s.Explain(t.Context(), "nobody", 0); !isCode(err, gpuai.NotFound) {
		t.Errorf("an explanation of nothing: %v", err)
	}
}

func TestAPlanChangesNothing(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	join(t, r.leader().Server, helloOf("n1", 4))
	for _, m := range r.servers {
		eventually(t, "node", func() bool { _, err := m.Node("n1", ""); return err == nil })
		var before, after uint64
		m.node.View(func(f *fsm.Machine) { before = f.Index() })
		for range 5 {
			p, err := m.Plan(t.Context(), jobSpec("planned", 4))
			if err != nil || len(p.Leases) != 4 || p.Index < before {
				t.Fatalf("server %s: %+v, %v", m.cfg.ID, p, err)
			}
		}
		if p, err := m.Plan(t.Context(), jobSpec("planned", 6)); err != nil || len(p.Leases) != 4 || len(p.Reasons) == 0 {
			t.Errorf("a plan with too many tasks: %+v, %v", p, err)
		}
		m.node.View(func(f *fsm.Machine) { after = f.Index() })
		if jobs, _, _ := m.Jobs(httpd.JobQuery{}); len(jobs) != 0 {
			t.Errorf("server %s: planning made %d jobs (index %d, then %d)", m.cfg.ID, len(jobs), before, after)
		}
	}
	r.equalDigests()
}

func TestStopAndDrain(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	a := join(t, s.Server, helloOf("n1", 2))
	sub := r.submit(jobSpec("j", 1), "")
	lease := a.awaitLeases(1)[0]
	for _, ref := range []string{"j", sub.Job.ID.String(), sub.Job.ID.String()[:12]} {
		if job, err := s.StopJob(t.Context(), ref, ""); err != nil || job.ID != sub.Job.ID {
			t.Errorf("stopping %q: %+v, %v", ref, job, err)
		}
	}
	for _, ref := range []string{"nobody", "01ARZ3NDEKTSV4RRFFQ69G5FAV"} {
		if _, err := s.StopJob(t.Context(), ref, ""); !isCode(err, gpuai.NotFound) {
			t.Errorf("stopping %q: %v", ref, err)
		}
	}
	a.report(lease, 1, gpuai.ReportStopped)
	if job, _ := s.Job("j", false); job.Status != gpuai.JobStopped {
		t.Errorf("the job is %s", job.Status)
	}
	if n, err := s.SetDrained(t.Context(), "n1", true); err != nil || !n.Drained {
		t.Errorf("drain: %+v, %v", n, err)
	}
	if waits := r.submit(jobSpec("k", 1), ""); len(waits.Leases) != 0 {
		t.Error("a drained node was given a lease")
	}
	if n, err := s.SetDrained(t.Context(), "n1", false); err != nil || n.Drained {
		t.Errorf("undrain: %+v, %v", n, err)
	}
	a.awaitLeases(1)
	if _, err := s.SetDrained(t.Context(), "nobody", true); !isCode(err, gpuai.NotFound) {
		t.Errorf("draining nobody: %v", err)
	}
	p := s.Policy()
	p.TTLBatch = 1
	var e *gpuai.Error
	if err := s.SetPolicy(t.Context(), p); !errors.As(err, &e) || e.Code != gpuai.InvalidSpec || len(e.Fields) == 0 {
		t.Errorf("a policy that is out of range: %v", err)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	for i := range 5 {
		join(t, s.Server, helloOf(fmt.Sprintf("n%d", i), 4))
	}
	for i := range 7 {
		r.submit(jobSpec(fmt.Sprintf("j%d", i), 3), "")
	}
	pending := gpuai.JobPending
	lists := map[string]struct {
		page func(httpd.Page) (int, string, error)
		want int
	}{
		"jobs": {func(p httpd.Page) (int, string, error) {
			l, next, err := s.Jobs(httpd.JobQuery{Page: p})
			return len(l), next, err
		}, 7},
		"pending jobs": {func(p httpd.Page) (int, string, error) {
			l, next, err := s.Jobs(httpd.JobQuery{Page: p, Status: &pending})
			return len(l), next, err
		}, 0},
		"tasks":  {func(p httpd.Page) (int, string, error) { l, next, err := s.Tasks("j0", p); return len(l), next, err }, 3},
		"nodes":  {func(p httpd.Page) (int, string, error) { l, next, err := s.Nodes(p); return len(l), next, err }, 5},
		"queue":  {func(p httpd.Page) (int, string, error) { l, next, err := s.QueueEntries(p); return len(l), next, err }, 1},
		"leases": {leasePage(s, httpd.LeaseQuery{}), 20},
		"live":   {leasePage(s, httpd.LeaseQuery{Live: true}), 20},
		"job":    {leasePage(s, httpd.LeaseQuery{Job: "j1"}), 3},
		"node":   {leasePage(s, httpd.LeaseQuery{Node: "n2"}), 4},
	}
	for name, list := range lists {
		for _, limit := range []int{1, 2, 3, 1_000} {
			total, cursor := 0, ""
			for pages := 0; ; pages++ {
				n, next, err := list.page(httpd.Page{Limit: limit, Cursor: cursor})
				if err != nil || n > limit || pages > 30 {
					t.Fatalf("%s by %d: %d rows, %v", name, limit, n, err)
				}
				if total += n; next == "" {
					break
				}
				cursor = next
			}
			if total != list.want {
				t.Errorf("%s by %d: %d rows, want %d", name, limit, total, list.want)
			}
		}
		for _, bad := range []string{"x", "!!", makeCursor("other", "1"), makeCursor(name, "")} {
			if _, _, err := list.page(httpd.Page{Cursor: bad}); !isCode(err, gpuai.InvalidSpec) {
				t.Errorf("%s with cursor %q: %v", name, bad, err)
			}
		}
	}
	if _, _, err := s.Leases(httpd.LeaseQuery{Node: "nobody"}); !isCode(err, gpuai.NotFound) {
		t.Errorf("leases of no node: %v", err)
	}
}

func leasePage(s *member, q httpd.LeaseQuery) func(httpd.Page) (int, string, error) {
	return func(p httpd.Page) (int, string, error) {
		q.Page = p
		l, next, err := s.Leases(q)
		return len(l), next, err
	}
}

func TestEventsOfAJob(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	f := r.followers()[0]
	a := join(t, f.Server, helloOf("n1", 2))
	sub := r.submit(jobSpec("j", 1), "")
	other := r.submit(jobSpec("other", 1), "")
	for _, l := range a.awaitLeases(2) {
		a.report(l, 1, gpuai.ReportRunning)
		a.report(l, 2, gpuai.ReportDone)
	}
	var kinds []gpuai.EventKind
	done := errors.New("seen enough")
	watch := func(q httpd.EventQuery, last gpuai.EventKind) error {
		kinds = nil
		return f.Events(t.Context(), q, func(events []gpuai.Event, index uint64) error {
			for _, e := range events {
				if kinds = append(kinds, e.Kind); e.Kind == last {
					return done
				}
			}
			return nil
		})
	}
	if err := watch(httpd.EventQuery{Job: "j"}, gpuai.JobEnded); !errors.Is(err, done) {
		t.Fatal(err)
	}
	want := []gpuai.EventKind{gpuai.JobSubmitted, gpuai.LeaseGrantedEvent, gpuai.LeaseStarted, gpuai.LeaseEndedEvent, gpuai.JobEnded}
	if !slices.Equal(kinds, want) {
		t.Errorf("events of the job: %v, want %v", kinds, want)
	}
	if err := watch(httpd.EventQuery{Job: "j", From: sub.Index}, gpuai.JobEnded); !errors.Is(err, done) || !slices.Equal(kinds, want[2:]) {
		t.Errorf("resumed behind index %d: %v, %v", sub.Index, kinds, err)
	}
	if err := watch(httpd.EventQuery{From: other.Index - 1}, gpuai.LeaseGrantedEvent); !errors.Is(err, done) {
		t.Error(err)
	}
	if err := watch(httpd.EventQuery{Job: "nobody"}, 0); !isCode(err, gpuai.NotFound) {
		t.Errorf("events of no job: %v", err)
	}
	f.restored()
	if err := watch(httpd.EventQuery{From: 1}, gpuai.JobEnded); !errors.Is(err, done) || !slices.Contains(kinds, gpuai.JobSubmitted) {
		t.Errorf("events from before a restore, which the archive has: %v, %v", kinds, err)
	}
	if err := f.archive.use(func(db *store.Archive) error { return db.Lack(f.machineIndex()) }); err != nil {
		t.Fatal(err)
	}
	if err := watch(httpd.EventQuery{From: 1}, 0); !errors.Is(err, httpd.ErrCompacted) {
		t.Errorf("events that made way in the archive too: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Events(ctx, httpd.EventQuery{From: 1 << 40}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a watcher that went away: %v", err)
	}
}

func TestOperatorsView(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	join(t, r.leader().Server, helloOf("n1", 2))
	sub := r.submit(jobSpec("j", 1), "")
	var digests []string
	for _, m := range r.servers {
		eventually(t, "job on server "+string(m.cfg.ID), func() bool { return m.node.AppliedIndex() >= sub.Index })
		d, err := m.DigestAt(sub.Index)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.Digest)
		if latest, err := m.DigestAt(0); err != nil || latest.Index < sub.Index {
			t.Errorf("the latest digest: %+v, %v", latest, err)
		}
		if _, err := m.DigestAt(1 << 40); !isCode(err, gpuai.NotFound) {
			t.Errorf("a digest of the future: %v", err)
		}
		if st := m.Raft(t.Context()); st.Leader != r.leader().cfg.ID || len(st.Members) != 3 {
			t.Errorf("status %+v", st)
		}
		var b bytes.Buffer
		if err := m.Snapshot(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		f, err := fsm.Restore(&b, fsm.Options{Region: gpuai.DefaultRegion})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := f.Job(sub.Job.ID, false); !ok || f.Index() < sub.Index {
			t.Errorf("the snapshot of index %d has no job of index %d", f.Index(), sub.Index)
		}
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("digests at index %d: %v", sub.Index, digests)
	}
}

func TestARestartedServerHasItsState(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	m := r.servers[0]
	join(t, m.Server, helloOf("n1", 2))
	sub := r.submit(jobSpec("j", 1), "k")
	if err := m.Snapshot(t.Context(), new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	later := r.submit(jobSpec("later", 1), "")
	r.halt(m)
	r.restart(m)
	for _, id := range []gpuai.JobID{sub.Job.ID, later.Job.ID} {
		if job, err := m.Job(id.String(), true); err != nil || job.Status != gpuai.JobRunning || job.Spec == nil {
			t.Errorf("after a restart: %+v, %v", job, err)
		}
	}
	if again := r.submit(jobSpec("j", 1), "k"); again.Job.ID != sub.Job.ID {
		t.Error("the key was forgotten")
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader()
	a := join(t, s.Server, helloOf("n1", 2))
	r.submit(jobSpec("j", 1), "")
	r.submit(jobSpec("waits", 3), "")
	a.report(a.awaitLeases(2)[0], 1, gpuai.ReportRunning)
	problems, err := testutil.GatherAndLint(s.Server.cfg.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "gpuai_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, name := range []string{
		"gpuai_fsm_last_applied_index", "gpuai_fsm_objects", "gpuai_fsm_commands_total", "gpuai_allocation_latency_seconds",
		"gpuai_queue_jobs", "gpuai_queue_gpus", "gpuai_queue_oldest_age_seconds", "gpuai_gpus", "gpuai_fragmentation_ratio", "gpuai_nodes", "gpuai_agent_sessions",
		"gpuai_fsm_apply_duration_seconds", "gpuai_scheduler_placements_total", "gpuai_gpu_allocated_seconds_total",
	} {
		if n, err := testutil.GatherAndCount(s.Server.cfg.Metrics, name); err != nil || n == 0 {
			t.Errorf("%s: %d series, %v", name, n, err)
		}
	}
}
