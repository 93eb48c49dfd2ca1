package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/doctor"
	"github.com/gpuai/gpuai/internal/jobfile"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/server"
)

// An agentConfig is the configuration of "agent run".
type agentConfig struct {
	ID           string   // the node's name
	Data         string   // data directory
	Servers      []string // URLs of the servers' APIs
	JoinToken    string   // gets the node's certificate, once; "" where it has one, or needs none
	Zone         string
	Rack         string   // of the zone; "" for none
	NVLinkDomain string   // of the zone; "" for none
	Labels       []string // key=value
	Address      string   // where other nodes reach this one's tasks
	Interface    string   // network interface of it; "" finds it
	CPU          string   // cores; "" detects
	Memory       string   // "64GiB"; "" detects
	Ports        string   // MIN-MAX lent to gangs; "" for none
	Price        string   // US dollars per GPU and hour; "" for nothing
	Drivers      []string // "auto", or name[=path][,config-file]
	Watchdog     string   // path; "" is beside this binary
	AllowProcess bool     // the process runtime, which has no isolation
	OCIRuntime   string   // name of the OCI runtime, "auto" or "none"
	AcceptFlaw   bool     // use an OCI runtime with a known way out of it
	CDIDirs      []string // the host's CDI specifications; none means the usual places
	Scratch      string   // "1TiB"; "" is half of what is free
	ImageCache   string   // "100GiB"
	ImageDirs    []string // whose images may be named by path
	Credentials  string   // file of registry credentials; "" for none
	LocalImages  bool     // registries at loopback addresses
	Egress       string   // "deny", "allow", or networks
	DNS          []string // resolvers of tasks with egress; none for the host's
	HostNetwork  bool     // let tasks have the node's network
	Mesh         string   // "auto" or "off": gangs in sandboxes with members on other nodes
	MeshPorts    string   // UDP, MIN-MAX
	MeshMTU      int      // of the gangs' links
	LogSize      string   // "32MiB", of each stream of an attempt
	LogSpace     string   // "4GiB", of all attempts on the node
	Store        string   // "signed" or "direct": how the region's store is used
	Exec         string   // "allow" or "deny" commands beside tasks
	TakeOver     bool     // fence another agent that holds this identity, once
	MetricsHTTP  string   // listen address of /metrics; "" for none
	Insecure     bool     // allow other addresses than loopback
	Log          logConfig
}

// defaultAgentConfig returns the defaults of the flags.
func defaultAgentConfig() agentConfig {
	return agentConfig{
		Servers: []string{strings.TrimPrefix(defaultAddr, "http://")}, Zone: "default", Address: "127.0.0.1",
		OCIRuntime: ociAuto, ImageCache: "100GiB", Egress: "deny",
		Mesh: meshAuto, MeshPorts: agent.DefaultMeshPorts(), MeshMTU: agent.DefaultMeshMTU, LogSize: "32MiB", LogSpace: "4GiB", Store: string(agent.StoreSigned), Exec: "allow",
		Log: logConfig{Format: telemetry.FormatText, Level: "info"},
	}
}

