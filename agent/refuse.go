package agent

import (
	"context"
	"fmt"

	"github.com/gpuai/gpuai"
)

// What an agent refuses are new tasks, of any kind: its devices alone would leave
// tasks that need none. What runs goes on. It is told beside the devices, and the
// region places nothing here until it is told otherwise.

// refusal is why the node takes no new task; nil when it does.
func (a *Agent) refusal() *gpuai.Refusal {
	switch {
	case a.drained != "":
		r := &gpuai.Refusal{Code: gpuai.NodeRefuses, Detail: a.drained}
		if a.drainedFull {
			r.Code = gpuai.DiskFull
		}
		return r
	case a.pressed != "":
		return &gpuai.Refusal{Code: gpuai.DiskFull, Detail: a.pressed}
	}
	return nil
}

// watchDisk has the node refuse new tasks while its disk is nearly full: from half
// of the reserve on, until there are three quarters of it again.
func (a *Agent) watchDisk(ctx context.Context) {
	for pause(ctx, diskEvery) {
		if free, reserve, err := diskRoom(a.cfg.DataDir); err == nil {
			a.post(func() { a.seeDisk(free, reserve) })
		}
	}
}

func (a *Agent) seeDisk(free, reserve int64) {
	switch {
	case a.pressed == "" && free < reserve/2:
		a.pressed = fmt.Sprintf("the disk of its data directory is full, %d MiB are free: its operator has to make room, %d MiB at least", free>>20, reserve*3/4>>20+1)
		a.log.Warn("the disk is full: no new task is taken until there is room", "free", free, "needed", reserve*3/4)
	case a.pressed != "" && free >= reserve*3/4:
		a.pressed = ""
		a.log.Info("there is room on the disk again: new tasks are taken", "free", free)
	default:
		return
	}
	a.tellDevices()
}

// sameRefusal reports whether both say the same.
func sameRefusal(a, b *gpuai.Refusal) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}
