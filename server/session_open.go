package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/server/frames"
)

// maxSessions bounds the agents of one server.
const maxSessions = 1 << 17

// admitWait is for how long an agent waits at a server that is not ready, which
// may be cut off from a leader that others have.
const admitWait = time.Second

// Bounds of how many agents may be registering at once: after a failover they
// all come together. Those that hold leases have most of the room to
// themselves: their time is running out. A registration takes about two
// windows, since it is confirmed like a beat, so some 16,000 leaseholders a
// second are let in.
const (
	admitHolders = 8_192
	admitOthers  = 2_048
)

// registry is the sessions of this server: one a node, the newest.
type registry struct {
	holders, others chan struct{} // one for each agent that is registering
	turns           *turns        // of sessions that send

	mu     sync.Mutex // guards below
	byNode map[gpuai.NodeID]*session
	closed bool
}

func newRegistry() *registry {
	return &registry{
		holders: make(chan struct{}, admitHolders), others: make(chan struct{}, admitOthers),
		turns: newTurns(), byNode: make(map[gpuai.NodeID]*session),
	}
}

// add makes se its node's session and ends the one before. It refuses when the
// server is stopping or full.
func (r *registry) add(se *session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.byNode) >= maxSessions {
		return false
	}
	if old := r.byNode[se.ref.Node]; old != nil {
		old.replaced(se.ref.Incarnation)
	}
	r.byNode[se.ref.Node] = se
	return true
}

func (r *registry) remove(se *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byNode[se.ref.Node] == se {
		delete(r.byNode, se.ref.Node)
	}
}

func (r *registry) get(n gpuai.NodeID) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byNode[n]
}

func (r *registry) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byNode)
}

// close ends all sessions and takes no more.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, se := range r.byNode {
		se.stop(errStopping, &gpuai.SessionError{Code: gpuai.NoLeader, Detail: errStopping.Error()})
	}
}

// await returns when no session is left, or after a while.
func (r *registry) await(d time.Duration) {
	deadline := time.After(d)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for r.len() > 0 {
		select {
		case <-poll.C:
		case <-deadline:
			return
		}
	}
}

var errStopping = errors.New("this server is stopping; go on at another")

// refusal is the error of a session that was refused.
type refusal struct{ gpuai.SessionError }

func (r *refusal) Error() string { return "agent refused: " + r.Detail }

func refuse(c gpuai.Code, detail string) *refusal {
	r := &refusal{gpuai.SessionError{Code: c, Detail: detail}}
	if c == gpuai.NoLeader || c == gpuai.RateLimited { // not all at the same moment
		r.RetryAfter = 250*gpuai.Millisecond + gpuai.Duration(mathrand.Int64N(1_000))
	}
	return r
}

// Agent implements httpd.Streams: it runs one agent's session until it ends. A
// session that is refused is told why, and is no error.
func (s *Server) Agent(ctx context.Context, c httpd.AgentConn) error {
	se, err := s.agent(ctx, c)
	var r *refusal
	if refused := errors.As(err, &r); refused && se == nil { // else the session has said it
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		err = c.Send(ctx, refusedFrame(r))
	} else if refused {
		err = nil
	}
	if r != nil {
		level := slog.LevelWarn
		if r.Code == gpuai.NoLeader { // the log has it once, and agents come by the thousand
			level = slog.LevelDebug
		}
		s.log.Log(ctx, level, "agent refused", "from", c.RemoteAddr(), "code", r.Code, "detail", r.Detail)
	}
	return err
}

// agent opens a session and serves it. The session is nil when it was refused
// before it began.
func (s *Server) agent(ctx context.Context, c httpd.AgentConn) (*session, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	f, err := recvWithin(ctx, c, helloTimeout)
	if err != nil {
		return nil, fmt.Errorf("wait for an agent's hello: %w", err)
	}
	if f.Kind != gpuai.FrameHello || f.Hello == nil {
		return nil, refuse(gpuai.InvalidSpec, "a session begins with a hello")
	}
	se, err := s.welcome(ctx, c, f.Hello)
	if err != nil {
		return nil, err
	}
	defer s.sessions.remove(se)
	defer s.hub.Attach(se.ref.Node, se)()
	// Attached first: what changes from here on is noticed, what changed
	// before is in the full set.
	err = se.serve(ctx, cancel)
	s.log.Info("agent's session ended", "node", se.ref.Node, "session", se.name, "reason", err)
	return se, err
}