// resolve returns the agent's configuration, but for its logger, or everything
// that is wrong.
func (c *agentConfig) resolve() (agent.Config, error) {
	out := agent.Config{
		Node: gpuai.NodeID(c.ID), DataDir: c.Data, Zone: c.Zone, Rack: c.Rack, NVLinkDomain: c.NVLinkDomain, Address: c.Address, Interface: c.Interface,
		Watchdog: c.Watchdog, AllowProcess: c.AllowProcess, TakeOver: c.TakeOver, Store: agent.StoreAccess(c.Store),
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !gpuai.ValidName(c.ID) {
		fail("--id must be 1 to 63 characters of a-z, 0-9 and '-', not %q", c.ID)
	}
	if c.Data == "" {
		fail("--data must name a directory")
	}
	if !gpuai.ValidName(c.Zone) {
		fail("--zone must be 1 to 63 characters of a-z, 0-9 and '-', not %q", c.Zone)
	}
	for flag, s := range map[string]string{"rack": c.Rack, "nvlink-domain": c.NVLinkDomain} {
		if s != "" && !gpuai.ValidName(s) {
			fail("--%s must be 1 to 63 characters of a-z, 0-9 and '-', not %q", flag, s)
		}
	}
	errs = append(errs, c.servers(&out), c.amounts(&out), c.labels(&out), c.drivers(&out), c.sandbox(&out))
	if out.Watchdog == "" {
		out.Watchdog = beside(watchdogBinary)
	}
	if err := executable(out.Watchdog); err != nil {
		fail("--watchdog: %w", err)
	}
	if c.MetricsHTTP != "" {
		if err := checkListen(c.MetricsHTTP, c.Insecure); err != nil {
			fail("--metrics-http: %w", err)
		}
	}
	if out.Store != agent.StoreSigned && out.Store != agent.StoreDirect {
		fail("--store must be signed or direct, not %q: the servers say where the region's store is", c.Store)
	}
	var err error
	if out.DenyExec, err = readExecFlag(c.Exec); err != nil {
		errs = append(errs, err)
	}
	_, err = c.Log.level()
	return out, errors.Join(append(errs, err)...)
}

// Values of --oci-runtime beside the names of runtimes.
const (
	ociAuto = "auto" // runc, where it is installed
	ociNone = "none"
)

// sandbox reads what tasks with images need.
func (c *agentConfig) sandbox(out *agent.Config) error {
	if c.OCIRuntime == ociNone {
		if c.HostNetwork || c.Egress != "deny" || len(c.DNS) > 0 {
			return errors.New("--network-egress, --network-dns and --network-host are for tasks with images, which --oci-runtime none takes none of")
		}
		return nil
	}
	size, err := jobfile.ParseSize(c.ImageCache)
	if err != nil {
		err = fmt.Errorf("--image-cache %w, not %q", err, c.ImageCache)
	}
	scratch := gpuai.Bytes(0)
	if c.Scratch != "" {
		var bad error
		if scratch, bad = jobfile.ParseSize(c.Scratch); bad != nil {
			err = errors.Join(err, fmt.Errorf("--scratch %w, not %q", bad, c.Scratch))
		}
	}
	for _, dir := range c.CDIDirs {
		if !filepath.IsAbs(dir) {
			err = errors.Join(err, fmt.Errorf("--cdi-dir is an absolute path, not %q", dir))
		}
	}
	for _, dir := range c.ImageDirs {
		if !filepath.IsAbs(dir) {
			err = errors.Join(err, fmt.Errorf("--image-dir is an absolute path, not %q", dir))
		}
	}
	out.Sandbox = &agent.SandboxConfig{
		Runtime: c.OCIRuntime, AcceptFlaw: c.AcceptFlaw, CDIDirs: c.CDIDirs, Scratch: scratch,
		Images: agent.ImageConfig{MaxBytes: int64(size), Credentials: c.Credentials, Files: c.ImageDirs, LocalRegistry: c.LocalImages},
	}
	if c.OCIRuntime == ociAuto {
		out.Sandbox.Runtime, out.Sandbox.Optional = "runc", true
	}
	return errors.Join(err, c.network(&out.Sandbox.Network))
}

// network reads what tasks with images may reach.
func (c *agentConfig) network(out *agent.NetworkConfig) (err error) {
	out.Host = c.HostNetwork
	if out.Egress, err = agent.ParseEgress(c.Egress); err != nil {
		return fmt.Errorf("--network-egress %w", err)
	}
	for _, s := range c.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--network-dns has addresses such as 9.9.9.9 with commas between them, not %q", s)
		}
		out.DNS = append(out.DNS, a)
	}
	if err := out.Validate(); err != nil {
		return fmt.Errorf("--network-dns: %w", err)
	}
	return c.mesh(&out.Mesh)
}

// Values of --mesh.
const (
	meshAuto = "auto"
	meshOff  = "off"
)

// mesh reads how gangs are linked with their members on other nodes.
func (c *agentConfig) mesh(out *agent.MeshConfig) error {
	switch c.Mesh {
	case meshOff:
		return nil
	case meshAuto:
	default:
		return fmt.Errorf("--mesh is %s or %s, not %q", meshAuto, meshOff, c.Mesh)
	}
	out.Program, out.MTU = beside(meshBinary), c.MeshMTU
	if err := agent.ReadMeshPorts(out, c.MeshPorts); err != nil {
		return fmt.Errorf("--mesh-ports %w", err)
	}
	if err := out.Validate(); err != nil {
		return fmt.Errorf("--mesh-mtu: %w", err)
	}
	return nil
}

