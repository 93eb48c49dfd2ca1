package virtual

import (
	"fmt"
	"testing"
	"time"
)

// TestCase1LeaderCrashes kills the leader again and again under load; it comes
// back from its files while the others go on.
func TestCase1LeaderCrashes(t *testing.T) {
	for _, servers := range []int{3, 5} {
		t.Run(fmt.Sprint(servers), func(t *testing.T) {
			each(t, 1, func(t *testing.T, seed uint64) {
				bubble(t, servers, seed, func(r *region) {
					load := r.startLoad()
					for range 3 {
						r.idle(r.between(300*time.Millisecond, 1500*time.Millisecond))
						old := r.leader()
						r.crash(old)
						began := time.Now()
						r.progress(r.others()...)
						t.Logf("a new leader acknowledged %v after the crash of %s", time.Since(began), old.id)
						r.idle(r.between(0, 2*time.Second))
						r.start(old)
					}
					r.converge()
					load.stop()
					r.converge()
				})
			})
		})
	}
}

// TestCase2AllCrash kills all servers at once under load, or one after the
// other so that none has all that the last one had, and restarts them from
// disk.
func TestCase2AllCrash(t *testing.T) {
	each(t, 3, func(t *testing.T, seed uint64) {
		bubble(t, 3+2*int(seed%2), seed, func(r *region) {
			load := r.startLoad()
			for round := range 3 {
				r.idle(r.between(300*time.Millisecond, time.Second))
				if round == 1 {
					for _, m := range r.others() {
						r.crash(m)
						r.idle(r.between(time.Millisecond, 300*time.Millisecond))
					}
				} else {
					r.crash(r.others()...)
				}
				r.idle(r.between(0, time.Second))
				for _, at := range r.rng.Perm(len(r.servers)) {
					r.start(r.servers[at])
					r.idle(r.between(time.Millisecond, 500*time.Millisecond))
				}
				r.progress(r.servers...)
			}
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

// TestRollingRestarts stops each leader as planned, which hands over, under
// load.
func TestRollingRestarts(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			load := r.startLoad()
			for range 5 {
				r.idle(r.between(50*time.Millisecond, 700*time.Millisecond))
				old := r.leader()
				r.stop(old)
				began := time.Now()
				r.progress(r.others()...)
				if d := time.Since(began); d > 500*time.Millisecond {
					t.Errorf("behind a hand-over by %s nothing was acknowledged for %v", old.id, d)
				}
				r.start(old)
			}
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

// TestCase4PausedLeader stops the leader for a while under load. The others
// elect one; what was on its way to the old one reaches it when it goes on, and
// it answers nothing that is out of date.
func TestCase4PausedLeader(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, time.Minute} {
		t.Run(pause.String(), func(t *testing.T) {
			each(t, 1, func(t *testing.T, seed uint64) {
				bubble(t, 3, seed, func(r *region) { pausedLeader(r, pause) })
			})
		})
	}
}

func pausedLeader(r *region, pause time.Duration) {
	load := r.startLoad()
	r.idle(r.between(300*time.Millisecond, time.Second))
	old := r.leader()
	before := old.life.Raft(r.t.Context()).Term
	r.pause(old)
	began := time.Now()
	r.progress(r.others(old)...)
	await := r.askers(load, old, pause)
	r.idle(min(2*time.Second, pause-time.Since(began)))
	load.rest.Store(true) // of minutes of load little would be learnt
	r.idle(pause - time.Since(began))
	load.rest.Store(false)
	r.resume(old)
	r.t.Logf("%d of its calls were answered when it went on", await())
	r.within(progressWithin, "step down of the old leader", func() bool {
		st := old.life.Raft(r.t.Context())
		return st.Term > before && (st.Leader != old.id || r.leader() == old)
	})
	r.converge() // it hears its leader before it has what it missed
	old.dazed.Store(false)
	load.stop()
	r.converge()
}

// askers sends reads, submits and stops to a stopped server, about jobs that
// are submitted elsewhere meanwhile. await waits for the answers and counts
// them.
func (r *region) askers(load *load, stopped *member, pause time.Duration) (await func() int) {
	elsewhere := r.others(stopped)
	writer := &worker{load: load, number: 100, servers: elsewhere, client: r.client(attempt, elsewhere...)}
	answers := make(chan bool, 12)
	for i := range cap(answers) {
		key := fmt.Sprintf("asked-%d", i)
		writer.do(request{submit, key})
		w := &worker{load: load, number: 101 + i, servers: []*member{stopped}, client: r.client(pause+10*time.Second, stopped)}
		go func() { answers <- w.do(request{[]action{read, read, submit, stop}[i%4], key}) }()
	}
	return func() (told int) {
		for range cap(answers) {
			if <-answers {
				told++
			}
		}
		return told
	}
}
