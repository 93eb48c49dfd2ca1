package plugins

import (
	"context"

	"github.com/gpuai/gpuai"
)

// A Driver is what the author of a driver implements. Serve runs it.
//
// Configure is called once, before anything but Info. After it, all methods may
// be called at the same time; the contexts end when the agent no longer waits.
type Driver interface {
	Configurer
	Observer
	Reserver
}

// A Configurer is the part of a Driver that is called first.
type Configurer interface {
	// Info says who the driver is. It is called by hand too (--help), so it
	// must not need a device.
	Info() Info
	// Configure takes the configuration, strictly (see DecodeConfig), and
	// loads what StateDir holds. It wraps ErrInvalid when the operator must
	// change the configuration.
	Configure(ctx context.Context, c Config) error
}

// An Observer is the part of a Driver that tells what there is.
type Observer interface {
	// Fingerprint calls send with the inventory at once and whenever it
	// changed, until ctx ends or send fails. Serve counts generations, repeats
	// the last one each period and drops repetitions.
	Fingerprint(ctx context.Context, send func(Inventory) error) error
	// Health calls send with the health of every device at once, then of
	// those that changed, until ctx ends or send fails.
	Health(ctx context.Context, send func([]Health) error) error
	// Stats measures the given devices, or all when none is given.
	Stats(ctx context.Context, ids []gpuai.DeviceID) ([]Stats, error)
}

// A Reserver is the part of a Driver that hands devices out. What it holds is
// on disk before it answers: it survives the process.
type Reserver interface {
	// Reserve holds the devices of r, which is normal (Reservation.Normal).
	// A repeated r gets the same grant, whatever happened to its devices.
	Reserve(ctx context.Context, r Reservation) (Grant, error)
	// Release ends a reservation. clean is false, with the reason, when the
	// devices must not be used again before someone has seen to them. An ID
	// that is not held is clean. An error leaves the reservation as it was.
	Release(ctx context.Context, id string, scrub bool) (clean bool, detail string, err error)
	// Recover splits what is held: known are those of ids that the driver
	// holds, orphaned what it holds beside them. Both are sorted.
	Recover(ctx context.Context, ids []string) (known, orphaned []string, err error)
}
