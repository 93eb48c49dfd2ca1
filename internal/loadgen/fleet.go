package loadgen

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A FleetConfig says which agents to simulate.
type FleetConfig struct {
	Addrs    []string // servers, by URL; agent i begins with server i mod len
	From, To int      // numbers of the agents: From … To-1
	GPUs     int      // of each
	// TaskTime is how long a task runs; 0 is for ever.
	TaskTime time.Duration
	// OnLease is called for each lease that is new to its agent, with when it
	// was read: from the agents' goroutines, so it must be quick.
	OnLease func(job gpuai.JobID, at int64)
}

// MaxAgents bounds the agents' numbers.
const MaxAgents = 1_000_000

// Validate says which value makes no sense.
func (cfg *FleetConfig) Validate() error {
	switch {
	case len(cfg.Addrs) == 0:
		return fmt.Errorf("simulated agents need the address of a server")
	case cfg.From < 0 || cfg.To <= cfg.From || cfg.To > MaxAgents:
		return fmt.Errorf("there may be 1 to %d simulated nodes, not those from %d to %d", MaxAgents, cfg.From, cfg.To)
	case cfg.GPUs < 0 || cfg.GPUs > gpuai.MaxGPUs:
		return fmt.Errorf("a node has 0 to %d GPUs, not %d", gpuai.MaxGPUs, cfg.GPUs)
	case cfg.TaskTime < 0:
		return fmt.Errorf("a task's time must be 0 (for ever) or more, not %v", cfg.TaskTime)
	}
	return nil
}

// A Fleet is a number of simulated agents with live sessions, in this process.
type Fleet struct {
	cfg    FleetConfig
	lost   atomic.Int64
	agents sync.WaitGroup
	cancel context.CancelFunc
}

const (
	// connectors is how many agents connect at once: a region admits those
	// that hold leases first, and makes others wait.
	connectors = 64
	// agentsPerAddress bounds the agents that dial from one loopback address:
	// there are about 28,000 local ports for each pair of addresses.
	agentsPerAddress = 10_000
	tries            = 6
)

// StartFleet connects every agent and returns once all are registered. The
// sessions live until Stop, or until ctx ends.
func StartFleet(ctx context.Context, cfg FleetConfig) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &Fleet{cfg: cfg, cancel: cancel}
	clients, err := f.clients()
	if err != nil {
		cancel()
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(connectors)
	for i := cfg.From; i < cfg.To && gctx.Err() == nil; i++ {
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			return f.start(ctx, i, clients[i/agentsPerAddress])
		})
	}
	if err := g.Wait(); err != nil {
		f.Stop()
		return nil, fmt.Errorf("connecting simulated agents: %w", err)
	}
	return f, nil
}

// Lost returns how many sessions broke. Their agents connect again.
func (f *Fleet) Lost() int64 { return f.lost.Load() }

// Stop ends every session and returns when all have ended. It may be called
// more than once.
func (f *Fleet) Stop() {
	f.cancel()
	f.agents.Wait()
}

// clients makes the API clients that agents dial with: one for each source
// address, by number.
func (f *Fleet) clients() (map[int]*client.Client, error) {
	local := true
	for _, a := range f.cfg.Addrs {
		local = local && isLoopback(a)
	}
	out := make(map[int]*client.Client)
	for block := f.cfg.From / agentsPerAddress; block <= (f.cfg.To-1)/agentsPerAddress; block++ {
		d := &net.Dialer{Timeout: 10 * time.Second}
		if local && block > 0 {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+block))}
		}
		t := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}
		c, err := client.New(client.Config{Addrs: f.cfg.Addrs, HTTP: &http.Client{Transport: t}})
		if err != nil {
			return nil, err
		}
		out[block] = c
	}
	return out, nil
}

// isLoopback reports whether a server's URL names an IPv4 loopback address:
// only there may an agent dial from any other one.
func isLoopback(addr string) bool {
	u, err := url.Parse(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.Is4() && ip.IsLoopback()
}

// start connects one agent and leaves it running.
func (f *Fleet) start(ctx context.Context, i int, c *client.Client) error {
	a := &agent{
		fleet: f, number: i, client: c, id: gpuai.NodeID(fmt.Sprintf("bench-%06d", i)),
		leases: map[gpuai.Token]struct{}{}, reports: map[gpuai.Token]gpuai.Report{},
	}
	if err := a.connect(ctx, tries); err != nil {
		return err
	}
	f.agents.Go(func() { a.run(ctx) })
	return nil
}
