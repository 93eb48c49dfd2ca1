package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/internal/identity"
)

const (
	servers      = 3
	requestLimit = 5 * time.Second
)

// A server is one member of the region.
type server struct {
	id         gpuai.ServerID
	http, raft string
	proc       *process
	api        *client.Client   // of this one alone
	source     *identity.Source // its certificate; nil in a region without authentication
}

// A region is three servers.
type region struct {
	servers []*server
	api     *client.Client // of all
	access  *access.Region // nil in one without authentication
	lead    atomic.Pointer[server]
}

// startRegion starts the servers and returns when all are ready.
func startRegion(ctx context.Context, s *starter, o *options) (*region, error) {
	r := &region{}
	var peers []string
	var held []net.Listener
	for i := range servers {
		m := &server{id: gpuai.ServerID(fmt.Sprintf("server-%d", i+1))}
		for _, addr := range []*string{&m.http, &m.raft} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			held = append(held, l)
			*addr = l.Addr().String()
		}
		peers = append(peers, string(m.id)+"="+m.raft)
		r.servers = append(r.servers, m)
	}
	for _, l := range held {
		l.Close() // all are chosen
	}
	if !o.insecure {
		if err := r.form(ctx, s, o); err != nil {
			return nil, fmt.Errorf("form a region with authentication: %w", err)
		}
		return r, r.ready(ctx)
	}
	if err := r.connect(); err != nil {
		return nil, err
	}
	for _, m := range r.servers {
		if err := m.start(s, o, nil, "--peers", strings.Join(peers, ","), "--bootstrap"); err != nil {
			return nil, err
		}
	}
	return r, r.ready(ctx)
}

// form starts the servers of a region with authentication: the first makes its CA,
// the others join with a token each.
func (r *region) form(ctx context.Context, s *starter, o *options) (err error) {
	first := r.servers[0]
	if err := first.start(s, o, nil, "--bootstrap"); err != nil {
		return err
	}
	if r.access, err = access.Bootstrap(ctx, first.data(s), "https://"+first.http); err != nil {
		return err
	}
	if err := r.connect(); err != nil {
		return err
	}
	for _, m := range r.servers[1:] {
		env, err := access.JoinEnv(ctx, first.api, gpuai.IdentityServer)
		if err != nil {
			return err
		}
		if err := m.start(s, o, env, "--join", first.http); err != nil {
			return err
		}
	}
	if err := access.AwaitVoters(ctx, first.api, servers); err != nil {
		return err
	}
	for _, m := range r.servers { // for the injector, who stands in for it
		if m.source, err = access.Source(m.data(s)); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the clients.
func (r *region) connect() (err error) {
	for _, m := range r.servers {
		if m.api, err = r.client(r.url(m)); err != nil {
			return err
		}
	}
	r.api, err = r.client(r.urls()...)
	return err
}

func (m *server) data(s *starter) string { return filepath.Join(s.dir, string(m.id)) }

// start starts a server's process.
func (m *server) start(s *starter, o *options, env []string, flags ...string) (err error) {
	cmd := exec.Command(filepath.Join(o.bin, "gpuai"), append([]string{"server", "run", "--id", string(m.id),
		"--data", m.data(s), "--http", m.http, "--raft", m.raft, "--log-level", "warn", "--raft-multiplier", strconv.Itoa(o.multiplier)}, flags...)...)
	cmd.Env = append(os.Environ(), env...)
	if m.proc, err = s.start(string(m.id), cmd); err != nil {
		return err
	}
	go m.proc.wait()
	return nil
}

// ready waits until all servers are.
func (r *region) ready(ctx context.Context) error {
	return poll(ctx, "the servers to be ready", func() (bool, error) {
		for _, m := range r.servers {
			if !m.proc.alive() {
				return false, fmt.Errorf("server %s ended: %s", m.id, m.proc.tail())
			}
			bounded, cancel := context.WithTimeout(ctx, requestLimit)
			err := m.api.Ready(bounded)
			cancel()
			if err != nil {
				return false, nil
			}
		}
		return true, nil
	})
}

// client makes an operator's client with connections of its own.
func (r *region) client(urls ...string) (*client.Client, error) {
	if r.access != nil {
		return r.access.Client(urls...)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	return client.New(client.Config{Addrs: urls, HTTP: &http.Client{Transport: t}})
}

func (r *region) url(m *server) string {
	if r.access != nil {
		return "https://" + m.http
	}
	return "http://" + m.http
}

func (r *region) urls() (out []string) {
	for _, m := range r.servers {
		out = append(out, r.url(m))
	}
	return out
}

// follow keeps lead up to date until ctx ends.
func (r *region) follow(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		if m, _ := r.leader(ctx); m != nil {
			r.lead.Store(m)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// leader asks all servers who leads in the highest term; nil is nobody.
func (r *region) leader(ctx context.Context) (lead *server, term uint64) {
	for _, m := range r.servers {
		if !m.proc.alive() {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, requestLimit)
		s, err := m.api.Raft(bounded)
		cancel()
		if err != nil || s.Term < term {
			continue
		}
		if s.Term > term {
			lead, term = nil, s.Term
		}
		if s.State == "leader" {
			lead = m
		}
	}
	return lead, term
}

// alive returns the servers that run.
func (r *region) alive() (out []*server) {
	for _, m := range r.servers {
		if m.proc.alive() {
			out = append(out, m)
		}
	}
	return out
}

// scrape reads a server's metrics, by their name with its labels, the server's
// own aside.
func (r *region) scrape(ctx context.Context, m *server) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(m)+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	if r.access != nil {
		t.TLSClientConfig = r.access.TLS()
	}
	res, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := make(map[string]float64)
	own := []string{fmt.Sprintf(`server="%s",`, m.id), fmt.Sprintf(`,server="%s"`, m.id), fmt.Sprintf(`{server="%s"}`, m.id)}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		name := line[:at]
		for _, s := range own {
			name = strings.Replace(name, s, "", 1)
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil {
			out[name] = v
		}
	}
	return out, lines.Err()
}
