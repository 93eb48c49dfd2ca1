package virtual

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/server"
)

// shortLog keeps so little log behind a snapshot that some seconds of load are
// more; the entries in flight (4) stay far below it.
func shortLog(cfg *server.Config) { cfg.TrailingLogs = 32 }

// TestCase12FollowerBeyondTrailingLogs leaves a follower behind, cut off or
// dead, until the others' logs no longer reach back to it.
func TestCase12FollowerBeyondTrailingLogs(t *testing.T) {
	for _, how := range []string{"cut off", "dead"} {
		t.Run(how, func(t *testing.T) {
			each(t, 1, func(t *testing.T, seed uint64) {
				tuned(t, 3, seed, shortLog, func(r *region) {
					load := r.startLoad()
					r.idle(time.Second)
					behind := r.others(r.leader())[0]
					if how == "dead" {
						r.crash(behind)
					} else {
						r.net.partition(names([]*member{behind}), names(r.others(behind)))
					}
					r.outrun(behind)
					r.net.heal()
					if how == "dead" {
						r.start(behind)
					}
					r.caughtUpBySnapshot(behind)
					r.converge()
					load.stop()
					r.converge()
				})
			})
		})
	}
}

// TestCase12UncommittedSuffix leaves a leader alone with as many uncommitted
// entries as it takes. The others move on by more than their logs keep; when it
// comes back nothing is left of what it alone had.
func TestCase12UncommittedSuffix(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		tuned(t, 5, seed, shortLog, func(r *region) {
			load := r.startLoad()
			r.idle(time.Second)
			old := r.leader()
			had := r.lastIndex(old)
			r.net.partition(names([]*member{old}), names(r.others(old)))
			for i := range 12 { // large ones, so that each is an entry
				c := r.client(20*time.Second, old)
				go c.SubmitBatch(context.Background(), batch(fmt.Sprintf("lost-%d", i), 500), fmt.Sprintf("lost-%d", i))
			}
			r.idle(300 * time.Millisecond)
			t.Logf("the old leader has %d entries that nobody else has", r.lastIndex(old)-had)
			r.outrun(old)
			r.net.heal()
			r.caughtUpBySnapshot(old)
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

func batch(name string, n int) (specs []gpuai.JobSpec) {
	for i := range n {
		specs = append(specs, *jobSpec(fmt.Sprintf("%s-%d", name, i)))
	}
	return specs
}

// outrun writes on, without one server, until the leader has a snapshot and a
// log that begins behind all that the server has.
func (r *region) outrun(behind *member) {
	r.t.Helper()
	has := r.lastIndex(behind)
	others := r.others(behind)
	r.progress(others...)
	writer := r.client(attempt, others...)
	for i := range 1_000 {
		key := fmt.Sprintf("run-%d-%d", r.clients, i)
		_, _ = writer.Submit(context.Background(), client.SubmitRequest{Spec: jobSpec(key), Key: key})
		if i%50 != 49 {
			continue
		}
		l := r.leaderBeside(behind)
		_ = r.client(10*time.Second, l).Snapshot(context.Background(), io.Discard)
		if l.life.Raft(r.t.Context()).FirstIndex > has+1 {
			return
		}
	}
	r.t.Fatalf("the log still reaches back to %d: %s", has, r.describe())
}

// caughtUpBySnapshot requires that a server catches up, with one restore or
// two.
func (r *region) caughtUpBySnapshot(m *member) {
	r.t.Helper()
	target := r.leaderBeside(m).life.Raft(r.t.Context()).CommitIndex
	r.within(convergeWithin, "caught up server "+string(m.id), func() bool {
		return m.life.Raft(r.t.Context()).AppliedIndex+1 >= target
	})
	n := r.metric(m, "gpuai_snapshot_restores_total")
	if n < 1 || n > 2 {
		r.t.Errorf("server %s restored %v snapshots to catch up", m.id, n)
	}
}

// leaderBeside waits for a leader that is not m.
func (r *region) leaderBeside(m *member) (l *member) {
	r.t.Helper()
	r.within(progressWithin, "leader beside "+string(m.id), func() bool { l = r.leader(); return l != m })
	return l
}

// metric reads a metric of one server.
func (r *region) metric(m *member, name string) float64 {
	r.t.Helper()
	text, err := r.get(m, "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name+"{") || strings.HasPrefix(line, name+" ") {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return v
		}
	}
	r.t.Fatalf("server %s has no metric %s", m.id, name)
	return 0
}
