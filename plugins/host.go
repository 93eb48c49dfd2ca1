package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
)

// A Host keeps one driver running for an agent. When the driver's process dies
// or hangs it is killed and started again, with a back-off that doubles; after
// 5 deaths within 10 minutes its devices are reported unhealthy until it is
// steady. Devices, and reservations, outlive the process: a task that has its
// devices goes on while the driver is away.
//
// Safe for concurrent use.
type Host struct {
	cfg    HostConfig
	dir    *runDir
	timing timing
	log    *slog.Logger

	changed chan struct{}
	struck  chan struct{} // too many calls went unanswered
	cancel  context.CancelFunc
	done    chan struct{} // the supervisor has ended

	closing sync.Once
	closed  error // what Close answers

	mu      sync.Mutex // guards below
	up      *Process   // nil while it is down
	moved   chan struct{}
	snap    Snapshot
	strikes int
	held    map[string]Reservation
	newest  gpuai.Incarnation
}

// Start starts a driver and returns once its inventory and the health of every
// device are known. ctx bounds the start only; the host lives until Close.
//
// The first start is not repeated: its error says in one sentence what is wrong
// (ErrBinary, ErrProtocol, ErrInvalid for the configuration, ErrDown when it
// crashed, ErrTimeout when it hung, ErrGarbage). After it, whatever happens to
// the driver shows in Inventory.
//
// What was reserved before the agent's last end is still reserved: call Recover
// with the reservations that the agent holds, then Release each orphan.
func Start(ctx context.Context, cfg HostConfig) (*Host, error) {
	return start(ctx, cfg, defaultTiming())
}

func start(ctx context.Context, cfg HostConfig, t timing) (*Host, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir, err := openRunDir(cfg.SocketDir, cfg.Name)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, dir: dir, timing: t, log: cfg.Logger.With("driver", cfg.Name),
		changed: make(chan struct{}, 1), struck: make(chan struct{}, 1),
		done: make(chan struct{}), moved: make(chan struct{}),
		held: map[string]Reservation{},
	}
	sup := &supervisor{host: h, view: newView(), breaker: breaker{timing: t}}
	if err := sup.begin(ctx); err != nil {
		return nil, errors.Join(err, dir.close())
	}
	life, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	go sup.run(life)
	return h, nil
}

// Inventory returns what is known of the driver's devices now. It does not
// block, and the answer must not be modified.
func (h *Host) Inventory() Snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snap
}

// Changed signals that Inventory has a new generation. Signals are merged: one
// receive may stand for several changes. The channel is never closed.
func (h *Host) Changed() <-chan struct{} { return h.changed }

// Close ends the driver, within 2 s or by SIGKILL, and removes its sockets. What
// is reserved stays reserved, for the agent's next start. Idempotent.
func (h *Host) Close() error {
	h.closing.Do(func() {
		h.cancel()
		<-h.done
		h.closed = h.dir.close()
	})
	return h.closed
}

// Reserve holds devices, or a share of one, under r.ID and returns what the task
// needs to use them. It is idempotent: repeat it with the same r after ErrDown,
// ErrTimeout or the end of ctx, or Release r.ID, which may be held by then. While
// the driver restarts the call waits for it; it takes 5 s at most.
func (h *Host) Reserve(ctx context.Context, r Reservation) (Grant, error) {
	r, err := r.Normal()
	if err != nil {
		return Grant{}, fmt.Errorf("driver %s: %w", h.cfg.Name, err)
	}
	var g Grant
	err = h.call(ctx, func(ctx context.Context, d *Remote) (err error) {
		g, err = d.Reserve(ctx, r)
		return err
	})
	if err != nil {
		return Grant{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[r.ID] = r
	h.newest = max(h.newest, r.Incarnation)
	return g, nil
}

// Release ends a reservation; with scrub the driver wipes the devices' memory.
// clean is false, with the reason in detail, when the devices must not be used
// again before somebody has seen to them. After an error repeat it: an ID that
// is not held is clean.
func (h *Host) Release(ctx context.Context, id string, scrub bool) (clean bool, detail string, err error) {
	err = h.call(ctx, func(ctx context.Context, d *Remote) (err error) {
		clean, detail, err = d.Release(ctx, id, scrub)
		return err
	})
	if err != nil {
		return false, "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, id)
	return clean, detail, nil
}

// Recover compares reservations after a restart of the agent: known are those of
// ids that the driver still holds, orphaned what it holds beside them. An ID that
// is in neither is to be reserved again.
func (h *Host) Recover(ctx context.Context, ids []string) (known, orphaned []string, err error) {
	err = h.call(ctx, func(ctx context.Context, d *Remote) (err error) {
		known, orphaned, err = d.Recover(ctx, ids)
		return err
	})
	return known, orphaned, err
}

// Stats calls f with measurements of the given devices (none: all) at once and
// then every interval, until ctx ends, f fails or the driver's process dies.
// Call it again then: it waits up to 5 s for a driver that is down.
func (h *Host) Stats(ctx context.Context, interval time.Duration, ids []gpuai.DeviceID, f func([]Stats) error) error {
	wait, cancel := context.WithTimeout(ctx, h.timing.call)
	defer cancel()
	p, err := h.await(wait, nil)
	if err != nil {
		return err
	}
	return p.remote.Stats(ctx, interval, ids, f)
}

// call runs f, one idempotent call, with the deadline; when the process dies
// under it, again on the next process while the deadline allows.
func (h *Host) call(ctx context.Context, f func(context.Context, *Remote) error) error {
	bounded, cancel := context.WithTimeout(ctx, h.timing.call)
	defer cancel()
	for last := (*Process)(nil); ; {
		p, err := h.await(bounded, last)
		if err != nil {
			return err
		}
		if err = f(bounded, p.remote); errors.Is(err, context.Canceled) && bounded.Err() == nil {
			err = fmt.Errorf("%w: its connection was closed under the call", ErrDown) // the process has ended
		}
		h.judge(ctx, err)
		if !errors.Is(err, ErrDown) {
			return h.wrap(err)
		}
		last = p
	}
}

func (h *Host) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("driver %s: %w", h.cfg.Name, err)
}

// await returns the running process, waiting for one other than last.
func (h *Host) await(ctx context.Context, last *Process) (*Process, error) {
	for {
		h.mu.Lock()
		p, moved, why := h.up, h.moved, h.snap.Err
		h.mu.Unlock()
		if p != nil && p != last {
			return p, nil
		}
		select {
		case <-moved:
		case <-h.done:
			return nil, h.wrap(fmt.Errorf("%w: its host is closed", ErrDown))
		case <-ctx.Done():
			if why == "" {
				why = "it is being restarted"
			}
			return nil, h.wrap(fmt.Errorf("%w: %s", ErrDown, why))
		}
	}
}

// judge counts calls that got no answer in our own time (the caller's may be
// shorter): enough of them in a row are a hang, even while the inventory comes.
func (h *Host) judge(caller context.Context, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !errors.Is(err, ErrTimeout) {
		h.strikes = 0
		return
	}
	if caller.Err() != nil {
		return
	}
	if h.strikes++; h.strikes >= h.timing.strikes {
		h.strikes = 0
		select {
		case h.struck <- struct{}{}:
		default:
		}
	}
}
