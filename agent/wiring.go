package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/network"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A NetworkConfig is what an operator lets tasks with images reach.
type NetworkConfig = network.Config

// An Egress is what tasks reach that ask for egress.
type Egress = network.Egress

// ParseEgress reads an Egress: "deny", or "allow" for the internet, networks as
// 10.1.0.0/16, or both, with commas between them.
func ParseEgress(s string) (Egress, error) { return network.ParseEgress(s) }

// A MeshConfig is how gangs are linked with their members on other nodes.
type MeshConfig = network.MeshConfig

// What a MeshConfig has when its operator says nothing.
const DefaultMeshMTU = network.DefaultMTU

// DefaultMeshPorts are the UDP ports of meshes, as MIN-MAX.
func DefaultMeshPorts() string { return network.DefaultMeshPorts.String() }

// ReadMeshPorts reads the UDP ports of meshes, MIN-MAX.
func ReadMeshPorts(c *MeshConfig, s string) (err error) {
	c.Ports, err = network.ParseMeshPorts(s)
	return err
}

// Names of what a sandbox's runtime finds beside its root.
const (
	userPin = "user" // its user namespace
	netPin  = "net"  // its network namespace
	gangPin = "gang" // what holds the network of its gang
)

// Of a gang in sandboxes: the port where it meets if the region lends none, since
// its network is its own, and what libraries read to find that network.
const (
	gangPort = 29500
	ncclLink = "NCCL_SOCKET_IFNAME"
	glooLink = "GLOO_SOCKET_IFNAME"
)

// gangOf is the network of the gang that a sandboxed task is of; nil when it is of
// none that has one.
func gangOf(a *gpuai.Assignment) *network.Gang {
	if a.Gang == nil || a.Gang.Max <= 1 || a.Network == gpuai.NetworkHost || a.Task.Runtime != gpuai.RuntimeOCI {
		return nil
	}
	return &network.Gang{Job: a.Lease.Job, Group: a.GroupName}
}

// members are the tasks that the journal knows, with what an earlier agent has set
// up for them.
func (a *Agent) members() []network.Member {
	var out []network.Member
	for t, r := range a.records {
		m := network.Member{Lease: t.String(), Tenant: r.Assignment.Lease.Tenant, Network: r.Assignment.Network}
		if w := a.workers[t]; w != nil && w.started.Load() && r.PID != 0 {
			m.Gang = gangOf(&r.Assignment)
			m.Hold = fmt.Sprintf("/proc/%d/root%s", r.PID, filepath.Join(a.boxes.path(boxDir), gangPin))
		}
		out = append(out, m)
	}
	return out
}

// admit refuses a task whose network this node does not give it.
func (w *worker) admit(no *decide.TaskNotStarted) error {
	a, b := &w.assign, w.a.boxes
	gang := gangOf(a)
	if err := b.net.Refusal(a.Network, gang != nil); err != nil {
		return err
	}
	if gang != nil && a.Gang.Spread && !b.net.Meshes() {
		no.State = gpuai.ReportLost // another node will do
		return errors.New("its gang is on several nodes, and this one does not link them (--mesh): submit it with placement {same: node} or network host")
	}
	if err := b.net.Admit(w.lease.ID.String(), w.lease.Tenant, a.Network); err != nil {
		no.State = gpuai.ReportLost // another node will do
		return err
	}
	return nil
}

// boxEnv is the environment of a sandboxed task over base, which it adds to. The task
// meets its gang where the
// gang's own network is.
func (w *worker) boxEnv(base map[string]string, at taskPlace) map[string]string {
	as := w.assign
	if as.Gang != nil && as.Network != gpuai.NetworkHost {
		as.Gang = inPrivate(&as)
	}
	if gangOf(&w.assign) != nil {
		for _, name := range []string{ncclLink, glooLink} {
			if _, ok := base[name]; !ok {
				base[name] = network.GangLink
			}
		}
	}
	return taskEnv(&as, base, at)
}

