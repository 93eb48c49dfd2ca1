package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/plugins"
)

// A Config says what an agent is. Node, DataDir, Watchdog, Logger and Servers
// (or Dialer) are needed.
type Config struct {
	// Node names the node in its region.
	Node gpuai.NodeID
	// Servers are the HTTP addresses of the region's servers, in any order.
	Servers []string
	// Identity is the node's certificate, see Join and OpenIdentity, which the agent
	// renews; nil is for regions without authentication.
	Identity *identity.Source
	// DataDir holds the journal, the tasks' directories and the watchdog's
	// socket. No two agents may share it.
	DataDir string
	Zone    string
	// Rack and NVLinkDomain are as in gpuai.NodeSpec.
	Rack, NVLinkDomain string
	Labels             map[string]string
	// Address is where other nodes reach this one's tasks; "" means 127.0.0.1.
	Address string
	// Interface is the network interface of Address, told to the processes of
	// gangs; "" means the one that has Address.
	Interface string
	// CPU and Memory are offered to tasks; 0 means all that the host has.
	CPU    gpuai.MilliCPU
	Memory gpuai.Bytes
	// PortMin and PortCount are lent to gangs, see gpuai.NodeSpec.
	PortMin, PortCount uint16
	Price              gpuai.Micros
	// Drivers are started by Open. A SocketDir or Logger that is not set is
	// filled: a directory below DataDir, and Logger.
	Drivers []plugins.HostConfig
	// Watchdog is the path of gpuai-watchdog.
	Watchdog string
	// AllowProcess lets tasks run as plain processes, without isolation.
	AllowProcess bool
	// Sandbox runs tasks with images; nil means that this node runs none.
	Sandbox *SandboxConfig
	// TakeOver registers the node although the region knows another agent as
	// its holder, once: the other is fenced. For an operator who knows that it
	// is gone, or that the data directory was lost.
	TakeOver bool
	// StopTasks ends every task, and the watchdog, when Run's context ends.
	// Else tasks go on for the next agent of the same data directory, until
	// their deadlines.
	StopTasks bool
	// LogBytes bounds what is kept of each output stream of an attempt, and
	// LogSpace of all attempts together: the oldest that have ended make way. 0
	// means DefaultLogBytes and DefaultLogSpace.
	LogBytes, LogSpace int64
	// Store is how the region's store is used; "" is StoreSigned.
	Store StoreAccess
	// DenyExec keeps commands from being run beside tasks.
	DenyExec bool
	Logger   *slog.Logger
	// Clock is CLOCK_BOOTTIME; nil means the kernel's. The watchdog always
	// uses the kernel's.
	Clock Clock
	// Metrics takes the agent's metrics; nil means none.
	Metrics prometheus.Registerer
	// Dialer opens sessions; nil means a client of Servers.
	Dialer Dialer

	testDrivers []driver      // in-memory twins, beside Drivers
	testAgain   time.Duration // in place of againMin
	testGiveUp  time.Duration // in place of uploadFor
}

// What is kept of each output stream of an attempt, and of a node's attempts.
const (
	DefaultLogBytes = 32 << 20
	DefaultLogSpace = 4 << 30
)

// A Clock tells the time since the boot, suspended time included.
type Clock interface {
	Boottime() int64 // ns
}

// A Dialer opens sessions with servers.
type Dialer interface {
	// Dial connects to one of Config.Servers.
	Dial(ctx context.Context, addr string) (Session, error)
}

// A Session is a stream of frames with one server. Send and Recv may be called
// at the same time; Close ends both.
type Session interface {
	Send(ctx context.Context, f gpuai.Frame) error
	Recv(ctx context.Context) (gpuai.Frame, error)
	Close() error
}

// A Driver is the host of one vendor's devices, see plugins.Host.
type Driver interface {
	Inventory
	Reserver
	Meter
	io.Closer
}

