package plugins

import "time"

// A breaker counts a driver's deaths. It is a pure value: the caller brings the
// time.
type breaker struct {
	timing timing
	deaths []time.Time // within the window, oldest first
}

// death notes one.
func (b *breaker) death(now time.Time) {
	b.forget(now)
	b.deaths = append(b.deaths, now)
}

func (b *breaker) forget(now time.Time) {
	for len(b.deaths) > 0 && now.Sub(b.deaths[0]) >= b.timing.window {
		b.deaths = b.deaths[1:]
	}
}

// open reports whether the driver died too often lately to be trusted.
func (b *breaker) open(now time.Time) bool {
	b.forget(now)
	return len(b.deaths) >= b.timing.deaths
}

// closes is when an open breaker closes if nothing more dies.
func (b *breaker) closes() time.Time {
	return b.deaths[len(b.deaths)-b.timing.deaths].Add(b.timing.window)
}

// backoff is the wait before the next start: it doubles with every death in
// the window.
func (b *breaker) backoff() time.Duration {
	d := b.timing.backoffMin
	for range max(len(b.deaths), 1) - 1 {
		if d *= 2; d >= b.timing.backoffMax {
			return b.timing.backoffMax
		}
	}
	return d
}
