package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// members is the size of every region here.
const members = 3

// A region is three server processes on loopback.
type region struct {
	t       *testing.T
	dir     string
	peers   string // the flag
	servers [members]*member
}

// A member is one server, that may be killed and started again.
type member struct {
	*proc
	id         string
	http, raft string
	dir        string
	client     *client.Client // of this server alone
	flags      []string       // further ones
}

// startRegion starts three servers and waits until all are ready.
func startRegion(t *testing.T, flags ...string) *region {
	t.Helper()
	r := &region{t: t, dir: scratch(t)}
	var peers []string
	for i := range r.servers {
		id := fmt.Sprintf("s%d", i+1)
		m := &member{id: id, http: freeAddr(t), raft: freeAddr(t), dir: filepath.Join(r.dir, id), flags: flags}
		m.client = newClient(t, nil, m.http)
		r.servers[i] = m
		peers = append(peers, id+"="+m.raft)
	}
	r.peers = strings.Join(peers, ",")
	for _, m := range r.servers {
		r.start(m)
	}
	r.awaitReady()
	return r
}

// start starts a server on its own data directory.
func (r *region) start(m *member) {
	r.t.Helper()
	m.proc = start(r.t, "server "+m.id, "gpuai", r.args(m)...)
}

func (r *region) args(m *member) []string {
	return append([]string{"server", "run", "--id", m.id, "--data", m.dir, "--http", m.http, "--raft", m.raft, "--peers", r.peers, "--bootstrap"}, m.flags...)
}

// awaitReady waits until every server that runs says that it is ready.
func (r *region) awaitReady() {
	r.t.Helper()
	for _, m := range r.servers {
		if m.alive() {
			eventually(r.t, patience, "ready server "+m.id, func(ctx context.Context) error {
				if !m.alive() {
					return fmt.Errorf("it ended with exit code %d", m.exit(0))
				}
				return m.client.Ready(ctx)
			})
		}
	}
}

// leader waits for the server that leads and whose followers say so.
func (r *region) leader() *member {
	r.t.Helper()
	var found *member
	eventually(r.t, patience, "leader", func(ctx context.Context) error {
		found = nil
		for _, m := range r.servers {
			if !m.alive() {
				continue
			}
			st, err := m.client.Raft(ctx)
			if err != nil {
				return err
			}
			if st.State == "leader" {
				found = m
			}
		}
		if found == nil {
			return fmt.Errorf("no server leads")
		}
		return nil
	})
	return found
}

// client returns a client of all servers, with retries.
func (r *region) client() *client.Client {
	r.t.Helper()
	return newClient(r.t, nil, r.addrs()...)
}

func (r *region) addrs() (out []string) {
	for _, m := range r.servers {
		out = append(out, m.http)
	}
	return out
}

// setPolicy changes the region's policy.
func (r *region) setPolicy(change func(*gpuai.Policy)) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	c := r.client()
	p, err := c.Policy(ctx)
	if err != nil {
		r.t.Fatalf("reading the policy: %v", err)
	}
	change(&p)
	if err := c.SetPolicy(ctx, p); err != nil {
		r.t.Fatalf("setting the policy: %v", err)
	}
}

// equalDigests waits until all servers have applied at least index least, and
// compares their digests at an index that all have.
func (r *region) equalDigests(least uint64) {
	r.t.Helper()
	common := ^uint64(0)
	for _, m := range r.servers {
		eventually(r.t, patience, fmt.Sprintf("index %d on server %s", least, m.id), func(ctx context.Context) error {
			d, err := m.client.Digest(ctx, 0)
			if err == nil && d.Index < least {
				err = fmt.Errorf("it has applied index %d", d.Index)
			}
			if err == nil {
				common = min(common, d.Index)
			}
			return err
		})
	}
	var want gpuai.DigestAt
	for _, m := range r.servers {
		eventually(r.t, patience, "digest on server "+m.id, func(ctx context.Context) error {
			d, err := m.client.Digest(ctx, common)
			switch {
			case err != nil:
				return err
			case d.Index != common || d.Digest == "":
				r.t.Fatalf("server %s was asked for the digest at index %d and answered %+v", m.id, common, d)
			case want.Digest == "":
				want = d
			case d != want:
				r.t.Fatalf("the digests differ: server %s has %+v, server %s %+v", r.servers[0].id, want, m.id, d)
			}
			return nil
		})
	}
	r.t.Logf("three servers have digest %s at index %d", want.Digest, want.Index)
}

// newClient returns a client of some servers; rt may be nil.
func newClient(t *testing.T, rt http.RoundTripper, addrs ...string) *client.Client {
	t.Helper()
	var urls []string
	for _, a := range addrs {
		urls = append(urls, "http://"+a)
	}
	if rt == nil {
		tr := &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, MaxIdleConnsPerHost: 8}
		t.Cleanup(tr.CloseIdleConnections)
		rt = tr
	}
	c, err := client.New(client.Config{Addrs: urls, HTTP: &http.Client{Transport: rt}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Ports below those that the kernel hands out by itself: a server that is down
// for a while must find its port free again.
const minPort, maxPort = 18_000, 32_000

var taken struct {
	mu    sync.Mutex // guards below
	ports map[int]bool
}

// freePorts returns the first of n neighbouring ports that nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	taken.mu.Lock()
	defer taken.mu.Unlock()
	if taken.ports == nil {
		taken.ports = make(map[int]bool)
	}
	for range 1_000 {
		first := minPort + rand.IntN(maxPort-minPort-n)
		if portsFree(first, n) {
			for p := first; p < first+n; p++ {
				taken.ports[p] = true
			}
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

func portsFree(first, n int) bool {
	for p := first; p < first+n; p++ {
		if taken.ports[p] {
			return false
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

func freeAddr(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
}
