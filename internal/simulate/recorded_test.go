package simulate

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// emptyFor returns an empty value of what a function takes: the log's entries
// are of a library that belongs to store.
func emptyFor[T any](func(*T) error) *T { return new(T) }

// regionLog makes the data directory of a server that has lived through a
// region's short life: two nodes; a job that ran 40 s; a gang of two that ran
// from 10 s on and still runs at 70 s; and a job that never ran.
func regionLog(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	d, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := store.OpenLog(d)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(Policy{})
	write := func() {
		e := emptyFor(log.StoreLog)
		e.Index, e.Term, e.Data = w.index, term, w.entry // its zero type is a command
		if err := log.StoreLog(e); err != nil {
			t.Fatal(err)
		}
	}
	nodes, err := LoadCluster("2x4:H100")
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		if err := w.register(nodes[i:i+1], []int{0}); err != nil {
			t.Fatal(err)
		}
		write()
	}
	var first gpuai.Event
	for i, j := range []TraceJob{{GPUs: 4, GPUMilli: 1000}, {GPUs: 2, GPUMilli: 1000, Tasks: 2, Class: gpuai.ClassTraining}, {GPUs: 4, GPUMilli: 1000}} {
		w.now = gpuai.Instant(10_000 * i)
		if _, leased, err := w.submit(&j); err != nil || leased != (i < 2) {
			t.Fatal(leased, err)
		}
		write()
		for _, e := range w.out.Events {
			if i == 0 && e.Kind == gpuai.LeaseGrantedEvent {
				first = e
			}
		}
	}
	// The third job would run once the first ends, so it is stopped before.
	w.now = 30_000
	if _, err := w.apply(&fsm.StopJob{Job: gpuai.JobID{15: 3}}); err != nil {
		t.Fatal(err)
	}
	write()
	w.now = 40_000
	rep := gpuai.Report{Lease: first.Lease, Seq: 1, Incarnation: first.Incarnation, State: gpuai.ReportDone}
	if _, err := w.apply(&fsm.ReportLease{Node: first.Node, Report: rep}); err != nil {
		t.Fatal(err)
	}
	write()
	w.now = 70_000
	if _, err := w.apply(&fsm.Tick{}); err != nil {
		t.Fatal(err)
	}
	write()
	id := store.Identity{Cluster: "c", Server: "a", Region: "simulated", FormatVersion: store.FormatVersion, Formed: true, Applied: w.index, AppliedTerm: term}
	if err := d.SetIdentity(id); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRegionsOwnLog(t *testing.T) {
	dir := regionLog(t)
	tr, err := LoadTrace(t.Context(), dir, LoadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if tr.Format != FormatRegion || len(tr.Nodes) != 2 || tr.Nodes[0].GPUs != 4 || tr.Nodes[0].Whole == nil {
		t.Fatalf("%+v", tr.Nodes)
	}
	notes := strings.Join(tr.Notes, "\n")
	if len(tr.Jobs) != 2 || !strings.Contains(notes, "1 jobs were still running") || !strings.Contains(notes, "1 jobs were left out: they never ran") {
		t.Fatalf("%d jobs, %s", len(tr.Jobs), notes)
	}
	a, b := &tr.Jobs[0], &tr.Jobs[1]
	if a.Arrive != 0 || a.Run != 40_000 || a.Milli() != 4000 || a.work() != 4000*40_000 {
		t.Errorf("the first job: %+v", a)
	}
	if b.Arrive != 10_000 || b.runOf(0, 1) != 60_000 || b.Milli() != 4000 || !b.Whole.Groups[0].Gang || b.Class != gpuai.ClassTraining {
		t.Errorf("the gang: %+v", b)
	}
	if err := tr.Fit(tr.Nodes, false); err != nil {
		t.Fatal(err)
	}
	ps, _ := ParsePolicies("fifo,bestfit")
	rs, err := Run(t.Context(), "time", Config{Nodes: tr.Nodes, Jobs: tr.Jobs, TimedConfig: TimedConfig{Arrivals: ArrivalsTrace}}, ps)
	if err != nil || rs[0].Placed != 3 || rs[1].Placed != 3 || rs[0].WaitSeconds["max"] != 0 {
		t.Fatalf("%+v, %v", rs, err)
	}
	// It is read, not taken: a server could start on it.
	if d, err := store.OpenDir(dir); err != nil {
		t.Error(err)
	} else {
		d.Close()
	}
}

func TestRegionDirectoriesThatAreNone(t *testing.T) {
	if _, err := LoadTrace(t.Context(), t.TempDir(), LoadConfig{}); err == nil || !strings.Contains(err.Error(), "there is no data directory at") {
		t.Error(err)
	}
	dir := regionLog(t)
	if err := os.Truncate(filepath.Join(dir, "raft.db"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadTrace(t.Context(), dir, LoadConfig{}); err == nil || !strings.Contains(err.Error(), "raft.db") {
		t.Error(err)
	}
	if _, err := LoadTrace(t.Context(), dir, LoadConfig{Format: FormatSWF}); err == nil || !strings.Contains(err.Error(), "is read from a file") {
		t.Error(err)
	}
}

// An export tells the same as the log, but for the nodes.
func TestExport(t *testing.T) {
	dir := regionLog(t)
	want, err := LoadTrace(t.Context(), dir, LoadConfig{})
	if err != nil {
		t.Fatal(err)
	}
	look, err := store.OpenLook(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close()
	log, err := look.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m := fsm.New(fsm.Options{Region: "simulated"})
	lines := []gpuai.ExportLine{{Kind: gpuai.ExportBegin}}
	var out fsm.Output
	for i := uint64(1); i <= log.Last; i++ {
		e, err := log.Read(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Apply(e.Index, e.Term, e.Data, &out); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportEvent, Index: i, Archived: true, Event: &gpuai.Event{Kind: gpuai.NodeChanged, At: m.Time()}})
	}
	page, _ := m.Jobs(fsm.JobCursor{}, 100, nil)
	for i := range page {
		for _, l := range m.LeasesOfJob(page[i].ID, 0, 100) {
			lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportLease, Lease: &l})
		}
		j, _ := m.Job(page[i].ID, true)
		lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportJob, Job: &j})
	}
	lines = append(lines, gpuai.ExportLine{Kind: gpuai.ExportEnd})
	var text strings.Builder
	for i := range lines {
		b, err := json.Marshal(&lines[i])
		if err != nil {
			t.Fatal(err)
		}
		text.Write(append(b, '\n'))
	}
	tr, err := LoadTrace(t.Context(), write(t, "region.jsonl", text.String()), LoadConfig{})
	if err != nil || tr.Format != FormatExport || len(tr.Nodes) != 0 || len(tr.Jobs) != len(want.Jobs) {
		t.Fatalf("%+v, %v", tr, err)
	}
	for i := range tr.Jobs {
		if a, b := &tr.Jobs[i], &want.Jobs[i]; a.Name != b.Name || a.Arrive != b.Arrive || a.work() != b.work() {
			t.Errorf("%+v, want %+v", a, b)
		}
	}
}
