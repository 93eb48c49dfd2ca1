package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/plugins"
)

const gib = gpuai.Bytes(1 << 30)

// A devHost is one simulated host.
type devHost struct {
	name, zone    string
	vendor, model string
	link          string
	gpus          uint32
	gpuMemory     gpuai.Bytes
	cpu           gpuai.MilliCPU
	memory        gpuai.Bytes
}

var devHosts = [...]devHost{
	{"h100-1", "zone-1", "nvidia", "H100-SXM5-80GB", "nvlink", 8, 80 * gib, 128_000, 1024 * gib},
	{"h100-2", "zone-2", "nvidia", "H100-SXM5-80GB", "nvlink", 8, 80 * gib, 128_000, 1024 * gib},
	{"mi300x-1", "zone-1", "amd", "MI300X", "xgmi", 4, 192 * gib, 64_000, 512 * gib},
	{"mi300x-2", "zone-2", "amd", "MI300X", "xgmi", 4, 192 * gib, 64_000, 512 * gib},
}

// devPorts is how many ports each host lends to gangs.
const devPorts = 16

// startHosts starts the hosts' drivers and watchdogs, and runs their agents.
func (d *devRegion) startHosts(starting context.Context) error {
	base, err := freePorts(devPorts * len(devHosts))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	d.stopHosts = stop
	var opening errgroup.Group
	for i := range devHosts {
		h := &devHosts[i]
		opening.Go(func() error {
			cfg, err := h.config(d)
			if err != nil {
				return err
			}
			cc := client.Config{Addrs: cfg.Servers, Logger: d.log}
			if cfg.Identity, err = d.hostIdentity(starting, &cfg); err != nil {
				return fmt.Errorf("host %s: %w", h.name, err)
			}
			if cfg.Identity != nil {
				cc.TLS = cfg.Identity.ClientConfig()
			}
			c, err := client.New(cc)
			if err != nil {
				return err
			}
			cfg.PortMin, cfg.PortCount = uint16(base+i*devPorts), devPorts
			cfg.Dialer = devDialer{client: c, welcome: func() { d.registered(h.name) }}
			g, err := agent.Open(cfg)
			if err != nil {
				return fmt.Errorf("host %s: %w", h.name, err)
			}
			d.sandboxed(g)
			d.run(&d.hosting, "host "+h.name, func() error { return errors.Join(g.Run(ctx), g.Close()) })
			return nil
		})
	}
	return opening.Wait()
}

// config returns the configuration of the host's agent.
func (h *devHost) config(d *devRegion) (agent.Config, error) {
	driver, err := json.Marshal(map[string]any{
		"seed": h.name,
		"devices": []map[string]any{{
			"vendor": h.vendor, "model": h.model, "memory_bytes": h.gpuMemory, "count": h.gpus, "link": h.link,
		}},
	})
	if err != nil {
		return agent.Config{}, fmt.Errorf("writing the driver's configuration: %w", err)
	}
	return agent.Config{
		Node: gpuai.NodeID(h.name), Servers: d.urls(), DataDir: filepath.Join(d.data, "hosts", h.name),
		Zone: h.zone, Labels: map[string]string{"simulated": "true"}, CPU: h.cpu, Memory: h.memory,
		Drivers:  []plugins.HostConfig{{Name: "sim", Path: beside(simBinary), Config: driver}},
		Watchdog: beside(watchdogBinary), AllowProcess: true, StopTasks: true,
		Sandbox: d.sandboxConfig(), Logger: d.log.With("host", h.name),
	}, nil
}

// freePorts returns the first of n ports in a row that nothing listens on now,
// below the range that the kernel gives out.
func freePorts(n int) (int, error) {
	const low, high, tries = 20_000, 32_000, 50
	for range tries {
		base := low + rand.IntN(high-low-n)
		if allFree(base, n) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("there are no %d free ports in a row between %d and %d", n, low, high)
}

func allFree(base, n int) bool {
	for p := base; p < base+n; p++ {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// A devDialer opens sessions and tells when the region has taken the host in.
type devDialer struct {
	client  *client.Client
	welcome func()
}

var (
	_ agent.Dialer     = devDialer{}
	_ agent.ExecDialer = devDialer{}
)

// Dial implements agent.Dialer.
func (d devDialer) Dial(ctx context.Context, addr string) (agent.Session, error) {
	s, err := d.client.DialSession(ctx, addr)
	if err != nil {
		return nil, err
	}
	return devSession{s, d.welcome}, nil
}

// DialExec implements agent.ExecDialer.
func (d devDialer) DialExec(ctx context.Context, addr string, r *gpuai.ExecRequest) (agent.ExecConn, error) {
	c, err := d.client.AnswerExec(ctx, addr, r)
	if err != nil {
		return nil, err
	}
	return c, nil
}

type devSession struct {
	*client.Session
	welcome func()
}

// Recv implements agent.Session.
func (s devSession) Recv(ctx context.Context) (gpuai.Frame, error) {
	f, err := s.Session.Recv(ctx)
	if err == nil && f.Kind == gpuai.FrameWelcome {
		s.welcome()
	}
	return f, err
}
