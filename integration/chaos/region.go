package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/internal/loadgen"
)

// A region is some server processes, with what they acknowledged.
type region struct {
	*scene
	members []*member
	ledger  *ledger
	api     *client.Client // of all servers, with retries
	fleet   *loadgen.Fleet // nil in a region without simulated nodes
	formed  []string       // --peers of the servers that it began with
	certTTL string         // of its certificates; "" is the default
	access  *access.Region // nil in one without authentication, and before it is formed
}

// A member is one server, that may be killed and started again.
type member struct {
	id           string
	http         string   // address for clients
	listen, raft string   // as the process is told
	dir          string   // data directory
	wrap         []string // words before the command
	insecure     bool     // its addresses are not loopback
	advertise    string   // raft as the others reach it; "" where they do at that
	joins        string   // address of its API for servers that join; "" is listen
	join         []string // whom it joined where it was rebuilt: by Raft, with authentication by API
	env          []string // with which it joined, in a region with authentication
	flags        []string // further ones of its process
	proc         *nursery.Process
	api          *client.Client // of this server alone, without retries
}

// newRegion chooses the addresses of n servers; shape, which may be nil,
// changes a member before its first start. Nothing runs yet.
func (s *scene) newRegion(n int, shape func(i int, m *member) error) (*region, error) {
	r := &region{scene: s, certTTL: certificateTTL}
	port, err := s.run.ports(2 * n)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	name := fmt.Sprintf("r%d-", len(s.leave)+port) // of this region alone
	s.mu.Unlock()
	for i := range n {
		id := fmt.Sprintf("s%d", i+1)
		m := &member{
			id: id, dir: filepath.Join(s.dir, name+id),
			raft: fmt.Sprint("127.0.0.1:", port+2*i), http: fmt.Sprint("127.0.0.1:", port+2*i+1),
		}
		m.listen = m.http
		if shape != nil {
			if err := shape(i, m); err != nil {
				return nil, err
			}
		}
		r.members = append(r.members, m)
		r.formed = append(r.formed, m.id+"="+cmp.Or(m.advertise, m.raft))
	}
	r.ledger = newLedger(r)
	return r, r.connect()
}

// connect makes the region's clients.
func (r *region) connect() (err error) {
	for _, m := range r.members {
		if m.api, err = r.client(-1, time.Second, m.http); err != nil {
			return err
		}
	}
	r.api, err = r.client(patience, 5*time.Second, r.addrs()...)
	return err
}

// ledgerTTL is the time to live of the leases of a region with a ledger: no
// fault takes so long, so that a simulated node whose server stands still does
// not lose them. Leases that expire are looked at with real agents.
const ledgerTTL = 30 * gpuai.Minute

// startRegion starts n servers, waits until all are ready, and gives them
// simulated nodes that hold every lease for ever.
func (s *scene) startRegion(n int, shape func(i int, m *member) error) (*region, error) {
	r, err := s.newRegion(n, shape)
	if err != nil {
		return nil, err
	}
	if err := r.startAll(); err != nil {
		return nil, err
	}
	r.fleet, err = loadgen.StartFleet(s, loadgen.FleetConfig{Addrs: r.urls(), Access: r.operator(), To: s.counts.nodes, GPUs: 8})
	if err != nil {
		return nil, err
	}
	s.cleanup(func() error { r.fleet.Stop(); return nil })
	return r, r.setPolicy(func(p *gpuai.Policy) {
		p.TTLInference, p.TTLTraining, p.TTLFinetune, p.TTLBatch = ledgerTTL, ledgerTTL, ledgerTTL, ledgerTTL
		p.FlapLimit = 1_000
	})
}

// client returns an operator's client of some servers. It retries for so long, -1
// not at all, and gives each server so much time to answer.
func (r *region) client(retry, attempt time.Duration, addrs ...string) (*client.Client, error) {
	return r.clientOver(r.transport(16), retry, attempt, addrs...)
}

// clientOver is client with a transport of the caller's.
func (r *region) clientOver(t http.RoundTripper, retry, attempt time.Duration, addrs ...string) (*client.Client, error) {
	cfg := client.Config{Addrs: r.urlsOf(addrs), HTTP: &http.Client{Transport: t}, RetryFor: retry, AttemptTimeout: attempt}
	if r.access != nil {
		cfg.Token = r.access.Operator
	}
	return client.New(cfg)
}

// transport returns one that trusts the region, and keeps so many connections.
func (r *region) transport(idle int) *http.Transport {
	t := &http.Transport{DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, MaxIdleConnsPerHost: idle, IdleConnTimeout: 10 * time.Second}
	if r.access != nil {
		t.TLSClientConfig = r.access.TLS()
	}
	return t
}

// operator is the simulated nodes' access to the region: each joins it.
func (r *region) operator() (a loadgen.Access) {
	if r.access != nil {
		a = loadgen.Access{TLS: r.access.TLS(), Token: r.access.Operator}
	}
	return a
}

func (r *region) urls() []string { return r.urlsOf(r.addrs()) }

