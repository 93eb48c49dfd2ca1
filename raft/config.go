package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/store"
)

// A Peer is a member of the group and the address of its Raft port.
type Peer struct {
	ID   gpuai.ServerID
	Addr string
}

// MaxMultiplier bounds Config.Multiplier.
const MaxMultiplier = 10

// A Config says which member of which group to run. Dir, Listener, ID and
// Region are required.
type Config struct {
	ID     gpuai.ServerID
	Region gpuai.RegionID
	// Dir is the open data directory. The caller closes it, after the Node.
	Dir *store.Dir
	// Listener is the Raft port; the Node owns and closes it. The first byte
	// of a connection says what it is: 1 Raft, 2 HTTP between servers.
	Listener net.Listener
	// Advertise is this server's address as others reach it; "" is the one in
	// Peers, else the listener's.
	Advertise string
	// Peers are the first members, this server included. Once the cluster is
	// formed the members are those of the Raft configuration, and Peers are
	// further addresses at which they are looked for, so that all may change
	// their ports between starts. A server that joins a cluster has none.
	Peers []Peer
	// Bootstrap forms a new cluster of Peers when Dir is empty; each of its
	// first members sets it. The member with the lowest ID mints the cluster
	// ID, so a new cluster begins once that one runs.
	Bootstrap bool
	// Multiplier 1 … 10 scales heartbeat, election and leader lease timeouts;
	// 0 is 1. 2 suits busy or cloud disks, 5 wide area networks.
	Multiplier int
	// TrailingLogs is how many entries are kept behind a snapshot: a follower
	// further behind is sent the snapshot. 0 is 16,384; it must be more than
	// the entries in flight, or a deposed leader could never be caught up.
	TrailingLogs uint64

	// MaxFeatureLevel holds the region's feature level back: this server takes
	// part in levels up to it and in none beyond. 0 is fsm.MaxLevel.
	MaxFeatureLevel uint32

	// OnApply is called on every replica after each applied entry, in order,
	// outside the lock; the first calls may come before Open returns. It must
	// not block. The output is not reused; it must not be changed.
	OnApply func(*fsm.Output)
	// OnRestore is called after a snapshot replaced the machine: whatever was
	// derived from outputs starts over.
	OnRestore func()
	// BeforeSnapshot is called before a snapshot at an index is written, beside
	// Apply: the log up to there may go with it. What was made from outputs and
	// must outlive a crash should be durable when it returns. It may block.
	BeforeSnapshot func(index uint64)
	// OnDamage is called at most once, from a goroutine of its own, when this
	// replica can go on no longer: a damaged log, an unknown command, a data
	// directory of another cluster. The process should print it and stop.
	OnDamage func(error)

	// DiskLow and DiskHard are marks of the room on Dir's disk, in bytes:
	// below the low one AdmitClient refuses, below the hard one nothing is
	// proposed. 0 is 1 GiB or a tenth of the disk, whichever is less, and a
	// quarter of the low mark.
	DiskLow, DiskHard uint64
	// DiskFree reads the room on a path's disk; nil is store.DiskFree.
	DiskFree func(path string) (free, total uint64, err error)

	// Identity has every connection to and from other servers be over TLS, between
	// servers of one cluster; nil is plaintext.
	Identity *identity.Source

	// Dial opens a connection to a peer's address; nil is TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Wall is the wall clock, which rides along in entries to be shown and
	// decides nothing; nil is time.Now.
	Wall    func() time.Time
	Logger  *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil registers none
}

