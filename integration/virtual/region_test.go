package virtual

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server"
)

const (
	portHTTP, portRaft = "7470", "7471"
	// progressWithin is how long a region with a connected majority may take
	// to acknowledge something: an election or two, and the time-outs of what
	// was under way to servers that are cut off.
	progressWithin = 10 * time.Second
	convergeWithin = 30 * time.Second
	maxDelay       = 2 * time.Millisecond
)

// region is a region of servers in the bubble of one test.
type region struct {
	t        *testing.T
	net      *network
	rng      *rand.Rand
	base     string
	servers  []*member // those that are members now
	founders []*member
	tune     func(*server.Config)
	clients  int
	loads    []*load
	fleets   []*fleet
	ending   sync.WaitGroup // crashed servers
}

// member is a server through its lives.
type member struct {
	id  gpuai.ServerID
	dir string
	// dazed says that it was stopped and may not know yet: it takes itself for
	// the leader, whose stale answers are of no age, until it has stepped down
	// and caught up.
	dazed atomic.Bool
	lives atomic.Int32 // started so far
	life  *life        // nil: it is down
	has   uint64       // the end of its log when it went down
	join  *member      // through whom it joins; nil: it forms the region
}

// life is one process of a server.
type life struct {
	*server.Server
	host *host
	gate *gate
	stop context.CancelFunc
	done chan error
}

// bubble runs a test in virtual time on a region of n servers, which is stopped
// at its end.
func bubble(t *testing.T, n int, seed uint64, test func(r *region)) {
	tuned(t, n, seed, nil, test)
}

func tuned(t *testing.T, n int, seed uint64, tune func(*server.Config), test func(r *region)) {
	base := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &region{
			t: t, net: newNetwork(seed, maxDelay), rng: rand.New(rand.NewPCG(seed, 1)), base: base, tune: tune,
		}
		defer r.end()
		for i := range n {
			id := gpuai.ServerID(string(rune('a' + i)))
			r.servers = append(r.servers, &member{id: id, dir: filepath.Join(base, string(id)+"-0")})
		}
		r.founders = slices.Clone(r.servers)
		for _, m := range r.servers {
			r.start(m)
		}
		r.leader()
		test(r)
	})
}

func (r *region) config(m *member, h *host, g *gate) server.Config {
	cfg := server.Config{
		ID: m.id, DataDir: m.dir, Bootstrap: true, Logger: slog.New(g).With("server", m.id),
		HTTP: h.listen(portHTTP), Raft: h.listen(portRaft), Dial: h.dial,
		DiskFree: func(string) (free, total uint64, err error) { return 1 << 40, 1 << 40, nil },
	}
	for _, p := range r.founders {
		cfg.Peers = append(cfg.Peers, raft.Peer{ID: p.id, Addr: string(p.id) + ":" + portRaft})
	}
	if m.join != nil {
		cfg.Bootstrap, cfg.Peers, cfg.Join = false, nil, []string{string(m.join.id) + ":" + portRaft}
	}
	if r.tune != nil {
		r.tune(&cfg)
	}
	return cfg
}

// start starts a server that is down, on the files that it has.
func (r *region) start(m *member) {
	r.t.Helper()
	l := &life{host: r.net.host(string(m.id)), gate: newGate(), done: make(chan error, 1)}
	s, err := server.Open(r.config(m, l.host, l.gate))
	if err != nil {
		r.t.Fatalf("start %s: %v", m.id, err)
	}
	l.Server = s
	m.lives.Add(1)
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() { l.done <- s.Run(ctx) }()
	m.life = l
}

// stop stops servers as planned: a leader hands over.
func (r *region) stop(members ...*member) {
	r.t.Helper()
	for _, m := range members {
		l := m.life
		m.life = nil
		l.stop()
		if err := <-l.done; err != nil {
			r.t.Errorf("stop %s: %v", m.id, err)
		}
		l.host.die()
	}
}

// crash kills servers without a warning. Each goes on, when it is started
// again, from a copy of its files as they are now.
func (r *region) crash(members ...*member) {
	r.t.Helper()
	synctest.Wait() // nobody is within a write
	for _, m := range members {
		l := m.life
		m.life, m.has = nil, l.Raft(context.Background()).LastIndex
		m.dir = r.copyFiles(m, fmt.Sprintf("%s-%d", m.id, m.lives.Load()))
		l.host.die()
		l.stop()
		r.ending.Go(func() { <-l.done }) // of a process that is no more
	}
}