func (c *agentConfig) servers(out *agent.Config) error {
	scheme := "http"
	if c.JoinToken != "" || server.IsSecure(c.Data) {
		scheme = "https"
	}
	for _, s := range c.Servers {
		u, err := urlOf(scheme, s)
		if err != nil {
			return fmt.Errorf("--servers: %w", err)
		}
		out.Servers = append(out.Servers, u)
	}
	if len(out.Servers) == 0 {
		return errors.New("--servers must name at least one server")
	}
	return nil
}

// amounts reads --cpu, --memory, --ports and --price.
func (c *agentConfig) amounts(out *agent.Config) error {
	var errs []error
	var err error
	if c.CPU != "" {
		if out.CPU, err = jobfile.ParseCPU(c.CPU); err != nil {
			errs = append(errs, fmt.Errorf("--cpu %w, not %q", err, c.CPU))
		}
	}
	if c.Memory != "" {
		if out.Memory, err = jobfile.ParseSize(c.Memory); err != nil {
			errs = append(errs, fmt.Errorf("--memory %w, not %q", err, c.Memory))
		}
	}
	if c.Ports != "" {
		lo, hi, ok := strings.Cut(c.Ports, "-")
		from, err1 := strconv.ParseUint(lo, 10, 16)
		to, err2 := strconv.ParseUint(hi, 10, 16)
		if !ok || err1 != nil || err2 != nil || from == 0 || to < from || to-from >= gpuai.MaxPorts {
			errs = append(errs, fmt.Errorf("--ports is MIN-MAX with at most %d ports, such as 29500-29563, not %q", gpuai.MaxPorts, c.Ports))
		} else {
			out.PortMin, out.PortCount = uint16(from), uint16(to-from+1)
		}
	}
	if c.Price != "" {
		if out.Price, err = parsePrice(c.Price); err != nil {
			errs = append(errs, fmt.Errorf("--price %w, not %q", err, c.Price))
		}
	}
	for flag, size := range map[string]struct {
		text string
		into *int64
	}{"log-size": {c.LogSize, &out.LogBytes}, "log-space": {c.LogSpace, &out.LogSpace}} {
		n, err := jobfile.ParseSize(size.text)
		if err != nil || n < minLogSize {
			errs = append(errs, fmt.Errorf("--%s is a size of at least 64KiB, such as 32MiB, not %q", flag, size.text))
		}
		*size.into = int64(n)
	}
	return errors.Join(errs...)
}

// minLogSize is the least that --log-size and --log-space take.
const minLogSize = 64 << 10

// parsePrice reads US dollars with up to six decimals.
func parsePrice(s string) (gpuai.Micros, error) {
	whole, frac, dot := strings.Cut(s, ".")
	if whole != "" && len(frac) <= 6 && dot == (frac != "") {
		n, err := strconv.ParseUint(whole+(frac + "000000")[:6], 10, 53)
		if err == nil {
			return gpuai.Micros(n), nil
		}
	}
	return 0, errors.New("must be US dollars with at most six decimals, such as 1.25")
}

func (c *agentConfig) labels(out *agent.Config) error {
	for _, s := range c.Labels {
		k, v, ok := strings.Cut(s, "=")
		if !ok || !gpuai.ValidLabel(k) || len(v) > gpuai.MaxTextLen {
			return fmt.Errorf("--label is key=value with a key of a-z, 0-9, '-', '_', '.' and '/', not %q", s)
		}
		if out.Labels == nil {
			out.Labels = map[string]string{}
		}
		out.Labels[k] = v
	}
	return nil
}

// driverAuto is the --driver that stands for one driver of each vendor whose
// devices the host has.
const driverAuto = "auto"

