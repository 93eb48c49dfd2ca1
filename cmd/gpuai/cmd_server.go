package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/jobfile"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// A logConfig says what is logged and how.
type logConfig struct {
	Format string // text or json
	Level  string // debug, info, warn or error
}

func (l *logConfig) flags(c *cobra.Command) {
	c.Flags().StringVar(&l.Format, "log-format", l.Format, "text or json")
	c.Flags().StringVar(&l.Level, "log-level", l.Level, "debug, info, warn or error")
}

func (l *logConfig) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return level, fmt.Errorf("--log-level is debug, info, warn or error, not %q", l.Level)
	}
	return level, telemetry.CheckFormat(l.Format)
}

// logger returns the logger of a configuration that is valid.
func (a *app) logger(l logConfig) *slog.Logger {
	level, _ := l.level()
	return telemetry.NewLogger(a.err, l.Format, level)
}

// Bounds of --certificate-ttl. A shorter time is not renewed in time where an
// election, or a busy host, lies between.
const (
	minCertTTL = 10 * time.Second
	maxCertTTL = time.Duration(gpuai.CertificateTTL) * time.Millisecond
)

// A serverConfig is the configuration of "server run".
type serverConfig struct {
	ID         string        // name of this member
	Region     string        // name of the region
	Data       string        // data directory
	HTTP       string        // listen address of the API
	Raft       string        // listen address for the other members
	Advertise  string        // Raft address as others reach it; "" is the listener's
	Peers      []string      // id=host:port of every member, this one included; none: alone
	Bootstrap  bool          // form a new cluster of Peers where Data is empty
	Join       []string      // Raft addresses of members of the region to join; with JoinToken those of their APIs
	JoinToken  string        // join token of a region with authentication
	KeyFile    string        // the region's keys; "": in Data
	CertTTL    time.Duration // of the certificates that it signs; 0: a day
	Hosts      []string      // further names at which clients reach this server
	NonVoter   bool          // do not ask for a vote once caught up
	Multiplier int           // 1 … 10, scales Raft's timeouts
	DiskLow    uint64        // MiB free on Data's disk, below which clients' commands are refused; 0: 1024, or a tenth of it
	DiskHard   uint64        // MiB free below which nothing is written; 0: a quarter of DiskLow
	MaxLevel   uint32        // newest feature level to take part in; 0: the newest known
	Retain     string        // how long an ended job stays in memory, or "never" retired
	ArchiveMax string        // size of the history archive
	Store      string        // URL of the region's store; "": none
	TenantRate uint32        // requests a second; 0 is any number
	Insecure   bool          // allow other addresses than loopback
	Metrics    string        // "open" or "operator": who reads /metrics
	Issuer     string        // URL of the OpenID provider; "": none
	ClientID   string        // what the region is called there
	Log        logConfig
}

// defaultServerConfig returns the defaults of the flags.
func defaultServerConfig() serverConfig {
	return serverConfig{
		Metrics: "open", Region: string(gpuai.DefaultRegion), HTTP: "127.0.0.1:7470", Raft: "127.0.0.1:7471",
		Multiplier: 1, Retain: "24h", ArchiveMax: "1GiB", Log: logConfig{Format: telemetry.FormatText, Level: "info"},
	}
}

