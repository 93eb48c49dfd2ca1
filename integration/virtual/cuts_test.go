package virtual

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	times = flag.Int("times", 1, "play each scenario with so many times its seeds")
	first = flag.Uint64("first", 0, "the first seed")
)

// each runs a test once a seed.
func each(t *testing.T, seeds int, test func(t *testing.T, seed uint64)) {
	for i := range uint64(seeds * *times) {
		seed := *first + i
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { test(t, seed) })
	}
}

// TestCase13Partitions plays every shape of partition on five servers: whoever
// has a majority that is connected both ways goes on, and no history differs
// from that of one server.
func TestCase13Partitions(t *testing.T) {
	shapes := map[string]func(r *region) (majority []*member){
		"minority with the leader": func(r *region) []*member {
			l := r.leader()
			rest := r.others(l)
			r.net.partition(names([]*member{l, rest[0]}), names(rest[1:]))
			return rest[1:]
		},
		"minority without the leader": func(r *region) []*member {
			l := r.leader()
			rest := r.others(l)
			r.net.partition(names([]*member{l}, rest[:2]), names(rest[2:]))
			return append(rest[:2:2], l)
		},
		"ring": func(r *region) []*member {
			n := names(r.servers)
			r.net.partition([]string{n[0], n[1]}, []string{n[1], n[2]}, []string{n[2], n[3]}, []string{n[3], n[4]}, []string{n[4], n[0]})
			return r.servers
		},
		"bridge": func(r *region) []*member { // it leads nobody yet
			l := r.leader()
			rest := r.others(l)
			r.net.partition(names([]*member{l}, rest[:2]), names(rest[1:]))
			return rest[1:2]
		},
		"the leader is not heard": func(r *region) []*member {
			l := r.leader()
			var cut []link
			for _, m := range r.others(l) {
				cut = append(cut, link{string(l.id), string(m.id)})
			}
			r.net.oneWay(cut...)
			return r.others(l)
		},
		"the leader hears nobody": func(r *region) []*member {
			l := r.leader()
			var cut []link
			for _, m := range r.others(l) {
				cut = append(cut, link{string(m.id), string(l.id)})
			}
			r.net.oneWay(cut...)
			return r.others(l)
		},
	}
	for name, cut := range shapes {
		t.Run(name, func(t *testing.T) {
			each(t, 1, func(t *testing.T, seed uint64) {
				bubble(t, 5, seed, func(r *region) {
					load := r.startLoad()
					r.idle(r.between(200*time.Millisecond, time.Second))
					majority := cut(r)
					r.progress(majority...)
					r.idle(r.between(time.Second, 6*time.Second))
					r.progress(majority...)
					r.net.heal()
					r.converge()
					load.stop()
					r.converge()
				})
			})
		})
	}
}

// TestCase13Flapping cuts and mends random links every 300 ms, both ways or one
// way.
func TestCase13Flapping(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 5, seed, func(r *region) {
			load := r.startLoad()
			load.h.behind = maxBackOff
			for range 12 {
				var cut []link
				for range 1 + r.rng.IntN(6) {
					a, b := r.servers[r.rng.IntN(5)].id, r.servers[r.rng.IntN(5)].id
					cut = append(cut, link{string(a), string(b)})
					if r.rng.IntN(2) == 0 {
						cut = append(cut, link{string(b), string(a)})
					}
				}
				r.net.oneWay(cut...)
				r.idle(300 * time.Millisecond)
			}
			r.net.heal()
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

// TestCase13OneLinkFlaps cuts the link between the leader and one follower every
// 300 ms: a majority is connected all the time, so there is progress all the
// time.
func TestCase13OneLinkFlaps(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			load := r.startLoad()
			load.h.behind = maxBackOff
			for range 3 {
				l := r.leader()
				for range 3 {
					r.net.partition(names([]*member{l}, r.others(l)[:1]), names(r.others(l)))
					r.idle(300 * time.Millisecond)
					r.net.heal()
					r.idle(300 * time.Millisecond)
				}
				r.progress(r.servers...)
			}
			r.converge()
			load.stop()
			r.converge()
		})
	})
}

// TestBrokenConnections breaks connections of servers and clients at random, on
// fast and on slow links, so that many outcomes are unknown.
func TestBrokenConnections(t *testing.T) {
	each(t, 2, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			load := r.startLoad()
			load.h.behind = maxBackOff
			for round := range 40 {
				r.net.slow([]time.Duration{maxDelay, 30 * time.Millisecond}[round/10%2])
				r.idle(r.between(20*time.Millisecond, 200*time.Millisecond))
				r.net.reset(3)
			}
			r.net.slow(maxDelay)
			r.converge()
			load.stop()
			r.converge()
		})
	})
}
