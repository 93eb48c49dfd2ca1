package plugins

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/gpuai/gpuai"
	pb "github.com/gpuai/gpuai/plugins/proto"
)

// An adaptor serves a Driver over gRPC. It keeps the parts of the contract that
// are the same for all drivers: the order of calls, normal reservations,
// generations and the repetition of the inventory.
type adaptor struct {
	pb.UnimplementedDriverServer
	driver Driver
	// state: 0 new, 1 being configured, 2 configured.
	state atomic.Int32
}

var _ pb.DriverServer = (*adaptor)(nil)

// minPeriod bounds how often a stream may be asked to repeat itself.
const minPeriod = 100 * time.Millisecond

func (a *adaptor) configured() error {
	if a.state.Load() != 2 {
		return toStatus(fmt.Errorf("%w: it is not configured yet", ErrUnusable))
	}
	return nil
}

func (a *adaptor) Info(context.Context, *pb.InfoRequest) (*pb.InfoResponse, error) {
	return toWireInfo(a.driver.Info()), nil
}

func (a *adaptor) Configure(ctx context.Context, m *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	if !a.state.CompareAndSwap(0, 1) {
		return nil, toStatus(fmt.Errorf("%w: it is configured already", ErrUnusable))
	}
	err := a.driver.Configure(ctx, Config{JSON: m.GetConfigJson(), StateDir: m.GetStateDir()})
	if err != nil {
		a.state.Store(0)
		return nil, toStatus(err)
	}
	a.state.Store(2)
	return new(pb.ConfigureResponse), nil
}

func (a *adaptor) Fingerprint(m *pb.FingerprintRequest, out grpc.ServerStreamingServer[pb.FingerprintResponse]) error {
	if err := a.configured(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	updates := make(chan Inventory)
	ended := make(chan error, 1)
	go func() {
		ended <- a.driver.Fingerprint(ctx, func(v Inventory) error {
			select {
			case updates <- v:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return toStatus(repeat(period(m.GetPeriodMs()), updates, ended, out))
}

// repeat sends what changed at once, and the last inventory each period.
func repeat(every time.Duration, updates <-chan Inventory, ended <-chan error, out grpc.ServerStreamingServer[pb.FingerprintResponse]) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last Inventory
	for {
		select {
		case v := <-updates:
			if last.Generation > 0 && sameInventory(v, last) {
				continue
			}
			v.Generation = last.Generation + 1
			last = v
		case <-tick.C:
			if last.Generation == 0 {
				continue // an empty first answer would say that there is nothing
			}
		case err := <-ended:
			return err
		}
		if err := out.Send(toWireInventory(last)); err != nil {
			return err
		}
	}
}

func period(ms uint32) time.Duration {
	return max(time.Duration(ms)*time.Millisecond, minPeriod)
}

func (a *adaptor) Health(_ *pb.HealthRequest, out grpc.ServerStreamingServer[pb.HealthResponse]) error {
	if err := a.configured(); err != nil {
		return err
	}
	return toStatus(a.driver.Health(out.Context(), func(hs []Health) error { return out.Send(toWireHealth(hs)) }))
}

func (a *adaptor) Reserve(ctx context.Context, m *pb.ReserveRequest) (*pb.ReserveResponse, error) {
	if err := a.configured(); err != nil {
		return nil, err
	}
	r, err := fromWireReservation(m)
	if err != nil {
		return nil, toStatus(err)
	}
	if r.Share < gpuai.WholeDevice && !a.driver.Info().Can(CapShare) {
		return nil, toStatus(fmt.Errorf("%w: shares of a device", ErrUnsupported))
	}
	g, err := a.driver.Reserve(ctx, r)
	if err != nil {
		return nil, toStatus(err)
	}
	return toWireGrant(g), nil
}

func (a *adaptor) Release(ctx context.Context, m *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	if err := a.configured(); err != nil {
		return nil, err
	}
	clean, detail, err := a.driver.Release(ctx, m.GetReservationId(), m.GetScrub())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.ReleaseResponse{Clean: clean, Detail: detail}, nil
}

func (a *adaptor) Recover(ctx context.Context, m *pb.RecoverRequest) (*pb.RecoverResponse, error) {
	if err := a.configured(); err != nil {
		return nil, err
	}
	known, orphaned, err := a.driver.Recover(ctx, m.GetReservationIds())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.RecoverResponse{Known: known, Orphaned: orphaned}, nil
}

func (a *adaptor) Stats(m *pb.StatsRequest, out grpc.ServerStreamingServer[pb.StatsResponse]) error {
	if err := a.configured(); err != nil {
		return err
	}
	tick := time.NewTicker(period(m.GetIntervalMs()))
	defer tick.Stop()
	for {
		stats, err := a.driver.Stats(out.Context(), toIDs(m.GetDeviceIds()))
		if err != nil {
			return toStatus(err)
		}
		r := &pb.StatsResponse{AtUnixMs: time.Now().UnixMilli()}
		for _, s := range stats {
			r.Devices = append(r.Devices, toWireStats(s))
		}
		if err := out.Send(r); err != nil {
			return err
		}
		select {
		case <-out.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}
