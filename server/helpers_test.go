package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/raft"
)

// patience bounds every wait of these tests; the machine may be busy.
const patience = 30 * time.Second

// eventually polls until ok, and fails the test with what was awaited.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, patience, what, ok)
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(d)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("after %s: no %s", d, what)
		case <-t.Context().Done():
			t.Fatalf("the test ended: no %s", what)
		}
	}
}

// region is some servers of one region in this process.
type region struct {
	t       *testing.T
	servers []*member
}

// member is a server that may be stopped and started again.
type member struct {
	*Server
	cfg  Config
	done chan error
	stop context.CancelFunc
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// startRegion runs n servers and waits until all are ready.
func startRegion(t *testing.T, n int) *region {
	t.Helper()
	return startRegionOf(t, n, func(int, *Config) {})
}

// startRegionWith is startRegion with a change to every configuration.
func startRegionWith(t *testing.T, n int, change func(*Config)) *region {
	t.Helper()
	return startRegionOf(t, n, func(_ int, c *Config) { change(c) })
}

// startRegionOf is startRegion with a change to each server's configuration.
func startRegionOf(t *testing.T, n int, change func(i int, c *Config)) *region {
	t.Helper()
	r := &region{t: t}
	var peers []raft.Peer
	for i := range n {
		l := listen(t)
		id := gpuai.ServerID(fmt.Sprintf("s%d", i+1))
		peers = append(peers, raft.Peer{ID: id, Addr: l.Addr().String()})
		r.servers = append(r.servers, &member{cfg: Config{
			ID: id, DataDir: t.TempDir(), HTTP: listen(t), Raft: l, Bootstrap: true, Logger: testLogger(t),
		}})
	}
	for i, m := range r.servers {
		m.cfg.Peers = peers
		change(i, &m.cfg)
		r.start(m)
	}
	for _, m := range r.servers {
		eventually(t, "ready server "+string(m.cfg.ID), func() bool { return m.Status().Ready })
	}
	return r
}

func testLogger(t *testing.T) *slog.Logger {
	out := io.Discard
	if os.Getenv("GPUAI_TEST_LOG") != "" {
		out = os.Stderr
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo})).With("test", t.Name())
}

