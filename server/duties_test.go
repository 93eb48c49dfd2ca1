package server

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func TestTimersFireWithoutTraffic(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	spec := jobSpec("impatient", 1)
	spec.Limits.QueueTime = 300
	sub := r.submit(spec, "")
	eventually(t, "end of the queue time", func() bool {
		job, err := r.leader().Job("impatient", false)
		return err == nil && job.Status == gpuai.JobFailed
	})
	job, _ := r.leader().Job("impatient", false)
	if waited := job.EndedAt - sub.Job.SubmittedAt; waited < 300 || waited > 5_000 {
		t.Errorf("the job's queue time of 300 ms ended after %d", waited)
	}
}

func TestACheckpointFollowsManyEntries(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	r.awaitLevel() // an entry that is neither the test's nor a checkpoint
	s := r.leader()
	first := s.node.AppliedIndex()
	cmd := (&fsm.StopJob{Job: gpuai.JobID{1}}).Append(nil, fsm.Envelope{})
	for range checkpointEntries {
		if _, err := s.node.Propose(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	// It may come before the last of them: the count began before the first.
	within(t, checkpointEvery/2, "checkpoint", func() bool { return s.node.AppliedIndex() > first+checkpointEntries })
	// A checkpoint is no reason for another.
	index := s.node.AppliedIndex()
	ctx, cancel := context.WithTimeout(t.Context(), 3*beatWindow)
	defer cancel()
	if err := s.node.WaitApplied(ctx, index+1); err == nil {
		t.Error("an idle region writes entries")
	}
}

func TestAnIdleRegionWithAgentsWritesOneEntryAWindow(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	for _, m := range r.servers {
		for i := range 4 {
			join(t, m.Server, helloOf(string(m.cfg.ID)+"-"+string(rune('a'+i)), 1)).keepBeating()
		}
	}
	s := r.leader()
	from, began := s.node.AppliedIndex(), time.Now()
	eventually(t, "a dozen windows", func() bool { return time.Since(began) > 12*beatWindow })
	entries := s.node.AppliedIndex() - from
	if windows := uint64(time.Since(began)/beatWindow) + 2; entries > windows || entries < windows/3 {
		t.Errorf("12 agents with 10 beats a second each made %d entries in %d windows", entries, windows)
	}
}

// TestCase19ALoneServerStops has nobody to ask which of two digests is right.
func TestCase19ALoneServerStops(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	m := r.servers[0]
	r.submit(jobSpec("j", 1), "")
	m.applied(&fsm.Output{Index: m.node.AppliedIndex(), Diverged: true, DivergedAt: m.node.AppliedIndex(), Theirs: fsm.Digest{1}})
	select {
	case err := <-m.done:
		if err == nil || !strings.Contains(err.Error(), "rejoin --wipe") || !strings.Contains(err.Error(), "named was 01000000") {
			t.Errorf("it stopped with: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a server whose state differs goes on")
	}
	if st := m.readinessOf(); st {
		t.Error("it says that it is ready")
	}
	m.stop()
	m.stop = nil
}

func (m *member) readinessOf() bool { ready, _ := m.readiness.get(); return ready }

func TestBeatsOutliveALeaderChange(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 1))
	for range 3 {
		if err := r.leader().node.TransferLeadership(t.Context()); err != nil {
			t.Log(err) // the next round tries again
		}
		seq := a.beat() // sent while there may be no leader
		eventually(t, "ack of a beat that was sent without a leader", func() bool {
			if _, ok := a.acked(seq); ok {
				return true
			}
			return false
		})
	}
}

func TestNothingIsLeftBehind(t *testing.T) { // alone: it counts goroutines
	before := runtime.NumGoroutine()
	r := startRegion(t, 3)
	a := join(t, r.followers()[0].Server, helloOf("n1", 1))
	r.submit(jobSpec("j", 1), "")
	a.awaitLeases(1)
	a.beatUntilAcked()
	for _, m := range r.servers {
		r.halt(m)
	}
	a.awaitEnd()
	a.conn.close()
	eventually(t, "end of all goroutines", func() bool { return runtime.NumGoroutine() <= before })
}