// Validate returns every value that is wrong, with the value.
func (c *serverConfig) Validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(gpuai.ValidName(c.ID), "--id must be 1 to 63 characters of a-z, 0-9 and '-', not %q", c.ID)
	bad(gpuai.ValidName(c.Region), "--region must be 1 to 63 characters of a-z, 0-9 and '-', not %q", c.Region)
	bad(c.Data != "", "--data must name a directory")
	bad(c.Metrics == "open" || c.Metrics == "operator", "--metrics must be open or operator, not %q", c.Metrics)
	bad((c.Issuer == "") == (c.ClientID == ""), "--oidc-issuer and --oidc-client-id go together, not %q and %q", c.Issuer, c.ClientID)
	bad(c.Issuer == "" || c.secure(), "--oidc-issuer needs a region with authentication: form one with --bootstrap without --peers, or join one with --join-token")
	for _, l := range [...]struct{ flag, addr string }{{"http", c.HTTP}, {"raft", c.Raft}} {
		if err := checkListen(l.addr, c.Insecure || c.secure()); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", l.flag, err))
		}
	}
	bad(c.Multiplier >= 1 && c.Multiplier <= 10, "--raft-multiplier must be between 1 and 10, not %d", c.Multiplier)
	bad(c.CertTTL == 0 || c.CertTTL >= minCertTTL && c.CertTTL <= maxCertTTL, "--certificate-ttl is %s to %s, not %s", minCertTTL, maxCertTTL, c.CertTTL)
	bad(c.CertTTL == 0 || c.secure(), "--certificate-ttl needs a region with authentication: form one with --bootstrap without --peers, or join one with --join-token")
	bad(c.DiskHard <= c.DiskLow && c.DiskLow <= maxDiskMiB, "--disk-hard-mib (%d) must not be above --disk-low-mib (%d)", c.DiskHard, c.DiskLow)
	bad(c.MaxLevel <= fsm.MaxLevel, "--max-feature-level must be %d to %d in this version, or 0 for the newest, not %d", fsm.MinLevel, fsm.MaxLevel, c.MaxLevel)
	_, _, err := c.history()
	errs = append(errs, err)
	peers, err := c.peers()
	if err != nil {
		errs = append(errs, err)
	}
	self := slices.ContainsFunc(peers, func(p peer) bool { return string(p.ID) == c.ID })
	bad(len(peers) == 0 || self, "--peers must name this server %q too", c.ID)
	bad(!c.Bootstrap || len(c.Join) == 0, "--bootstrap forms a new region and --join joins one: give one of them, not both")
	errs = append(errs, checkJoin(c.Join), c.checkAdvertise())
	if err := server.CheckStore(c.Store); err != nil {
		errs = append(errs, fmt.Errorf("--store: %w", err))
	}
	_, err = c.Log.level()
	return errors.Join(append(errs, err)...)
}

// maxDiskMiB is an exbibyte.
const maxDiskMiB = 1 << 40

// never is the --retain that keeps jobs until the region nears its limits.
const never = "never"

// history reads --retain and --archive-max, in the form of server.Config.
func (c *serverConfig) history() (retain time.Duration, archiveMax int64, err error) {
	var errs []error
	if retain = -1; c.Retain != never {
		d, err := gpuai.ParseDuration(c.Retain)
		if err != nil || d < gpuai.Second || d > gpuai.MaxDuration {
			errs = append(errs, fmt.Errorf("--retain is a time of 1s to %s, such as 24h, or %q, not %q", gpuai.MaxDuration, never, c.Retain))
		}
		retain = time.Duration(d) * time.Millisecond
	}
	size, err := jobfile.ParseSize(c.ArchiveMax)
	if err != nil || size < server.MinArchiveMax {
		errs = append(errs, fmt.Errorf("--archive-max is a size of at least 1MiB, such as 10GiB, not %q", c.ArchiveMax))
	}
	return retain, int64(size), errors.Join(errs...)
}

// A peer is one entry of --peers.
type peer = struct {
	ID   gpuai.ServerID
	Addr string
}

func (c *serverConfig) peers() ([]peer, error) {
	var out []peer
	for _, s := range c.Peers {
		id, addr, ok := strings.Cut(s, "=")
		host, port, err := net.SplitHostPort(addr)
		if !ok || !gpuai.ValidName(id) || err != nil || host == "" || !validPort(port) {
			return nil, fmt.Errorf("--peers has entries of the form id=host:port, not %q", s)
		}
		if slices.ContainsFunc(out, func(p peer) bool { return string(p.ID) == id || p.Addr == addr }) {
			return nil, fmt.Errorf("--peers names %q twice", s)
		}
		out = append(out, peer{ID: gpuai.ServerID(id), Addr: addr})
	}
	return out, nil
}

// checkJoin checks addresses of Raft ports.
func checkJoin(addrs []string) error {
	for _, addr := range addrs {
		if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || !validPort(port) {
			return fmt.Errorf("--join has addresses as host:port, not %q", addr)
		}
	}
	return nil
}

// checkAdvertise refuses to tell others an address that they cannot reach.
func (c *serverConfig) checkAdvertise() error {
	addr, flag := c.Advertise, "--advertise"
	if addr == "" && len(c.Join) == 0 {
		return nil // --peers say where this server is
	}
	if addr == "" {
		addr, flag = c.Raft, "--raft, which the others are told without --advertise,"
	}
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("%s must be host:port as the other servers reach it, not %q", flag, addr)
	}
	return nil
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// checkListen refuses what would be reachable by others: nothing on the wire
// is encrypted or authenticated yet.
func checkListen(addr string, insecure bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("must be host:port, not %q", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("must have a port of 0 to 65535, not %q", addr)
	}
	ip := net.ParseIP(host)
	if insecure || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%q can be reached by others, and this region is to be without authentication: use a loopback address, or form one with it (--bootstrap without --peers), or pass --insecure-plaintext on a test network", addr)
}