// An Inventory is what a driver has.
type Inventory interface {
	Inventory() plugins.Snapshot
	Changed() <-chan struct{}
}

// A Reserver holds a driver's devices for leases.
type Reserver interface {
	Reserve(ctx context.Context, r plugins.Reservation) (plugins.Grant, error)
	Release(ctx context.Context, id string, scrub bool) (clean bool, detail string, err error)
	Recover(ctx context.Context, ids []string) (known, orphaned []string, err error)
}

// A Meter measures devices.
type Meter interface {
	// Stats calls f with measurements now and every interval, until ctx ends, f
	// fails or the driver's process dies.
	Stats(ctx context.Context, interval time.Duration, ids []gpuai.DeviceID, f func([]plugins.Stats) error) error
}

var _ Driver = (*plugins.Host)(nil)

type bootClock struct{}

func (bootClock) Boottime() int64 { return watchdog.Boottime() }

// fill sets defaults, and says what is wrong.
func (c *Config) fill() error {
	if c.Clock == nil {
		c.Clock = bootClock{}
	}
	if c.LogBytes == 0 {
		c.LogBytes = DefaultLogBytes
	}
	if c.LogSpace == 0 {
		c.LogSpace = DefaultLogSpace
	}
	if c.Store == "" {
		c.Store = StoreSigned
	}
	if c.Address == "" {
		c.Address = "127.0.0.1"
	}
	if c.Interface == "" {
		c.Interface = interfaceOf(c.Address)
	}
	if c.Zone == "" {
		c.Zone = "default"
	}
	if err := c.fillHost(); err != nil {
		return err
	}
	switch {
	case c.Logger == nil:
		return errors.New("the agent needs a logger")
	case c.DataDir == "":
		return errors.New("the agent needs a data directory")
	case c.Watchdog == "":
		return errors.New("the agent needs the path of gpuai-watchdog")
	case c.Store != StoreSigned && c.Store != StoreDirect:
		return fmt.Errorf("the region's store is used signed, by leave of the servers, or direct, with credentials of this host's own: not %q", c.Store)
	case len(c.Servers) == 0:
		return errors.New("the agent needs the address of at least one server")
	}
	for k := range c.Labels {
		if strings.HasPrefix(k, driverLabels) {
			return fmt.Errorf("label %s is the agent's own: it says which versions the drivers have found", k)
		}
		if k == gpuai.LabelExec {
			return fmt.Errorf("label %s is the agent's own: it says that commands may be run beside tasks", k)
		}
		if k == gpuai.LabelSecrets {
			return fmt.Errorf("label %s is the agent's own: it says that tasks are given their secrets here", k)
		}
		if k == gpuai.LabelOCI || k == gpuai.LabelScratch || strings.HasPrefix(k, gpuai.LabelOCI+".") {
			return fmt.Errorf("label %s is the agent's own: it says what runs images here, and with how much scratch space", k)
		}
		if k == gpuai.LabelEgress || k == gpuai.LabelHostNetwork || k == gpuai.LabelGangNetwork || k == gpuai.LabelMesh {
			return fmt.Errorf("label %s is the agent's own: it says what tasks can reach from here", k)
		}
	}
	spec := c.spec(nil, false)
	if bad := spec.Validate(); len(bad) > 0 {
		return fmt.Errorf("the node's description is invalid: %s %s", bad[0].Pointer, bad[0].Detail)
	}
	return nil
}

// spec is the node as it registers.
func (c *Config) spec(devices []gpuai.Device, simulated bool) gpuai.NodeSpec {
	return gpuai.NodeSpec{
		ID: c.Node, Zone: c.Zone, Rack: c.Rack, NVLinkDomain: c.NVLinkDomain, Labels: c.Labels, Address: c.Address, CPU: c.CPU, Memory: c.Memory,
		PortMin: c.PortMin, PortCount: c.PortCount, Price: c.Price,
		Devices: devices, Simulated: simulated, Version: gpuai.Version,
	}
}
