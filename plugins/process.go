package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/telemetry"
)

// A HostConfig says which driver to run and how.
type HostConfig struct {
	// Name names the driver in this agent ("sim"), in logs and in SocketDir;
	// a valid name (gpuai.ValidName).
	Name string
	// Path is the driver's binary.
	Path string
	// SHA256 is the binary's checksum in hex, verified before every start;
	// "" verifies nothing.
	SHA256 string
	// Config is the driver's configuration, JSON; empty means {}.
	Config []byte
	// SocketDir holds a directory for each driver: sockets, which are removed
	// at the start, and the driver's reservations, which must outlive the
	// agent. No two agents may share it.
	SocketDir string
	// Logger gets the host's messages and the driver's output.
	Logger *slog.Logger
}

func (c HostConfig) validate() error {
	switch {
	case !gpuai.ValidName(c.Name):
		return fmt.Errorf("%w: a driver's name has 1 to 63 of a-z, 0-9 and '-', not %s", ErrInvalid, clip(c.Name))
	case c.SocketDir == "":
		return fmt.Errorf("%w: driver %s has no socket directory", ErrInvalid, c.Name)
	case c.Logger == nil:
		return fmt.Errorf("%w: driver %s has no logger", ErrInvalid, c.Name)
	}
	return nil
}

// timing is how long things may take; tests shorten it.
type timing struct {
	start       time.Duration // process start to handshake
	fingerprint time.Duration // first inventory and first health
	call        time.Duration // every other call
	beat        time.Duration // the inventory is repeated this often
	silence     time.Duration // without an inventory for this long: hung
	stop        time.Duration // orderly end before SIGKILL

	backoffMin, backoffMax time.Duration
	// So many deaths within the window make the driver's devices unhealthy.
	deaths int
	window time.Duration
	// So many calls in a row without an answer, and the driver is hung even
	// though its inventory still comes.
	strikes int
}

func defaultTiming() timing {
	return timing{
		start: 10 * time.Second, fingerprint: 2 * time.Second, call: 5 * time.Second,
		beat: 2 * time.Second, silence: 7 * time.Second, stop: 2 * time.Second,
		backoffMin: 250 * time.Millisecond, backoffMax: 30 * time.Second,
		deaths: 5, window: 10 * time.Minute, strikes: 3,
	}
}

// A Process is one running, configured driver process, without supervision.
// A Host is what an agent wants; a Process is for tests of drivers.
type Process struct {
	info   Info
	remote *Remote
	child  *child
	client *plugin.Client
	dir    *runDir // nil when a Host owns it
	timing timing
}

// Launch starts and configures a driver. ctx bounds the start, not the life, of
// the process; end it with Close. The errors are those of Start.
func Launch(ctx context.Context, cfg HostConfig) (*Process, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir, err := openRunDir(cfg.SocketDir, cfg.Name)
	if err != nil {
		return nil, err
	}
	p, err := launch(ctx, cfg, dir, defaultTiming())
	if err != nil {
		return nil, errors.Join(err, dir.close())
	}
	p.dir = dir
	return p, nil
}

// launch starts the driver in dir.
func launch(ctx context.Context, cfg HostConfig, dir *runDir, t timing) (*Process, error) {
	path, err := checkBinary(cfg)
	if err != nil {
		return nil, err
	}
	log := cfg.Logger.With("driver", cfg.Name)
	out := newLines(log)
	p := &Process{timing: t, child: newChild(path, dir, out)}
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{ProtocolVersion: {serviceName: &glue{}}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     t.start,
		Logger:           telemetry.HCLog(log),
		SyncStdout:       out,
		SyncStderr:       out,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: dir.run()},
		GRPCDialOptions:  []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage))},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, socketDir string) (runner.Runner, error) {
			return p.child, p.child.prepare(cmd.Env, socketDir)
		},
	})
	if err := p.open(ctx, cfg, dir); err != nil {
		p.kill()
		return nil, err
	}
	log.Info("driver started", "path", path, "pid", p.PID(), "name", p.info.Name, "version", p.info.Version, "simulated", p.info.Simulated)
	return p, nil
}

// maxMessage bounds a message of a driver.
const maxMessage = 4 << 20

// open connects, asks who the driver is and configures it.
func (p *Process) open(ctx context.Context, cfg HostConfig, dir *runDir) error {
	// go-plugin's own timeouts do not cover a driver that stops in the middle
	// of the TLS handshake, so both steps get ours from outside.
	errs := make(chan error, 1)
	go func() { errs <- p.connect() }()
	expired := time.NewTimer(p.timing.start)
	defer expired.Stop()
	var err error
	select {
	case err = <-errs:
	case <-expired.C:
		err = ErrTimeout
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return p.explain(cfg, err)
	}
	call, cancel := context.WithTimeout(ctx, p.timing.call)
	defer cancel()
	if p.info, err = p.remote.Info(call); err != nil {
		return p.explain(cfg, err)
	}
	conf := Config{JSON: cfg.Config, StateDir: dir.state()}
	if len(conf.JSON) == 0 {
		conf.JSON = []byte("{}")
	}
	if err := p.remote.Configure(call, conf); err != nil {
		return p.explain(cfg, err)
	}
	return nil
}

func (p *Process) connect() error {
	if _, err := p.client.Start(); err != nil {
		return err
	}
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense(serviceName)
	if err != nil {
		return err
	}
	remote, ok := raw.(*Remote)
	if !ok {
		return fmt.Errorf("%w: go-plugin dispensed a %T", ErrGarbage, raw)
	}
	p.remote = remote
	return nil
}

// Info says who the driver is.
func (p *Process) Info() Info { return p.info }

// Remote speaks to the driver.
func (p *Process) Remote() *Remote { return p.remote }

// PID is the driver's process ID.
func (p *Process) PID() int {
	p.child.mu.Lock()
	defer p.child.mu.Unlock()
	return p.child.pid
}

// Gone is closed when the process has ended.
func (p *Process) Gone() <-chan struct{} { return p.child.gone }

// Close asks the driver to end, kills it when it does not within 2 s, and
// removes its sockets. What it has reserved stays reserved.
func (p *Process) Close() error {
	p.stop()
	if p.dir == nil {
		return nil
	}
	return p.dir.close()
}

// stop ends the process in an orderly way if that is quick.
func (p *Process) stop() {
	p.child.expectEnd()
	done := make(chan struct{})
	go func() {
		p.client.Kill()
		close(done)
	}()
	grace := time.NewTimer(p.timing.stop)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
	}
	p.child.Kill(context.Background())
	<-done
	p.child.close()
}

// kill kills the process first and tidies up after it then: go-plugin's Kill
// asks the driver before it kills, and waits 34 s for one that is stopped.
func (p *Process) kill() {
	p.child.Kill(context.Background())
	p.client.Kill()
	p.child.close()
}
