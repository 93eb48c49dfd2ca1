package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/client"
)

const (
	// dialTimeout bounds a connection attempt.
	dialTimeout = 2 * time.Second
	// Back-off between failed attempts: it doubles from backoffMin, to
	// backoffHeld while a lease is held, else to backoffMax.
	backoffMin  = 50 * time.Millisecond
	backoffHeld = 2 * time.Second
	backoffMax  = 10 * time.Second
	// lineBuffer is how many frames may wait to be sent; a server that does
	// not read them is left.
	lineBuffer = 512
)

// A line is one session and what waits to be sent on it.
type line struct {
	id     uint64
	server string
	out    chan gpuai.Frame
	cancel context.CancelFunc
	after  time.Duration // the server's wish, before the next attempt
}

type clientDialer struct {
	c      *client.Client
	scheme string // of addresses without one
}

func newClientDialer(cfg *Config) (Dialer, error) {
	cc := client.Config{Addrs: cfg.Servers, Logger: cfg.Logger}
	if cfg.Identity != nil {
		cc.TLS = cfg.Identity.ClientConfig()
	}
	c, err := client.New(cc)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if cfg.Identity != nil {
		scheme = "https"
	}
	return clientDialer{c, scheme}, nil
}

// Dial opens a session with one server.
func (d clientDialer) Dial(ctx context.Context, addr string) (Session, error) {
	s, err := d.c.DialSession(ctx, d.serverURL(addr))
	if err != nil {
		return nil, err
	}
	return s, nil
}

