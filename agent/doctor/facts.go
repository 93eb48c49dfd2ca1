package doctor

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/cdi"
	"github.com/gpuai/gpuai/agent/network"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
)

// A Config says what to look at.
type Config struct {
	// Agent is the agent's configuration, as far as it could be read.
	Agent agent.Config
	// Wrong is what could not be read of it.
	Wrong error
	// Unusable is what is wrong with the node's certificate, where Agent.Identity is nil
	// though there is one.
	Unusable error
	// Metrics is the listen address of the agent's metrics, "" for none.
	Metrics string
	// Patience bounds the answer of each server, and the start of each driver.
	Patience time.Duration
	Logger   *slog.Logger
}

// Facts are what was found on a host.
type Facts struct {
	Wrong error // in the configuration
	Root  bool

	Joined  JoinedFacts
	Data    DataFacts
	Sandbox *agent.SandboxConfig // nil: the operator wants no images
	Process bool                 // the runtime "process" is on

	Kernel     string // "6.1.0-18-amd64"
	Seccomp    bool
	MaxUserNS  int64 // user namespaces that the kernel allows; -1: unknown
	UserNS     error // of making one
	RangeUsers []string
	RangesLent int
	OpenFiles  uint64
	Cgroups    watchdog.CgroupSurvey
	CgroupsErr error
	Watchdog   error

	Runtime    *sandbox.Runtime // nil: none, or none wanted
	RuntimeErr error
	Trial      error // of a sandbox by Runtime, where what it needs is there

	GangNet error // what gangs in sandboxes lack
	Egress  error // what egress lacks, if the policy has any

	Mesh      error // what gangs across nodes lack, unless they are off
	MeshPorts int   // free UDP ports for them

	ScratchErr  error
	Credentials error
	ImageDirs   []error // one for each that cannot be used

	Store            agent.StoreAccess
	StoreCredentials []string // where credentials of an object store are

	Drivers []DriverFacts
	Present []string // drivers of the GPUs that the PCI bus tells of
	CDI     []cdi.Found
	CDIErr  error
	CDIDirs []string

	Clock   ClockFacts
	Servers []ServerFacts
	Ports   PortFacts
}

// DataFacts are of the data directory.
type DataFacts struct {
	Path   string // absolute
	There  bool
	At     string // Path, or the directory above it that is there
	Err    error  // why it cannot be written to
	Holder int    // process of the agent that has it; 0: none
	Kind   string // of file system: "ext4"
	MapErr error  // of mapping its users
	Mapped bool   // MapErr says whether that worked; else it was not tried
	Size   gpuai.Bytes
	Free   gpuai.Bytes
	Inodes uint64 // free
}

// DriverFacts are of one driver.
type DriverFacts struct {
	Name string
	Err  error // of its start
	Snap plugins.Snapshot
}

// ClockFacts are of the host's clocks.
type ClockFacts struct {
	Synced    bool
	SyncErr   error
	Source    string        // of the kernel's time: "tsc"
	Suspended time.Duration // since the boot
}

// ServerFacts are of one server.
type ServerFacts struct {
	URL     string
	Err     error  // it does not answer
	Unready string // why it does not serve; "" when it does
	Secure  bool   // it wants TLS and its region's CA, which this host does not know
	ID      string
	Latency time.Duration
	Offset  time.Duration // of this host's wall clock, ahead of the server's
	Dated   bool          // Offset is known
}

// PortFacts are of the ports that the node needs.
type PortFacts struct {
	Metrics      string // "" for none
	MetricsTaken bool
	First, Count uint16   // of the gangs' range
	Taken        []uint16 // of it
	Exposed      int      // of it, how many the kernel may give to outgoing connections
	Err          error    // of looking
}

// Run looks at the host and judges it.
func Run(ctx context.Context, c *Config) *Report {
	f := Gather(ctx, c)
	return &Report{Checks: Judge(f), Probes: []ProbeResult{}}
}

// Gather looks at the host.
func Gather(ctx context.Context, c *Config) *Facts {
	f := &Facts{Wrong: c.Wrong, Root: os.Geteuid() == 0, Sandbox: c.Agent.Sandbox, Process: c.Agent.AllowProcess, Clock: clocks()}
	var meet *tls.Config
	f.Joined, meet = joined(c)
	f.Servers = servers(ctx, c, meet)
	f.Ports = ports(c)
	f.Store, f.StoreCredentials = c.Agent.Store, storeCredentials(os.Getenv)
	f.Drivers, f.Present = drivers(ctx, c), plugins.Detect("/")
	f.findData(c.Agent.DataDir)
	f.host(c.Agent.Watchdog)
	f.data()
	f.findRuntime(ctx)
	f.tryRuntime(ctx, &c.Agent)
	f.findImages()
	if f.Root && f.Sandbox != nil {
		f.GangNet, f.Egress = network.Survey(f.Sandbox.Network)
		if f.Sandbox.Network.Mesh.Program != "" {
			f.MeshPorts, f.Mesh = network.SurveyMesh(&f.Sandbox.Network)
		}
	}
	f.findCDI(&c.Agent)
	return f
}

// findCDI reads the host's specifications, and those that the drivers of the
// data directory's agent have written.
func (f *Facts) findCDI(c *agent.Config) {
	finder := cdi.Finder{}
	if c.Sandbox != nil {
		finder.Host = c.Sandbox.CDIDirs
	}
	for _, d := range c.Drivers {
		finder.Drivers = append(finder.Drivers, filepath.Join(f.Data.Path, "drivers", d.Name, "state", "cdi"))
	}
	f.CDIDirs = finder.Host
	if f.CDIDirs == nil {
		f.CDIDirs = cdi.HostDirs
	}
	f.CDI, f.CDIErr = finder.Survey()
}

// drivers starts every driver in a directory of its own, and asks what it has.
func drivers(ctx context.Context, c *Config) (out []DriverFacts) {
	if len(c.Agent.Drivers) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "gpuai-doctor-")
	defer os.RemoveAll(dir)
	for _, d := range c.Agent.Drivers {
		f := DriverFacts{Name: d.Name, Err: err}
		if err == nil {
			d.SocketDir, d.Logger = dir, c.Logger
			f.Snap, f.Err = fingerprint(ctx, d, c.Patience)
		}
		out = append(out, f)
	}
	return out
}

func fingerprint(ctx context.Context, d plugins.HostConfig, patience time.Duration) (plugins.Snapshot, error) {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	h, err := plugins.Start(bounded, d)
	if err != nil {
		return plugins.Snapshot{}, err
	}
	snap := h.Inventory()
	return snap, h.Close()
}
