package simulate

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A recorder gathers what a region's jobs asked for, and how long they ran.
type recorder struct {
	jobs map[gpuai.JobID]*recorded
}

// A recorded job.
type recorded struct {
	spec  *gpuai.JobSpec
	at    gpuai.Instant
	tasks map[gpuai.TaskRef]*recordedTask
}

// A recordedTask is a task's latest lease. Earlier ones were lost work: what
// the task needs is the run that ended it.
type recordedTask struct {
	lease gpuai.Token
	from  gpuai.Instant
	ran   gpuai.Duration
	open  bool // it has not ended: ran is not known yet
}

func newRecorder() *recorder { return &recorder{jobs: map[gpuai.JobID]*recorded{}} }

// submitted notes a job.
func (k *recorder) submitted(j *gpuai.Job) {
	if j.Spec != nil && k.jobs[j.ID] == nil {
		k.jobs[j.ID] = &recorded{spec: j.Spec, at: j.SubmittedAt, tasks: map[gpuai.TaskRef]*recordedTask{}}
	}
}

// leased notes a lease as it was last seen.
func (k *recorder) leased(l *gpuai.Lease) {
	r := k.jobs[l.Job]
	if r == nil {
		return
	}
	t := r.tasks[l.TaskRef]
	if t == nil || l.ID >= t.lease {
		t = &recordedTask{lease: l.ID, from: l.GrantedAt, open: true}
		r.tasks[l.TaskRef] = t
	}
	if l.ID == t.lease && l.State == gpuai.LeaseEnded {
		t.ran, t.open = gpuai.Duration(l.EndedAt-t.from), false
	}
}

// event notes what a lease's event tells.
func (k *recorder) event(e *gpuai.Event) {
	l := gpuai.Lease{ID: e.Lease, TaskRef: gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}}
	switch e.Kind {
	case gpuai.LeaseGrantedEvent:
		l.GrantedAt = e.At
		k.leased(&l)
	case gpuai.LeaseEndedEvent:
		l.State, l.EndedAt = gpuai.LeaseEnded, e.At
		k.leased(&l)
	}
}

// trace turns what was gathered into jobs, at a region time.
func (k *recorder) trace(t *Trace, now gpuai.Instant) {
	running, never := 0, 0
	for id, r := range k.jobs { // in any order: sorted below
		if len(r.tasks) == 0 {
			never++
			continue
		}
		j := TraceJob{Name: id.String(), GPUMilli: 1000, Timed: true, Arrive: r.at, Whole: r.spec}
		j.Class = r.spec.Class
		open := false
		for g := range r.spec.Groups {
			runs := make([]gpuai.Duration, r.spec.Groups[g].Count)
			for i := range runs {
				x := r.tasks[gpuai.TaskRef{Job: id, Group: uint16(g), Task: uint32(i)}]
				if x == nil {
					continue
				}
				if runs[i] = x.ran; x.open {
					runs[i], open = max(0, gpuai.Duration(now-x.from)), true
				}
				j.Run = max(j.Run, runs[i])
			}
			j.Runs = append(j.Runs, runs)
		}
		if open {
			running++
		}
		t.Jobs = append(t.Jobs, j)
	}
	slices.SortFunc(t.Jobs, func(a, b TraceJob) int {
		return cmp.Or(cmp.Compare(a.Arrive, b.Arrive), cmp.Compare(a.Name, b.Name))
	})
	if running > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d jobs were still running at the end of the record: they are taken to end there", running))
	}
	if never > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d jobs were left out: they never ran, so that nobody knows for how long they would", never))
	}
}

// loadRegion replays the log of a stopped server, from the oldest snapshot on
// which it follows, and changes nothing. Its nodes are those of the end.
func (t *Trace) loadRegion(ctx context.Context, progress func(done, of int)) (err error) {
	look, err := store.OpenLook(t.Path)
	if err != nil {
		return err
	}
	defer look.Close()
	log, err := look.OpenLog()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := log.Close(); err == nil {
			err = closeErr
		}
	}()
	m, k, at, err := recordedBase(look, log)
	if err != nil {
		return err
	}
	var out fsm.Output
	for i := at + 1; i <= log.Last; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := log.Read(i)
		if err != nil {
			return fmt.Errorf("%s: %w; gpuai operator verify --data %s says what is wrong", log.Path(), err, t.Path)
		}
		if e.Command {
			if err := m.Apply(e.Index, e.Term, e.Data, &out); err != nil {
				return fmt.Errorf("%s: entry %d: %w", log.Path(), i, err)
			}
			k.output(m, &out)
		}
		if progress != nil && (i%progressEvery == 0 || i == log.Last) {
			progress(int(i-at), int(log.Last-at))
		}
	}
	k.trace(t, m.Time())
	t.Nodes = machineNodes(m)
	if len(t.Jobs) == 0 {
		return fmt.Errorf("%s: no job ever ran in the part of the log that is kept%s", t.Path, notesText(t.Notes))
	}
	return nil
}

