package plugins

import (
	"context"
	"time"

	"github.com/gpuai/gpuai"
	pb "github.com/gpuai/gpuai/plugins/proto"
)

// A Remote speaks to the driver of one process. It sets no deadlines: the
// caller's context does. Safe for concurrent use.
//
// Errors wrap the contract's errors. A stream's method returns only with one: a
// driver that ends a stream by itself breaks the contract.
type Remote struct{ rpc pb.DriverClient }

// Info asks who the driver is.
func (r *Remote) Info(ctx context.Context) (Info, error) {
	m, err := r.rpc.Info(ctx, &pb.InfoRequest{})
	if err != nil {
		return Info{}, fromStatus("asking who it is", err)
	}
	return fromWireInfo(m)
}

// Configure configures the driver.
func (r *Remote) Configure(ctx context.Context, c Config) error {
	_, err := r.rpc.Configure(ctx, &pb.ConfigureRequest{ConfigJson: c.JSON, StateDir: c.StateDir})
	return fromStatus("configuring", err)
}

// Fingerprint calls f with each inventory that the driver sends, at least one
// per period, until ctx ends, f fails or the stream does.
func (r *Remote) Fingerprint(ctx context.Context, period time.Duration, f func(Inventory) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.rpc.Fingerprint(ctx, &pb.FingerprintRequest{PeriodMs: uint32(period.Milliseconds())})
	if err != nil {
		return fromStatus("fingerprint", err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return streamEnd("fingerprint", err)
		}
		v, err := fromWireInventory(m)
		if err != nil {
			return err
		}
		if err := f(v); err != nil {
			return err
		}
	}
}

// Health calls f with each message of the health stream.
func (r *Remote) Health(ctx context.Context, f func([]Health) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.rpc.Health(ctx, &pb.HealthRequest{})
	if err != nil {
		return fromStatus("health", err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return streamEnd("health", err)
		}
		hs, err := fromWireHealth(m)
		if err != nil {
			return err
		}
		if err := f(hs); err != nil {
			return err
		}
	}
}

// Stats calls f with measurements of the given devices, or of all when none is
// given, at once and then every interval.
func (r *Remote) Stats(ctx context.Context, interval time.Duration, ids []gpuai.DeviceID, f func([]Stats) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.rpc.Stats(ctx, &pb.StatsRequest{IntervalMs: uint32(interval.Milliseconds()), DeviceIds: toStrings(ids)})
	if err != nil {
		return fromStatus("stats", err)
	}
	for {
		m, err := s.Recv()
		if err != nil {
			return streamEnd("stats", err)
		}
		var out []Stats
		for _, d := range m.GetDevices() {
			out = append(out, fromWireStats(d))
		}
		if err := f(out); err != nil {
			return err
		}
	}
}

// Reserve holds devices.
func (r *Remote) Reserve(ctx context.Context, res Reservation) (Grant, error) {
	m, err := r.rpc.Reserve(ctx, toWireReservation(res))
	if err != nil {
		return Grant{}, fromStatus("reserving for "+res.ID, err)
	}
	return fromWireGrant(m), nil
}

// Release ends a reservation.
func (r *Remote) Release(ctx context.Context, id string, scrub bool) (clean bool, detail string, err error) {
	m, err := r.rpc.Release(ctx, &pb.ReleaseRequest{ReservationId: id, Scrub: scrub})
	if err != nil {
		return false, "", fromStatus("releasing "+id, err)
	}
	return m.GetClean(), m.GetDetail(), nil
}

// Recover compares reservations.
func (r *Remote) Recover(ctx context.Context, ids []string) (known, orphaned []string, err error) {
	m, err := r.rpc.Recover(ctx, &pb.RecoverRequest{ReservationIds: ids})
	if err != nil {
		return nil, nil, fromStatus("recovering reservations", err)
	}
	return m.GetKnown(), m.GetOrphaned(), nil
}
