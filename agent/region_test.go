package agent

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A wire carries frames over TCP, as the fake region and its agents speak: the
// agent may be another process.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
	mu   sync.Mutex // one writer at a time
}

func newWire(c net.Conn) *wire { return &wire{conn: c, r: bufio.NewReader(c)} }

func (w *wire) Send(_ context.Context, f gpuai.Frame) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func (w *wire) Recv(ctx context.Context) (f gpuai.Frame, err error) {
	defer context.AfterFunc(ctx, func() { w.conn.Close() })()
	var head [4]byte
	if _, err := io.ReadFull(w.r, head[:]); err != nil {
		return f, err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(w.r, b); err != nil {
		return f, err
	}
	return f, json.Unmarshal(b, &f)
}

func (w *wire) Close() error { return w.conn.Close() }

// tcpDialer dials the fake region.
type tcpDialer struct{}

func (tcpDialer) Dial(ctx context.Context, addr string) (Session, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newWire(c), nil
}

// A region is a fake server that speaks the real frames: it registers nodes
// compare-and-set, holds leases, acks beats and answers reports.
type region struct {
	t *testing.T
	l net.Listener

	mu      sync.Mutex // guards below
	policy  gpuai.Policy
	index   uint64
	epoch   uint8
	restore string
	node    map[gpuai.NodeID]*fakeNode
	mute    bool // reports are not answered
	deaf    bool // beats are not answered
	logs    map[uint64]chan gpuai.LogChunk
	refuse  *gpuai.SessionError
	full    int    // how many digests it has no room for
	image   string // digest that it has for every task's image; "" for what the first tells
	// store is the checkpoint store, stale has every publish refused, unheard
	// leaves it unanswered.
	store          string
	stale, unheard bool
	published      []gpuai.PublishedCheckpoint // of all tasks
	// noSecrets is why no secrets are given, unasked leaves who asks unanswered.
	noSecrets gpuai.Code
	unasked   bool
	asks      int
}

type fakeNode struct {
	incarnation gpuai.Incarnation
	boot, nonce string
	hellos      []gpuai.Hello
	leases      map[gpuai.Token]gpuai.Assignment
	reports     []gpuai.Report // every one that came, repeated ones too
	devices     []gpuai.Device
	refuses     *gpuai.Refusal
	session     *wire
	cut         bool  // nothing gets through, in either direction
	heard       int64 // CLOCK_BOOTTIME of the last beat that was confirmed
}

// testPolicy has beats of 100 ms, and a kill budget and slack to match.
func testPolicy() gpuai.Policy {
	p := gpuai.DefaultPolicy()
	p.BeatEvery, p.KillBudget, p.Slack = 100, 400, 200
	return p
}

const (
	// shortTTL is of leases that are to end by their fence; others have
	// longTTL, since the machine may be slow.
	shortTTL  gpuai.Duration = 3000
	longTTL                  = 20 * gpuai.Second
	testGrace gpuai.Duration = 300
)

func newRegion(t *testing.T) *region {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &region{
		t: t, l: l, policy: testPolicy(), index: 10, restore: "r1",
		node: map[gpuai.NodeID]*fakeNode{}, logs: map[uint64]chan gpuai.LogChunk{},
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(newWire(c))
		}
	}()
	return r
}

func (r *region) addr() string { return r.l.Addr().String() }

func (r *region) serve(w *wire) {
	defer w.Close()
	f, err := w.Recv(context.Background())
	if err != nil || f.Hello == nil {
		return
	}
	n := r.register(w, f.Hello)
	if n == nil {
		return
	}
	for {
		f, err := w.Recv(context.Background())
		if err != nil || !r.receive(w, n, &f) {
			return
		}
	}
}