// drivers reads --driver auto and --driver name[=path][,config-file].
func (c *agentConfig) drivers(out *agent.Config) error {
	var errs []error
	seen := map[string]bool{}
	for _, s := range c.driverFlags("/") {
		spec, file, hasFile := strings.Cut(s, ",")
		name, path, _ := strings.Cut(spec, "=")
		if path == "" {
			path = beside("gpuai-driver-" + name)
		}
		d := plugins.HostConfig{Name: name, Path: path}
		if !gpuai.ValidName(name) || seen[name] {
			errs = append(errs, fmt.Errorf("--driver is name[=path][,config-file], each name once, not %q", s))
			continue
		}
		seen[name] = true
		if err := executable(path); err != nil {
			errs = append(errs, fmt.Errorf("--driver %s: %w", name, err))
		}
		if hasFile {
			src, err := os.ReadFile(file)
			if err != nil {
				errs = append(errs, fmt.Errorf("--driver %s: reading its configuration: %w", name, err))
			}
			d.Config = src
		}
		out.Drivers = append(out.Drivers, d)
	}
	return errors.Join(errs...)
}

// driverFlags returns --driver with what auto stands for on the host below root.
// A driver that is named keeps its path and configuration.
func (c *agentConfig) driverFlags(root string) []string {
	named := slices.DeleteFunc(slices.Clone(c.Drivers), func(s string) bool { return s == driverAuto })
	if len(named) == len(c.Drivers) {
		return named
	}
	for _, found := range plugins.Detect(root) {
		if !slices.ContainsFunc(named, func(s string) bool {
			spec, _, _ := strings.Cut(s, ",")
			name, _, _ := strings.Cut(spec, "=")
			return name == found
		}) {
			named = append(named, found)
		}
	}
	return named
}

// beside returns the path of a binary in the directory of this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	return filepath.Join(filepath.Dir(self), name)
}

// executable says what is wrong with the path of a binary.
func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("there is no binary %s: build it with \"make build\", or name it", path)
	case st.IsDir() || st.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}

func newAgentCmd(a *app) *cobra.Command {
	return group("agent", "Run a node's agent", newAgentRunCmd(a), newAgentJoinCmd(a), newAgentCleanCmd(a), newAgentDoctorCmd(a))
}

func newAgentRunCmd(a *app) *cobra.Command {
	cfg := defaultAgentConfig()
	c := &cobra.Command{
		Use: "run", Short: "Run the agent of this host", Args: cobra.NoArgs,
		Long: `Run the agent of this host until SIGINT or SIGTERM. It registers the host as a
node, holds a session to one of the servers, and runs what the region leases to
it. Tasks go on when the agent restarts; the watchdog ends them at their lease's
deadline whatever becomes of the agent.

A driver is named once for each vendor: --driver sim=/path/to/driver,/path/to/config.json.
The path defaults to gpuai-driver-NAME beside this binary. --driver auto stands for
the drivers of all vendors whose GPUs this host has, bound to their kernel driver.

Tasks with an image run in a sandbox of an OCI runtime, for which the agent must
be root; docs/isolation.md says what it stops. Without one the node takes no such
tasks. They reach nothing but the other members of their gang, unless the job asks
for more and this node's operator allows it: --network-egress for the internet,
without the clouds' metadata, the host and private networks that it does not name,
or for the networks that it lists; --network-host for the node's own network, as
for RDMA. Egress needs nftables and net.ipv4.ip_forward=1; the log says at the start
what is lacking. What a node allows are its labels network.egress, network.host and
network.gang.

Checkpoints and output go to the region's store, if its servers have one, by leave
that the servers give for each lease: this host needs no credentials of the store
and should have none. --store=direct spares the way by the servers, for hosts that
may read and change all that is there; docs/checkpoints.md tells more.`,
		Example: `  gpuai agent run --id gpu-c11 --data /var/lib/gpuai/agent --servers http://127.0.0.1:7470 \
      --driver sim,sim.json --zone hall-1 --rack rack-7 --nvlink-domain nv-12 --ports 29500-29515 --allow-process-runtime
  gpuai agent run --id gpu-c12 --data /var/lib/gpuai/agent --metrics-http 127.0.0.1:7480
  gpuai agent run --id gpu-c13 --data /var/lib/gpuai/agent --driver auto --oci-runtime runc --image-cache 500GiB \
      --registry-credentials /etc/gpuai/registries.json --network-egress allow,10.20.0.0/16 --network-dns 9.9.9.9
  curl -s http://127.0.0.1:7480/metrics | grep gpuai_agent_gpu_health`,
	}
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if cfg.JoinToken == "" {
			cfg.JoinToken = a.getenv("GPUAI_JOIN_TOKEN")
		}
		ac, err := cfg.resolve()
		if err != nil {
			return usageError{err}
		}
		ac.Logger = a.logger(cfg.Log)
		if err := cfg.openIdentity(ctx, &ac); err != nil {
			return err
		}
		if cfg.MetricsHTTP == "" {
			return runAgent(ctx, ac)
		}
		return runWithMetrics(ctx, ac, cfg.MetricsHTTP)
	})
	cfg.flags(c)
	return c
}