// DialExec implements ExecDialer.
func (d clientDialer) DialExec(ctx context.Context, addr string, r *gpuai.ExecRequest) (ExecConn, error) {
	c, err := d.c.AnswerExec(ctx, d.serverURL(addr), r)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (d clientDialer) serverURL(addr string) string {
	if !strings.Contains(addr, "://") {
		addr = d.scheme + "://" + addr
	}
	return strings.TrimSuffix(addr, "/")
}

// connect keeps a session with one server after the other.
func (a *Agent) connect(ctx context.Context) {
	servers := slices.Clone(a.cfg.Servers)
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	failures := 0
	for i := 0; ctx.Err() == nil; i++ {
		after, welcomed, err := a.converse(ctx, servers[i%len(servers)])
		if err != nil && ctx.Err() == nil {
			a.log.Info("session ended", "server", servers[i%len(servers)], "error", err)
		}
		if failures++; welcomed {
			failures = 0
		}
		if !pause(ctx, max(after, a.backoff(failures))) {
			return
		}
	}
}

// backoff is the wait after so many attempts in a row without a welcome.
func (a *Agent) backoff(failures int) time.Duration {
	limit := backoffMax
	if a.holding() {
		limit = backoffHeld
	}
	d := min(limit, backoffMin<<min(failures, 10))
	return d - time.Duration(rand.Int64N(int64(d)/2+1))
}

// holding asks the loop whether leases are held.
func (a *Agent) holding() bool {
	answer := make(chan bool, 1)
	a.post(func() { answer <- a.core.Holding() })
	select {
	case h := <-answer:
		return h
	case <-a.ended:
		return false
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// converse runs one session to its end. after is how long the next must wait.
func (a *Agent) converse(ctx context.Context, server string) (after time.Duration, welcomed bool, err error) {
	dial, stop := context.WithTimeout(ctx, dialTimeout)
	s, err := a.dialer.Dial(dial, server)
	stop()
	if err != nil {
		return 0, false, fmt.Errorf("connect: %w", err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, hello := a.greet(cancel, server)
	if l == nil {
		return 0, false, nil
	}
	defer a.post(func() { a.hungUp(l) })
	if err := s.Send(ctx, hello); err != nil {
		return 0, false, fmt.Errorf("send hello: %w", err)
	}
	go write(ctx, s, l)
	for {
		f, err := s.Recv(ctx)
		if err != nil {
			// The loop's cancel is read only after it: after is safe to read.
			return a.waitOf(l), welcomed, err
		}
		if f.Kind == gpuai.FrameWelcome && !welcomed {
			welcomed = true
			a.counts.sessions.Inc()
		}
		a.post(func() { a.receive(l, &f) })
	}
}

// waitOf asks the loop how long the server told the agent to stay away.
func (a *Agent) waitOf(l *line) time.Duration {
	answer := make(chan time.Duration, 1)
	a.post(func() { answer <- l.after })
	select {
	case d := <-answer:
		return d
	case <-a.ended:
		return 0
	}
}

func write(ctx context.Context, s Session, l *line) {
	defer l.cancel()
	for {
		select {
		case f := <-l.out:
			if s.Send(ctx, f) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// greet has the loop open a session: the Hello's t_send is taken before it is
// written.
func (a *Agent) greet(cancel context.CancelFunc, server string) (l *line, hello gpuai.Frame) {
	done := make(chan struct{})
	a.post(func() {
		defer close(done)
		if a.halt != nil {
			return
		}
		a.lines++
		l = &line{id: a.lines, server: server, out: make(chan gpuai.Frame, lineBuffer), cancel: cancel}
		a.line = l
		h := a.hello()
		hello = gpuai.Frame{Kind: gpuai.FrameHello, Hello: h}
		a.step(decide.HelloSent{Session: l.id, Sent: h.Sent})
	})
	select {
	case <-done:
	case <-a.ended:
		return nil, hello
	}
	return l, hello
}

func (a *Agent) hello() *gpuai.Hello {
	a.devices.told = slices.Clone(a.devices.offered)
	h := &gpuai.Hello{
		Node:   a.cfg.spec(a.devices.told, a.devices.simulated()),
		BootID: a.boot, Nonce: a.identity.Nonce, Replaces: a.identity.Incarnation,
		Epoch: a.identity.Epoch, RestoreID: a.identity.RestoreID, Sent: a.cfg.Clock.Boottime(),
	}
	h.Node.Labels = a.devices.labels(h.Node.Labels)
	a.said = a.refusal()
	h.Node.Refuses = a.said
	for _, t := range a.core.Running() {
		if r := a.records[t]; r != nil {
			h.Held = append(h.Held, gpuai.HeldLease{Lease: t, BootID: r.BootID})
		}
	}
	return h
}

// receive takes a frame of session l.
func (a *Agent) receive(l *line, f *gpuai.Frame) {
	switch f.Kind {
	case gpuai.FrameWelcome:
		if f.Welcome != nil {
			a.welcomed(l, f.Welcome)
		}
	case gpuai.FrameLeases:
		if f.Leases != nil {
			a.step(decide.LeasesReceived{Session: l.id, Set: f.Leases})
		}
	case gpuai.FrameAck:
		if f.Ack != nil {
			a.step(decide.AckReceived{Session: l.id, Ack: f.Ack})
		}
	case gpuai.FrameReported:
		if f.Reported != nil {
			a.step(decide.ReportAnswered{Session: l.id, Reported: *f.Reported})
			a.answered(*f.Reported)
		}
	case gpuai.FramePublished:
		if f.Published != nil {
			a.judged(*f.Published)
		}
	case gpuai.FrameSecrets:
		if f.Secrets != nil {
			a.gaveSecrets(f.Secrets)
		}
	case gpuai.FrameLogRequest:
		if f.LogRequest != nil {
			a.serveLog(l, *f.LogRequest)
		}
	case gpuai.FrameRefused:
		if f.Refused != nil {
			a.refused(l, f.Refused)
		}
	case gpuai.FrameExec:
		if f.Exec != nil {
			a.serveExec(l.server, f.Exec)
		}
	default:
		a.log.Warn("a server sent a frame of a kind that this agent does not know", "kind", f.Kind)
	}
}

func (a *Agent) welcomed(l *line, w *gpuai.Welcome) {
	a.step(decide.Welcomed{Session: l.id, Welcome: w})
	if a.core.Connected() {
		a.region = w.Region
		a.vault.set(w.CheckpointStore)
		a.publishAgain()
		a.askAgain()
		a.log.Info("session", "server", w.Server, "session", w.Session, "incarnation", w.Incarnation, "index", w.Index)
		a.tellDevices()
	}
}

// refused hands a refusal to the core, but for the one that TakeOver answers.
func (a *Agent) refused(l *line, e *gpuai.SessionError) {
	if e.Code == gpuai.Conflict && e.Incarnation != 0 && a.takeOver {
		a.log.Warn("taking the node over from another agent", "incarnation", e.Incarnation)
		a.takeOver = false
		a.identity.Incarnation = e.Incarnation
		a.step(decide.Disconnected{Session: l.id})
		a.hangUp(l.id, 0)
		return
	}
	a.step(decide.Refused{Session: l.id, Error: e})
}

// tellDevices tells the region of devices that changed since it was told, and
// whether new tasks are taken.
func (a *Agent) tellDevices() {
	if a.line == nil || a.core == nil || !a.core.Connected() {
		return
	}
	now := a.refusal()
	if slices.Equal(a.devices.told, a.devices.offered) && sameRefusal(a.said, now) {
		return
	}
	a.devices.told, a.said = slices.Clone(a.devices.offered), now
	a.send(a.line.id, gpuai.Frame{Kind: gpuai.FrameDevices, Devices: a.devices.told, Refuses: now})
}

// send queues a frame on a session, if that still stands.
func (a *Agent) send(session uint64, f gpuai.Frame) {
	if a.line == nil || a.line.id != session {
		return
	}
	select {
	case a.line.out <- f:
	default:
		a.log.Warn("a server does not read what it is sent")
		a.step(decide.Disconnected{Session: session})
		a.hangUp(session, 0)
	}
}

// hangUp ends a session from our side.
func (a *Agent) hangUp(session uint64, after time.Duration) {
	if l := a.line; l != nil && l.id == session {
		l.after = after
		l.cancel()
		a.line = nil
	}
}

// hungUp notes that a session has ended.
func (a *Agent) hungUp(l *line) {
	a.step(decide.Disconnected{Session: l.id})
	a.hangUp(l.id, 0)
}