func (r *region) register(w *wire, h *gpuai.Hello) *fakeNode {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node[h.Node.ID]
	if n == nil {
		n = &fakeNode{leases: map[gpuai.Token]gpuai.Assignment{}}
		r.node[h.Node.ID] = n
	}
	if n.cut {
		return nil
	}
	n.hellos = append(n.hellos, *h)
	if r.refuse != nil {
		w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameRefused, Refused: r.refuse})
		return nil
	}
	if h.BootID != n.boot || h.Nonce != n.nonce {
		if n.incarnation != h.Replaces {
			w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameRefused, Refused: &gpuai.SessionError{
				Code: gpuai.Conflict, Detail: "another agent holds this node's identity", Incarnation: n.incarnation,
			}})
			return nil
		}
		n.incarnation = gpuai.MakeIncarnation(r.epoch, n.incarnation.Counter()+1)
		for t, a := range n.leases { // adoption
			if !slices.Contains(h.Held, gpuai.HeldLease{Lease: t, BootID: h.BootID}) {
				delete(n.leases, t)
				continue
			}
			a.Lease.Incarnation = n.incarnation
			n.leases[t] = a
		}
		n.boot, n.nonce = h.BootID, h.Nonce
	}
	r.index++
	n.heard = watchdog.Boottime()
	n.session, n.devices, n.refuses = w, h.Node.Devices, h.Node.Refuses
	w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameWelcome, Welcome: &gpuai.Welcome{
		Session: "s", Server: "s1", Region: "local", Epoch: r.epoch, RestoreID: r.restore, Incarnation: n.incarnation,
		Index: r.index, Policy: r.policy, Ack: r.ack(n, 0, h.Sent), CheckpointStore: r.store,
	}})
	w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameLeases, Leases: &gpuai.LeaseSet{
		Full: true, Epoch: r.epoch, Incarnation: n.incarnation, Index: r.index, Leases: slices.Collect(maps.Values(n.leases)),
	}})
	return n
}

func (r *region) ack(n *fakeNode, seq uint64, sent int64) gpuai.Ack {
	return gpuai.Ack{
		Seq: seq, Sent: sent, Epoch: r.epoch, Incarnation: n.incarnation, Index: r.index,
		Tokens: slices.Sorted(maps.Keys(n.leases)), Held: n.held(),
	}
}

// held are the leases of gangs that are not ready.
func (n *fakeNode) held() (out []gpuai.Token) {
	for t, a := range n.leases {
		if a.Held() && a.Lease.State != gpuai.LeaseRevoking {
			out = append(out, t)
		}
	}
	return out
}

func (r *region) receive(w *wire, n *fakeNode, f *gpuai.Frame) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.cut {
		return true // lost
	}
	switch f.Kind {
	case gpuai.FrameBeat:
		if r.deaf {
			return true
		}
		r.index++
		n.heard = watchdog.Boottime()
		a := r.ack(n, f.Beat.Seq, f.Beat.Sent)
		w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameAck, Ack: &a})
	case gpuai.FrameReport:
		n.reports = append(n.reports, *f.Report)
		if r.mute {
			return true
		}
		r.judge(w, n, f.Report)
	case gpuai.FramePublish:
		r.publish(w, n, f.Publish)
	case gpuai.FrameSecretAsk:
		r.giveSecrets(w, n, f.SecretAsk)
	case gpuai.FrameDevices:
		n.devices, n.refuses = f.Devices, f.Refuses
	case gpuai.FrameLog:
		if ch := r.logs[f.Log.ID]; ch != nil {
			ch <- *f.Log
		}
	}
	return true
}

// judge answers a report as the machine does.
func (r *region) judge(w *wire, n *fakeNode, rep *gpuai.Report) {
	out := gpuai.Reported{Lease: rep.Lease, Seq: rep.Seq}
	a, ok := n.leases[rep.Lease]
	r.index++
	switch {
	case !ok || a.Lease.Incarnation != rep.Incarnation:
		out.Code = gpuai.Conflict
	case rep.State == gpuai.ReportResolved && r.full > 0:
		r.full--
		out.Code = gpuai.RateLimited
	case rep.State == gpuai.ReportResolved:
		out.Image = cmp.Or(r.image, rep.Image)
	case rep.State == gpuai.ReportRunning:
		a.Lease.State = max(a.Lease.State, gpuai.LeaseRunning)
		n.leases[rep.Lease] = a
	case rep.State == gpuai.ReportPrepared:
	default:
		delete(n.leases, rep.Lease)
	}
	w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameReported, Reported: &out})
}

// publish judges a checkpoint as the machine does.
func (r *region) publish(w *wire, n *fakeNode, p *gpuai.Publish) {
	if r.unheard {
		return
	}
	out := gpuai.Published{Lease: p.Lease, After: p.After, Digest: p.Digest}
	seq := uint64(0)
	for _, c := range r.published {
		if c.TaskRef == p.Task {
			seq = c.Seq
		}
	}
	last := len(r.published) - 1
	a, live := n.leases[p.Lease]
	switch {
	case r.stale || !live || p.Incarnation != n.incarnation || a.Lease.TaskRef != p.Task:
		out.Code, out.Detail = gpuai.Conflict, "the lease has ended"
	case seq == p.After+1 && r.published[last].Lease == p.Lease && r.published[last].Digest == p.Digest: // again
	case seq != p.After:
		out.Code, out.Detail = gpuai.PreconditionFailed, "another was published"
		for _, c := range slices.Backward(r.published) {
			if c.TaskRef == p.Task {
				out.Kept = append(out.Kept, c)
			}
		}
	default:
		r.published = append(r.published, gpuai.PublishedCheckpoint{
			TaskRef: p.Task, Seq: p.After + 1, Digest: p.Digest, Bytes: p.Bytes, Step: p.Step, Lease: p.Lease, Key: gpuai.CheckpointKey(p.Task, p.Lease, p.Digest),
		})
	}
	w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FramePublished, Published: &out})
}

