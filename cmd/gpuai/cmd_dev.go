package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/internal/telemetry"
)

// A devConfig is the configuration of "dev".
type devConfig struct {
	HTTP string // listen address of the API; on loopback, where Insecure
	Data string // data directory; "" is one that goes with the process
	// Registry is the listen address of the registry, on loopback; "none" for
	// none.
	Registry string
	Sandbox  string // "auto", "oci" or "none"
	Insecure bool   // plain HTTP, without tokens
	Log      logConfig
}

// defaultDevConfig returns the defaults of the flags.
func defaultDevConfig() devConfig {
	return devConfig{HTTP: "127.0.0.1:7470", Registry: defaultRegistry, Sandbox: ociAuto, Log: logConfig{Format: telemetry.FormatText, Level: "error"}}
}

// Validate returns every value that is wrong, with the value, and the binaries
// that are missing.
func (c *devConfig) Validate() error {
	var errs []error
	errs = append(errs, c.checkListeners())
	if c.Sandbox != ociAuto && c.Sandbox != devSandboxed && c.Sandbox != ociNone {
		errs = append(errs, fmt.Errorf("--sandbox is %s, %s or %s, not %q", ociAuto, devSandboxed, ociNone, c.Sandbox))
	}
	for _, name := range [...]string{watchdogBinary, simBinary} {
		errs = append(errs, executable(beside(name)))
	}
	_, err := c.Log.level()
	return errors.Join(append(errs, err)...)
}

// checkListeners refuses what others would reach without a token.
func (c *devConfig) checkListeners() error {
	if checkListen(c.HTTP, true) == nil && checkListen(c.HTTP, !c.Insecure) != nil {
		return fmt.Errorf("--http %s can be reached by others, and with --insecure nothing is encrypted and nobody needs a token: use a loopback address, or leave --insecure out", c.HTTP)
	}
	if err := checkListen(c.HTTP, true); err != nil {
		return fmt.Errorf("--http: %w", err)
	}
	if c.Registry != ociNone && checkListen(c.Registry, false) != nil {
		return fmt.Errorf("--registry is %s, or host:port on loopback since nobody needs a token for it, not %q", ociNone, c.Registry)
	}
	return nil
}

// Binaries that stand beside this one.
const (
	watchdogBinary = "gpuai-watchdog"
	meshBinary     = "gpuai-mesh"
	simBinary      = "gpuai-driver-sim"
)

func newDevCmd(a *app) *cobra.Command {
	cfg := defaultDevConfig()
	c := &cobra.Command{
		Use: "dev", Short: "Run a region with simulated GPUs on this machine, nothing else to start", Args: cobra.NoArgs,
		Long: `Run a region of three servers and four hosts with simulated GPUs in one process,
until SIGINT or SIGTERM. It needs no root and no GPU. Tasks without an image run as
plain processes of this user, without isolation. Those with an image run in OCI
sandboxes, where that is possible: as root, with runc installed; what is missing is
said at the start, and --sandbox oci ends there instead.

The region has authentication, and every connection is over TLS. Its address, CA and
an operator's token are kept as the context dev of this user, which is in use from then
on unless another one is: commands in other shells work at once. --insecure is a region
of plain HTTP that asks nobody for a token, on loopback addresses only.

It has a registry of its own on loopback, which nodes here may use: gpuai image push
PATH NAME and docker push bring images to it. It keeps at most 16 GiB on disk, and
what was pushed goes with the process.

With --data the region is there again after the next start, even after kill -9;
tasks that were running go on if it comes back before their leases end. Without
it everything goes with the process, and the context too.`,
		Example: `  gpuai dev
  gpuai dev --http 127.0.0.1:8080 --data ~/gpuai-dev
  sudo gpuai dev --sandbox oci
  gpuai dev --insecure & curl http://127.0.0.1:7470/v1/nodes`,
	}
	c.Flags().StringVar(&cfg.HTTP, "http", cfg.HTTP, "listen address of the HTTP API")
	c.Flags().BoolVar(&cfg.Insecure, "insecure", false, "plain HTTP, and no tokens: everybody on this machine is an operator of the region")
	c.Flags().StringVar(&cfg.Data, "data", "", "data directory (default: one that is removed at the end)")
	c.Flags().StringVar(&cfg.Registry, "registry", cfg.Registry, "listen address of the registry, on loopback; its port is another when this one is in use and was not asked for; none for none")
	c.Flags().StringVar(&cfg.Sandbox, "sandbox", cfg.Sandbox, "run tasks with images in sandboxes: auto (where possible), oci (or end) or none")
	cfg.Log.flags(c)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := cfg.Validate(); err != nil {
			return usageError{err}
		}
		return a.runDev(ctx, &cfg)
	})
	return c
}