func newServerCmd(a *app) *cobra.Command {
	return group("server", "Run a member of a region", newServerRunCmd(a), newMembersCmd(a), newRejoinCmd(a))
}

func newServerRunCmd(a *app) *cobra.Command {
	cfg := defaultServerConfig()
	c := &cobra.Command{
		Use: "run", Short: "Run one server of a region", Args: cobra.NoArgs,
		Long: `Run one server of a region until SIGINT or SIGTERM. Leadership is handed over
first. A region has three servers, or five.

The first is started with --bootstrap: it forms the region and makes its CA. Others
join with --join, the address of its API, and a token that "gpuai token create --join
server" makes; they vote once they have caught up. All connections are over TLS 1.3.
The key file, in --data or at --key-file, holds the region's keys: keep a copy of it
apart from those of the data. Later starts need neither: the data directory knows.

A region for tests is without authentication: all its first servers are started with
--bootstrap and the same --peers, or one with --bootstrap --insecure-plaintext, and
another joins with --join, the address of a Raft port. On other addresses than loopback
they need --insecure-plaintext. A server that comes back at another address tells the others.`,
		Example: `  gpuai server run --id a --data /var/lib/gpuai --http 10.0.0.1:7470 --raft 10.0.0.1:7471 --bootstrap
  gpuai server run --id b --data /var/lib/gpuai --http 10.0.0.2:7470 --raft 10.0.0.2:7471 --join 10.0.0.1:7470 --join-token gpujoin_…
  gpuai server run --id a --data /var/lib/gpuai/a --http 127.0.0.1:7470 --raft 127.0.0.1:7471 \
      --peers a=127.0.0.1:7471,b=127.0.0.1:7481,c=127.0.0.1:7491 --bootstrap
  gpuai server run --id d --data /var/lib/gpuai/d --http 127.0.0.1:7500 --raft 127.0.0.1:7501 --join 127.0.0.1:7471`,
	}
	f := c.Flags()
	f.StringVar(&cfg.ID, "id", "", "name of this server, unique in the region for ever (default: the data directory's)")
	f.StringVar(&cfg.Region, "region", cfg.Region, "name of the region")
	f.StringVar(&cfg.Data, "data", "", "data directory (required)")
	f.StringVar(&cfg.HTTP, "http", cfg.HTTP, "listen address of the HTTP API")
	f.StringVar(&cfg.Raft, "raft", cfg.Raft, "listen address for the other servers")
	f.StringVar(&cfg.Advertise, "advertise", "", "address of --raft as the others reach it")
	f.StringSliceVar(&cfg.Peers, "peers", nil, "all servers as id=host:port of --raft, comma-separated; none for a region of one")
	f.StringSliceVar(&cfg.Join, "join", nil, "join the region of these servers: host:port of their --raft, comma-separated")
	f.StringVar(&cfg.JoinToken, "join-token", "", "join token of the region; --join are addresses of --http then (default $GPUAI_JOIN_TOKEN)")
	f.StringVar(&cfg.KeyFile, "key-file", "", "file of the region's keys, made where it is missing (default: keyring in --data)")
	f.DurationVar(&cfg.CertTTL, "certificate-ttl", 0, "how long certificates are good that this server signs for nodes and itself, 10s to 24h; they are renewed at half of it. The same for all servers; who lowers it waits for a day before the CA is rotated (default 24h)")
	f.StringSliceVar(&cfg.Hosts, "host", nil, "further names and addresses at which clients reach this server: for its certificate, and a region without authentication answers under no other names")
	f.BoolVar(&cfg.NonVoter, "nonvoter", false, "stay a non-voter after --join, until 'gpuai server members promote'")
	f.BoolVar(&cfg.Bootstrap, "bootstrap", false, "form a new region of --peers where --data is empty")
	f.IntVar(&cfg.Multiplier, "raft-multiplier", cfg.Multiplier, "1 to 10, scales Raft's timeouts: 2 for busy disks, 5 between sites")
	f.Uint64Var(&cfg.DiskLow, "disk-low-mib", 0, "MiB free on the disk of --data below which clients' commands are refused; 0: 1024, or a tenth of the disk")
	f.Uint64Var(&cfg.DiskHard, "disk-hard-mib", 0, "MiB free below which nothing is written at all; 0: a quarter of --disk-low-mib")
	f.Uint32Var(&cfg.MaxLevel, "max-feature-level", 0, "hold the region at this feature level while its servers are upgraded, so that they can still go back; 0 for the newest")
	f.StringVar(&cfg.Retain, "retain", cfg.Retain, "how long an ended job stays in the region's memory before it is read from the history archive; never: until memory is short. The same for all servers")
	f.StringVar(&cfg.Store, "store", cfg.Store, "where the region keeps tasks' checkpoints and output, for servers and agents alike, and the same for all: file:///shared/dir, s3://bucket/prefix?region=… or gs://bucket; credentials are of the servers' environment, and agents need none")
	f.StringVar(&cfg.Store, "checkpoint-store", cfg.Store, "the same as --store")
	_ = f.MarkHidden("checkpoint-store") // an older name; it is there
	f.StringVar(&cfg.ArchiveMax, "archive-max", cfg.ArchiveMax, "size of the history archive in --data; the oldest history makes way")
	f.Uint32Var(&cfg.TenantRate, "tenant-rate", 0, "requests a second that each tenant may send to this server, each job of a batch counted; 0: any number, within its share beside others; a tenant's quota stands before it")
	f.BoolVar(&cfg.Insecure, "insecure-plaintext", false, "a region without authentication, also on other addresses than loopback: test networks only")
	f.StringVar(&cfg.Metrics, "metrics", cfg.Metrics, "who reads /metrics: open to all, or operator, with a token")
	f.StringVar(&cfg.Issuer, "oidc-issuer", "", "URL of the OpenID provider that users log in with. The same for all servers")
	f.StringVar(&cfg.ClientID, "oidc-client-id", "", "what this region is called at the provider: a public client with PKCE and the redirect http://127.0.0.1 at any port")
	cfg.Log.flags(c)
	c.RunE = does(func(ctx context.Context, _ []string) error { return a.runServer(ctx, &cfg) })
	return c
}

