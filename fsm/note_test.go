package fsm

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gpuai/gpuai"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// says is a report of a lease with more than its state, with the next number.
func (r *region) says(l gpuai.Lease, rep gpuai.Report) *ReportLease {
	slot, _ := r.m.leaseSlot(l.ID)
	rep.Lease, rep.Seq, rep.Incarnation = l.ID, r.m.leases.Get(slot).seq+1, l.Incarnation
	return &ReportLease{Node: l.Node, Report: rep}
}

// retrying is a job of one task that is placed again when it fails.
func retrying(tries uint32) *gpuai.JobSpec {
	s := jobSpec("retrying", 1, 1)
	s.Groups[0].Restart = gpuai.Restart{Attempts: tries, Backoff: gpuai.Second, On: []gpuai.RestartCause{gpuai.CauseFailure}}
	s.Defaults()
	return s
}

// What an agent says of a task's end stays while the task is placed again, and
// is told by task, job, event, explanation and archive.
func TestEndReasonIsKept(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	id := r.submit(retrying(1))
	l := r.leases(id)[0]
	missing := gpuai.Report{State: gpuai.ReportFailed, ExitCode: 3, EndCode: gpuai.EndImagePull, Reason: "image team/app: there is none"}
	out := r.apply(r.says(l, missing))
	i := slices.IndexFunc(out.Events, func(e gpuai.Event) bool { return e.Kind == gpuai.LeaseEndedEvent })
	if e := out.Events[i]; e.Reason != missing.Reason || e.EndCode != gpuai.EndImagePull || e.ExitCode != 3 {
		t.Errorf("the event says %+v", e)
	}
	x, _ := r.m.Fork().Explain(id)
	if len(x.Reasons) == 0 || x.Reasons[0].Code != gpuai.ImagePull || !strings.Contains(x.Reasons[0].Message, missing.Reason) {
		t.Errorf("it is explained by %+v", x.Reasons)
	}
	r.wait(gpuai.Minute)
	want := gpuai.TaskEnd{Lease: l.ID, Node: "a", Cause: gpuai.CauseFailed, Code: gpuai.EndImagePull, ExitCode: 3, Reason: missing.Reason}
	for name, m := range map[string]*Machine{"placed again": r.m, "restored": restored(t, r.m), "fork": r.m.Fork()} {
		if task := m.Tasks(id, 0, 1)[0]; task.Status != gpuai.TaskLeased || task.LastEnd == nil || *task.LastEnd != want {
			t.Errorf("%s: %+v, %+v", name, task, task.LastEnd)
		}
	}
	r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportFailed, Reason: "exit code 1"}))
	r.status(id, gpuai.JobFailed)
	if j := r.job(id); j.Reason != "a task failed: task 0[0] on a: exit code 1" {
		t.Errorf("the job says %q", j.Reason)
	}
	retired := r.apply(&RetireJobs{Jobs: []gpuai.JobID{id}}).Retired[0]
	if e := retired.Tasks[0].LastEnd; e == nil || e.Reason != "exit code 1" {
		t.Errorf("the archive has %+v", e)
	}
	if n := r.m.noteSlots.Len(); n != 0 {
		t.Errorf("%d notes are left", n)
	}
}

// A task that ends well, or of whose end nothing is said, has no note.
func TestEndReasonGoes(t *testing.T) {
	for name, rep := range map[string]gpuai.Report{"done": {State: gpuai.ReportDone}, "nothing said": {State: gpuai.ReportFailed}} {
		r := newest(t, nil)
		r.node("a", 1)
		id := r.submit(retrying(3))
		r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportFailed, Reason: "exit code 1"}))
		r.wait(gpuai.Minute)
		r.do(r.says(r.leases(id)[0], rep))
		if e := r.m.Tasks(id, 0, 1)[0].LastEnd; e != nil || r.m.noteSlots.Len() != 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// A reason is text, whatever the agent sends; below the level it is not kept,
// and what the level brings is not read.
func TestEndReasonIsText(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	id := r.submit(retrying(1))
	r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportFailed, Reason: strings.Repeat("\xff", gpuai.MaxReasonLen)}))
	if e := r.m.Tasks(id, 0, 1)[0].LastEnd; e == nil || !utf8.ValidString(e.Reason) || e.Reason == "" || len(e.Reason) > gpuai.MaxReasonLen {
		t.Errorf("%+v", e)
	}
	old := newRegion(t)
	old.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	old.node("a", 1)
	id = old.submit(retrying(1))
	l := old.leases(id)[0]
	old.refuse(old.says(l, gpuai.Report{State: gpuai.ReportFailed, EndCode: gpuai.EndOutOfMemory}), gpuai.InvalidSpec)
	old.refuse(old.says(l, gpuai.Report{State: gpuai.ReportResolved, Image: digestA}), gpuai.InvalidSpec)
	out := old.apply(old.says(l, gpuai.Report{State: gpuai.ReportFailed, Reason: "exit code 1"}))
	if e := old.m.Tasks(id, 0, 1)[0].LastEnd; e != nil || slices.ContainsFunc(out.Events, func(e gpuai.Event) bool { return e.Reason != "" }) {
		t.Errorf("an old level keeps %+v", e)
	}
}

