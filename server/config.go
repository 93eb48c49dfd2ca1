package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/raft"
)

// Defaults of a Config, and the least size of a history archive.
const (
	DefaultRetain     = 24 * time.Hour
	DefaultArchiveMax = 1 << 30
	MinArchiveMax     = 1 << 20
)

// A Config says which member of which region to run. ID, DataDir and a way to
// listen on both ports are required.
type Config struct {
	ID     gpuai.ServerID
	Region gpuai.RegionID // "" is gpuai.DefaultRegion
	// DataDir is created where it is missing and locked while the server runs.
	DataDir string
	// HTTPAddr and RaftAddr are listened on; HTTP and Raft are listeners that
	// are open already and win over them. The server closes either.
	HTTPAddr, RaftAddr string
	HTTP, Raft         net.Listener
	// Advertise is the Raft port as others reach it; "" is the listener's.
	Advertise string
	// Peers are the members that form a new cluster, and further addresses
	// of members later on. Empty means this server alone, where it forms one.
	Peers []raft.Peer
	// Bootstrap forms a new cluster of Peers when DataDir is empty.
	Bootstrap bool
	// Join are Raft addresses of members: this server joins their cluster,
	// as a non-voter until it has caught up.
	Join []string
	// Secure is a region with authentication: TLS everywhere, servers and nodes
	// with certificates of the region's CA. With Bootstrap this server makes the
	// CA; Peers are empty then, and others join it. A server that joins has
	// JoinToken, and Join are addresses of the API. Later Peers are where to look for
	// the others.
	Secure    bool
	JoinToken string
	// KeyFile holds the keys under which the state keeps secrets; "" is in DataDir.
	KeyFile string
	// Hosts are further names and addresses at which clients reach this server.
	Hosts []string
	// CertificateTTL is how long certificates are good that this server signs; 0 is
	// a day, the most. They are renewed at half of it.
	CertificateTTL time.Duration
	// Clock judges certificates; nil is the host's.
	Clock identity.Clock
	// NonVoter keeps it from asking for a vote then.
	NonVoter bool
	// Multiplier 1 … 10 scales Raft's timeouts; 0 is 1.
	Multiplier int
	// DiskLow, DiskHard and DiskFree are raft.Config's: marks of the room on
	// DataDir's disk in bytes, 0 for the defaults, and how it is read.
	DiskLow, DiskHard uint64
	DiskFree          func(path string) (free, total uint64, err error)
	// MaxFeatureLevel holds the region's feature level back while servers are
	// upgraded: a server with it can be replaced by the older version that
	// knows no newer level. 0 is the newest that this version knows.
	MaxFeatureLevel uint32
	// Retain is how long a job that ended stays in the region's memory; after
	// that it is read from the history archive. 0 is a day; negative keeps jobs
	// until the region nears its limits, when they leave earlier in any case.
	// The leader's counts: give all servers the same.
	Retain time.Duration
	// ArchiveMax bounds the bytes that this server's history archive takes on
	// disk; the oldest history makes way. 0 is 1 GiB, the least is 1 MiB.
	ArchiveMax int64
	// TenantRate is how many requests a second each tenant may send to this
	// server, each job of a batch counted, and each address where it is not known
	// who asks; 0 is any number. Operators, servers and nodes have no such bound. A
	// tenant's quota stands before it.
	TenantRate uint32
	// TrailingLogs is how many log entries are kept behind a snapshot; 0 is
	// 16,384.
	TrailingLogs uint64
	// Dial opens a connection to another server's Raft address; nil is TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Wall is the wall clock, which is shown and decides nothing; nil is
	// time.Now.
	Wall func() time.Time
	// InsecurePlaintext allows listening on other addresses than loopback in a
	// region without authentication: nothing on the wire is encrypted.
	InsecurePlaintext bool
	// Authenticate has every request of the API say who it comes from, by an
	// access token or a certificate. Without it every request is an operator's.
	// Give all servers the same.
	Authenticate bool
	// PrivateMetrics has /metrics take an operator's token, where Authenticate.
	PrivateMetrics bool
	// OIDCIssuer is the URL of the OpenID provider that users log in with, and
	// OIDCClientID what this region is called there; "" is none. Give all servers
	// the same.
	OIDCIssuer, OIDCClientID string
	// NotReady holds /readyz back while the server itself is ready: it says
	// why, "" for no reason. It must not block; nil holds nothing back.
	NotReady func() string
	// CheckpointStore is the URL of the region's store, where tasks have their
	// checkpoints and agents keep the output of ended attempts, see blobs.Check; ""
	// is none. It must be the same on all servers, and lead all agents to the same
	// place; the leader deletes there what jobs have left that are not kept any more.
	CheckpointStore string
	// Keyring holds the region's keys, under which tenants' secrets are sealed; nil
	// keeps none. It must be the same on all servers. A Secure region has KeyFile.
	Keyring *identity.Keyring
	// JobSchema is served at /v1/schema/job.json.
	JobSchema []byte
	// Metrics takes the server's metrics and is served at /metrics; nil makes
	// a registry of its own.
	Metrics *prometheus.Registry
	Logger  *slog.Logger // nil discards
	// Recent are log lines that the debug route serves, those of Logger; nil
	// serves none.
	Recent *telemetry.Ring
}

