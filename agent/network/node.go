package network

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// A Config is an operator's policy. The zero value lets tasks reach nothing but
// their gangs.
type Config struct {
	Egress Egress
	// DNS are the resolvers of tasks with egress, and reached by them at port 53
	// whatever Egress says; none means those of the host that Egress lets through.
	DNS []netip.Addr
	// Host lets tasks have the node's own network.
	Host bool
	// Mesh is how gangs are linked with their members on other nodes.
	Mesh MeshConfig
	// Space is the host's network namespace; nil means the process's own.
	Space *os.File
}

// Validate says what is wrong with c.
func (c *Config) Validate() error { return errors.Join(checkResolvers(c.DNS), c.Mesh.Validate()) }

// A Node is the network of the sandboxes that one agent runs. Its methods may be
// called at the same time.
type Node struct {
	cfg   Config
	owner string
	log   *slog.Logger

	egress, gangs, meshes bool
	lacks                 []error

	mu         sync.Mutex // guards below
	dns        []netip.Addr
	links      []netip.Prefix       // of the host, as the rules know them
	own        []netip.Prefix       // the host's addresses, as the baselines know them
	listing    string               // of the rules, as nft showed them after the load
	neighbours map[string]neighbour // by lease
	tasks      map[string]element   // with egress, by lease
	hubs       map[Gang]*hub
}

// A neighbour is a task as others on the node see it.
type neighbour struct {
	tenant gpuai.TenantID
	host   bool // it is in the host's network
}

// Open finds out what the host can do and loads the filter. owner names the agent
// among those of the host, over restarts. What the host lacks is no error, but in
// Lacks: the node then takes no tasks that need it.
func Open(cfg Config, owner string, log *slog.Logger) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, owner: owner, log: log, neighbours: map[string]neighbour{}, tasks: map[string]element{}, hubs: map[Gang]*hub{}}
	h, err := newHub()
	if err == nil {
		n.lacks = append(n.lacks, n.openMesh(h))
		h.leave()
	} else {
		n.lacks = append(n.lacks, fmt.Errorf("no gangs in sandboxes: %w", err))
	}
	n.gangs = err == nil
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.inHost(n.find); err != nil {
		return nil, err
	}
	switch err := n.openEgress(); {
	case err == nil:
		n.egress = cfg.Egress.any()
	case cfg.Egress.any() || len(n.tasks) > 0:
		n.lacks = append(n.lacks, fmt.Errorf("no egress: %w", err), n.inHost(n.cut))
	}
	n.lacks = slices.DeleteFunc(n.lacks, func(err error) bool { return err == nil })
	return n, nil
}

// cut takes tasks that run from the host, when there is no filter for them. mu is
// held.
func (n *Node) cut() (err error) {
	for lease, e := range n.tasks {
		err = errors.Join(err, netspace.Unlink(e.link))
		delete(n.tasks, lease)
	}
	return err
}

// Lacks says what of the policy this host cannot do, and what to do about it.
func (n *Node) Lacks() []error { return n.lacks }

// Labels are what the node says of its networks.
func (n *Node) Labels() map[string]string {
	out := map[string]string{}
	if n.gangs {
		out[gpuai.LabelGangNetwork] = gpuai.LabelYes
	}
	if n.meshes {
		out[gpuai.LabelMesh] = gpuai.LabelYes
	}
	if n.cfg.Host {
		out[gpuai.LabelHostNetwork] = gpuai.LabelYes
	}
	if n.egress {
		out[gpuai.LabelEgress] = gpuai.LabelYes
		if !n.cfg.Egress.Internet {
			out[gpuai.LabelEgress] = gpuai.LabelListed
		}
	}
	return out
}

// resolvConf is where the host says whom it asks for names.
const resolvConf = "/etc/resolv.conf"