func (r *region) start(m *member) {
	r.t.Helper()
	s, err := Open(m.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.run(m, s)
}

// run runs a server that was opened.
func (r *region) run(m *member, s *Server) {
	r.t.Helper()
	m.Server, m.done = s, make(chan error, 1)
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	go func() { m.done <- s.Run(ctx) }()
	r.t.Cleanup(func() { r.halt(m) })
}

// halt stops a server as planned.
func (r *region) halt(m *member) {
	r.t.Helper()
	if m.stop == nil {
		return
	}
	m.stop()
	m.stop = nil
	select {
	case err := <-m.done:
		if err != nil {
			r.t.Errorf("server %s ended with: %v", m.cfg.ID, err)
		}
	case <-time.After(patience):
		r.t.Errorf("server %s did not stop", m.cfg.ID)
	}
}

// restart starts a halted server on new ports.
func (r *region) restart(m *member) {
	r.t.Helper()
	m.cfg.HTTP, m.cfg.Raft = listen(r.t), nil
	m.cfg.RaftAddr = m.cfg.Peers[slices.IndexFunc(m.cfg.Peers, func(p raft.Peer) bool { return p.ID == m.cfg.ID })].Addr
	r.start(m)
	eventually(r.t, "ready server again", func() bool { return m.Status().Ready })
}

func (r *region) leader() *member {
	r.t.Helper()
	var found *member
	eventually(r.t, "leader", func() bool {
		for _, m := range r.servers {
			if m.stop != nil && m.node.IsLeader() && m.reign.Load() != nil {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (r *region) followers() (out []*member) {
	l := r.leader()
	for _, m := range r.servers {
		if m != l && m.stop != nil {
			out = append(out, m)
		}
	}
	return out
}

// write retries on the leader as a client does, with the same key.
func (r *region) write(f func(m *member) error) {
	r.t.Helper()
	eventually(r.t, "leader that takes the write", func() bool {
		err := f(r.leader())
		if err != nil && !isCode(err, gpuai.NoLeader) && !isCode(err, gpuai.OutcomeUnknown) {
			r.t.Fatal(err)
		}
		return err == nil
	})
}

// equalDigests waits until all running servers have applied the same index
// with the same digest.
func (r *region) equalDigests() {
	r.t.Helper()
	eventually(r.t, "index where all digests are equal", func() bool {
		digests := make(map[uint64]fsm.Digest)
		for _, m := range r.servers {
			if m.stop == nil {
				continue
			}
			var index uint64
			var d fsm.Digest
			m.node.View(func(f *fsm.Machine) { index, d = f.Index(), f.Digest() })
			if other, ok := digests[index]; ok && other != d {
				r.t.Fatalf("at index %d the digests are %s and %s", index, other, d)
			}
			digests[index] = d
		}
		return len(digests) == 1
	})
}

// pipe is an agent's connection in memory.
type pipe struct {
	up, down chan gpuai.Frame
	closed   chan struct{}
	once     sync.Once
}

var errPipe = errors.New("the connection is closed")

func newPipe() *pipe {
	return &pipe{up: make(chan gpuai.Frame), down: make(chan gpuai.Frame), closed: make(chan struct{})}
}

func (p *pipe) close()             { p.once.Do(func() { close(p.closed) }) }
func (p *pipe) RemoteAddr() string { return "pipe" }

func (p *pipe) Recv(ctx context.Context) (gpuai.Frame, error) {
	select {
	case f := <-p.up:
		return f, nil
	case <-p.closed:
		return gpuai.Frame{}, errPipe
	case <-ctx.Done():
		return gpuai.Frame{}, ctx.Err()
	}
}

func (p *pipe) Send(ctx context.Context, f gpuai.Frame) error {
	select {
	case p.down <- f:
		return nil
	case <-p.closed:
		return errPipe
	case <-ctx.Done():
		return ctx.Err()
	}
}

var _ httpd.AgentConn = (*pipe)(nil)

// testAgent is the agent's side of the protocol: it keeps what it was told and
// checks the order of it.
type testAgent struct {
	t     *testing.T
	hello gpuai.Hello
	conn  *pipe
	ended chan error // the session

	mu       sync.Mutex
	welcome  *gpuai.Welcome
	refused  *gpuai.SessionError
	leases   map[gpuai.Token]gpuai.Assignment
	arrived  map[gpuai.Token]time.Time
	acks     []gpuai.Ack
	reported []gpuai.Reported
	judged   []gpuai.Published
	secrets  []gpuai.SecretDelivery
	index    uint64
	seq      uint64
	logs     func(gpuai.LogRequest) gpuai.LogChunk
}

func nodeSpec(id string, gpus int) gpuai.NodeSpec {
	n := gpuai.NodeSpec{
		ID: gpuai.NodeID(id), Zone: "z", Address: "127.0.0.1", CPU: 64_000, Memory: 1 << 40, Simulated: true,
	}
	for i := range gpus {
		n.Devices = append(n.Devices, gpuai.Device{
			ID: gpuai.DeviceID(fmt.Sprintf("gpu-%02d", i)), Vendor: "sim", Model: "X1", Memory: 80 << 30,
		})
	}
	return n
}

func helloOf(id string, gpus int) gpuai.Hello {
	return gpuai.Hello{Node: nodeSpec(id, gpus), BootID: "boot-1", Nonce: "life-1", Sent: 1}
}

// connect begins a session and returns at once.
func connect(t *testing.T, s *Server, h gpuai.Hello) *testAgent {
	t.Helper()
	a := &testAgent{
		t: t, hello: h, conn: newPipe(), ended: make(chan error, 1),
		leases: make(map[gpuai.Token]gpuai.Assignment), arrived: make(map[gpuai.Token]time.Time),
	}
	go func() {
		a.ended <- s.Agent(context.Background(), a.conn)
		a.conn.close()
	}()
	go a.read()
	a.send(gpuai.Frame{Kind: gpuai.FrameHello, Hello: &a.hello})
	t.Cleanup(a.conn.close)
	return a
}

// join connects an agent and waits for its welcome. Like any agent it tries
// again when the server has no leader at the moment.
func join(t *testing.T, s *Server, h gpuai.Hello) *testAgent {
	t.Helper()
	a := connect(t, s, h)
	eventually(t, "welcome for "+string(h.Node.ID), func() bool {
		a.mu.Lock()
		welcome, refused := a.welcome, a.refused
		a.mu.Unlock()
		if refused != nil && refused.Code == gpuai.NoLeader {
			a = connect(t, s, h)
		} else if refused != nil {
			t.Fatalf("node %s was refused: %+v", h.Node.ID, refused)
		}
		return welcome != nil
	})
	return a
}

func (a *testAgent) send(f gpuai.Frame) {
	select {
	case a.conn.up <- f:
	case <-a.conn.closed:
	}
}

func (a *testAgent) read() {
	for {
		select {
		case f := <-a.conn.down:
			a.take(f)
		case <-a.conn.closed:
			return
		}
	}
}

func (a *testAgent) take(f gpuai.Frame) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch f.Kind {
	case gpuai.FrameWelcome:
		a.welcome = f.Welcome
		a.atIndex(f.Welcome.Index)
	case gpuai.FrameRefused:
		a.refused = f.Refused
		a.conn.close() // as agents do
	case gpuai.FrameLeases:
		a.takeLeases(f.Leases)
	case gpuai.FrameAck:
		a.atIndex(f.Ack.Index)
		a.acks = append(a.acks, *f.Ack)
		for token := range a.leases {
			if token.Index() <= f.Ack.Index && !slices.Contains(f.Ack.Tokens, token) {
				a.t.Errorf("the ack of index %d does not name lease %s, which was not said to have ended", f.Ack.Index, token)
			}
		}
	case gpuai.FrameReported:
		a.reported = append(a.reported, *f.Reported)
	case gpuai.FramePublished:
		a.judged = append(a.judged, *f.Published)
	case gpuai.FrameSecrets:
		a.secrets = append(a.secrets, *f.Secrets)
	case gpuai.FrameLogRequest:
		c := a.logs(*f.LogRequest)
		c.ID = f.LogRequest.ID
		go a.send(gpuai.Frame{Kind: gpuai.FrameLog, Log: &c})
	default:
		a.t.Errorf("an agent was sent a frame %s", f.Kind)
	}
}

func (a *testAgent) atIndex(index uint64) {
	if index < a.index {
		a.t.Errorf("index %d was sent behind index %d", index, a.index)
	}
	a.index = index
}

func (a *testAgent) takeLeases(s *gpuai.LeaseSet) {
	a.atIndex(s.Index)
	if s.Full {
		clear(a.leases)
	}
	for _, l := range s.Leases {
		if l.Lease.Incarnation != s.Incarnation || l.Lease.Node != a.hello.Node.ID {
			a.t.Errorf("node %s in incarnation %d was sent lease %+v", a.hello.Node.ID, s.Incarnation, l.Lease)
		}
		a.leases[l.Lease.ID] = l
		if _, ok := a.arrived[l.Lease.ID]; !ok {
			a.arrived[l.Lease.ID] = time.Now()
		}
	}
	for _, token := range s.Ended {
		delete(a.leases, token)
	}
}

// held returns the leases that the agent knows.
func (a *testAgent) held() (out []gpuai.Assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.leases {
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y gpuai.Assignment) int { return int(int64(x.Lease.ID - y.Lease.ID)) })
	return out
}

func (a *testAgent) awaitLeases(n int) []gpuai.Assignment {
	a.t.Helper()
	eventually(a.t, fmt.Sprintf("%d leases at %s", n, a.hello.Node.ID), func() bool { return len(a.held()) == n })
	return a.held()
}

// beat sends one beat and returns its number.
func (a *testAgent) beat() uint64 {
	a.mu.Lock()
	a.seq++
	b := gpuai.Beat{Seq: a.seq, Sent: time.Now().UnixNano()}
	a.mu.Unlock()
	a.send(gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &b})
	return b.Seq
}

// acked returns the ack of a beat.
func (a *testAgent) acked(seq uint64) (gpuai.Ack, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.acks, func(k gpuai.Ack) bool { return k.Seq == seq })
	if i < 0 {
		return gpuai.Ack{}, false
	}
	return a.acks[i], true
}

// beatUntilAcked beats until a beat is acknowledged.
func (a *testAgent) beatUntilAcked() gpuai.Ack {
	a.t.Helper()
	var ack gpuai.Ack
	eventually(a.t, "ack", func() bool {
		seq, ok := a.beat(), false
		deadline := time.After(time.Second)
		for !ok {
			select {
			case <-deadline:
				return false
			case <-a.conn.closed:
				return false
			case <-time.After(time.Millisecond):
				ack, ok = a.acked(seq)
			}
		}
		return true
	})
	return ack
}

// beatFor keeps beating every 100 ms until the test or stop ends it.
func (a *testAgent) keepBeating() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-every.C:
				a.beat()
			case <-a.conn.closed:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); a.conn.close(); wg.Wait() })
	a.t.Cleanup(stop)
	return stop
}

