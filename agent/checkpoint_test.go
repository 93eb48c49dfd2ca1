package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

// storing returns a fixture whose region has a checkpoint store.
func storing(t *testing.T) *fixture {
	f := newFixture(t)
	f.store = "file://" + t.TempDir() + "/store"
	return f
}

// saves is the shell's function "save STEP TEXT": it publishes a checkpoint, and
// "told STEP" waits for what became of it.
const saves = `
save() { d=$GPUAI_CHECKPOINT_DIR/step-$1; mkdir $d.tmp && echo "$2" > $d.tmp/state && mv $d.tmp $d; }
told() { while ! [ -f $GPUAI_CHECKPOINT_DIR/step-$1.json ]; do sleep 0.02; done; cat $GPUAI_CHECKPOINT_DIR/step-$1.json; }
`

var aTask = gpuai.TaskRef{Job: gpuai.JobID{7}, Task: 3}

// saving is a task that runs a script with save and told, and may go on from
// checkpoints.
func saving(s string, from ...gpuai.PublishedCheckpoint) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) {
		a.Lease.TaskRef, a.Resume = aTask, from
		a.Task.Script = saves + s
	}
}

func (f *fixture) printed(lease gpuai.Token, stream string) string {
	f.t.Helper()
	return string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: stream, Limit: 10_000}).Data)
}

// stored opens the store, to look at it or to damage it.
func (f *fixture) stored() *blobs.Store {
	f.t.Helper()
	s, err := blobs.Open(f.t.Context(), f.store)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { s.Close() })
	return s
}

func TestCheckpointIsPublishedAndGoneOnFrom(t *testing.T) {
	f := storing(t)
	a := f.run(nil)
	lease := f.grant(testNode, saving(`echo "from $RESUME_FROM."; save 10 ten; told 10; save 20 twenty; told 20; ls -A $GPUAI_CHECKPOINT_DIR; exit 3`))
	if r := f.last(lease); r.ExitCode != 3 {
		t.Fatalf("%+v: %s", r, f.printed(lease, "stderr"))
	}
	got := f.kept(5)
	if len(got) != 2 || got[0].Seq != 2 || got[0].Step != 20 || got[0].Bytes != 7 || got[1].Step != 10 {
		t.Fatalf("%+v", got)
	}
	out := f.printed(lease, "stdout")
	for _, want := range []string{"from .\n", `"name":"step-10","code":"ok","seq":1,"digest":"sha256:`, `"seq":2`, "\nstep-10.json\nstep-20.json\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	for _, dir := range []string{checkpointDir, resumeDir} {
		if _, err := os.Stat(filepath.Join(a.taskDir(lease), dir)); err == nil {
			t.Errorf("%s of an ended task is left", dir)
		}
	}
	next := f.grant(testNode, saving(`cat $RESUME_FROM/state $GPUAI_RESUME_FROM/state; echo step $GPUAI_RESUME_STEP; save 30 thirty; told 30`, got...))
	if r := f.last(next); r.State != gpuai.ReportDone {
		t.Fatalf("%+v: %s", r, f.printed(next, "stderr"))
	}
	if out := f.printed(next, "stdout"); !strings.Contains(out, "twenty\ntwenty\nstep 20\n") || !strings.Contains(out, `"seq":3`) {
		t.Error(out)
	}
	left := map[string]bool{}
	for e := range f.stored().List(t.Context(), gpuai.CheckpointTaskPrefix(aTask)) {
		left[e.Key] = true
	}
	if kept := f.kept(3); len(left) != 6 || !left[kept[0].Key] || !left[kept[1].Key] || !left[kept[2].Key] { // the servers delete what the first has left
		t.Errorf("%v are in the store", left)
	}
}