// openIdentity reads the node's certificate, or gets it with --join-token where
// there is none.
func (cfg *agentConfig) openIdentity(ctx context.Context, ac *agent.Config) (err error) {
	if ac.Identity, err = agent.OpenIdentity(cfg.Data); ac.Identity != nil {
		return nil
	}
	if cfg.JoinToken == "" {
		return err
	}
	if _, err := agent.Join(ctx, agent.JoinConfig{DataDir: cfg.Data, Node: ac.Node, Servers: ac.Servers, Token: cfg.JoinToken}); err != nil {
		return err
	}
	ac.Identity, err = agent.OpenIdentity(cfg.Data)
	return err
}

// flags registers the flags of "agent run" with a command.
func (cfg *agentConfig) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&cfg.ID, "id", "", "name of the node, unique in the region (required)")
	f.StringVar(&cfg.Data, "data", "", "data directory (required)")
	f.StringSliceVar(&cfg.Servers, "servers", cfg.Servers, "URLs of the servers, comma-separated")
	f.StringVar(&cfg.JoinToken, "join-token", "", "get the node's certificate with this join token, where --data has none (default $GPUAI_JOIN_TOKEN)")
	f.StringVar(&cfg.Zone, "zone", cfg.Zone, "zone of the node")
	f.StringVar(&cfg.Rack, "rack", "", "rack of the node in its zone; jobs ask for one with placement (default: a rack of its own)")
	f.StringVar(&cfg.NVLinkDomain, "nvlink-domain", "", "NVLink domain of the node in its zone (default: a domain of its own)")
	f.StringArrayVar(&cfg.Labels, "label", nil, "label as key=value; repeatable")
	f.StringVar(&cfg.Address, "address", cfg.Address, "host or IP where other nodes reach this one's tasks")
	f.StringVar(&cfg.Interface, "interface", "", "network interface by which tasks of gangs reach other nodes, for NCCL_SOCKET_IFNAME (default: the one that has --address)")
	f.StringVar(&cfg.CPU, "cpu", "", "cores to lend (default: all)")
	f.StringVar(&cfg.Memory, "memory", "", "memory to lend, such as 64GiB (default: all)")
	f.StringVar(&cfg.Ports, "ports", "", "ports MIN-MAX lent to gangs; agents on one host need ranges apart")
	f.StringVar(&cfg.Price, "price", "", "US dollars for one GPU and hour")
	f.StringArrayVar(&cfg.Drivers, "driver", nil, "driver as name[=path][,config-file], or auto; repeatable")
	f.StringVar(&cfg.Watchdog, "watchdog", "", "path of gpuai-watchdog (default: beside this binary)")
	f.BoolVar(&cfg.AllowProcess, "allow-process-runtime", false, "run tasks as plain processes of this user, without isolation: trusted users only")
	f.StringArrayVar(&cfg.CDIDirs, "cdi-dir", nil, "directory of the host's CDI specifications, which go before the drivers' own; repeatable, a later one over an earlier (default /etc/cdi and /var/run/cdi)")
	f.StringVar(&cfg.Scratch, "scratch", "", "room in the data directory to lend to tasks that ask for resources.scratch, such as 1TiB (default: half of what is free, rounded down to a power of two)")
	cfg.sandboxFlags(c)
	f.StringVar(&cfg.LogSize, "log-size", cfg.LogSize, "what is kept of stdout and of stderr of each attempt: of more the oldest half goes")
	f.StringVar(&cfg.LogSpace, "log-space", cfg.LogSpace, "what is kept of the output of all attempts: the oldest that have ended make way, and all but the last 512")
	f.StringVar(&cfg.Store, "store", cfg.Store, "how the region's store is used: signed, by leave of the servers for each lease; or direct, with credentials of the whole store in this environment, by which this host can read and change what all tenants have there")
	f.StringVar(&cfg.Exec, "exec", cfg.Exec, "allow or deny commands beside tasks (gpuai job exec)")
	f.BoolVar(&cfg.TakeOver, "take-over", false, "take the node's identity over from another agent, which is fenced: when that one is gone, or its data lost")
	f.StringVar(&cfg.MetricsHTTP, "metrics-http", "", "listen address of the agent's /metrics, such as 127.0.0.1:7480 (default: none)")
	f.BoolVar(&cfg.Insecure, "insecure-plaintext", false, "serve metrics on other addresses than loopback, unencrypted: test networks only")
	cfg.Log.flags(c)
}

