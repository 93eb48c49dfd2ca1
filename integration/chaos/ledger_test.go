package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// TestFindSeesEveryLoss gives the ledger a region that has lost or changed
// something, one thing at a time.
func TestFindSeesEveryLoss(t *testing.T) {
	ref := gpuai.TaskRef{Job: gpuai.JobID{1}}
	was := gpuai.Lease{ID: 5, TaskRef: ref, Node: "n1"}
	e := entry{name: "a", sub: gpuai.Submitted{Job: gpuai.Job{ID: gpuai.JobID{1}}, Index: 9, Leases: []gpuai.Lease{was}}}
	cases := []struct {
		name  string
		spoil func(*gpuai.Job, map[gpuai.Token]gpuai.Lease)
		lost  int
	}{
		{"nothing", func(*gpuai.Job, map[gpuai.Token]gpuai.Lease) {}, 0},
		{"the job", func(j *gpuai.Job, _ map[gpuai.Token]gpuai.Lease) { *j = gpuai.Job{} }, 1},
		{"another job in its place", func(j *gpuai.Job, _ map[gpuai.Token]gpuai.Lease) { j.ID = gpuai.JobID{2} }, 1},
		{"at another index", func(j *gpuai.Job, _ map[gpuai.Token]gpuai.Lease) { j.SubmitIndex = 10 }, 1},
		{"the lease", func(_ *gpuai.Job, ls map[gpuai.Token]gpuai.Lease) { delete(ls, 5) }, 1},
		{"the lease on another node", func(_ *gpuai.Job, ls map[gpuai.Token]gpuai.Lease) {
			ls[5] = gpuai.Lease{ID: 5, TaskRef: ref, Node: "n2"}
		}, 1},
		{"the lease has ended", func(_ *gpuai.Job, ls map[gpuai.Token]gpuai.Lease) {
			ls[5] = gpuai.Lease{ID: 5, TaskRef: ref, Node: "n1", State: gpuai.LeaseEnded}
		}, 1},
		{"both", func(j *gpuai.Job, ls map[gpuai.Token]gpuai.Lease) { *j = gpuai.Job{}; clear(ls) }, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			job := gpuai.Job{ID: gpuai.JobID{1}, SubmitIndex: 9}
			held := map[gpuai.Token]gpuai.Lease{5: was}
			c.spoil(&job, held)
			w := aRow("1")
			new(ledger).find(w, &e, job, held)
			if w.Lost != c.lost {
				t.Errorf("%d lost, want %d: %v", w.Lost, c.lost, w.Failures)
			}
		})
	}
}

// TestJudge sends answers past the judge: it complains of those that a client
// cannot go on from.
func TestJudge(t *testing.T) {
	cases := []struct {
		status int
		after  string
		bad    bool
	}{
		{200, "", false}, {201, "", false}, {504, "", false}, {503, "1", false}, {429, "1", false},
		{503, "", true}, {429, "", true}, {500, "", true}, {404, "", true}, {409, "", true}, {422, "", true},
	}
	for _, c := range cases {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(c.status)
		}))
		l := new(ledger)
		j := &judge{ledger: l, next: &http.Transport{}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := j.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		srv.Close()
		if got := len(l.bad) > 0; got != c.bad {
			t.Errorf("%d with Retry-After %q: %v", c.status, c.after, l.bad)
		}
	}
}

func TestChosen(t *testing.T) {
	cases := []struct {
		only string
		want string // names, or part of the error
		bad  bool
	}{
		{"2", "killall", false},
		{"10,leader", "damage rejoin leader", false},
		{"9,10,damage", "damage rejoin", false},
		{"13", "partition delay", false},
		{"99", `"99"`, true},
		{"2,,", `""`, true},
	}
	for _, c := range cases {
		list, err := chosen(c.only)
		var got []string
		for _, sc := range list {
			got = append(got, sc.name)
		}
		if c.bad && (err == nil || !strings.Contains(err.Error(), c.want)) || !c.bad && (err != nil || strings.Join(got, " ") != c.want) {
			t.Errorf("%s: %v, %v, want %s", c.only, got, err, c.want)
		}
	}
	if all, err := chosen(""); err != nil || len(all) != len(scenarios) {
		t.Errorf("without --only: %d of %d, %v", len(all), len(scenarios), err)
	}
}

// TestProfiles holds long to the counts that the project promises of a release.
func TestProfiles(t *testing.T) {
	long, err := profileNamed("long")
	if err != nil || long.allKills < 200 || long.powerOne < 100 || long.powerAll < 100 || long.stops[len(long.stops)-1].Minutes() < 10 {
		t.Errorf("%+v, %v", long, err)
	}
	for _, p := range profiles {
		if p.cutKinds < 1 || p.cutKinds > len(cuts) || p.perRegion < 1 || len(p.stops) == 0 {
			t.Errorf("%+v", p)
		}
		for _, sc := range scenarios {
			if sc.limit(p) <= 0 {
				t.Errorf("scenario %s has no limit in profile %s", sc.name, p.name)
			}
		}
	}
	if _, err := profileNamed("huge"); err == nil {
		t.Error("a profile that is not there was found")
	}
}

func TestOptions(t *testing.T) {
	bin := t.TempDir()
	cases := []struct {
		name string
		args []string
		want string
		code int
	}{
		{"no binaries", []string{"--bin", bin}, "make build", 2},
		{"unknown flag", []string{"--fast"}, "not defined", 2},
		{"unknown format", []string{"-o", "xml"}, "text or json", 2},
		{"unknown profile", []string{"--profile", "huge", "--bin", bin}, "make build", 2},
		{"unknown case", []string{"--only", "99"}, "neither a scenario nor a case", 2},
		{"report of another kind", []string{"--report", "a.pdf"}, ".html or .md", 2},
		{"argument", []string{"now"}, "no arguments", 2},
		{"help", []string{"--help"}, "scenarios: leader", 0},
	}
	for _, c := range cases {
		var stderr strings.Builder
		if code := start(t.Context(), c.args, io.Discard, &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: exit code %d, %s", c.name, code, stderr.String())
		}
	}
}

// TestSceneCleansUp plays a scene that fails half way: what it named is undone,
// last first, and its rows say so.
func TestSceneCleansUp(t *testing.T) {
	r := &run{dir: t.TempDir(), out: io.Discard, taken: map[int]bool{}}
	var undone []string
	rows := r.play(t.Context(), &scenario{
		name: "broken", limit: profileLimit, play: func(s *scene) error {
			s.end(s.row("1", "first", "it holds"))
			s.row("2", "second", "it holds")
			for _, name := range []string{"a", "b"} {
				s.cleanup(func() error { undone = append(undone, name); return nil })
			}
			return s.until(glance, "nothing", func(context.Context) error { return errors.New("not yet") })
		},
	})
	for _, w := range rows {
		w.settle()
	}
	if len(rows) != 2 || rows[0].Verdict != passed || rows[1].Verdict != failed || !strings.Contains(rows[1].Failures[0], "not yet") {
		t.Errorf("%+v", rows)
	}
	if strings.Join(undone, "") != "ba" {
		t.Errorf("undone: %v", undone)
	}
}

func profileLimit(profile) time.Duration { return time.Minute }
