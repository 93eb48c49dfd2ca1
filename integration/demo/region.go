package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/integration/nursery"
)

// A region is the servers and agents of the demo.
type region struct {
	nursery *nursery.Nursery
	dir     string
	bin     string
	servers []*member
	hosts   []*host
	access  *access.Region
	api     *client.Client // of all servers, as an operator
	user    *client.Client // as who may submit and read of one tenant
	token   gpuai.Secret   // of user
}

// A member is one server.
type member struct {
	id         gpuai.ServerID
	http, raft string
	proc       *nursery.Process
	api        *client.Client // of this server alone, as an operator
}

func (m *member) url() string { return "https://" + m.http }

// A host is one agent, with the devices of its driver.
type host struct {
	id      gpuai.NodeID
	devices []devices
	port    int // first of its gangs' ports
	proc    *nursery.Process
}

// devices are equal simulated devices, as in the driver's configuration.
type devices struct {
	Vendor string      `json:"vendor"`
	Model  string      `json:"model"`
	Memory gpuai.Bytes `json:"memory_bytes"`
	Count  uint32      `json:"count"`
}

const (
	servers      = 3
	gangPorts    = 4 // of each host
	gpusPerHost  = 6
	hostCPU      = "16"   // offered, whatever this machine has
	hostMemory   = "8GiB" // likewise
	requestLimit = 2 * time.Second
)

// fleet returns the hosts: one vendor, the other, and both.
func fleet() []*host {
	nvidia := devices{Vendor: "nvidia", Model: "H100-SXM5-80GB", Memory: 80 << 30}
	amd := devices{Vendor: "amd", Model: "MI300X", Memory: 192 << 30}
	of := func(d devices, n uint32) devices { d.Count = n; return d }
	return []*host{
		{id: "host-a", devices: []devices{of(nvidia, gpusPerHost)}},
		{id: "host-b", devices: []devices{of(amd, gpusPerHost)}},
		{id: "host-c", devices: []devices{of(nvidia, gpusPerHost-2), of(amd, 2)}},
	}
}

// newRegion chooses ports and names; nothing runs yet.
func newRegion(n *nursery.Nursery, dir, bin string) (*region, error) {
	r := &region{nursery: n, dir: dir, bin: bin, hosts: fleet()}
	port, err := nursery.FreePorts(2*servers + gangPorts*len(r.hosts))
	if err != nil {
		return nil, err
	}
	next := func() string { port++; return fmt.Sprintf("127.0.0.1:%d", port-1) }
	for i := range servers {
		r.servers = append(r.servers, &member{id: gpuai.ServerID(fmt.Sprintf("server-%d", i+1)), http: next(), raft: next()})
	}
	for _, h := range r.hosts {
		h.port = port
		port += gangPorts
	}
	return r, nil
}

// startServer starts a server. What it needs to form a region or to join one it needs
// once: later its data directory knows.
func (r *region) startServer(m *member, env []string, once ...string) (err error) {
	m.proc, err = r.nursery.Start(string(m.id), env, append([]string{
		filepath.Join(r.bin, "gpuai"), "server", "run",
		"--id", string(m.id), "--data", r.data(m), "--http", m.http, "--raft", m.raft,
		"--store", "file://" + programs{dir: r.dir}.store(),
	}, once...)...)
	return err
}

func (r *region) data(m *member) string { return filepath.Join(r.dir, string(m.id)) }

// urls returns the addresses of all servers.
func (r *region) urls() (out []string) {
	for _, m := range r.servers {
		out = append(out, m.url())
	}
	return out
}

// startAgent starts a host's agent, which joins with a token of its own.
func (r *region) startAgent(ctx context.Context, h *host) error {
	config, err := json.Marshal(map[string]any{"seed": h.id, "devices": h.devices})
	if err != nil {
		return fmt.Errorf("write the driver's configuration: %w", err)
	}
	file := filepath.Join(r.dir, string(h.id)+".devices.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return fmt.Errorf("write the driver's configuration: %w", err)
	}
	env, err := access.JoinEnv(ctx, r.api, gpuai.IdentityNode)
	if err != nil {
		return err
	}
	h.proc, err = r.nursery.Start(string(h.id), env, filepath.Join(r.bin, "gpuai"), "agent", "run",
		"--id", string(h.id), "--data", filepath.Join(r.dir, string(h.id)), "--servers", strings.Join(r.urls(), ","),
		"--driver", "sim="+filepath.Join(r.bin, "gpuai-driver-sim")+","+file,
		"--ports", fmt.Sprintf("%d-%d", h.port, h.port+gangPorts-1),
		"--cpu", hostCPU, "--memory", hostMemory, "--allow-process-runtime", "--image-dir", r.dir)
	return err
}

// start starts everything and waits until it is ready.
func (r *region) start(ctx context.Context) error {
	if err := r.form(ctx); err != nil {
		return err
	}
	for _, h := range r.hosts {
		if err := r.startAgent(ctx, h); err != nil {
			return err
		}
	}
	return nursery.Poll(ctx, "all hosts to offer their devices", 50*time.Millisecond, func() (bool, error) {
		n, err := r.readyHosts(ctx)
		return n == len(r.hosts), err
	})
}

func (r *region) waitReady(ctx context.Context, m *member) error {
	return nursery.Poll(ctx, string(m.id)+" to be ready", 20*time.Millisecond, func() (bool, error) {
		bounded, cancel := context.WithTimeout(ctx, requestLimit)
		defer cancel()
		return m.api.Ready(bounded) == nil, nil
	})
}

// readyHosts counts the hosts that are ready, with all their devices.
func (r *region) readyHosts(ctx context.Context) (n int, err error) {
	nodes, _, err := r.api.Nodes(ctx, client.Page{})
	if err != nil {
		return 0, fmt.Errorf("list the nodes: %w", err)
	}
	for i := range nodes {
		if nodes[i].State == gpuai.NodeReady && len(nodes[i].Devices) == gpusPerHost {
			n++
		}
	}
	return n, nil
}

// leader returns the server that says of itself that it leads, in the highest
// term that any of the given servers tells; nil when none does.
func leader(ctx context.Context, among []*member) (lead *member, term uint64) {
	for _, m := range among {
		bounded, cancel := context.WithTimeout(ctx, requestLimit)
		s, err := m.api.Raft(bounded)
		cancel()
		if err == nil && s.Term > term {
			lead, term = nil, s.Term
		}
		if err == nil && s.State == "leader" && s.Term == term {
			lead = m
		}
	}
	return lead, term
}

// except returns the servers without one.
func (r *region) except(one *member) (out []*member) {
	for _, m := range r.servers {
		if m != one {
			out = append(out, m)
		}
	}
	return out
}
