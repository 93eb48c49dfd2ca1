package loadgen

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
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
	// Access is the operator's: where it has TLS each agent joins with a token of its
	// own, and shows its certificate.
	Access Access
	// Client, where set, returns the client with which an agent connects; else they
	// are those that Addrs and Access need.
	Client func(agent int) *client.Client
	// OnLease is called for each lease that is new to its agent, with when it
	// was read: from the agents' goroutines, so it must be quick.
	OnLease func(job gpuai.JobID, at int64)
	// Labels are those of every node.
	Labels map[string]string
	// Connecting is how many agents connect at once at the start; 0 is 64. A
	// registration waits for the window that confirms it.
	Connecting int
	// AckWithin is for how long an agent waits for the answer to a beat before
	// it goes to another server, as a real one does; 0 is for ever.
	AckWithin time.Duration
	// OnWelcome and OnAck, where set, are called for each session that was
	// opened and each beat that was answered, with the agent's number; sent is
	// the CLOCK_BOOTTIME of the beat. As OnLease they must be quick.
	OnWelcome func(agent int)
	OnAck     func(agent int, sent int64)
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
	case cfg.Connecting < 0:
		return fmt.Errorf("0 (for 64) or more agents connect at once, not %d", cfg.Connecting)
	case cfg.AckWithin < 0:
		return fmt.Errorf("an agent waits 0 (for ever) or more for an answer, not %v", cfg.AckWithin)
	case cfg.TaskTime < 0:
		return fmt.Errorf("a task's time must be 0 (for ever) or more, not %v", cfg.TaskTime)
	}
	return nil
}

// fillHooks sets the hooks that are not.
func (cfg *FleetConfig) fillHooks() {
	if cfg.OnLease == nil {
		cfg.OnLease = func(gpuai.JobID, int64) {}
	}
	if cfg.OnWelcome == nil {
		cfg.OnWelcome = func(int) {}
	}
	if cfg.OnAck == nil {
		cfg.OnAck = func(int, int64) {}
	}
}

// A Fleet is a number of simulated agents with live sessions, in this process.
type Fleet struct {
	cfg    FleetConfig
	join   *registrar // nil in a region without authentication
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
	tries            = 12
	dialTimeout      = 10 * time.Second
)

// StartFleet connects every agent and returns once all are registered. The
// sessions live until Stop, or until ctx ends.
func StartFleet(ctx context.Context, cfg FleetConfig) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fillHooks()
	ctx, cancel := context.WithCancel(ctx)
	f := &Fleet{cfg: cfg, cancel: cancel}
	clients, err := f.clients()
	if err == nil && cfg.Access.TLS != nil && cfg.Client == nil {
		f.join, err = newRegistrar(cfg.Access, cfg.Addrs)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(cfg.Connecting, connectors))
	for i := cfg.From; i < cfg.To && gctx.Err() == nil; i++ {
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if cfg.Client != nil {
				return f.start(ctx, i, cfg.Client(i))
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
	out := make(map[int]*client.Client)
	for block := f.cfg.From / agentsPerAddress; block <= (f.cfg.To-1)/agentsPerAddress; block++ {
		t := &http.Transport{DialContext: f.dialer(block).DialContext, DisableKeepAlives: true}
		c, err := client.New(client.Config{Addrs: f.cfg.Addrs, HTTP: &http.Client{Transport: t}})
		if err != nil {
			return nil, err
		}
		out[block] = c
	}
	return out, nil
}

// dialer returns how the agents of a block dial.
func (f *Fleet) dialer(block int) *net.Dialer {
	d := &net.Dialer{Timeout: dialTimeout}
	local := !slices.ContainsFunc(f.cfg.Addrs, func(a string) bool { return !isLoopback(a) })
	if local && block > 0 {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+block))}
	}
	return d
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

// NodeName returns the name of a simulated node.
func NodeName(agent int) string { return fmt.Sprintf("bench-%06d", agent) }

// start connects one agent and leaves it running.
func (f *Fleet) start(ctx context.Context, i int, c *client.Client) error {
	a := &agent{
		fleet: f, number: i, client: c, id: gpuai.NodeID(NodeName(i)),
		leases: map[gpuai.Token]struct{}{}, reports: map[gpuai.Token]gpuai.Report{},
	}
	if f.join != nil {
		var err error
		if a.passport, a.client, err = f.join.newPassport(a.id, f.dialer(i/agentsPerAddress)); err != nil {
			return err
		}
	}
	if err := a.connect(ctx, tries); err != nil {
		return err
	}
	f.agents.Go(func() { a.run(ctx) })
	return nil
}