// output notes what an entry did.
func (k *recorder) output(m *fsm.Machine, out *fsm.Output) {
	for i := range out.Events {
		e := &out.Events[i]
		if e.Kind == gpuai.JobSubmitted {
			if j, ok := m.Job(e.Job, true); ok {
				k.submitted(&j)
			}
			continue
		}
		k.event(e)
	}
}

// recordedBase returns the oldest state on which the log follows, with the jobs
// that it holds, and its index.
func recordedBase(look *store.Look, log *store.LogLook) (*fsm.Machine, *recorder, uint64, error) {
	id, err := look.Identity()
	if err != nil {
		return nil, nil, 0, err
	}
	k := newRecorder()
	if log.First == 1 {
		return fsm.New(fsm.Options{Region: id.Region}), k, 0, nil
	}
	list, err := look.Snapshots() // the newest first
	if err != nil {
		return nil, nil, 0, err
	}
	err = errors.New("no snapshot reaches up to the log")
	for i := len(list) - 1; i >= 0; i-- {
		s := &list[i]
		if s.Index+1 < log.First {
			continue
		}
		if err = s.Check(); err != nil {
			continue
		}
		m, restoreErr := restoreFile(s.Path, id.Region)
		if err = restoreErr; err == nil {
			k.machine(m)
			return m, k, s.Index, nil
		}
	}
	return nil, nil, 0, fmt.Errorf("%s: %w; gpuai operator verify says what is wrong", look.Path(), err)
}

func restoreFile(path string, region gpuai.RegionID) (*fsm.Machine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return fsm.Restore(bufio.NewReaderSize(f, 1<<20), fsm.Options{Region: region})
}

// machine notes the jobs that a machine holds.
func (k *recorder) machine(m *fsm.Machine) {
	at := fsm.JobCursor{}
	for first := true; first || at != (fsm.JobCursor{}); first = false {
		var page []gpuai.Job
		page, at = m.Jobs(at, fsm.MaxScan, nil)
		for i := range page {
			j, _ := m.Job(page[i].ID, true)
			k.submitted(&j)
			after := gpuai.Token(0)
			for {
				leases := m.LeasesOfJob(j.ID, after, fsm.MaxScan)
				for l := range leases {
					k.leased(&leases[l])
					after = leases[l].ID
				}
				if len(leases) < fsm.MaxScan {
					break
				}
			}
		}
	}
}

// machineNodes returns a machine's nodes.
func machineNodes(m *fsm.Machine) []TraceNode {
	var out []TraceNode
	after := gpuai.NodeID("")
	for {
		page := m.Nodes(after, fsm.MaxScan)
		for i := range page {
			n := page[i].NodeSpec
			after = n.ID
			t := TraceNode{Name: string(n.ID), CPU: int64(n.CPU), Memory: int64(n.Memory >> 20), GPUs: len(n.Devices), Whole: &n}
			if len(n.Devices) > 0 {
				t.Model = n.Devices[0].Model
			}
			for d := range n.Devices {
				n.Devices[d].Free, n.Devices[d].Health, n.Devices[d].HealthCode = 0, gpuai.DeviceHealthy, ""
			}
			out = append(out, t)
		}
		if len(page) < fsm.MaxScan {
			return out
		}
	}
}

// readExport reads what gpuai operator export wrote. It tells of jobs and of
// their leases, but not of nodes.
func (t *Trace) readExport(in io.Reader) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, 1<<22)
	k := newRecorder()
	var now gpuai.Instant
	var leases []gpuai.Lease // a job's line may come behind its leases'
	ended := false
	n := 0
	for s.Scan() {
		n++
		var l gpuai.ExportLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return fmt.Errorf("%s:%d: no line of an export: %w", t.Path, n, err)
		}
		if n == 1 && l.Kind != gpuai.ExportBegin {
			return fmt.Errorf("%s:1: this is no export: its first line is not of kind begin", t.Path)
		}
		switch {
		case l.Event != nil:
			now = max(now, l.Event.At)
		case l.Job != nil:
			if err := checkRecorded(l.Job); err != nil {
				return fmt.Errorf("%s:%d: %w", t.Path, n, err)
			}
			now = max(now, l.Job.SubmittedAt, l.Job.EndedAt)
			k.submitted(l.Job)
		case l.Lease != nil:
			now = max(now, l.Lease.GrantedAt, l.Lease.EndedAt)
			leases = append(leases, *l.Lease)
		}
		ended = l.Kind == gpuai.ExportEnd
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", t.Path, n+1, err)
	}
	for i := range leases {
		k.leased(&leases[i])
	}
	if !ended {
		t.Notes = append(t.Notes, "the export is not whole: it broke off, and may be gone on with by gpuai operator export --resume")
	}
	k.trace(t, now)
	return nil
}

// checkRecorded says what is wrong with a job that a region is said to have
// taken.
func checkRecorded(j *gpuai.Job) error {
	if j.Spec == nil {
		return nil // listed without it
	}
	j.Spec.Defaults()
	if bad := j.Spec.Validate(); len(bad) > 0 {
		return fmt.Errorf("job %s: /spec%s %s", j.ID, bad[0].Pointer, bad[0].Detail)
	}
	return nil
}