func (a *app) runServer(ctx context.Context, cfg *serverConfig) error {
	if cfg.ID == "" && cfg.Data != "" {
		id, err := store.ServerOf(cfg.Data)
		if err != nil {
			return err
		}
		cfg.ID = string(id)
	}
	if cfg.JoinToken == "" && len(cfg.Join) > 0 && !cfg.Insecure {
		cfg.JoinToken = a.getenv("GPUAI_JOIN_TOKEN")
	}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	peers, err := cfg.peers()
	if err != nil {
		return usageError{err}
	}
	retain, archiveMax, err := cfg.history()
	if err != nil {
		return usageError{err}
	}
	reg := telemetry.NewRegistry()
	if err := telemetry.BridgeRaftMetrics(reg); err != nil {
		return err
	}
	recent := telemetry.NewRing()
	sc := server.Config{
		DiskLow: cfg.DiskLow << 20, DiskHard: cfg.DiskHard << 20,
		ID: gpuai.ServerID(cfg.ID), Region: gpuai.RegionID(cfg.Region), DataDir: cfg.Data,
		HTTPAddr: cfg.HTTP, RaftAddr: cfg.Raft, Advertise: cfg.Advertise,
		Secure: cfg.secure(), JoinToken: cfg.JoinToken, KeyFile: cfg.KeyFile, CertificateTTL: cfg.CertTTL, Hosts: append([]string{cfg.HTTP}, cfg.Hosts...),
		Bootstrap: cfg.Bootstrap, Join: cfg.Join, NonVoter: cfg.NonVoter, Multiplier: cfg.Multiplier, InsecurePlaintext: cfg.Insecure,
		MaxFeatureLevel: cfg.MaxLevel, Retain: retain, ArchiveMax: archiveMax, CheckpointStore: cfg.Store, TenantRate: cfg.TenantRate,
		PrivateMetrics: cfg.Metrics == "operator", OIDCIssuer: cfg.Issuer, OIDCClientID: cfg.ClientID,
		JobSchema: jobfile.Schema(), Metrics: reg, Logger: recent.Tee(a.logger(cfg.Log)), Recent: recent,
	}
	for _, p := range peers {
		sc.Peers = append(sc.Peers, p)
	}
	s, err := server.Open(sc)
	if err != nil {
		return err
	}
	tuneCollector()
	return s.Run(ctx)
}

// garbagePercent is how much garbage a server gathers before it collects, in
// percent of what lives. The state has next to no pointers, so that collections
// are cheap: at 40 instead of Go's 100 a node takes 29 to 30 KB of memory and not
// 37 to 38, for the same CPU time a placement (integration/goals, rows rss and
// cpu-small, in turns).
const garbagePercent = 40

// tuneCollector sets it, unless the operator has said otherwise.
func tuneCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
}
