package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
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
	api        *client.Client // of this one alone
}

// A region is three servers.
type region struct {
	servers []*server
	api     *client.Client // of all
	lead    atomic.Pointer[server]
}

// startRegion starts the servers and returns when all are ready.
func startRegion(ctx context.Context, s *starter, o *options) (*region, error) {
	r := &region{}
	var peers, urls []string
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
		var err error
		if m.api, err = connect("http://" + m.http); err != nil {
			return nil, err
		}
		peers, urls = append(peers, string(m.id)+"="+m.raft), append(urls, "http://"+m.http)
		r.servers = append(r.servers, m)
	}
	for _, l := range held {
		l.Close() // all are chosen
	}
	var err error
	if r.api, err = connect(urls...); err != nil {
		return nil, err
	}
	return r, r.start(ctx, s, o, strings.Join(peers, ","))
}

// start starts the processes.
func (r *region) start(ctx context.Context, s *starter, o *options, peers string) error {
	for _, m := range r.servers {
		cmd := exec.Command(filepath.Join(o.bin, "gpuai"), "server", "run", "--id", string(m.id),
			"--data", filepath.Join(s.dir, string(m.id)), "--http", m.http, "--raft", m.raft,
			"--peers", peers, "--bootstrap", "--log-level", "warn", "--raft-multiplier", strconv.Itoa(o.multiplier))
		var err error
		if m.proc, err = s.start(string(m.id), cmd); err != nil {
			return err
		}
		go m.proc.wait()
	}
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

// connect makes a client with connections of its own.
func connect(urls ...string) (*client.Client, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	return client.New(client.Config{Addrs: urls, HTTP: &http.Client{Transport: t}})
}

func (r *region) urls() (out []string) {
	for _, m := range r.servers {
		out = append(out, "http://"+m.http)
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
func (m *server) scrape(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.http+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
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