func (r *region) urlsOf(addrs []string) (out []string) {
	scheme := "https://"
	if r.run.options.insecure {
		scheme = "http://"
	}
	for _, a := range addrs {
		out = append(out, scheme+a)
	}
	return out
}

func (r *region) addrs() (out []string) {
	for _, m := range r.members {
		out = append(out, m.http)
	}
	return out
}

// start starts a server on its data directory. In a region with authentication that
// is all that it needs once it has its certificate.
func (r *region) start(m *member) error {
	var flags []string
	switch {
	case m.join != nil:
		flags = []string{"--join", strings.Join(m.join, ",")}
	case r.run.options.insecure:
		flags = []string{"--peers", strings.Join(r.formed, ","), "--bootstrap"}
	}
	if m.insecure {
		flags = append(flags, "--insecure-plaintext")
	}
	return r.launch(m, m.env, flags...)
}

// launch starts a server's process.
func (r *region) launch(m *member, env []string, flags ...string) (err error) {
	argv := append(append([]string(nil), m.wrap...), r.run.program("gpuai"), "server", "run", "--id", m.id, "--data", m.dir,
		"--http", m.listen, "--raft", m.raft)
	if m.advertise != "" {
		argv = append(argv, "--advertise", m.advertise)
	}
	if r.certTTL != "" && !r.run.options.insecure {
		argv = append(argv, "--certificate-ttl", r.certTTL)
	}
	m.proc, err = r.nursery.Start(m.id, env, append(append(argv, m.flags...), flags...)...)
	return err
}

// startAll starts the servers that do not run, and waits until all are ready. The
// first time it forms the region.
func (r *region) startAll() error {
	if r.access == nil && !r.run.options.insecure {
		if err := r.form(); err != nil {
			return fmt.Errorf("form a region with authentication: %w", err)
		}
	}
	for _, m := range r.members {
		if m.proc != nil && m.proc.Alive() {
			continue
		}
		if err := r.start(m); err != nil {
			return err
		}
	}
	return r.ready()
}

// ready waits until every server that runs says that it is ready.
func (r *region) ready() error {
	for _, m := range r.members {
		if m.proc == nil || !m.proc.Alive() {
			continue
		}
		err := r.until(patience, "server "+m.id+" to be ready", func(ctx context.Context) error {
			if !m.proc.Alive() {
				return fmt.Errorf("%w: it ended: %s", errHopeless, r.without(nursery.LastLine(m.proc.Log)))
			}
			return m.api.Ready(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// leader waits for the server that leads.
func (r *region) leader() (found *member, term uint64, err error) {
	err = r.until(patience, "a leader", func(ctx context.Context) error {
		found, term = nil, 0
		for _, m := range r.members {
			if m.proc == nil || !m.proc.Alive() {
				continue
			}
			st, err := m.api.Raft(ctx)
			if err == nil && st.State == "leader" && st.Term > term {
				found, term = m, st.Term
			}
		}
		if found == nil {
			return errors.New("no server leads")
		}
		return nil
	})
	return found, term, err
}

// follower returns a server that does not lead.
func (r *region) follower() (*member, error) {
	lead, _, err := r.leader()
	if err != nil {
		return nil, err
	}
	others := r.except(lead)
	return others[r.rng.IntN(len(others))], nil
}

// except returns the servers without some.
func (r *region) except(some ...*member) (out []*member) {
next:
	for _, m := range r.members {
		for _, not := range some {
			if m == not {
				continue next
			}
		}
		out = append(out, m)
	}
	return out
}

// setPolicy changes the region's policy.
func (r *region) setPolicy(change func(*gpuai.Policy)) error {
	p, err := r.api.Policy(r)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	change(&p)
	if err := r.api.SetPolicy(r, p); err != nil {
		return fmt.Errorf("set the policy: %w", err)
	}
	return nil
}

// digests waits until all servers have applied at least index least, and what
// any of them has applied now, and compares their digests at an index that all
// have reached. One that stood still for long is at an index that the others
// remember no more.
func (r *region) digests(w *row, least uint64) error {
	common := ^uint64(0)
	for _, m := range r.members {
		if d, err := m.api.Digest(r, 0); err == nil {
			least = max(least, d.Index)
		}
	}
	for _, m := range r.members {
		err := r.until(patience, fmt.Sprintf("server %s to apply index %d", m.id, least), func(ctx context.Context) error {
			d, err := m.api.Digest(ctx, 0)
			if err == nil && d.Index < least {
				err = fmt.Errorf("it has applied index %d", d.Index)
			}
			if err == nil {
				common = min(common, d.Index)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	var want gpuai.DigestAt
	for i, m := range r.members {
		var got gpuai.DigestAt
		err := r.until(patience, "the digest of server "+m.id, func(ctx context.Context) (err error) {
			got, err = m.api.Digest(ctx, common)
			return err
		})
		switch {
		case err != nil:
			return err
		case i == 0:
			want = got
		case got != want || got.Digest == "":
			w.lose(1, "the digests differ at index %d: %s has %s, %s has %s", common, r.members[0].id, want.Digest, m.id, got.Digest)
		}
	}
	return nil
}