// validate fills the defaults in and reports what is wrong.
func (c *Config) validate() error {
	if c.Multiplier == 0 {
		c.Multiplier = 1
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxFeatureLevel == 0 {
		c.MaxFeatureLevel = fsm.MaxLevel
	}
	if c.Dial == nil {
		c.Dial = dialTCP
	}
	if c.DiskFree == nil {
		c.DiskFree = store.DiskFree
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	switch {
	case c.Dir == nil || c.Listener == nil:
		return errors.New("raft: Dir and Listener are required")
	case !gpuai.ValidName(string(c.ID)):
		return fmt.Errorf("raft: server ID %q is not a name (1 to 63 of a-z, 0-9 and '-')", c.ID)
	case c.Region == "":
		return errors.New("raft: Region is required")
	case c.DiskHard > c.DiskLow:
		return fmt.Errorf("raft: the hard mark of the disk, %d bytes, is above the low one, %d", c.DiskHard, c.DiskLow)
	case c.MaxFeatureLevel < fsm.MinLevel || c.MaxFeatureLevel > fsm.MaxLevel:
		return fmt.Errorf("raft: the newest feature level is %d and must be %d to %d in this version", c.MaxFeatureLevel, fsm.MinLevel, fsm.MaxLevel)
	case c.TrailingLogs > 0 && c.TrailingLogs <= maxInFlight:
		return fmt.Errorf("raft: %d trailing log entries are too few, with %d entries in flight: keep more", c.TrailingLogs, maxInFlight)
	case c.Multiplier < 1 || c.Multiplier > MaxMultiplier:
		return fmt.Errorf("raft: the timeout multiplier is %d and must be 1 to %d", c.Multiplier, MaxMultiplier)
	}
	if addr, ok := c.addr(c.ID); c.Advertise == "" && ok {
		c.Advertise = addr
	}
	if c.Advertise == "" {
		c.Advertise = c.Listener.Addr().String()
	}
	if len(c.Peers) == 0 {
		if c.Bootstrap {
			return errors.New("raft: a new cluster is formed of Peers, and there are none")
		}
		return nil
	}
	return c.validatePeers()
}

func (c *Config) validatePeers() error {
	ids, addrs := map[gpuai.ServerID]bool{}, map[string]bool{}
	for _, p := range c.Peers {
		switch {
		case !gpuai.ValidName(string(p.ID)) || p.Addr == "":
			return fmt.Errorf("raft: peer %q at %q needs a name and an address", p.ID, p.Addr)
		case ids[p.ID] || addrs[p.Addr]:
			return fmt.Errorf("raft: peer %s at %s is listed twice", p.ID, p.Addr)
		}
		ids[p.ID], addrs[p.Addr] = true, true
	}
	if !ids[c.ID] {
		return fmt.Errorf("raft: server %s is not among its peers", c.ID)
	}
	return nil
}

func (c *Config) addr(id gpuai.ServerID) (string, bool) {
	i := slices.IndexFunc(c.Peers, func(p Peer) bool { return p.ID == id })
	if i < 0 {
		return "", false
	}
	return c.Peers[i].Addr, true
}

// tuning holds what tests shrink.
type tuning struct {
	trailingLogs     uint64        // entries kept behind a snapshot
	snapshotCommands uint64        // applied since the last one …
	snapshotBytes    uint64        // … or this many bytes of entries …
	snapshotCheck    time.Duration // … make a snapshot; looked at this often
	persistApplied   time.Duration // how old identity's applied index may be
	applyTimeout     time.Duration // until a proposal's outcome is called unknown
	enqueueTimeout   time.Duration // for hraft's main goroutine to take an entry
	queueCommands    int           // waiting in the proposer
	queueBytes       int
	rpcTimeout       time.Duration // of one exchange with a peer
	snapshotTimeout  time.Duration // until a snapshot that goes on is not waited for
	writeStall       time.Duration // a write of the log that takes longer silences a leader
	applyStall       time.Duration // an entry applied for longer has leadership handed over …
	handOver         time.Duration // … and silences a leader that long after
	diskCheck        time.Duration // how often the room on the disk is read

	fault func(write func() error) error // of tests: does, fails or holds up a write of the log
	bare  bool                           // of tests: the library without gate and stall guard
}

func defaultTuning(multiplier int) tuning {
	return tuning{
		trailingLogs:     16_384,
		snapshotCommands: 1 << 20,
		snapshotBytes:    512 << 20,
		snapshotCheck:    time.Minute,
		persistApplied:   3 * time.Second,
		applyTimeout:     time.Duration(multiplier) * 10 * time.Second,
		enqueueTimeout:   time.Duration(multiplier) * 5 * time.Second,
		queueCommands:    65_536,
		queueBytes:       64 << 20,
		rpcTimeout:       time.Duration(multiplier) * 5 * time.Second,
		snapshotTimeout:  15 * time.Minute,
		writeStall:       max(time.Second, time.Duration(multiplier)*heartbeatTimeout),
		applyStall:       time.Duration(multiplier) * 3 * time.Second,
		handOver:         time.Duration(multiplier) * time.Second,
		diskCheck:        time.Second,
	}
}

// tuning returns the defaults with what is configured.
func (c *Config) tuning() tuning {
	t := defaultTuning(max(c.Multiplier, 1))
	if c.TrailingLogs > 0 {
		t.trailingLogs = c.TrailingLogs
	}
	return t
}

const (
	heartbeatTimeout = 500 * time.Millisecond // × multiplier; also of elections
	leaderLease      = 250 * time.Millisecond // × multiplier
	// commitTimeout is how long a follower may lag: it learns the commit
	// index with the next append. Each millisecond less costs idle CPU.
	commitTimeout    = 3 * time.Millisecond
	maxAppendEntries = 64
	maxRPCsInFlight  = 2
	transferTimeout  = 5 * time.Second
)

// library returns hashicorp/raft's configuration (the settings table of the
// reliability document, and nothing else).
func (c *Config) library(t tuning, notify chan<- bool) *hraft.Config {
	m := time.Duration(c.Multiplier)
	h := hraft.DefaultConfig()
	h.LocalID = hraft.ServerID(c.ID)
	h.HeartbeatTimeout = m * heartbeatTimeout
	h.ElectionTimeout = m * heartbeatTimeout
	h.LeaderLeaseTimeout = m * leaderLease
	h.CommitTimeout = commitTimeout
	h.MaxAppendEntries = maxAppendEntries
	h.BatchApplyCh = false
	h.TrailingLogs = t.trailingLogs
	// Snapshots are ours to trigger: an entry holds 1 to 1,000 commands.
	h.SnapshotThreshold = math.MaxUint64
	h.SnapshotInterval = 24 * time.Hour
	h.PreVoteDisabled = false
	h.NoLegacyTelemetry = true
	h.NotifyCh = notify
	h.ShutdownOnRemove = false // a removed server stops by itself, with a sentence
	h.Logger = telemetry.HCLog(c.Logger)
	return h
}