// What a task writes when it is told to go is published before its place is given
// up, and within its grace.
func TestLastCheckpointIsPublishedBeforeTheReport(t *testing.T) {
	f := storing(t)
	f.run(nil)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		saving(`trap 'save 7 late; exit 0' USR1; echo up; while :; do sleep 0.02; done`)(a)
		a.Task.Checkpoint = gpuai.Checkpoint{Signal: gpuai.SIGUSR1, Grace: 20 * gpuai.Second}
	})
	eventually(t, "the trap", func() bool { return strings.Contains(f.printed(lease, "stdout"), "up") })
	f.set(func(r *region) {
		n := r.node[testNode]
		a := n.leases[lease]
		a.Lease.Cause = gpuai.CausePreempted
		n.leases[lease] = a
	})
	f.revoke(testNode, lease)
	eventually(t, "the last checkpoint", func() bool {
		over := slices.ContainsFunc(f.reports(lease), func(r gpuai.Report) bool { return r.State != gpuai.ReportRunning })
		done := len(f.kept(1)) == 1
		if over && !done {
			t.Fatal("the lease's end was reported before its last checkpoint was published")
		}
		return done
	})
	if r := f.last(lease); r.State != gpuai.ReportStopped {
		t.Errorf("%+v", r)
	}
}

// An agent that was restarted goes on with what its task has ready, and an answer
// that was lost is asked for again.
func TestCase23CheckpointSurvivesTheAgent(t *testing.T) {
	f := storing(t)
	f.unheard = true
	first := f.run(nil)
	lease := f.grant(testNode, saving(`save 1 one; told 1; touch over; while ! [ -f go ]; do sleep 0.02; done`))
	f.running(lease)
	eventually(t, "the manifest", func() bool {
		for range f.stored().List(t.Context(), gpuai.CheckpointLeasePrefix(aTask, lease)+"manifests/") {
			return true
		}
		return false
	})
	first.stop(t)
	f.set(func(r *region) { r.unheard = false })
	f.run(nil)
	eventually(t, "the checkpoint", func() bool { return len(f.kept(1)) == 1 })
	eventually(t, "its result", func() bool { return strings.Contains(f.printed(lease, "stdout"), `"code":"ok","seq":1`) })
	f.touch(lease, "go")
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Errorf("%+v", r)
	}
}

// A node that lost its list of what was published asks the region for it, and goes
// on behind the newest; what another attempt published it does not go over.
func TestPublishGoesOnWithoutItsList(t *testing.T) {
	f := storing(t)
	first := f.run(nil)
	lease := f.grant(testNode, saving(`for n in 1 2 3; do while ! [ -f go$n ]; do sleep 0.02; done; save $n $n; told $n; done`))
	f.running(lease)
	f.touch(lease, "go1")
	eventually(t, "the first", func() bool { return len(f.kept(9)) == 1 })
	eventually(t, "its note", func() bool { return os.Remove(filepath.Join(first.taskDir(lease), publishedFile)) == nil })
	first.stop(t)
	f.run(nil)
	f.touch(lease, "go2")
	eventually(t, "the second", func() bool { return strings.Contains(f.printed(lease, "stdout"), `"name":"step-2"`) })
	if got := f.kept(9); len(got) != 2 || got[0].Seq != 2 || got[0].Step != 2 {
		t.Fatalf("%+v, %s", got, f.printed(lease, "stdout"))
	}
	f.set(func(r *region) {
		other := r.published[1]
		other.Seq, other.Lease = 3, lease+1
		r.published = append(r.published, other)
	})
	f.touch(lease, "go3")
	if r := f.last(lease); r.State != gpuai.ReportDone || !strings.Contains(f.printed(lease, "stdout"), `"name":"step-3","code":"precondition_failed"`) || len(f.kept(9)) != 3 {
		t.Errorf("%+v, %s", r, f.printed(lease, "stdout"))
	}
}

func TestDamagedCheckpointIsPassedOver(t *testing.T) {
	f := storing(t)
	f.run(nil)
	f.last(f.grant(testNode, saving(`save 1 one; told 1; save 2 two; told 2`)))
	kept := f.kept(2)
	if err := f.stored().Put(t.Context(), kept[0].Key, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	lease := f.grant(testNode, saving(`cat $RESUME_FROM/state`, kept...))
	if r := f.last(lease); r.State != gpuai.ReportDone || f.printed(lease, "stdout") != "one\n" {
		t.Errorf("%+v, %s", r, f.printed(lease, "stdout"))
	}
	if got := f.printed(lease, "stderr"); !strings.Contains(got, "gpuai: checkpoint 2 cannot be used, trying the one before it: the blob is damaged") {
		t.Errorf("its user reads %q", got)
	}
	if err := f.stored().Delete(t.Context(), kept[1].Key); err != nil {
		t.Fatal(err)
	}
	lease = f.grant(testNode, saving(`echo no`, kept...))
	if r := f.last(lease); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "none of the 2 checkpoints that are kept can be read") {
		t.Errorf("%+v", r)
	}
}