// sandboxFlags adds the flags of what runs tasks with images, and what they reach.
func (c *agentConfig) sandboxFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.OCIRuntime, "oci-runtime", c.OCIRuntime, "what runs tasks with images: runc, crun, runsc, kata-runtime, none, or auto for runc where it is installed")
	f.BoolVar(&c.AcceptFlaw, "accept-runtime-flaw", false, "use an OCI runtime with a known way out of it; who gets out is nobody on this host")
	f.StringVar(&c.ImageCache, "image-cache", c.ImageCache, "room for images in the data directory; those that run are never evicted")
	f.StringArrayVar(&c.ImageDirs, "image-dir", nil, "directory whose OCI layouts and docker archives tasks may name by path; repeatable")
	f.StringVar(&c.Credentials, "registry-credentials", "", "file of registry credentials in the form of docker's config.json, readable by this user only")
	f.BoolVar(&c.LocalImages, "local-registry", false, "fetch images from loopback addresses too: for development, since jobs reach the host's own services by it")
	f.StringVar(&c.Egress, "network-egress", c.Egress, "what tasks with images reach that ask for egress: deny, or allow for the internet and networks such as 10.20.0.0/16, comma-separated")
	f.StringSliceVar(&c.DNS, "network-dns", nil, "addresses of the resolvers of tasks with egress, comma-separated (default: those of the host that they reach)")
	f.StringVar(&c.Mesh, "mesh", c.Mesh, "auto or off: link the sandboxes of a gang with those on other nodes, by WireGuard over TUN, where this host can")
	f.StringVar(&c.MeshPorts, "mesh-ports", c.MeshPorts, "UDP ports MIN-MAX of which each gang on this node takes one for its mesh: let other nodes reach them at --address")
	f.IntVar(&c.MeshMTU, "mesh-mtu", c.MeshMTU, "MTU of the gangs' links, equal on all nodes: what the network between nodes carries less 80 bytes")
	f.BoolVar(&c.HostNetwork, "network-host", false, "let tasks with images have this node's own network, with all that is reached from it: for RDMA, never beside another tenant")
}

// runWithMetrics runs an agent and serves its metrics. An agent whose metrics
// cannot be served any more goes on.
func runWithMetrics(ctx context.Context, cfg agent.Config, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--metrics-http: %w", err)
	}
	reg := telemetry.NewRegistry()
	cfg.Metrics = reg
	cfg.Logger.Info("serving metrics", "http", l.Addr().String())
	serving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := telemetry.ServeMetrics(serving, l, reg); err != nil {
			cfg.Logger.Error("the agent's metrics are served no longer", "error", err)
		}
	})
	err = runAgent(ctx, cfg)
	stop()
	wg.Wait()
	return err
}

// runAgent runs an agent until ctx ends.
func runAgent(ctx context.Context, cfg agent.Config) error {
	if cfg.AllowProcess {
		cfg.Logger.Warn("the process runtime is on: tasks run without isolation, as this user", slog.Any("node", cfg.Node))
	}
	if os.Geteuid() == 0 {
		if err := doctor.Clear(cfg.DataDir); err != nil {
			cfg.Logger.Warn("something of a killed doctor's probes stays until the next one", "error", err)
		}
	}
	g, err := agent.Open(cfg)
	if err != nil {
		return err
	}
	return errors.Join(g.Run(ctx), g.Close())
}