// kept returns the newest checkpoints, the newest first, as an assignment has them.
func (r *region) kept(n int) (out []gpuai.PublishedCheckpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range slices.Backward(r.published) {
		if len(out) < n {
			out = append(out, c)
		}
	}
	return out
}

// grant gives a node a lease for a script and tells its agent.
func (r *region) grant(node gpuai.NodeID, change func(*gpuai.Assignment)) gpuai.Token {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node[node]
	r.index++
	a := gpuai.Assignment{
		Lease: gpuai.Lease{
			ID: gpuai.MakeToken(r.epoch, r.index, 1), Node: node, Incarnation: n.incarnation,
			CPU: 500, Memory: 256 << 20, TTL: longTTL, Grace: testGrace,
		},
		JobName: "job", GroupName: "main",
		Task: gpuai.TaskSpec{Runtime: gpuai.RuntimeProcess, StopGrace: gpuai.Second},
	}
	change(&a)
	n.leases[a.Lease.ID] = a
	r.diff(n, gpuai.LeaseSet{Leases: []gpuai.Assignment{a}})
	return a.Lease.ID
}

func script(s string) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) { a.Task.Script = s }
}

// diff sends a set at the current index. mu is held.
func (r *region) diff(n *fakeNode, s gpuai.LeaseSet) {
	s.Epoch, s.Incarnation, s.Index = r.epoch, n.incarnation, r.index
	if n.session != nil && !n.cut {
		n.session.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameLeases, Leases: &s})
	}
}

func (r *region) revoke(node gpuai.NodeID, t gpuai.Token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node[node]
	r.index++
	a := n.leases[t]
	a.Lease.State = gpuai.LeaseRevoking
	n.leases[t] = a
	r.diff(n, gpuai.LeaseSet{Leases: []gpuai.Assignment{a}})
}

// expire ends a lease; the agent hears of it if it can.
func (r *region) expire(node gpuai.NodeID, t gpuai.Token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.node[node]
	r.index++
	delete(n.leases, t)
	r.diff(n, gpuai.LeaseSet{Ended: []gpuai.Token{t}})
}

func (r *region) set(f func(*region)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// reports returns what came about a lease, repeats left out.
func (r *region) reports(t gpuai.Token) (out []gpuai.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.node {
		for _, rep := range n.reports {
			if rep.Lease == t && !slices.ContainsFunc(out, func(o gpuai.Report) bool { return o.Seq == rep.Seq }) {
				out = append(out, rep)
			}
		}
	}
	return out
}

func (r *region) hellos(node gpuai.NodeID) []gpuai.Hello {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.node[node]; n != nil {
		return slices.Clone(n.hellos)
	}
	return nil
}

// last waits for a report that ends a lease.
func (r *region) last(t gpuai.Token) gpuai.Report {
	r.t.Helper()
	var out gpuai.Report
	eventually(r.t, "the end of lease "+t.String(), func() bool {
		all := r.reports(t)
		if len(all) == 0 {
			return false
		}
		out = all[len(all)-1]
		return out.State.Ends()
	})
	return out
}

func (r *region) running(t gpuai.Token) {
	r.t.Helper()
	eventually(r.t, "lease "+t.String()+" to run", func() bool {
		return slices.ContainsFunc(r.reports(t), func(x gpuai.Report) bool { return x.State == gpuai.ReportRunning })
	})
}

func (r *region) registered(node gpuai.NodeID) {
	r.t.Helper()
	eventually(r.t, "node "+string(node), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		n := r.node[node]
		return n != nil && n.session != nil
	})
}

// log asks an agent for output.
func (r *region) log(node gpuai.NodeID, q gpuai.LogRequest) gpuai.LogChunk {
	r.t.Helper()
	ch := make(chan gpuai.LogChunk, 1)
	r.set(func(r *region) {
		q.ID = uint64(len(r.logs) + 1)
		r.logs[q.ID] = ch
		r.node[node].session.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameLogRequest, LogRequest: &q})
	})
	select {
	case c := <-ch:
		return c
	case <-time.After(20 * time.Second):
		r.t.Fatal("no answer to a log request")
	}
	return gpuai.LogChunk{}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(25 * time.Second); !f(); <-tick.C {
		if time.Now().After(give) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