// A member of a gang that goes back behind its newest goes on from the one that it
// is told, and publishes behind its newest.
func TestMemberGoesBackWithItsGang(t *testing.T) {
	f := storing(t)
	f.run(nil)
	f.last(f.grant(testNode, saving(`save 1 one; told 1; save 2 two; told 2`)))
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		saving(`cat $RESUME_FROM/state; echo step $GPUAI_RESUME_STEP; save 2 again; told 2`, f.published[1], f.published[0])(a)
		a.ResumeSeq = 1
	})
	if r := f.last(lease); r.State != gpuai.ReportDone || !strings.HasPrefix(f.printed(lease, "stdout"), "one\nstep 1\n") {
		t.Errorf("%+v, %s", r, f.printed(lease, "stdout"))
	}
	if got := f.kept(1); len(got) != 1 || got[0].Seq != 3 || got[0].Step != 2 {
		t.Errorf("%+v", got)
	}
}

func TestRefusedCheckpointsAreTold(t *testing.T) {
	f := storing(t)
	f.run(nil)
	link := f.grant(testNode, saving(`d=$GPUAI_CHECKPOINT_DIR/step-1; mkdir $d.tmp; ln -s /etc/shadow $d.tmp/x; mv $d.tmp $d; told 1`))
	if r := f.last(link); r.State != gpuai.ReportDone || !strings.Contains(f.printed(link, "stdout"), `"code":"invalid_spec"`) {
		t.Errorf("%+v: %s", r, f.printed(link, "stdout"))
	}
	f.set(func(r *region) { r.stale = true })
	stale := f.grant(testNode, saving(`save 1 one; told 1`))
	if r := f.last(stale); r.State != gpuai.ReportDone || !strings.Contains(f.printed(stale, "stdout"), `"code":"conflict","detail":"the lease has ended"`) {
		t.Errorf("%+v: %s", r, f.printed(stale, "stdout"))
	}
	if got := f.printed(stale, "stderr"); !strings.Contains(got, "gpuai: the checkpoint step-1 was refused: conflict: the lease has ended") {
		t.Errorf("its user reads %q", got)
	}
	if got := f.kept(1); len(got) > 0 {
		t.Errorf("%+v is published", got)
	}
}

func TestRegionWithoutStore(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, saving(`echo "dir $GPUAI_CHECKPOINT_DIR."`))
	if r := f.last(lease); r.State != gpuai.ReportDone || f.printed(lease, "stdout") != "dir .\n" {
		t.Errorf("%+v, %q", r, f.printed(lease, "stdout"))
	}
	lease = f.grant(testNode, saving(`echo no`, gpuai.PublishedCheckpoint{Seq: 1}))
	if r := f.last(lease); r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "--store") {
		t.Errorf("%+v", r)
	}
}

func TestSandboxedTaskPublishes(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := storing(t)
	a := f.run(boxed(t, dir))
	save := func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Lease.TaskRef, a.Resume = aTask, f.published
		a.Task.Command = []string{"gpuai-probe", "save"}
	}
	for n, want := range []string{`"name":"step-1","code":"ok","seq":1`, "goes on from 1\nopen /.gpuai/resume/state: read-only file system\n"} {
		lease := f.grant(testNode, save)
		if r := f.last(lease); r.State != gpuai.ReportDone || !strings.Contains(f.printed(lease, "stdout"), want) {
			t.Fatalf("%d: %+v\n%s%s", n, r, f.printed(lease, "stdout"), f.printed(lease, "stderr"))
		}
		checkClosed(t, a.Agent, lease)
	}
	if got := f.kept(2); len(got) != 2 || got[0].Step != 2 {
		t.Errorf("%+v", got)
	}
}
