package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/jobfile"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// devServers are the members of a region for development.
var devServers = [...]gpuai.ServerID{"a", "b", "c"}

// A devRegion is three servers and the hosts of devHosts in this process.
type devRegion struct {
	data  string
	log   *slog.Logger
	quiet *quietHandler           // of log
	end   context.CancelCauseFunc // ends the region, for a reason

	insecure bool   // plain HTTP, without tokens
	sandbox  string // as devConfig has it
	runtime  string // that runs tasks with images; "" for none
	lacks    error  // why none does
	registry string // address; "" for none

	operator *client.Client // of the servers, nil where insecure
	token    gpuai.Secret   // the operator's

	servers   []*server.Server
	serving   sync.WaitGroup
	stopServe context.CancelFunc
	hosting   sync.WaitGroup
	stopHosts context.CancelFunc
	// stopRegistry is nil where there is none.
	stopRegistry func()
	ready        chan struct{} // closed when every host has registered
	mu           sync.Mutex    // guards below
	reached      bool          // it was said how
	seen         map[string]bool
	stopErrors   []error
}

// startServers opens the servers on the ports that they will keep while this
// process lives, and serves.
func (d *devRegion) startServers(ctx context.Context, http string) error {
	if err := d.checkData(); err != nil {
		return err
	}
	cfgs, err := d.serverConfigs(http)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	d.stopServe = stop
	if !d.insecure {
		return d.form(ctx, running, cfgs)
	}
	ring, err := openKeyring(filepath.Join(d.data, store.KeyringFile))
	if err != nil {
		closeListeners(cfgs)
		return err
	}
	for i := range cfgs {
		cfgs[i].Bootstrap, cfgs[i].Keyring = true, ring
		s, err := server.Open(cfgs[i])
		if err != nil {
			closeListeners(cfgs[i+1:])
			return fmt.Errorf("server %s: %w", cfgs[i].ID, err)
		}
		d.serve(running, s)
	}
	return nil
}

// serve runs a server that was opened.
func (d *devRegion) serve(ctx context.Context, s *server.Server) {
	d.servers = append(d.servers, s)
	d.run(&d.serving, "server "+string(s.Status().Server), func() error { return s.Run(ctx) })
}

func (d *devRegion) serverDir(id gpuai.ServerID) string {
	return filepath.Join(d.data, "servers", string(id))
}

// serverConfigs opens the servers' listeners.
func (d *devRegion) serverConfigs(http string) ([]server.Config, error) {
	var cfgs []server.Config
	var peers []peer
	for i, id := range devServers {
		recent := telemetry.NewRing()
		cfg := server.Config{
			ID: id, DataDir: d.serverDir(id), Multiplier: 1,
			CheckpointStore: (&url.URL{Scheme: "file", Path: filepath.Join(d.data, "checkpoints")}).String(),
			NotReady:        d.notReady, JobSchema: jobfile.Schema(), Metrics: telemetry.NewRegistry(), Logger: recent.Tee(d.log), Recent: recent,
		}
		addr := "127.0.0.1:0"
		if i == 0 {
			addr = http
		}
		var err error
		if cfg.HTTP, err = devListen(addr); err == nil {
			cfg.Raft, err = devListen("127.0.0.1:0")
		}
		cfgs = append(cfgs, cfg)
		if err != nil {
			closeListeners(cfgs)
			return nil, err
		}
		peers = append(peers, peer{ID: id, Addr: cfg.Raft.Addr().String()})
	}
	for i := range cfgs {
		for _, p := range peers {
			cfgs[i].Peers = append(cfgs[i].Peers, p)
		}
	}
	return cfgs, nil
}

func devListen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use, perhaps by another gpuai dev: choose another with --http", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return l, nil
}

func closeListeners(cfgs []server.Config) {
	for _, c := range cfgs {
		for _, l := range [...]net.Listener{c.HTTP, c.Raft} {
			if l != nil {
				l.Close()
			}
		}
	}
}

// run runs a part of the region. A part that fails ends the region.
func (d *devRegion) run(wg *sync.WaitGroup, name string, part func() error) {
	wg.Go(func() {
		if err := part(); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			d.mu.Lock()
			d.stopErrors = append(d.stopErrors, err)
			d.mu.Unlock()
			d.end(err)
		}
	})
}

// url returns the address of the API for this machine.
func (d *devRegion) url() string { return d.urls()[0] }

// urls returns the URLs of all servers.
func (d *devRegion) urls() []string {
	out := make([]string, len(d.servers))
	for i, s := range d.servers {
		out[i] = d.scheme() + "://" + reachable(s.HTTPAddr())
	}
	return out
}

// notReady says which hosts this region still waits for.
func (d *devRegion) notReady() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) == len(devHosts) && d.reached {
		return ""
	}
	return fmt.Sprintf("%d of %d hosts have registered", len(d.seen), len(devHosts))
}

// registered notes that a host is a node of the region.
func (d *devRegion) registered(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen[host] {
		return
	}
	if d.seen[host] = true; len(d.seen) == len(devHosts) {
		close(d.ready)
	}
}

// stop stops the hosts with their tasks while there are servers to report to,
// then the servers.
func (d *devRegion) stop() error {
	if d.stopHosts != nil {
		d.stopHosts()
	}
	d.hosting.Wait()
	if d.stopServe != nil {
		d.quiet.on.Store(false)
		d.stopServe()
	}
	if d.stopRegistry != nil {
		d.stopRegistry()
	}
	d.serving.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.stopErrors...)
}
