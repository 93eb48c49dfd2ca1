package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/internal/loadgen"
	"github.com/gpuai/gpuai/store"
)

// A bench is a region of one server, and its nodes' certificates.
type bench struct {
	o      *options
	dir    string
	addr   string // host:port of the API
	server *exec.Cmd
	trust  *identity.Trust
	admin  *client.Client
	nodes  []*identity.Source
	rows   []row
}

func run(ctx context.Context, o *options) (rows []row, err error) {
	b := &bench{o: o, nodes: make([]*identity.Source, o.nodes)}
	if b.dir, err = os.MkdirTemp("", "securebench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	defer b.stop()
	for _, step := range []func(context.Context) error{b.joins, b.handshakes, b.sessions} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return b.rows, nil
}

func (b *bench) add(what string, value float64, unit string) {
	b.rows = append(b.rows, row{what, value, unit})
	fmt.Fprintf(os.Stderr, "%-60s %10.4g %s\n", what, value, unit)
}

// freeAddr returns an address of this host that nobody listens on now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// open starts the server and makes the first operator's token.
func (b *bench) open(ctx context.Context) (err error) {
	raft := ""
	if b.addr, err = freeAddr(); err == nil {
		raft, err = freeAddr()
	}
	if err != nil {
		return err
	}
	data := filepath.Join(b.dir, "a")
	b.server = exec.Command(b.o.program, "server", "run", "--id", "a", "--data", data, "--http", b.addr, "--raft", raft, "--bootstrap")
	b.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.Create(filepath.Join(b.dir, "server.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	b.server.Stderr = log
	if err := b.server.Start(); err != nil {
		return err
	}
	if err := b.operator(ctx, data); err != nil {
		b.stop()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w; the server says:\n%s", err, text)
	}
	return nil
}

func (b *bench) stop() {
	_ = b.server.Process.Signal(syscall.SIGTERM)
	_ = b.server.Wait() // how it ended does not matter any more
}

// operator waits for the region and becomes its operator.
func (b *bench) operator(ctx context.Context, data string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		ca, err := os.ReadFile(filepath.Join(data, store.TrustFile))
		secret, err2 := os.ReadFile(filepath.Join(data, "bootstrap.secret"))
		if err == nil && err2 == nil {
			if b.trust, err = identity.ReadTrustFile(ca); err != nil {
				return err
			}
			return b.login(ctx, strings.TrimSpace(string(secret)))
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err, err2)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (b *bench) login(ctx context.Context, secret string) error {
	cfg := client.Config{Addrs: []string{"https://" + b.addr}, TLS: identity.TrustConfig(b.trust)}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	made, err := c.Bootstrap(ctx, gpuai.NewSecret(secret))
	if err != nil {
		return err
	}
	cfg.Token = gpuai.NewSecret(made.Text)
	if b.admin, err = client.New(cfg); err != nil {
		return err
	}
	_, err = b.admin.CreateTenant(ctx, gpuai.TenantRequest{ID: gpuai.DefaultTenant})
	var e *gpuai.Error
	if errors.As(err, &e) && e.Code == gpuai.Conflict {
		return nil
	}
	return err
}

// usage is what the server has used by now.
type usage struct {
	cpu, rss float64
	at       time.Time
}

func (b *bench) usage(ctx context.Context) (u usage, err error) {
	got, err := loadgen.ReadUsage(ctx, loadgen.Access{TLS: identity.TrustConfig(b.trust)}, []string{"https://" + b.addr})
	return usage{got.CPUSeconds, got.RSS, time.Now()}, err
}

// measure has f done for all nodes and adds how long that took.
func (b *bench) measure(ctx context.Context, what string, f func(ctx context.Context, i int) error) error {
	before, err := b.usage(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range b.o.callers {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < b.o.nodes; i = int(next.Add(1)) - 1 {
				if err := f(gctx, i); err != nil {
					return fmt.Errorf("%s: node %d: %w", what, i, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.took(ctx, what, before)
}

// took adds what something took since before, for each node.
func (b *bench) took(ctx context.Context, what string, before usage) error {
	after, err := b.usage(ctx)
	if err != nil {
		return err
	}
	n, wall := float64(b.o.nodes), after.at.Sub(before.at).Seconds()
	b.add(what+": rate", n/wall, "1/s")
	b.add(what+": server CPU", (after.cpu-before.cpu)/n*1e6, "µs each")
	b.add(what+": server CPU in use", (after.cpu-before.cpu)/wall*100, "% of a core")
	return nil
}

func nodeID(i int) gpuai.Identity {
	return gpuai.Identity{Kind: gpuai.IdentityNode, Name: loadgen.NodeName(i)}
}

// joinTTL is for how long a token is good: short, since the region keeps 4,096 at
// most, those that were used among them.
const joinTTL = 15 * gpuai.Second

// joins gives each node its first certificate.
func (b *bench) joins(ctx context.Context) error {
	return b.measure(ctx, "join with a token (and making the token)", func(ctx context.Context, i int) error {
		made, err := b.admin.CreateJoinToken(ctx, gpuai.JoinTokenRequest{
			Join: gpuai.IdentityNode, Name: nodeID(i).Name, TTL: joinTTL,
		})
		if err != nil {
			return err
		}
		token, err := identity.ParseJoinToken(made.Token)
		if err != nil {
			return err
		}
		c, closes, err := b.client(identity.JoinConfig(token))
		if err != nil {
			return err
		}
		defer closes()
		key, csr, err := identity.NewKey(nodeID(i), nil)
		if err != nil {
			return err
		}
		out, err := c.Join(ctx, gpuai.JoinRequest{Token: made.Token, CSR: csr})
		if err != nil {
			return err
		}
		cred, err := identity.CredentialOf(key, &out)
		if err != nil {
			return err
		}
		b.nodes[i] = identity.NewSource(identity.SourceConfig{})
		b.nodes[i].Set(cred)
		return nil
	})
}

// client returns a client without idle connections to keep.
func (b *bench) client(cfg *tls.Config) (*client.Client, func(), error) {
	t := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	c, err := client.New(client.Config{Addrs: []string{"https://" + b.addr}, HTTP: &http.Client{Transport: t}})
	return c, t.CloseIdleConnections, err
}

func (b *bench) handshakes(ctx context.Context) error {
	return b.measure(ctx, "handshake, both certificates verified", func(ctx context.Context, i int) error {
		d := tls.Dialer{Config: b.nodes[i].ClientConfig()}
		c, err := d.DialContext(ctx, "tcp", b.addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// settle is how long a server is left alone before its memory is read: its
// garbage is collected at least every two minutes, and beats make some.
const settle = 20 * time.Second

// sessions connects all nodes, and measures what is to be measured while they are.
func (b *bench) sessions(ctx context.Context) error {
	before, err := b.usage(ctx)
	if err != nil {
		return err
	}
	fleet, err := loadgen.StartFleet(ctx, loadgen.FleetConfig{
		Addrs: []string{"https://" + b.addr}, To: b.o.nodes, GPUs: 8, Connecting: b.o.callers, TaskTime: time.Minute,
		Client: func(i int) *client.Client {
			c, _, err := b.client(b.nodes[i].ClientConfig())
			if err != nil {
				panic(err) // the address is one that worked
			}
			return c
		},
	})
	if err != nil {
		return err
	}
	defer fleet.Stop()
	if err := b.took(ctx, "session: connect, hello, welcome", before); err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	idle, err := b.usage(ctx)
	if err != nil {
		return err
	}
	b.add("server RSS before sessions", before.rss/1e6, "MB")
	b.add("server RSS with sessions", idle.rss/1e6, "MB")
	b.add("server RSS for each connected node", (idle.rss-before.rss)/float64(b.o.nodes)/1e3, "kB")
	if err := pause(ctx, settle); err != nil {
		return err
	}
	if err := b.profile(ctx, gpuai.DebugHeap, nil); err != nil {
		return err
	}
	later, err := b.usage(ctx)
	if err != nil {
		return err
	}
	b.add("server CPU while all nodes beat", (later.cpu-idle.cpu)/later.at.Sub(idle.at).Seconds()*100, "% of a core")
	if err := b.submits(ctx, "none renewing", func(ctx context.Context) error { return pause(ctx, b.o.spread/2) }); err != nil {
		return err
	}
	if err := b.submits(ctx, "all renewing, spread", b.spread); err != nil {
		return err
	}
	if err := b.submits(ctx, "all renewing at once", func(ctx context.Context) error { return b.measure(ctx, "renewal, all at once", b.renew) }); err != nil {
		return err
	}
	b.add("sessions lost", float64(fleet.Lost()), "")
	return nil
}

// profile saves one of the server, if that is wanted.
func (b *bench) profile(ctx context.Context, what string, q url.Values) error {
	if b.o.profiles == "" {
		return nil
	}
	f, err := os.Create(filepath.Join(b.o.profiles, what+".pb.gz"))
	if err != nil {
		return err
	}
	_, err = b.admin.Fetch(ctx, "/v1/operator/debug/"+what, q, f, 64<<20)
	return errors.Join(err, f.Close())
}

// spread renews every node's certificate at its own moment.
func (b *bench) spread(ctx context.Context) error {
	before, err := b.usage(ctx)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.profile(gctx, gpuai.DebugCPU, url.Values{"seconds": {"20"}}) })
	for i := range b.nodes {
		g.Go(func() error {
			if err := pause(gctx, b.o.spread*time.Duration(i)/time.Duration(b.o.nodes)); err != nil {
				return err
			}
			return b.renew(gctx, i)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return b.took(ctx, "renewal, spread", before)
}

func (b *bench) renew(ctx context.Context, i int) error {
	c, closes, err := b.client(b.nodes[i].ClientConfig())
	if err != nil {
		return err
	}
	defer closes()
	key, csr, err := identity.NewKey(nodeID(i), nil)
	if err != nil {
		return err
	}
	out, err := c.Renew(ctx, csr)
	if err != nil {
		return err
	}
	cred, err := identity.CredentialOf(key, &out)
	if err == nil {
		b.nodes[i].Set(cred)
	}
	return err
}

// submits submits jobs at a rate while f runs, and adds how long an answer took
// from when its submit was due.
func (b *bench) submits(ctx context.Context, when string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var mu sync.Mutex
	var took []float64
	var calls errgroup.Group
	begun := time.Now()
	for n := 0; ; n++ {
		due := begun.Add(time.Duration(n) * time.Second / time.Duration(b.o.rate))
		select {
		case err := <-done:
			if err = errors.Join(err, calls.Wait()); err != nil {
				return err
			}
			slices.Sort(took)
			b.add("submit, "+when+": p50", took[len(took)/2], "ms")
			b.add("submit, "+when+": p99", took[len(took)*99/100], "ms")
			return nil
		case <-time.After(time.Until(due)):
		}
		calls.Go(func() error {
			_, err := b.admin.Submit(ctx, client.SubmitRequest{Spec: spec()})
			mu.Lock()
			took = append(took, float64(time.Since(due))/1e6)
			mu.Unlock()
			return err
		})
	}
}

func spec() *gpuai.JobSpec {
	s := &gpuai.JobSpec{Name: "bench", Groups: []gpuai.Group{{
		Name: "g", Count: 1,
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 100, Memory: 1 << 20},
		Task:      gpuai.TaskSpec{Command: []string{"true"}, Runtime: gpuai.RuntimeProcess},
	}}}
	s.Defaults()
	return s
}

// pause waits for a while, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