// The first task of a group that tells a digest tells that of all: those that
// start beside it, and those that start later.
func TestFirstDigestIsThatOfTheGroup(t *testing.T) {
	r := newest(t, nil)
	n := nodeSpec("a", 4, "H100")
	n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes}
	r.register(n)
	s := imageSpec("ranks")
	s.Groups[0].Count, s.Groups[0].Gang = 3, true
	s.Groups[0].Restart.On = []gpuai.RestartCause{gpuai.CauseFailure}
	id := r.submit(s)
	ls := r.leases(id)
	r.refuse(r.says(ls[0], gpuai.Report{State: gpuai.ReportResolved, Image: "team/app:v1"}), gpuai.InvalidSpec)
	stale := r.says(ls[0], gpuai.Report{State: gpuai.ReportResolved, Image: digestB})
	stale.Report.Incarnation++
	r.refuse(stale, gpuai.Conflict)
	first := r.says(ls[1], gpuai.Report{State: gpuai.ReportResolved, Image: digestA})
	out := r.apply(first)
	if len(out.Events) != 1 || out.Events[0].Kind != gpuai.ImageResolved || out.Events[0].Image != digestA || out.Events[0].Lease != ls[1].ID {
		t.Errorf("%+v", out.Events)
	}
	r.do(first) // repeated
	if out := r.apply(r.says(ls[2], gpuai.Report{State: gpuai.ReportResolved, Image: digestB})); len(out.Events) > 0 {
		t.Errorf("a second digest: %+v", out.Events)
	}
	for _, l := range ls {
		r.do(r.says(l, gpuai.Report{State: gpuai.ReportRunning}))
	}
	for _, l := range ls { // the gang fails and starts anew
		r.do(r.says(l, gpuai.Report{State: gpuai.ReportFailed, Reason: "exit code 1"}))
	}
	ended := r.says(ls[0], gpuai.Report{State: gpuai.ReportResolved, Image: digestB})
	ended.Report.Seq = 99
	r.wait(gpuai.Minute)
	if code := r.apply(ended).Results[0].Code; code == gpuai.OK {
		t.Error("a lease that has ended tells a digest")
	}
	for name, m := range map[string]*Machine{"": r.m, "restored": restored(t, r.m)} {
		for _, l := range r.wantLive(id, 3) {
			if a, _ := m.Assignment(l.ID); a.Image != digestA {
				t.Errorf("%s: rank %d runs %q", name, l.Task, a.Image)
			}
		}
		if j, _ := m.Job(id, true); !slices.Equal(j.Images, []gpuai.GroupImage{{Digest: digestA}}) {
			t.Errorf("%s: the job has %+v", name, j.Images)
		}
	}
}

// A bundle has neither what a task's agent said nor which image it was.
func TestNotesAreRedacted(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	id := r.submit(retrying(1))
	r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportResolved, Image: digestA}))
	r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportFailed, Reason: "a secret"}))
	m := restored(t, r.m)
	x := Redaction{Salt: 7}
	x.RedactState(m)
	var b bytes.Buffer
	if err := m.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), []byte("secret")) || bytes.Contains(b.Bytes(), []byte(digestA)) {
		t.Error("the snapshot holds it")
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	if j, _ := m.Job(id, false); !gpuai.ValidDigest(j.Images[0].Digest) || j.Images[0].Digest != x.digest(digestA) {
		t.Errorf("%+v", j.Images)
	}
}

// Notes take no more room than they may; an end that has none is no error. Ends
// leave room for digests, and a digest that has none is told again: it is never
// answered as if it were kept.
func TestNotesAreBounded(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	id, other := r.submit(retrying(1)), r.submit(jobSpec("x", 1, 1))
	for r.m.noteSlots.Len() < MaxEndNotes {
		r.m.noteSlots.Alloc()
	}
	r.m.sp.Commit()
	if full := r.m.Fullness(); full != 875 {
		t.Errorf("the machine is full to %d", full)
	}
	r.check = false
	resolved := gpuai.Report{State: gpuai.ReportResolved, Image: digestA}
	r.do(r.says(r.leases(id)[0], resolved))
	if a, _ := r.m.Assignment(r.leases(id)[0].ID); a.Image != digestA {
		t.Errorf("the digest is %q", a.Image)
	}
	for r.m.noteSlots.Len() < MaxNotes {
		r.m.noteSlots.Alloc()
	}
	r.m.sp.Commit()
	late := r.says(r.leases(other)[0], resolved)
	r.refuse(late, gpuai.RateLimited)
	r.refuse(late, gpuai.RateLimited) // not answered as what was judged before
	r.do(r.says(r.leases(id)[0], resolved))
	r.do(r.says(r.leases(id)[0], gpuai.Report{State: gpuai.ReportFailed, Reason: "exit code 1"}))
	if task := r.m.Tasks(id, 0, 1)[0]; task.LastEnd != nil || task.ExitCode != 1 && task.Status != gpuai.TaskPending {
		t.Errorf("%+v", task)
	}
}
