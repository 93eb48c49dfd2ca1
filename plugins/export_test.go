package plugins

import (
	"context"
	"time"
)

// StartQuick is Start with times short enough for a test, and a breaker that
// closes again within it.
func StartQuick(ctx context.Context, cfg HostConfig) (*Host, error) {
	return start(ctx, cfg, quickTiming())
}

// Marker is the variable that marks the processes of a driver's directory.
func Marker(path string) (string, error) { return marker(path) }

func quickTiming() timing {
	t := defaultTiming()
	t.start = 3 * time.Second
	t.call = 1500 * time.Millisecond
	t.beat, t.silence = 100*time.Millisecond, 1500*time.Millisecond
	t.stop = 500 * time.Millisecond
	t.backoffMin, t.backoffMax = 5*time.Millisecond, 20*time.Millisecond
	t.window = 8 * time.Second
	t.strikes = 2
	return t
}