// ResolvConf is what a task of a network finds there.
func (n *Node) ResolvConf(net gpuai.Network) string {
	switch {
	case net == gpuai.NetworkHost:
		b, err := os.ReadFile(resolvConf)
		if err != nil {
			n.log.Warn("a task in the host's network has no resolvers", "error", err)
		}
		return string(b)
	case net == gpuai.NetworkEgress && n.egress:
		n.mu.Lock()
		defer n.mu.Unlock()
		var b strings.Builder
		for _, a := range n.dns {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
		return b.String()
	}
	return "" // there is nobody to ask
}

// Refusal says why a task of this network is not for this node; nil when it is.
// The region sends none here, by the node's labels.
func (n *Node) Refusal(net gpuai.Network, gang bool) error {
	switch {
	case net == gpuai.NetworkHost && !n.cfg.Host:
		return errors.New("this node's operator does not let tasks have its network (--network-host)")
	case net == gpuai.NetworkEgress && !n.egress:
		return errors.New("this node's operator lets tasks reach nothing (--network-egress), or the host cannot")
	case gang && net != gpuai.NetworkHost && !n.gangs:
		return errors.New("this host cannot link the sandboxes of a gang")
	}
	return nil
}

// Admit notes a task, and refuses it where it would be beside one of another tenant
// with one of the two in the host's network: who is there sees what passes.
func (n *Node) Admit(lease string, tenant gpuai.TenantID, net gpuai.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	me := neighbour{tenant, net == gpuai.NetworkHost}
	for other, has := range n.neighbours {
		if other != lease && has.tenant != tenant && (has.host || me.host) {
			return fmt.Errorf("lease %s is of another tenant, and a task in the node's network is never beside one", other)
		}
	}
	n.neighbours[lease] = me
	return nil
}

// inHost runs f in the host's network namespace.
func (n *Node) inHost(f func() error) error { return netspace.Within(n.cfg.Space, f) }

// find reads which links of the host are this owner's. mu is held.
func (n *Node) find() error {
	links, err := undisturbed(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("the host's links: %w", err)
	}
	for _, l := range links {
		lease, ok := strings.CutPrefix(l.Attrs().Alias, alias(n.owner, ""))
		if !ok {
			continue
		}
		e := element{link: l.Attrs().Name}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err == nil && len(addrs) > 0 {
			a, _ := netip.AddrFromSlice(addrs[0].IP.To4())
			e.addr = plus(a, 1)
		}
		if !e.addr.IsValid() { // it was never finished
			if err := netlink.LinkDel(l); err != nil {
				n.log.Warn("a link stays that nobody needs", "link", e.link, "error", err)
			}
			continue
		}
		n.tasks[lease] = e
	}
	return nil
}

// openEgress checks what egress needs of the host and loads the rules, or takes
// old ones away where there are neither policy nor tasks. mu is held.
func (n *Node) openEgress() (err error) {
	if !n.cfg.Egress.any() {
		if len(n.tasks) > 0 {
			return n.load()
		}
		return n.unload()
	}
	if err := n.prepareEgress(); err != nil {
		return err
	}
	return n.load()
}

// prepareEgress chooses the resolvers and checks what the host lacks for egress,
// but for its filter.
func (n *Node) prepareEgress() (err error) {
	if n.dns = n.cfg.DNS; len(n.dns) == 0 {
		b, err := os.ReadFile(resolvConf)
		if err != nil {
			return err
		}
		if n.dns, err = n.cfg.Egress.resolvers(string(b)); err != nil {
			return err
		}
	}
	return n.inHost(func() error {
		own, err := own()
		return errors.Join(err, forwards(), others(n.dns), guards(own))
	})
}

// forwards reports whether the host sends packets on. The agent does not turn
// that on: it would make a router of the host, for others than its tasks too.
func forwards() error {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) != "1" {
		return errors.New("the host does not forward packets: set net.ipv4.ip_forward=1 in /etc/sysctl.d, having looked at what it would forward beside")
	}
	return nil
}

// others reports whether no resolver is the host itself.
func others(dns []netip.Addr) error {
	addrs, err := hostAddrs()
	if err != nil {
		return fmt.Errorf("the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && slices.Contains(dns, ip) {
			return fmt.Errorf("the resolver %s is this host, which tasks never reach: name another by --network-dns", ip)
		}
	}
	return nil
}

func (n *Node) table() string { return "gpuai_" + n.owner }

// load makes the rules anew, for the tasks that there are, and then lets their
// links, which sever may have turned off, work. mu is held.
func (n *Node) load() error {
	return n.inHost(func() error {
		if err := n.baselines(); err != nil {
			return err
		}
		text, lan, err := n.rules()
		if err != nil {
			return err
		}
		if err := nft(text); err != nil {
			return err
		}
		if n.listing, err = n.list(); err != nil {
			return err
		}
		n.listing, n.links = settled(n.listing), lan
		return n.eachLink(netlink.LinkSetUp)
	})
}