// welcome registers the node and has its hello confirmed as a beat. The
// session that it returns has its first ack due.
func (s *Server) welcome(ctx context.Context, c agentConn, h *gpuai.Hello) (*session, error) {
	// After a failover all agents come at once, while there is no leader yet: it
	// costs less to have them wait here than to see them come again and again,
	// which would take the processor from the election.
	if ready, why := s.readiness.await(ctx, admitWait); !ready {
		return nil, refuse(gpuai.NoLeader, "this server serves no agents now: "+why)
	}
	room := s.sessions.others
	if len(h.Held) > 0 {
		room = s.sessions.holders
	}
	select {
	case room <- struct{}{}:
		defer func() { <-room }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := s.checkNode(ctx, h); err != nil {
		return nil, err
	}
	if err := s.checkHello(h); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	out, err := s.register(ctx, h)
	if err != nil {
		return nil, err
	}
	se := &session{
		s: s, conn: c, name: strings.ToLower(rand.Text()[:12]),
		ref:        fsm.NodeRef{Node: h.Node.ID, Incarnation: out.Incarnation},
		registered: out.Index, full: true, told: h.Node.Devices, refuses: h.Node.Refuses, doubt: true,
	}
	se.teller = frames.New(se.ref, h.Held)
	if err := se.firstBeat(ctx); err != nil {
		return nil, err
	}
	se.acks = []frames.AckDue{{Sent: h.Sent}}
	if !s.sessions.add(se) {
		return nil, refuse(gpuai.NoLeader, "this server takes no more agents; go on at another")
	}
	s.log.Info("agent connected", "node", h.Node.ID, "incarnation", out.Incarnation, "session", se.name, "from", c.RemoteAddr())
	return se, nil
}

// checkNode refuses a hello that is not of the node that the certificate names.
func (s *Server) checkNode(ctx context.Context, h *gpuai.Hello) error {
	if s.warden == nil {
		return nil
	}
	switch p := httpd.PrincipalOf(ctx); {
	case p.Node == "":
		return refuse(gpuai.Unauthenticated, "an agent needs the certificate of its node: 'gpuai agent join' gets one with a join token")
	case p.Node != h.Node.ID:
		return refuse(gpuai.Forbidden, fmt.Sprintf("the certificate is that of node %s, and the agent says that it is node %s: start it with the data directory of that node, or have it join", p.Node, h.Node.ID))
	}
	return nil
}

// checkHello judges what needs no command.
func (s *Server) checkHello(h *gpuai.Hello) error {
	if bad := h.Node.Validate(); len(bad) > 0 {
		return refuse(gpuai.InvalidSpec, "the node's description is wrong at "+bad[0].Pointer+": "+bad[0].Detail)
	}
	if h.BootID == "" || h.Nonce == "" || len(h.Held) > fsm.MaxNodeLeases {
		return refuse(gpuai.InvalidSpec, "a hello needs a boot ID and a nonce, and at most as many leases as a node may hold")
	}
	var epoch uint8
	var restored string
	s.node.View(func(m *fsm.Machine) { epoch, restored = m.Epoch(), m.RestoreID() })
	if h.Epoch > epoch || h.Epoch == epoch && h.RestoreID != "" && h.RestoreID != restored {
		return refuse(gpuai.PreconditionFailed, "the agent knows another history of this region: this server was restored from a backup, or belongs to another region")
	}
	return nil
}

// register has the node registered. A leader may change meanwhile: the same
// registration is answered again.
func (s *Server) register(ctx context.Context, h *gpuai.Hello) (outcome, error) {
	spec := h.Node
	s.node.View(func(m *fsm.Machine) {
		if m.Level() < fsm.LevelPlacement { // it would be refused; it says it again with its next session
			spec.Rack, spec.NVLinkDomain = "", ""
		}
		spec.Devices, spec.Refuses = frames.Tellable(m.Level(), spec.Devices, spec.Refuses)
	})
	c := fsm.RegisterNode{Spec: spec, BootID: h.BootID, Nonce: h.Nonce, Replaces: h.Replaces, Held: h.Held}
	out, err := s.propose(ctx, c.Append(nil, fsm.Envelope{Actor: actorOf(&gpuai.Principal{Actor: agentActor(h.Node.ID), From: httpd.PrincipalOf(ctx).From})}))
	switch {
	case err != nil:
		return outcome{}, refuse(gpuai.NoLeader, "the leader could not be reached; retry")
	case !out[0].settled():
		return outcome{}, refuse(gpuai.NoLeader, out[0].Detail)
	case out[0].Code != gpuai.OK:
		r := refuse(out[0].Code, out[0].Detail)
		r.Incarnation = out[0].Incarnation
		return outcome{}, r
	}
	return out[0], nil
}

// firstBeat has the hello confirmed: a registration is a beat.
func (se *session) firstBeat(ctx context.Context) error {
	done := make(chan struct{})
	se.s.collector.add(heldBeat{
		beat: beat{NodeRef: se.ref}, since: time.Now(),
		done: func(uint64) { close(done) },
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return refuse(gpuai.NoLeader, "no leader confirmed the registration in time; retry")
	}
}
