package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
)

// A region is the servers and agents of the demo.
type region struct {
	nursery *nursery.Nursery
	dir     string
	bin     string
	servers []*member
	hosts   []*host
	api     *client.Client // of all servers
}

// A member is one server.
type member struct {
	id         gpuai.ServerID
	http, raft string
	proc       *nursery.Process
	api        *client.Client // of this server alone
}

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
	var urls []string
	for i := range servers {
		m := &member{id: gpuai.ServerID(fmt.Sprintf("server-%d", i+1)), http: next(), raft: next()}
		urls = append(urls, "http://"+m.http)
		if m.api, err = connect(urls[i]); err != nil {
			return nil, err
		}
		r.servers = append(r.servers, m)
	}
	for _, h := range r.hosts {
		h.port = port
		port += gangPorts
	}
	r.api, err = connect(urls...)
	return r, err
}

func connect(urls ...string) (*client.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	return client.New(client.Config{Addrs: urls, HTTP: &http.Client{Transport: t}})
}

// startServer starts a server, for the first time or again.
func (r *region) startServer(m *member) (err error) {
	var peers []string
	for _, p := range r.servers {
		peers = append(peers, string(p.id)+"="+p.raft)
	}
	m.proc, err = r.nursery.Start(string(m.id), nil, filepath.Join(r.bin, "gpuai"), "server", "run",
		"--id", string(m.id), "--data", filepath.Join(r.dir, string(m.id)),
		"--http", m.http, "--raft", m.raft, "--peers", strings.Join(peers, ","), "--bootstrap",
		"--checkpoint-store", "file://"+programs{dir: r.dir}.store())
	return err
}

// startAgent starts a host's agent.
func (r *region) startAgent(h *host) error {
	config, err := json.Marshal(map[string]any{"seed": h.id, "devices": h.devices})
	if err != nil {
		return fmt.Errorf("write the driver's configuration: %w", err)
	}
	file := filepath.Join(r.dir, string(h.id)+".devices.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return fmt.Errorf("write the driver's configuration: %w", err)
	}
	var urls []string
	for _, m := range r.servers {
		urls = append(urls, "http://"+m.http)
	}
	h.proc, err = r.nursery.Start(string(h.id), nil, filepath.Join(r.bin, "gpuai"), "agent", "run",
		"--id", string(h.id), "--data", filepath.Join(r.dir, string(h.id)), "--servers", strings.Join(urls, ","),
		"--driver", "sim="+filepath.Join(r.bin, "gpuai-driver-sim")+","+file,
		"--ports", fmt.Sprintf("%d-%d", h.port, h.port+gangPorts-1),
		"--cpu", hostCPU, "--memory", hostMemory, "--allow-process-runtime", "--image-dir", r.dir)
	return err
}

// start starts everything and waits until it is ready.
func (r *region) start(ctx context.Context) error {
	for _, m := range r.servers {
		if err := r.startServer(m); err != nil {
			return err
		}
	}
	for _, m := range r.servers {
		if err := r.waitReady(ctx, m); err != nil {
			return err
		}
	}
	for _, h := range r.hosts {
		if err := r.startAgent(h); err != nil {
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
