package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

// Empty files take room too, and what is nested too deeply is too much.
func TestUsageOfACheckpointDirectory(t *testing.T) {
	dir := t.TempDir()
	root, err := openTaskRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const files = 1_500
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, why := usage(t.Context(), root); n != files*inodeBytes || why != "" {
		t.Errorf("%d, %q", n, why)
	}
	nest(t, filepath.Join(dir, "deep"), 110)
	if _, why := usage(t.Context(), root); !strings.Contains(why, "more than 100 deep") {
		t.Errorf("%q", why)
	}
}

// A checkpoint that does not fit ends its task: on each node it would be so.
func TestCheckpointThatDoesNotFit(t *testing.T) {
	c := &gpuai.PublishedCheckpoint{Seq: 4, Bytes: 3 << 40}
	for _, err := range []error{
		&blobs.TooLargeError{Bytes: 3 << 40, Max: 1}, fmt.Errorf("write: %w", syscall.ENOSPC),
	} {
		if why := tooLarge(err, c, 5<<20, 1<<20); why == nil || !strings.Contains(why.Error(), "checkpoint 4") || !strings.Contains(why.Error(), "3145728 MiB") {
			t.Errorf("%v: %v", err, why)
		}
	}
	if why := tooLarge(blobs.ErrCorrupt, c, 1, 1); why != nil {
		t.Error(why)
	}
}

func TestCheckpointLargerThanTheRoomIsRefused(t *testing.T) {
	f := storing(t)
	f.run(nil)
	lease := f.grant(testNode, saving(`d=$GPUAI_CHECKPOINT_DIR/step-1; mkdir $d.tmp; truncate -s 4T $d.tmp/x; mv $d.tmp $d; told 1
mkfifo $GPUAI_CHECKPOINT_DIR/.gpuai.tmp; save 2 two; told 2`))
	r, out := f.last(lease), f.printed(lease, "stdout")
	if r.State != gpuai.ReportDone || !strings.Contains(out, "holes counted as zeros") || !strings.Contains(out, `"name":"step-2","code":"ok"`) {
		t.Errorf("%+v: %s", r, out)
	}
}

func TestCheckpointDirectoryWithTooManyEntries(t *testing.T) {
	f := storing(t)
	f.run(nil)
	lease := f.grant(testNode, saving(`cd $GPUAI_CHECKPOINT_DIR; seq -f %g.tmp 1001 | xargs mkdir; while :; do sleep 0.02; done`))
	if r := f.last(lease); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "more than 1000 entries") {
		t.Errorf("%+v", r)
	}
}

// The agent that is stopped while a last checkpoint is on its way leaves it, and
// the task's end, to its next life.
func TestLastCheckpointSurvivesTheAgentsEnd(t *testing.T) {
	f := storing(t)
	f.unheard = true
	first := f.run(nil)
	lease := f.grant(testNode, saving(`save 1 one; exit 5`))
	eventually(t, "the manifest", func() bool {
		for range f.stored().List(t.Context(), gpuai.CheckpointLeasePrefix(aTask, lease)+"manifests/") {
			return true
		}
		return false
	})
	eventually(t, "the task's end", func() bool { return !first.isLive(lease) })
	first.stop(t)
	if _, err := os.Stat(filepath.Join(first.taskDir(lease), checkpointDir, "step-1")); err != nil {
		t.Fatal(err)
	}
	f.set(func(r *region) { r.unheard = false })
	f.run(nil)
	if r := f.last(lease); r.ExitCode != 5 || len(f.kept(1)) != 1 {
		t.Errorf("%+v, %v", r, f.kept(1))
	}
}

// What tasks of another boot left is removed, and their output stays.
func TestForgottenTasksAreDiscarded(t *testing.T) {
	f := newFixture(t)
	dir := filepath.Join(f.dir, tasksDir, gpuai.Token(77).String())
	nest(t, filepath.Join(dir, checkpointDir), 2)
	nest(t, filepath.Join(dir, resumeDir), 2)
	nest(t, filepath.Join(dir, "work"), 2)
	f.run(nil)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	eventually(t, "the empty trash", func() bool {
		left, err := os.ReadDir(filepath.Join(f.dir, trashDir))
		return err == nil && len(left) == 0
	})
}

func TestVaultThatIsBeingOpenedKeepsNobody(t *testing.T) {
	v := newVault(&Config{Store: StoreDirect})
	v.set("file:///nowhere", 1)
	v.opening <- struct{}{} // it does not answer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.open(ctx, 1); !errors.Is(err, context.Canceled) || v.at() != "file:///nowhere" {
		t.Error(err, v.at())
	}
}

// A full disk ends the task that takes the most, and nobody for little.
func TestTaskThatIsBlamedForAFullDisk(t *testing.T) {
	a := &Agent{}
	var all []*saver
	for i, used := range []int64{blamable, 3 * blamable, 3 * blamable, 1} {
		s := &saver{w: &worker{a: a}}
		s.w.lease.ID = gpuai.Token(i + 1)
		s.used.Store(used)
		a.savers.Store(s, nil)
		all = append(all, s)
	}
	for i, s := range all {
		if got := s.largest(); got != (i == 1) {
			t.Errorf("task %d: %v", i, got)
		}
	}
	a.savers.Clear()
	if all[3].largest() {
		t.Error("a task is blamed that takes nothing")
	}
}

// A disk or a store that does not answer keeps neither a task's devices nor the
// agent's end.
func TestSaverThatDoesNotEndIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{log: slog.New(slog.DiscardHandler)}
		s := &saver{w: &worker{a: a, saveTime: gpuai.Second}, last: make(chan struct{}), done: make(chan struct{})}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		stuck := make(chan struct{})
		a.saving.Go(func() { <-stuck })
		began := time.Now()
		s.finish()
		if took := time.Since(began); took != time.Second+finishBound || s.ctx.Err() == nil {
			t.Errorf("the devices were kept for %v", took)
		}
		a.awaitSaving()
		if took := time.Since(began); took != time.Second+2*finishBound {
			t.Errorf("the agent's end took %v", took)
		}
		close(stuck)
	})
}

// A task that publishes without pause is slowed, more so when it is refused.
func TestRefusalsSlowATask(t *testing.T) {
	s := &saver{refused: map[string]bool{}}
	var got []time.Duration
	for i := range 8 {
		s.refuse(fmt.Sprint(i))
		got = append(got, s.pace/time.Second)
	}
	if want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}; !slices.Equal(got, want) {
		t.Errorf("%v, not %v", got, want)
	}
}

// The room is watched while a checkpoint is on its way.
func TestRoomIsWatchedBesideAnUpload(t *testing.T) {
	f := storing(t)
	f.unheard = true
	f.run(nil)
	lease := f.grant(testNode, saving(`save 1 one; d=$GPUAI_CHECKPOINT_DIR; for i in $(seq 110); do d=$d/x.tmp; mkdir $d; done; while :; do sleep 0.02; done`))
	if r := f.last(lease); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "more than 100 deep") {
		t.Errorf("%+v", r)
	}
}
