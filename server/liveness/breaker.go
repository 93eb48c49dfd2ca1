package liveness

import "github.com/gpuai/gpuai"

// breaker slows expiry down when so many nodes fall silent at once that it is
// more likely the servers that cannot hear. Opened, it lets nothing through
// for one window, then a small share of the nodes a second. It closes when few
// nodes fell in the last window, no expiry is due, and few nodes are silent
// whose leases will be due: leases with a long TTL end long after their nodes
// fell.
type breaker struct {
	falls  []int64 // when nodes fell silent, in ms, oldest first
	open   bool
	since  int64 // when it opened
	filled int64 // when credit was last added to
	credit int64 // in expiries · 1000
}

// load is what a breaker judges.
type load struct {
	nodes, due int
	silent     int // with leases, due or not
}

// fell counts a node that fell silent.
func (b *breaker) fell(now int64) { b.falls = append(b.falls, now) }

// allow returns how many expiries may be proposed at now.
func (b *breaker) allow(now int64, l load, p *gpuai.Policy) int {
	b.forget(now - int64(p.BreakerWindow))
	limit := max(int(p.BreakerMin), perMillion(l.nodes, p.BreakerPPM))
	many := len(b.falls) > limit
	switch {
	case !b.open && many:
		b.open, b.since, b.credit = true, now, 0
		b.filled = now + int64(p.BreakerWindow)
	case b.open && !many && l.due == 0 && l.silent <= limit:
		b.open = false
	}
	if !b.open {
		return l.due
	}
	b.fill(now, max(1, int64(perMillion(l.nodes, p.BreakerRatePPM))))
	return min(l.due, int(b.credit/1_000))
}

// fill adds rate expiries for each second since the last call, and keeps one
// second's worth.
func (b *breaker) fill(now, rate int64) {
	if now > b.filled {
		b.credit = min(b.credit+(now-b.filled)*rate, rate*1_000)
		b.filled = now
	}
}

// spend notes that n expiries are proposed.
func (b *breaker) spend(n int) {
	if b.open {
		b.credit -= int64(n) * 1_000
	}
}

// forget drops the falls before a time.
func (b *breaker) forget(before int64) {
	n := 0
	for n < len(b.falls) && b.falls[n] < before {
		n++
	}
	b.falls = append(b.falls[:0], b.falls[n:]...)
}

func perMillion(n int, ppm uint32) int { return int(int64(n) * int64(ppm) / 1_000_000) }