// validate fills the defaults in and reports what is wrong, listeners aside.
func (c *Config) validate() error {
	if c.Region == "" {
		c.Region = gpuai.DefaultRegion
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.Metrics == nil {
		c.Metrics = telemetry.NewRegistry()
	}
	if c.Retain == 0 {
		c.Retain = DefaultRetain
	}
	if c.ArchiveMax == 0 {
		c.ArchiveMax = DefaultArchiveMax
	}
	if err := CheckStore(c.CheckpointStore); err != nil {
		return err
	}
	switch {
	case c.ArchiveMax < MinArchiveMax:
		return fmt.Errorf("the history archive's size of %d bytes is less than %d", c.ArchiveMax, int64(MinArchiveMax))
	case !gpuai.ValidName(string(c.ID)):
		return fmt.Errorf("server ID %q is not a name: use 1 to 63 of a-z, 0-9 and '-'", c.ID)
	case !gpuai.ValidName(string(c.Region)):
		return fmt.Errorf("region %q is not a name: use 1 to 63 of a-z, 0-9 and '-'", c.Region)
	case c.DataDir == "":
		return errors.New("a server needs a data directory: set one with --data")
	case c.Secure && c.InsecurePlaintext:
		return fmt.Errorf("the data directory %s is of a region with authentication: start it without --insecure-plaintext", c.DataDir)
	case c.Secure && len(c.Peers) > 0 && (c.Bootstrap || c.JoinToken != ""):
		return errors.New("--peers is for regions without authentication: form the region with one server, and have the others join it with --join and --join-token")
	case c.JoinToken != "" && len(c.Join) == 0:
		return errors.New("a join token needs the address of a server: name one with --join, its API's")
	case c.CertificateTTL > time.Duration(gpuai.CertificateTTL)*time.Millisecond:
		return fmt.Errorf("certificates of %s are longer than the day that nodes accept", c.CertificateTTL)
	case c.Bootstrap && len(c.Join) > 0:
		return errors.New("a server forms a new region or joins one: give --bootstrap or --join, and not both")
	}
	return nil
}

// CheckStore says what is wrong with a Config.CheckpointStore.
func CheckStore(url string) error {
	if url == "" {
		return nil
	}
	return blobs.Check(url)
}

// listen opens the two ports.
func (c *Config) listen() (err error) {
	if c.HTTP == nil {
		if c.HTTP, err = listenOn("HTTP", c.HTTPAddr); err != nil {
			return err
		}
	}
	if c.Raft == nil {
		if c.Raft, err = listenOn("Raft", c.RaftAddr); err != nil {
			return err
		}
	}
	for _, l := range []net.Listener{c.HTTP, c.Raft} {
		if !c.Secure && !c.InsecurePlaintext && !isLoopback(l.Addr()) {
			return fmt.Errorf("refusing to listen on %s: in a region without authentication only loopback is safe; form one with it by --bootstrap, or on a test network pass --insecure-plaintext", l.Addr())
		}
	}
	return nil
}

func listenOn(what, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("the %s port %s is in use by another process: stop it, or choose another port", what, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", what, err)
	}
	return l, nil
}

// isLoopback reports whether only this host can reach an address. Listeners
// that are not of the network, such as pipes, are this process's own.
func isLoopback(a net.Addr) bool {
	switch a.Network() {
	case "tcp", "tcp4", "tcp6":
	default:
		return true
	}
	p, err := netip.ParseAddrPort(a.String())
	return err == nil && p.Addr().IsLoopback()
}

// close closes the listeners that are open.
func (c *Config) close() {
	for _, l := range []net.Listener{c.HTTP, c.Raft} {
		if l != nil {
			l.Close()
		}
	}
}

// peers returns the first members; a server without peers that forms a cluster
// is its own only one.
func (c *Config) peers() []raft.Peer {
	if len(c.Peers) > 0 || !c.Bootstrap {
		return c.Peers
	}
	addr := c.Advertise
	if addr == "" {
		addr = c.Raft.Addr().String()
	}
	return []raft.Peer{{ID: c.ID, Addr: addr}}
}