// runDev runs the region until ctx ends or a part of it fails, and leaves
// nothing behind but --data.
func (a *app) runDev(ctx context.Context, cfg *devConfig) (err error) {
	data, err := devData(cfg.Data)
	if err != nil {
		return err
	}
	if cfg.Data == "" {
		defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	}
	lock, err := lockData(data)
	if err != nil {
		return err
	}
	defer lock.Close()
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	// Whoever asks for more than errors gets all of them, from the start.
	quiet := &quietHandler{Handler: a.logger(cfg.Log).Handler(), on: new(atomic.Bool), always: cfg.Log != defaultDevConfig().Log}
	d := &devRegion{data: data, sandbox: cfg.Sandbox, insecure: cfg.Insecure, log: slog.New(quiet), quiet: quiet, end: end, ready: make(chan struct{}), seen: map[string]bool{}}
	defer func() { err = errors.Join(err, d.stop()) }()
	said, err := a.startDev(life, d, cfg)
	if said != nil && cfg.Data == "" {
		defer func() { err = errors.Join(err, a.forgetContext(said.name, said.context)) }()
	}
	switch {
	case ctx.Err() != nil:
		return nil // a signal is how dev ends
	case err != nil:
		return err
	}
	if a.awaitDev(life, d) {
		quiet.on.Store(true)
		a.greet(d, said)
		<-life.Done()
	}
	if ctx.Err() != nil {
		return nil // a signal is how dev ends
	}
	return context.Cause(life)
}

// startDev starts all parts of the region, and says how it is reached before anybody
// is told that it is ready.
func (a *app) startDev(ctx context.Context, d *devRegion, cfg *devConfig) (*devContext, error) {
	if err := d.startServers(ctx, cfg.HTTP); err != nil {
		return nil, err
	}
	if err := d.openAccess(ctx); err != nil {
		return nil, err
	}
	if err := d.startRegistry(cfg.Registry); err != nil {
		return nil, err
	}
	said := a.keepDev(d)
	return said, d.startHosts(ctx)
}

// devPatience is the time after which a region that is not ready says why.
const devPatience = 10 * time.Second

// awaitDev waits until the region is ready and reports whether it is.
func (a *app) awaitDev(life context.Context, d *devRegion) bool {
	slow := time.NewTicker(devPatience)
	defer slow.Stop()
	for {
		select {
		case <-d.ready:
			return true
		case <-life.Done():
			return false
		case <-slow.C:
			d.quiet.on.Store(true)
			a.say("not ready yet: %s\n", d.notReady())
		}
	}
}

// devData returns the data directory, absolute: drivers and watchdogs have
// other working directories.
func devData(path string) (string, error) {
	if path == "" {
		return os.MkdirTemp("", "gpuai-dev-")
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		err = os.MkdirAll(abs, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("--data: %w", err)
	}
	return abs, nil
}

// greet says where the region is and what to do with it.
func (a *app) greet(d *devRegion, c *devContext) {
	fmt.Fprintf(a.out, `GPUAI is ready at %[1]s: 3 servers, %[2]d hosts with simulated GPUs.
%[6]s
%[4]s
Tasks without an image run as plain processes of this user. Ctrl-C stops everything.

%[7]s  %[3]s job init hello.yaml && %[3]s run hello.yaml --wait=done
  %[3]s logs hello
%[5]s`, d.url(), len(devHosts), a.name, d.sandboxText(), d.registryText(a.name), a.devAccess(d, c), a.devExports(d, c))
}

// A quietHandler passes records on while it is on, or always: servers that
// start or stop together miss one another, which is no news.
type quietHandler struct {
	slog.Handler
	on     *atomic.Bool // shared by all that are made from one
	always bool
}

// Enabled implements slog.Handler.
func (q *quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return (q.always || q.on.Load()) && q.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (q *quietHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return &quietHandler{q.Handler.WithAttrs(as), q.on, q.always}
}

// WithGroup implements slog.Handler.
func (q *quietHandler) WithGroup(name string) slog.Handler {
	return &quietHandler{q.Handler.WithGroup(name), q.on, q.always}
}
