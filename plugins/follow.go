package plugins

import (
	"context"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
)

// FollowInventory is a Driver's Fingerprint: it sends what now returns, and again
// each time that the channel beside it is closed, until ctx ends or send fails.
// Serve drops repetitions.
func FollowInventory(ctx context.Context, send func(Inventory) error, now func() (Inventory, <-chan struct{})) error {
	for {
		v, changed := now()
		if err := send(v); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// FollowHealth is a Driver's Health: it sends the health of every device that now
// returns, then of those whose health is another each time that the channel
// beside it is closed, until ctx ends or send fails. The map is not changed any
// more once it was returned.
func FollowHealth(ctx context.Context, send func([]Health) error, now func() (map[gpuai.DeviceID]Health, <-chan struct{})) error {
	var sent map[gpuai.DeviceID]Health
	for {
		health, changed := now()
		var news []Health
		for _, id := range slices.Sorted(maps.Keys(health)) {
			if old, ok := sent[id]; !ok || old != health[id] {
				news = append(news, health[id])
			}
		}
		sent = health
		if len(news) > 0 {
			if err := send(news); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
