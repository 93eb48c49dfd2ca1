package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/cdi"
)

func (f *Facts) judgeGangs() Check {
	const code, none = "gang-network", "takes no gangs with images: it has no label network.gang"
	switch {
	case !f.Root:
		return warn(code, cure{"see root", none}, "not tried")
	case f.GangNet != nil:
		return fail(code, cure{"load the module veth; in a container, let it make network namespaces", none}, "%v", f.GangNet)
	}
	return ok(code, "a network namespace for gangs was made")
}

func (f *Facts) judgeMesh() Check {
	const code, none = "mesh", "takes no gangs with images that have members on other nodes: it has no label network.mesh"
	m := &f.Sandbox.Network.Mesh
	switch {
	case m.Program == "":
		return ok(code, "off, as --mesh says: gangs with images are on this node alone, or on others")
	case !f.Root:
		return warn(code, cure{"see root", none}, "not tried")
	case f.Mesh != nil:
		return fail(code, cure{"modprobe tun (CONFIG_TUN), let the agent have /dev/net/tun in a container, install gpuai-mesh beside gpuai; or say --mesh off", none}, "%v", f.Mesh)
	case f.MeshPorts == 0:
		return fail(code, cure{"choose --mesh-ports that no other program has", none}, "no UDP port of %s is free", m.Ports)
	}
	return ok(code, "a TUN device was made; %d UDP ports of %s are free; whether other nodes reach them cannot be seen from here", f.MeshPorts, m.Ports)
}

func (f *Facts) judgeEgress() Check {
	const code, none = "network-egress", "takes no tasks with resources.network: egress: it has no label network.egress"
	e := f.Sandbox.Network.Egress
	switch {
	case !e.Internet && len(e.Listed) == 0:
		return ok(code, "deny: sandboxes reach nothing but their gang")
	case !f.Root:
		return warn(code, cure{"see root", none}, "not tried")
	case f.Egress != nil:
		return fail(code, cure{"see docs/isolation.md for what egress needs (nftables, net.ipv4.ip_forward=1, a resolver, filters at links)", none}, "%v", f.Egress)
	case !e.Internet:
		return ok(code, "%d networks that are listed; the host has what it takes", len(e.Listed))
	}
	return ok(code, "the internet, and %d networks that are listed; the host has what it takes", len(e.Listed))
}

func (f *Facts) judgeHostNet() Check {
	const code = "network-host"
	if f.Sandbox.Network.Host {
		return warn(code, cure{"leave --network-host out, unless every tenant is trusted", "none; a task with resources.network: host reaches the host's services, and all that the host does"},
			"on: tasks may have the node's own network")
	}
	return ok(code, "off: no task has the node's own network")
}

func (f *Facts) judgeDrivers() (out []Check) {
	const code, none = "driver", "takes no tasks that ask for GPUs"
	for _, d := range f.Drivers {
		out = append(out, d.judge())
	}
	for _, name := range f.Present {
		if !slices.ContainsFunc(f.Drivers, func(d DriverFacts) bool { return d.Name == name }) {
			out = append(out, warn(code, cure{"add --driver auto", "the GPUs are not offered"}, "%s: this host has GPUs of it, and no --driver takes them", name))
		}
	}
	if len(out) == 0 {
		out = append(out, warn(code, cure{"if it has GPUs: bind them to their kernel driver (amdgpu, nvidia) and give --driver auto", none},
			"none: no --driver, or auto and no GPU on the PCI bus that is bound to its kernel driver"))
	}
	return out
}

func (d *DriverFacts) judge() Check {
	const code = "driver"
	if d.Err != nil {
		return fail(code, cure{"correct its path or configuration; run it with --help and --schema", noStart}, "%s: %v", d.Name, d.Err)
	}
	who := d.Name
	if v := d.Snap.DriverVersion; v != "" {
		who += " " + v
	}
	if len(d.Snap.Devices) == 0 {
		why := d.Snap.Err
		if why == "" {
			why = "it finds none"
		}
		return fail(code, cure{"see docs/drivers.md for what the driver needs", "the node has no devices of this driver"}, "%s: no devices: %s", who, why)
	}
	models, sick := map[string]int{}, []string{}
	var names []string
	for i := range d.Snap.Devices {
		dev := &d.Snap.Devices[i]
		if models[dev.Model]++; models[dev.Model] == 1 {
			names = append(names, dev.Model)
		}
		if dev.Health != gpuai.DeviceHealthy {
			sick = append(sick, fmt.Sprintf("%s %v %s", dev.ID, dev.Health, dev.HealthCode))
		}
	}
	for i, m := range names {
		names[i] = fmt.Sprintf("%d %s", models[m], m)
	}
	has := who + ": " + strings.Join(names, ", ")
	if d.Snap.Simulated {
		has += ", simulated"
	}
	switch {
	case len(sick) > 0:
		return warn(code, cure{"gpuai node devices says more; see the driver's page for its codes", "these devices are not leased"}, "%s; %s", has, strings.Join(sick, ", "))
	case d.Snap.Err != "":
		return warn(code, cure{"see docs/drivers.md", "the devices may go"}, "%s; %s", has, d.Snap.Err)
	}
	return ok(code, "%s", has)
}

func (f *Facts) judgeCDI() (out []Check) {
	const code = "cdi"
	if f.CDIErr != nil {
		return []Check{fail(code, cure{"see the directories", "tasks with images get no devices"}, "%v", f.CDIErr)}
	}
	for i := range f.CDI {
		out = append(out, judgeSpec(&f.CDI[i]))
	}
	if len(out) == 0 {
		out = append(out, ok(code, "none in %s: drivers give their devices without", strings.Join(f.CDIDirs, ", ")))
	}
	return out
}

