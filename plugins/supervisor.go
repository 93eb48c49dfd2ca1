package plugins

import (
	"context"
	"errors"

	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/gpuai/gpuai"
)

// A supervisor is the goroutine of a Host: it alone starts and ends processes,
// hears their streams and publishes snapshots.
type supervisor struct {
	host     *Host
	view     *view
	breaker  breaker
	session  *session // the running process
	restarts uint64
}

// A session is a running process with its two streams.
type session struct {
	process   *Process
	cancel    context.CancelFunc
	inventory chan Inventory
	health    chan []Health
	failed    chan error // of either stream
}

func newSession(p *Process) *session {
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{
		process: p, cancel: cancel,
		inventory: make(chan Inventory), health: make(chan []Health), failed: make(chan error, 2),
	}
	go func() {
		s.failed <- p.remote.Fingerprint(ctx, p.timing.beat, func(v Inventory) error { return hand(ctx, s.inventory, v) })
	}()
	go func() {
		s.failed <- p.remote.Health(ctx, func(hs []Health) error { return hand(ctx, s.health, hs) })
	}()
	return s
}

func hand[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin starts a process and publishes it once it is of use: reservations are
// compared, the inventory and the health of every device are there.
func (s *supervisor) begin(ctx context.Context) error {
	p, err := launch(ctx, s.host.cfg, s.host.dir, s.host.timing)
	if err != nil {
		return err
	}
	s.session = newSession(p)
	if err = s.restore(ctx, p); err == nil {
		err = s.first(ctx)
	}
	if err != nil {
		err = s.cause(err)
		s.session.cancel()
		p.kill()
		return err
	}
	s.publish(nil)
	s.host.setUp(p)
	return nil
}

// restore makes sure that what is held is held by the new process too. Drivers
// keep reservations on disk; one that lost its disk gets them again before it
// can give the devices to anybody else.
func (s *supervisor) restore(ctx context.Context, p *Process) error {
	held, newest := s.host.reservations()
	if len(held) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.host.timing.call)
	defer cancel()
	known, _, err := p.remote.Recover(ctx, slices.Sorted(maps.Keys(held)))
	if err != nil {
		return err
	}
	for _, id := range known {
		delete(held, id)
	}
	for _, id := range slices.Sorted(maps.Keys(held)) {
		r := held[id]
		r.Incarnation = newest
		_, err := p.remote.Reserve(ctx, r)
		if errors.Is(err, ErrDown) || errors.Is(err, ErrTimeout) {
			return err
		}
		// A refusal does not keep the driver down: what cannot be reserved
		// for us now cannot be for anybody else.
		s.host.log.Error("driver had forgotten a reservation and was given it again", "reservation", id, "err", err)
	}
	return nil
}