// rules are the rules for the tasks that there are, and the networks of the host
// that they know. It runs in the host's network.
func (n *Node) rules() (text string, lan []netip.Prefix, err error) {
	if lan, err = n.lan(); err != nil {
		return "", nil, err
	}
	f := &filter{
		Table: n.table(), Links: ownPrefix(n.owner), All: linkPrefix, Pool: egressPool, Egress: n.cfg.Egress,
		Tasks: slices.Collect(maps.Values(n.tasks)), Never: never, Private: private, LAN: lan,
	}
	for _, a := range n.dns {
		f.Resolvers = append(f.Resolvers, netip.PrefixFrom(a, 32))
	}
	text, err = f.text()
	return text, lan, err
}

// unload takes the rules away; an nft that is not there has loaded none.
func (n *Node) unload() error {
	err := n.inHost(func() error {
		return nft(fmt.Sprintf("table inet %s {\n}\ndelete table inet %s\n", n.table(), n.table()))
	})
	if errors.Is(err, errNoNFT) {
		return nil
	}
	return err
}

// undisturbed lists what the kernel has, again if that changed meanwhile: a list
// may then lack some of it.
func undisturbed[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func hostAddrs() ([]netlink.Addr, error) {
	return undisturbed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
}

// lan are the networks that the host has a link to, but for tasks' own.
func (n *Node) lan() (out []netip.Prefix, err error) {
	addrs, err := hostAddrs()
	if err != nil {
		return nil, fmt.Errorf("the host's addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		bits, _ := a.Mask.Size()
		if a.Peer != nil {
			bits, _ = a.Peer.Mask.Size()
		}
		if ok && bits >= 8 && !egressPool.Contains(ip) {
			out = append(out, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return slices.Compact(out), nil
}

// A Task is a sandbox that is to have a network.
type Task struct {
	Lease string
	// Space is its network namespace, with nothing in it yet.
	Space *os.File
	// Slot is below Slots, and no other task's of the host.
	Slot   uint32
	Egress bool
	Gang   *Gang // nil for a task of none
	Rank   uint32
	// Mesh says that others of its gang are, or may come to be, on other nodes.
	Mesh bool
}

// Join gives a task its links. Of a member of a gang it returns what holds the
// gang's network, which must be open for as long as the task is there; the caller
// closes it. After an error Leave takes back what there is.
func (n *Node) Join(t *Task) (hold *os.File, err error) {
	if err := netspace.Settle(t.Space); err != nil {
		return nil, fmt.Errorf("the task's network: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if t.Egress {
		if t.Slot >= Slots {
			return nil, fmt.Errorf("the host has addresses for %d tasks with egress", Slots)
		}
		if err := n.joinEgress(t); err != nil {
			return nil, fmt.Errorf("the task's egress: %w", err)
		}
	}
	if t.Gang == nil {
		return nil, nil
	}
	h := n.hubs[*t.Gang]
	if h == nil {
		if h, err = newHub(); err != nil {
			return nil, fmt.Errorf("the gang's network: %w", err)
		}
		n.hubs[*t.Gang] = h
	}
	h.members[t.Lease] = true
	if err := h.join(t, n.mtu()); err != nil {
		return nil, fmt.Errorf("the gang's network: %w", err)
	}
	if t.Mesh {
		if err := n.startMesh(*t.Gang, h); err != nil {
			return nil, fmt.Errorf("the gang's network: %w", err)
		}
	}
	return reopen(h.space)
}

// reopen returns another file of a namespace.
func reopen(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// joinEgress links a task to the host. The rules know it first. mu is held.
func (n *Node) joinEgress(t *Task) error {
	host, task := egressAddrs(t.Slot)
	e := element{linkName(n.owner, t.Lease), task.Addr()}
	n.tasks[t.Lease] = e
	err := n.inHost(func() error {
		if err := netspace.Unlink(e.link); err != nil {
			return err
		}
		if err := n.admit(e); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = e.link
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = EgressLink, hardware(task.Addr()), netlink.NsFd(t.Space.Fd())
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("link it to the host: %w", err)
		}
		link, err := netlink.LinkByName(e.link)
		if err != nil {
			return err
		}
		err = errors.Join(
			guard(link, e.addr, n.own),
			netlink.LinkSetAlias(veth, alias(n.owner, t.Lease)),
			netspace.Set("ipv6/conf/"+e.link+"/disable_ipv6", "1"),
			netspace.Set("ipv4/conf/"+e.link+"/rp_filter", "1"), // strict
			netspace.Set("ipv4/conf/"+e.link+"/forwarding", "1"),
		)
		if err != nil {
			return err
		}
		return netspace.Bring(e.link, host)
	})
	if err != nil {
		return err
	}
	err = netspace.Within(t.Space, func() error {
		if err := netspace.Bring(EgressLink, task); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: host.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("its route: %w", err)
		}
		return tell(n.own)
	})
	if err != nil {
		return err
	}
	return n.inHost(func() error { return netspace.Await(e.link) })
}

// admit has the rules know a link, and the networks and addresses of the host as
// they are now. It runs in the host's namespace; mu is held.
func (n *Node) admit(e element) error {
	if same, err := n.same(); err != nil {
		return err
	} else if same && nft(fmt.Sprintf("add element inet %s tasks { %s }\n", n.table(), e)) == nil {
		return nil
	}
	return n.load() // somebody has flushed the host's rules, or the host has other networks
}

// same reports whether the host has the networks and addresses that the rules and
// the baselines know. It runs in the host's namespace; mu is held.
func (n *Node) same() (bool, error) {
	lan, err := n.lan()
	if err != nil {
		return false, err
	}
	own, err := own()
	return slices.Equal(lan, n.links) && slices.Equal(own, n.own), err
}

// Leave takes away what a task has on the host. It may be called of a task that
// has nothing.
func (n *Node) Leave(lease string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.neighbours, lease)
	return errors.Join(n.leaveGang(lease), n.leaveEgress(lease))
}

// leaveEgress takes a task's link to the host away. mu is held.
func (n *Node) leaveEgress(lease string) error {
	e, ok := n.tasks[lease]
	if !ok {
		return nil
	}
	err := n.inHost(func() error {
		if err := netspace.Unlink(e.link); err != nil {
			return err
		}
		return nft(fmt.Sprintf("delete element inet %s tasks { %s }\n", n.table(), e))
	})
	delete(n.tasks, lease)
	if err != nil { // what is not known of is let nowhere
		return n.load()
	}
	return nil
}

// leaveGang takes a member off its gang's hub, and the hub away with the last one.
// mu is held.
func (n *Node) leaveGang(lease string) (err error) {
	for g, h := range n.hubs {
		if delete(h.members, lease); len(h.members) > 0 {
			continue
		}
		delete(n.hubs, g)
		meshed := h.mesh != nil
		err = errors.Join(err, h.close())
		if meshed {
			removeSocket(n.socket(g))
		}
	}
	return err
}

// A Member is a task that an earlier agent started.
type Member struct {
	Lease   string
	Tenant  gpuai.TenantID
	Network gpuai.Network
	Gang    *Gang  // nil for a task of none
	Hold    string // where its hold of the gang's network is; it may be gone
}

// Retain takes away all that is of no task in live, and finds the gangs' networks
// of those that are.
func (n *Node) Retain(live []Member) error {
	n.mu.Lock()
	known := slices.Collect(maps.Keys(n.tasks))
	for _, m := range live {
		n.neighbours[m.Lease] = neighbour{m.Tenant, m.Network == gpuai.NetworkHost}
		if m.Gang != nil {
			n.adopt(m)
		}
	}
	n.endStale()
	n.mu.Unlock()
	var errs []error
	for _, lease := range known {
		if !slices.ContainsFunc(live, func(m Member) bool { return m.Lease == lease }) {
			errs = append(errs, n.Leave(lease))
		}
	}
	return errors.Join(errs...)
}

// adopt finds the network of a member's gang. mu is held.
func (n *Node) adopt(m Member) {
	h := n.hubs[*m.Gang]
	if h == nil {
		space, err := os.Open(m.Hold)
		if err != nil {
			n.log.Warn("a gang's network is not found: members that join later will not be in it", "lease", m.Lease, "error", err)
			return
		}
		h = &hub{space: space, members: map[string]bool{}}
		n.hubs[*m.Gang] = h
		n.adoptMesh(*m.Gang, h)
	}
	h.members[m.Lease] = true
}

// Close takes the rules away, unless tasks go on that need them.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for g, h := range n.hubs {
		delete(n.hubs, g)
		h.leave()
	}
	if len(n.tasks) > 0 || !n.egress {
		return nil
	}
	return n.unload()
}