// inPrivate is what a sandboxed member is told of its gang: addresses of the gang's
// own network, or the loopback where it is all of it.
func inPrivate(a *gpuai.Assignment) *gpuai.GangInfo {
	info := *a.Gang
	info.NodeIPs = make([]string, len(a.Gang.NodeIPs))
	at := func(rank uint32) string { return "127.0.0.1" }
	if g := gangOf(a); g != nil {
		at = func(rank uint32) string { return g.Addr(rank).String() }
	}
	for i := range info.NodeIPs {
		info.NodeIPs[i] = at(rankOf(&info, i))
	}
	if info.MasterAddr = at(0); info.MasterPort == 0 {
		info.MasterPort = gangPort
	}
	return &info
}

// rankOf is the rank of the i-th of a gang's members.
func rankOf(g *gpuai.GangInfo, i int) uint32 {
	if i < len(g.Ranks) {
		return g.Ranks[i]
	}
	return uint32(i)
}

// hosts are the lines of /etc/hosts for the task and its gang: programs look their
// own name up to learn where to listen.
func (w *worker) hosts(own string) string {
	gang := gangOf(&w.assign)
	if gang == nil {
		return "127.0.1.1 " + own + "\n"
	}
	var out strings.Builder
	for i := range w.assign.Gang.NodeIPs {
		if rank := rankOf(w.assign.Gang, i); rank != w.assign.Gang.Rank {
			fmt.Fprintf(&out, "%s %s\n", gang.Addr(rank), hostname(w.assign.GroupName, uint64(rank)))
		}
	}
	return fmt.Sprintf("%s %s\n", gang.Addr(w.assign.Gang.Rank), own) + out.String()
}

// connect gives the sandbox the network that its task asks for. What it returns
// is to be pinned, and open until the task is started.
func (w *worker) connect(t *sandbox.Task) (pins map[string]string, err error) {
	gang := gangOf(&w.assign)
	if w.assign.Network == gpuai.NetworkHost {
		t.HostNet = true
		return nil, nil
	}
	if gang == nil && w.assign.Network != gpuai.NetworkEgress {
		return nil, nil // the runtime makes a namespace with loopback only
	}
	user, space, err := watchdog.Namespaces(w.a.cfg.Watchdog, t.IDs.First, t.IDs.Size)
	if err != nil {
		return nil, err
	}
	w.spaces = append(w.spaces, user, space)
	task := network.Task{
		Lease: w.lease.ID.String(), Space: space, Slot: t.IDs.Slot(), Egress: w.assign.Network == gpuai.NetworkEgress, Gang: gang,
	}
	if gang != nil {
		task.Rank, task.Mesh = w.assign.Gang.Rank, w.meshed()
	}
	hold, err := w.a.boxes.net.Join(&task)
	if err != nil {
		return nil, err
	}
	if gang != nil {
		if p, ok := w.a.boxes.net.Point(*gang); ok {
			w.mesh = &p
		}
	}
	pins = map[string]string{userPin: fileOf(user), netPin: fileOf(space)}
	if hold != nil {
		w.spaces = append(w.spaces, hold)
		pins[gangPin] = fileOf(hold)
	}
	dir := w.a.boxes.path(boxDir)
	t.UserNS, t.NetNS = filepath.Join(dir, userPin), filepath.Join(dir, netPin)
	return pins, nil
}

// meshed reports whether members of the task's gang are on other nodes, or may come to
// be there.
func (w *worker) meshed() bool {
	g := w.assign.Gang
	return g.Spread || g.Min < g.Max && w.a.boxes.net.Meshes()
}

// meet links the task's gang with its members on other nodes.
func (w *worker) meet(act decide.Meet) {
	gang := gangOf(&w.assign)
	if gang == nil || w.a.boxes == nil {
		return
	}
	if err := w.a.boxes.net.SetPeers(*gang, act.Index, act.Peers); err != nil {
		w.tell(decide.NetworkFailed{Lease: act.Lease, Reason: w.who() + ": " + err.Error()})
	}
}

// unlinked ends a task whose gang is not linked with other nodes any more.
func (a *Agent) unlinked(lease, why string) {
	var t gpuai.Token
	if t.UnmarshalText([]byte(lease)) == nil {
		a.post(func() { a.step(decide.NetworkFailed{Lease: t, Reason: why}) })
	}
}

// fileOf is where another process finds an open file of this one.
func fileOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// closeSpaces lets go of a sandbox's namespaces: it has them itself by now, or
// they go.
func (w *worker) closeSpaces() {
	for _, f := range w.spaces {
		_ = f.Close()
	}
	w.spaces = nil
}
