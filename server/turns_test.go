package server

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// At most so many run at once; whoever blocks keeps nobody else from running.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := newTurns()
		var running, most, done atomic.Int64
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				x.do(func() {
					most.Store(max(most.Load(), running.Add(1)))
					<-time.After(turnFor / 10)
					running.Add(-1)
					done.Add(1)
				})
			})
		}
		wg.Wait()
		if n := int64(cap(x.free)); most.Load() > n || done.Load() != 500 {
			t.Errorf("%d ran at once, at most %d may; %d ended", most.Load(), n, done.Load())
		}
		stuck := make(chan struct{})
		for range 10 * cap(x.free) {
			wg.Go(func() { x.do(func() { <-stuck }) })
		}
		began := time.Now()
		x.do(func() {})
		if d := time.Since(began); d > 20*turnFor {
			t.Errorf("behind agents that do not read a turn came after %v", d)
		}
		close(stuck)
		wg.Wait()
		if len(x.free) != 0 {
			t.Errorf("%d turns were not given back", len(x.free))
		}
	})
}

// BenchmarkTurns has thousands of goroutines woken at once, with 200 µs of work
// each, beside one with about 50 ms of it, as Apply: apply-ms is what that one
// takes.
//
//	go test ./server -run '^$' -bench Turns -benchtime 1x
func BenchmarkTurns(b *testing.B) {
	for _, bounded := range []bool{false, true} {
		b.Run(fmt.Sprint("bounded=", bounded), func(b *testing.B) {
			var took time.Duration
			for b.Loop() {
				took += besideSessions(15_000, bounded)
			}
			b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "apply-ms")
		})
	}
}

// work takes a processor for about d.
func work(d time.Duration) {
	for began := time.Now(); time.Since(began) < d; {
	}
}

func besideSessions(n int, bounded bool) time.Duration {
	x, wake := newTurns(), make(chan struct{})
	var ready, wg sync.WaitGroup
	for range n {
		ready.Add(1)
		wg.Go(func() {
			ready.Done()
			<-wake
			f := func() { work(200 * time.Microsecond) }
			if bounded {
				x.do(f)
			} else {
				f()
			}
		})
	}
	ready.Wait()
	took := make(chan time.Duration)
	go func() {
		began, sum := time.Now(), 0
		for i := range 100_000_000 {
			sum += i ^ sum
		}
		d := time.Since(began)
		if sum == 1 { // the loop is not to be left out
			d++
		}
		took <- d
	}()
	close(wake)
	d := <-took
	wg.Wait()
	return d
}
