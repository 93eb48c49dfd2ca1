package integration

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// Writers submit jobs from several clients until they are stopped, and remember
// which were acknowledged.
type writers struct {
	r      *region
	stop   context.CancelFunc
	wg     sync.WaitGroup
	failed atomic.Int64

	mu    sync.Mutex // guards below
	acked []gpuai.JobID
}

func (r *region) startWriters(workers int) *writers {
	ctx, stop := context.WithCancel(r.t.Context())
	l := &writers{r: r, stop: stop}
	for w := range workers {
		c := r.client()
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				spec := idleJob(fmt.Sprintf("load-%d-%d", w, i))
				sub, err := c.Submit(ctx, client.SubmitRequest{Spec: spec, HoldAnyway: true})
				if err != nil {
					l.failed.Add(1)
					continue
				}
				l.mu.Lock()
				l.acked = append(l.acked, sub.Job.ID)
				l.mu.Unlock()
			}
		})
	}
	return l
}

// more waits until n more jobs are acknowledged.
func (l *writers) more(n int) {
	l.r.t.Helper()
	count := func() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.acked) }
	until := count() + n
	eventually(l.r.t, patience, fmt.Sprintf("%d more jobs", n), func(context.Context) error {
		if have := count(); have < until {
			return fmt.Errorf("there are %d of %d", have, until)
		}
		return nil
	})
}

// end stops the writers and checks that the region has every job that it
// acknowledged.
func (l *writers) end() {
	l.r.t.Helper()
	l.stop()
	l.wg.Wait()
	c := l.r.client()
	for _, id := range l.acked {
		if _, err := c.Job(l.r.t.Context(), id.String()); err != nil {
			l.r.t.Fatalf("job %s was acknowledged and is lost: %v", id, err)
		}
	}
	l.r.t.Logf("%d jobs were acknowledged and are there; %d submits had no answer", len(l.acked), l.failed.Load())
}

// TestUpgradeAndDowngradeUnderLoad upgrades three servers one by one from
// feature level 1 while clients submit: the level is raised when the last of
// them knows it, and not before. Until then a server can go back; afterwards
// it is refused. Nothing that was acknowledged is lost, and the servers agree.
func TestUpgradeAndDowngradeUnderLoad(t *testing.T) {
	t.Parallel()
	old := []string{"--max-feature-level", "1"}
	r := startRegion(t, old...)
	l := r.startWriters(4)
	atLevelOne := func() {
		t.Helper()
		l.more(50)
		for _, m := range r.servers {
			r.levelOf(m, 1)
		}
	}
	atLevelOne()
	r.restart(r.servers[0])
	atLevelOne()
	r.restart(r.servers[1])
	atLevelOne()
	r.restart(r.servers[1], old...) // a downgrade before the raise
	atLevelOne()
	r.restart(r.servers[1])
	atLevelOne()
	r.equalDigests(0)
	r.restart(r.servers[2])
	for _, m := range r.servers {
		r.levelOf(m, fsm.MaxLevel)
	}
	l.more(100)
	r.equalDigests(0)

	m := r.servers[2]
	m.signal(syscall.SIGTERM)
	m.exit(patience)
	m.flags = old
	r.start(m)
	if code := m.exit(patience); code == 0 || !strings.Contains(m.err.String(), "too old for its region") {
		t.Errorf("a downgrade behind the raise ended with exit code %d: %s", code, m.err)
	}
	l.more(50)
	m.flags = nil
	r.start(m)
	r.awaitReady()
	r.equalDigests(0)
	l.end()
	for _, m := range r.servers {
		m.signal(syscall.SIGTERM)
		m.exit(patience)
		r.verify(m, "")
	}
}