// first waits for the first inventory with the health of all of it.
func (s *supervisor) first(ctx context.Context) error {
	expired := time.NewTimer(s.host.timing.fingerprint)
	defer expired.Stop()
	// Into a view of its own: until all is there the last process's word counts.
	fresh := newView()
	for seen := false; !seen || !fresh.complete(); {
		select {
		case v := <-s.session.inventory:
			fresh.inventory, seen = v, true
		case hs := <-s.session.health:
			fresh.setHealth(hs)
		case err := <-s.session.failed:
			return err
		case <-expired.C:
			return fmt.Errorf("%w: it sent no inventory with the health of its devices within %s", ErrTimeout, s.host.timing.fingerprint)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.view.inventory, s.view.health = fresh.inventory, fresh.health
	return nil
}

// run follows the process that begin started, and its successors, until ctx ends.
func (s *supervisor) run(ctx context.Context) {
	defer close(s.host.done)
	for {
		err := s.follow(ctx)
		s.host.setUp(nil)
		s.session.cancel()
		if ctx.Err() != nil {
			s.session.process.stop()
			return
		}
		err = s.cause(err)
		s.session.process.kill()
		if !s.again(ctx, err) {
			return
		}
	}
}

// again starts the driver until it runs, with back-off; false when ctx ended.
func (s *supervisor) again(ctx context.Context, err error) bool {
	for {
		s.breaker.death(time.Now())
		wait := s.breaker.backoff()
		s.host.log.Error("driver is down", "err", err, "deaths", len(s.breaker.deaths), "restart_in", wait)
		s.publish(err)
		pause := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			pause.Stop()
			return false
		case <-pause.C:
		}
		s.restarts++
		if err = s.begin(ctx); err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

// silentTicks is how finely a driver's silence is counted.
const silentTicks = 8

// follow publishes what the process says, until it must be ended: it died, broke
// the contract, fell silent, or left calls unanswered.
func (s *supervisor) follow(ctx context.Context) error {
	// Silence is counted in ticks of our own: while this process is stopped or
	// suspended there are none, and the driver is not to blame.
	tick := time.NewTicker(s.host.timing.silence / silentTicks)
	defer tick.Stop()
	silent := 0
	steady := s.steadyTimer()
	defer steady.Stop()
	for {
		select {
		case v := <-s.session.inventory:
			s.view.inventory = v
			silent = 0
		case hs := <-s.session.health:
			s.view.setHealth(hs)
		case <-steady.C:
			steady = s.steadyTimer()
		case err := <-s.session.failed:
			return err
		case <-s.session.process.Gone():
			return ErrDown
		case <-tick.C:
			if silent++; silent <= silentTicks {
				continue
			}
			return fmt.Errorf("%w: nothing was heard of it for %s, it hangs", ErrTimeout, s.host.timing.silence)
		case <-s.host.struck:
			return fmt.Errorf("%w: it left %d calls in a row unanswered, it hangs", ErrTimeout, s.host.timing.strikes)
		case <-ctx.Done():
			return ctx.Err()
		}
		s.publish(nil)
	}
}

// steadyTimer fires when an open breaker closes.
func (s *supervisor) steadyTimer() *time.Timer {
	if !s.breaker.open(time.Now()) {
		return time.NewTimer(s.host.timing.window)
	}
	return time.NewTimer(time.Until(s.breaker.closes()))
}

// cause says how the process ended if that is what err is about, with its last
// words.
func (s *supervisor) cause(err error) error {
	p := s.session.process
	if state, died := p.awaitEnd(err); died {
		return fmt.Errorf("%w: driver %s ended with %s%s", ErrDown, s.host.cfg.Name, state, p.child.lines.words())
	}
	return fmt.Errorf("driver %s: %w", s.host.cfg.Name, err)
}

// publish makes a snapshot of what is known; down is why there is no process.
func (s *supervisor) publish(down error) {
	unstable := s.breaker.open(time.Now())
	snap := Snapshot{
		Devices: s.view.devices(unstable), Simulated: s.view.inventory.Simulated,
		Err: s.view.inventory.Err, Links: s.view.inventory.Links,
		DriverVersion: s.view.inventory.DriverVersion, RuntimeVersion: s.view.inventory.RuntimeVersion,
		Health: maps.Clone(s.view.health), Details: s.view.inventory.Devices,
		Driver: s.session.process.info, Restarts: s.restarts,
	}
	switch {
	case down != nil:
		snap.Err = down.Error()
	case unstable:
		snap.Err = fmt.Sprintf("driver %s died %d times within %s: its devices are unhealthy until it is steady, see its log",
			s.host.cfg.Name, len(s.breaker.deaths), s.host.timing.window)
	}
	if down == nil {
		snap.Up, snap.PID = true, s.session.process.PID()
	}
	s.host.publish(snap)
}

// publish stores snap under a new generation if anything changed.
func (h *Host) publish(snap Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	snap.Generation = h.snap.Generation
	if reflect.DeepEqual(snap, h.snap) {
		return
	}
	snap.Generation++
	h.snap = snap
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// setUp tells waiting calls which process there is now, nil for none.
func (h *Host) setUp(p *Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.up, h.strikes = p, 0
	close(h.moved)
	h.moved = make(chan struct{})
	select { // a strike against the process before
	case <-h.struck:
	default:
	}
}

// reservations returns a copy of what is held and the newest incarnation seen.
func (h *Host) reservations() (map[string]Reservation, gpuai.Incarnation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.held), h.newest
}