func judgeSpec(s *cdi.Found) Check {
	const code = "cdi"
	hooks := ""
	if s.Hooks {
		hooks = "; its hooks are not run"
	}
	if s.Refused != nil {
		return fail(code, cure{"write it anew with the vendor's tool, or remove it", "a task that gets such a device is lost, and the device taken out of use"},
			"%s: %v", s.Path, s.Refused)
	}
	return ok(code, "%s: %s%s", s.Path, strings.Join(s.Devices[:min(4, len(s.Devices))], ", ")+more(len(s.Devices)-4), hooks)
}

func more(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

func (f *Facts) judgeBoottime() Check {
	const code = "clock-boottime"
	source := ""
	if f.Clock.Source != "" {
		source = ", by " + f.Clock.Source
	}
	if f.Clock.Suspended > 0 {
		return warn(code, cure{"turn suspending off (systemctl mask sleep.target suspend.target hibernate.target), or label the node pausable",
			"a task may overlap with its next runner for a moment after the host wakes; tokens still protect every effect"},
			"CLOCK_BOOTTIME%s: the host was suspended for %v since it booted", source, f.Clock.Suspended)
	}
	return ok(code, "CLOCK_BOOTTIME%s; never suspended since it booted", source)
}

// wallClock is what a wrong wall clock means.
const wallClock = "none on leases, which do not count by it; times in logs and outputs are wrong, and certificates may be refused"

func (f *Facts) judgeSync() Check {
	const code = "clock-sync"
	switch {
	case f.Clock.SyncErr != nil:
		return warn(code, cure{"let this process read it (adjtimex), or look with timedatectl", wallClock}, "not known: %v", f.Clock.SyncErr)
	case !f.Clock.Synced:
		return warn(code, cure{"install chrony or systemd-timesyncd", wallClock}, "the kernel's clock is not synchronised")
	}
	return ok(code, "the kernel's clock is synchronised")
}

// maxOffset is how far a wall clock may be off before it is said. A server's
// time is known to half a second.
const maxOffset = 2 * time.Second

func (f *Facts) judgeOffset() Check {
	const code = "clock-offset"
	worst := -1
	for i := range f.Servers {
		if s := &f.Servers[i]; s.Dated && (worst < 0 || s.Offset.Abs() > f.Servers[worst].Offset.Abs()) {
			worst = i
		}
	}
	if worst < 0 {
		return warn(code, cure{"see server", "not known"}, "no server told its time")
	}
	s := &f.Servers[worst]
	said := fmt.Sprintf("%.1f s to %s, known to 0.5 s", s.Offset.Seconds(), s.URL)
	if s.Offset.Abs() > maxOffset+s.Latency {
		return warn(code, cure{"synchronise both clocks (chrony or systemd-timesyncd)", wallClock}, "%s", said)
	}
	return ok(code, "%s", said)
}

func (f *Facts) judgeServers() (out []Check) {
	const code = "server"
	serving := 0
	for i := range f.Servers {
		if s := &f.Servers[i]; s.Err == nil && s.Unready == "" && !s.Secure {
			serving++
		}
	}
	bad := func(c cure, format string, args ...any) Check {
		if serving > 0 {
			c.effect = "none while another server serves"
			return warn(code, c, format, args...)
		}
		return fail(code, c, format, args...)
	}
	const alone = "the node gets no leases; tasks that run end at their deadlines"
	for i := range f.Servers {
		switch s := &f.Servers[i]; {
		case s.Secure:
			out = append(out, bad(cure{joinFirst, alone}, "%s: it %s", s.URL, secureOnly))
		case s.Err != nil:
			out = append(out, bad(cure{"see that it runs, its address, and the firewalls between", alone}, "%s: %v", s.URL, s.Err))
		case s.Unready != "":
			out = append(out, bad(cure{"see gpuai operator raft, and the server's log", alone}, "%s: it answers and does not serve: %s", s.URL, s.Unready))
		default:
			out = append(out, ok(code, "%s: %s serves, in %s", s.URL, s.ID, millis(s.Latency)))
		}
	}
	if len(out) == 0 {
		out = append(out, fail(code, cure{"name the servers with --servers", noStart}, "none"))
	}
	return out
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func (f *Facts) judgeMetrics() Check {
	const code = "metrics-port"
	p := &f.Ports
	switch {
	case p.Metrics == "":
		return ok(code, "no --metrics-http")
	case p.MetricsTaken && f.Data.Holder == 0:
		return fail(code, cure{"give --metrics-http another port, or end what listens there (ss -ltnp)", noStart}, "%s: somebody listens there", p.Metrics)
	case p.MetricsTaken:
		return ok(code, "%s: somebody listens there, and this node's agent runs", p.Metrics)
	}
	return ok(code, "%s is free", p.Metrics)
}

func (f *Facts) judgePorts() Check {
	const code = "gang-ports"
	p := &f.Ports
	if p.Count == 0 {
		return ok(code, "no --ports: gangs of plain processes that meet at a port do not come here")
	}
	last := p.First + (p.Count - 1)
	switch {
	case len(p.Taken) > 0 && f.Data.Holder == 0:
		return warn(code, cure{"lend another range by --ports, or end what listens there (ss -ltnp)", "a gang that gets such a port fails"},
			"%d-%d: somebody listens at %s", p.First, last, strings.Trim(fmt.Sprint(p.Taken), "[]"))
	case p.Exposed > 0:
		return warn(code, cure{"lend ports below it, or keep them from it by net.ipv4.ip_local_reserved_ports", "now and then a gang finds its port taken, and fails"},
			"%d-%d: %d of them are of the kernel's own range for outgoing connections", p.First, last, p.Exposed)
	}
	return ok(code, "%d-%d", p.First, last)
}