// copyFiles copies a server's files, while nobody is within a write.
func (r *region) copyFiles(m *member, name string) (dir string) {
	r.t.Helper()
	dir = filepath.Join(r.base, name)
	if err := os.CopyFS(dir, os.DirFS(m.dir)); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// pause stops servers as SIGSTOP does, near enough; see the package comment.
func (r *region) pause(m *member) {
	m.dazed.Store(true)
	r.net.freeze(string(m.id), true)
	m.life.gate.shut()
}

// resume lets a stopped server go on. What waits for it reaches it first: the
// goroutine that would step down may well be the last that is scheduled.
func (r *region) resume(m *member) {
	r.net.freeze(string(m.id), false)
	r.idle(10 * time.Millisecond)
	m.life.gate.open()
}

// end stops everything that runs in the bubble; whatever outlives it fails the
// test as a deadlock.
func (r *region) end() {
	var up []*life
	for _, m := range r.servers {
		if m.life != nil {
			up = append(up, m.life)
			m.life.gate.open()
		}
	}
	r.net.sever()
	for _, l := range r.loads {
		l.halt()
	}
	for _, f := range r.fleets {
		f.halt()
	}
	for _, l := range up {
		l.stop()
	}
	for _, l := range up {
		<-l.done // leaders cannot hand over any more, and say so
	}
	r.net.sever()
	r.ending.Wait()
}

// within polls until ok, for a virtual time.
func (r *region) within(d time.Duration, what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			r.t.Fatalf("after %v: no %s; %s", d, what, r.describe())
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (r *region) describe() string {
	var b strings.Builder
	for _, m := range r.servers {
		if m.life == nil {
			fmt.Fprintf(&b, "%s is down; ", m.id)
			continue
		}
		st, ready := m.life.Raft(context.Background()), m.life.Status()
		fmt.Fprintf(&b, "%s: %s in term %d, leader %q, last %d commit %d applied %d, ready %v %s; ",
			m.id, st.State, st.Term, st.Leader, st.LastIndex, st.CommitIndex, st.AppliedIndex, ready.Ready, ready.NotReady)
	}
	return b.String()
}

// leader waits for a server that leads, with the highest term.
func (r *region) leader() *member {
	r.t.Helper()
	var found *member
	r.within(progressWithin, "leader", func() bool {
		found = nil
		term := uint64(0)
		for _, m := range r.servers {
			if m.life == nil || !m.life.Status().IsLeader {
				continue
			}
			if st := m.life.Raft(context.Background()); st.Term > term {
				found, term = m, st.Term
			}
		}
		return found != nil
	})
	return found
}

// lastIndex returns the end of a server's log.
func (r *region) lastIndex(m *member) uint64 {
	if m.life == nil {
		return m.has
	}
	return m.life.Raft(context.Background()).LastIndex
}

// others returns the servers that are up but for some.
func (r *region) others(than ...*member) (out []*member) {
next:
	for _, m := range r.servers {
		for _, x := range than {
			if x == m {
				continue next
			}
		}
		if m.life != nil {
			out = append(out, m)
		}
	}
	return out
}

func names(groups ...[]*member) (out []string) {
	for _, g := range groups {
		for _, m := range g {
			out = append(out, string(m.id))
		}
	}
	return out
}

// idle lets virtual time pass.
func (r *region) idle(d time.Duration) { <-time.After(d) }

// between returns a random duration.
func (r *region) between(least, most time.Duration) time.Duration {
	return least + time.Duration(r.rng.Int64N(int64(most-least)))
}

// headersKey is where a call's context holds a *http.Header for the headers of
// its last answer.
type headersKey struct{}

// recording keeps the headers of answers.
type recording struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t recording) RoundTrip(q *http.Request) (*http.Response, error) {
	res, err := t.RoundTripper.RoundTrip(q)
	if h, ok := q.Context().Value(headersKey{}).(*http.Header); ok && err == nil {
		*h = res.Header
	}
	return res, err
}

// get reads a path of one server.
func (r *region) get(m *member, path string) (string, error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: r.transport()}
	res, err := c.Get("http://" + string(m.id) + ":" + portHTTP + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// transport makes connections from a host of its own.
func (r *region) transport() *http.Transport {
	r.clients++
	h := r.net.host(fmt.Sprintf("client-%d", r.clients))
	return &http.Transport{
		DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return h.dial(ctx, to)
		},
		MaxIdleConnsPerHost: 4, DisableCompression: true,
	}
}

// dialTimeout is how long a client waits for a server to take a connection.
const dialTimeout = 2 * time.Second

// client returns a client on a host of its own that asks the servers in the
// order given, each once a call. attempt is how long it waits for one.
func (r *region) client(attempt time.Duration, servers ...*member) *client.Client {
	cfg := client.Config{
		AttemptTimeout: attempt, RetryFor: -1, HTTP: &http.Client{Transport: recording{r.transport()}},
	}
	for _, m := range servers {
		cfg.Addrs = append(cfg.Addrs, "http://"+string(m.id)+":"+portHTTP)
	}
	c, err := client.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// progress requires that a new job is acknowledged soon by one of the servers.
func (r *region) progress(servers ...*member) {
	r.t.Helper()
	began := time.Now()
	for n := 0; time.Since(began) < progressWithin; n++ {
		c := r.client(time.Second, servers[n%len(servers)])
		key := fmt.Sprintf("progress-%d", r.clients)
		if _, err := c.Submit(context.Background(), client.SubmitRequest{Spec: jobSpec(key), Key: key}); err == nil {
			return
		}
		r.idle(20 * time.Millisecond)
	}
	r.t.Errorf("%s make no progress within %v: %s", names(servers), progressWithin, r.describe())
}

// converge waits until all servers are up to date, and compares their digests
// at one index.
func (r *region) converge() {
	r.t.Helper()
	r.progress(r.servers...)
	leader := r.leader()
	at, err := r.client(time.Second, leader).Digest(context.Background(), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range r.servers {
		c := r.client(time.Second, m)
		r.within(convergeWithin, fmt.Sprintf("digest of server %s at index %d", m.id, at.Index), func() bool {
			d, err := c.Digest(context.Background(), at.Index)
			if err == nil && d != at {
				r.t.Fatalf("at index %d the digest of %s is %s and that of %s is %s", at.Index, leader.id, at.Digest, m.id, d.Digest)
			}
			return err == nil
		})
	}
}

// jobSpec is a job that waits for a GPU, of which there is none, or none free.
func jobSpec(name string) *gpuai.JobSpec {
	s := &gpuai.JobSpec{
		Name: name,
		Groups: []gpuai.Group{{
			Name: "main", Count: 1,
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 1000, Memory: 1 << 30},
			Task:      gpuai.TaskSpec{Command: []string{"true"}},
		}},
	}
	s.Defaults()
	return s
}

// gate is a logger that holds up whoever logs while it is shut.
type gate struct {
	slog.Handler
	*barred
}

type barred struct {
	mu     sync.Mutex // guards below
	closed bool
	opened *sync.Cond
}

func newGate() *gate {
	var out io.Writer = io.Discard
	if os.Getenv("GPUAI_TEST_LOG") != "" {
		out = os.Stderr
	}
	g := &gate{Handler: slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo}), barred: new(barred)}
	g.opened = sync.NewCond(&g.mu)
	return g
}

// Handle implements slog.Handler.
func (g *gate) Handle(ctx context.Context, rec slog.Record) error {
	g.mu.Lock()
	for g.closed {
		g.opened.Wait()
	}
	g.mu.Unlock()
	return g.Handler.Handle(ctx, rec)
}

// WithAttrs implements slog.Handler.
func (g *gate) WithAttrs(a []slog.Attr) slog.Handler { return &gate{g.Handler.WithAttrs(a), g.barred} }

// WithGroup implements slog.Handler.
func (g *gate) WithGroup(n string) slog.Handler { return &gate{g.Handler.WithGroup(n), g.barred} }

func (b *barred) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}

func (b *barred) open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = false
	b.opened.Broadcast()
}

// isCode reports whether an error is of a code.
func isCode(err error, c gpuai.Code) bool { return errors.Is(err, &gpuai.Error{Code: c}) }