// report reports a lease's state and waits for the answer.
func (a *testAgent) report(l gpuai.Assignment, seq uint32, state gpuai.ReportState) gpuai.Code {
	a.t.Helper()
	a.mu.Lock()
	before := len(a.reported)
	a.mu.Unlock()
	a.send(gpuai.Frame{Kind: gpuai.FrameReport, Report: &gpuai.Report{
		Lease: l.Lease.ID, Seq: seq, Incarnation: l.Lease.Incarnation, State: state,
	}})
	var code gpuai.Code
	eventually(a.t, "answer to a report", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, r := range a.reported[before:] {
			if r.Lease == l.Lease.ID && r.Seq == seq {
				code = r.Code
				return true
			}
		}
		return false
	})
	return code
}

// awaitEnd waits for the session's end.
func (a *testAgent) awaitEnd() error {
	a.t.Helper()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(patience):
		a.t.Fatal("the session did not end")
		return nil
	}
}

// jobSpec is a batch job of count tasks with one device each.
func jobSpec(name string, count uint32) *gpuai.JobSpec {
	s := &gpuai.JobSpec{
		Name: name,
		Groups: []gpuai.Group{{
			Count:     count,
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}},
			Task:      gpuai.TaskSpec{Command: []string{"/bin/true"}},
		}},
	}
	s.Defaults()
	return s
}

// submit submits to the leader.
func (r *region) submit(spec *gpuai.JobSpec, key string) (out gpuai.Submitted) {
	r.t.Helper()
	r.write(func(m *member) (err error) {
		out, err = m.Submit(r.t.Context(), httpd.SubmitRequest{Spec: spec, Key: key})
		return err
	})
	return out
}

// refusal waits for the session's end and returns what the agent was told.
func (a *testAgent) refusal() *gpuai.SessionError {
	a.t.Helper()
	a.awaitEnd()
	var x *gpuai.SessionError
	eventually(a.t, "refusal", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		x = a.refused
		return x != nil
	})
	return x
}
