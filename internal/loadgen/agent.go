package loadgen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const (
	helloTimeout = 20 * time.Second
	sendTimeout  = 10 * time.Second
	// Pauses between tries double, as those of an agent that holds leases.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// An agent is one simulated host. One goroutine connects and receives, another
// beats, timers report the ends of tasks.
type agent struct {
	fleet    *Fleet
	number   int
	client   *client.Client
	passport *passport // nil in a region without authentication
	id       gpuai.NodeID
	every    time.Duration // between beats
	turn     int           // sessions that have ended: each next one begins at another server

	sending sync.Mutex // held while a frame is sent
	mu      sync.Mutex // guards below
	conn    *client.Session
	inc     gpuai.Incarnation
	leases  map[gpuai.Token]struct{}
	reports map[gpuai.Token]gpuai.Report // not answered yet
	waiting time.Time                    // when the oldest beat that is not answered was sent; zero: none
}

// A refusal is a session that the server refused.
type refusal struct{ gpuai.SessionError }

func (r *refusal) Error() string { return r.Code.String() + ": " + r.Detail }

// connect opens a session, with one server after the other, and gives up after
// so many tries; 0 is never. An agent that is not the node's is told for good.
func (a *agent) connect(ctx context.Context, tries int) error {
	addrs := a.client.Addrs()
	for try := 1; ; try++ {
		addr := addrs[(a.number+a.turn+try-1)%len(addrs)]
		err := a.open(ctx, addr)
		if err == nil {
			return nil
		}
		var no *refusal
		if try == tries || ctx.Err() != nil || errors.As(err, &no) && no.Code == gpuai.Conflict {
			return fmt.Errorf("agent %s at %s: %w", a.id, addr, err)
		}
		wait := min(retryMax, retryMin<<min(try, 10))
		wait -= time.Duration(rand.Int64N(int64(wait)/2 + 1))
		if no != nil {
			wait = max(wait, time.Duration(no.RetryAfter)*time.Millisecond)
		}
		if err := sleepUntil(ctx, time.Now().Add(wait)); err != nil {
			return err
		}
	}
}

// open dials, says hello and waits for the welcome.
func (a *agent) open(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if a.passport != nil {
		if err := a.passport.ready(ctx, a.client); err != nil {
			return err
		}
	}
	conn, err := a.client.DialSession(ctx, addr)
	if err != nil {
		return err
	}
	welcome, err := a.greet(ctx, conn)
	if err != nil {
		conn.Close()
		return err
	}
	a.every = time.Duration(welcome.Policy.BeatEvery) * time.Millisecond
	a.mu.Lock()
	a.conn, a.inc, a.waiting = conn, welcome.Incarnation, time.Time{}
	a.mu.Unlock()
	a.fleet.cfg.OnWelcome(a.number)
	a.fleet.cfg.OnAck(a.number, welcome.Ack.Sent)
	return nil
}

func (a *agent) greet(ctx context.Context, conn *client.Session) (*gpuai.Welcome, error) {
	if err := conn.Send(ctx, gpuai.Frame{Kind: gpuai.FrameHello, Hello: a.hello()}); err != nil {
		return nil, err
	}
	f, err := conn.Recv(ctx)
	switch {
	case err != nil:
		return nil, err
	case f.Refused != nil:
		return nil, &refusal{*f.Refused}
	case f.Welcome == nil:
		return nil, fmt.Errorf("the server answered hello with %s", f.Kind)
	case f.Welcome.Policy.BeatEvery <= 0:
		return nil, fmt.Errorf("the server wants a beat every %s", f.Welcome.Policy.BeatEvery)
	}
	return f.Welcome, nil
}

// hello describes the simulated host. Its nonce is constant: a bench that runs
// again finds its nodes in the same incarnation.
func (a *agent) hello() *gpuai.Hello {
	gpus := a.fleet.cfg.GPUs
	size := max(1, gpus)
	h := &gpuai.Hello{
		BootID: "bench", Nonce: "bench", Sent: boottime(),
		Node: gpuai.NodeSpec{
			ID: a.id, Zone: fmt.Sprintf("bench-%d", a.number%4), Address: "127.0.0.1", Simulated: true,
			CPU: gpuai.MilliCPU(16_000 * size), Memory: gpuai.Bytes(128<<30) * gpuai.Bytes(size),
			PortMin: 20_000, PortCount: 64, Version: gpuai.Version, Labels: a.fleet.cfg.Labels,
		},
	}
	for g := range gpus {
		h.Node.Devices = append(h.Node.Devices, gpuai.Device{
			ID: gpuai.DeviceID(fmt.Sprintf("%s-%02d", a.id, g)), Vendor: "sim", Model: "bench-80", Memory: 80 << 30,
		})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for t := range a.leases {
		h.Held = append(h.Held, gpuai.HeldLease{Lease: t, BootID: h.BootID})
	}
	slices.SortFunc(h.Held, func(x, y gpuai.HeldLease) int { return cmp.Compare(x.Lease, y.Lease) })
	return h
}

// run serves session after session until ctx ends, or the node is another's.
func (a *agent) run(ctx context.Context) {
	for {
		a.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		a.fleet.lost.Add(1)
		a.turn++
		if a.connect(ctx, 0) != nil {
			return
		}
		a.repeat(ctx)
	}
}

// serve beats and receives until the session ends.
func (a *agent) serve(ctx context.Context) {
	defer a.conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	beats.Go(func() { a.beats(ctx) })
	for {
		f, err := a.conn.Recv(ctx)
		if err != nil {
			return
		}
		switch {
		case f.Ack != nil:
			a.answered(f.Ack)
		case f.Leases != nil:
			a.take(ctx, f.Leases, monotonic())
		case f.Reported != nil:
			a.reported(f.Reported)
		}
	}
}

// beats sends beats, each agent's 0-20 % early, so that they do not march in
// step, and the first one somewhere within the first interval.
func (a *agent) beats(ctx context.Context) {
	spread := time.Duration(uint32(a.number) * 2654435761 >> 22) // 0 … 1023
	if sleepUntil(ctx, time.Now().Add(a.every*spread/1024)) != nil {
		return
	}
	t := time.NewTicker(a.every - a.every/5*spread/1024)
	defer t.Stop()
	for n := uint64(1); ; n++ {
		if !a.send(ctx, gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &gpuai.Beat{Seq: n, Sent: boottime()}}) {
			return
		}
		if a.deaf(ctx, t.C) {
			return
		}
	}
}

// deaf waits for the next beat's time. It reports whether the session is over:
// ctx has ended, or a beat was not answered in time.
func (a *agent) deaf(ctx context.Context, next <-chan time.Time) bool {
	a.mu.Lock()
	if a.waiting.IsZero() {
		a.waiting = time.Now()
	}
	var late <-chan time.Time
	if d := a.fleet.cfg.AckWithin; d > 0 {
		late = time.After(time.Until(a.waiting.Add(d)))
	}
	conn := a.conn
	a.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return true
		case <-next:
			return false
		case <-late:
			late = nil
			a.mu.Lock()
			unanswered := !a.waiting.IsZero()
			a.mu.Unlock()
			if unanswered {
				conn.Close() // its reader sees it and connects anew
				return true
			}
		}
	}
}

// answered notes that the newest beats were confirmed.
func (a *agent) answered(k *gpuai.Ack) {
	a.mu.Lock()
	a.waiting = time.Time{}
	a.mu.Unlock()
	a.fleet.cfg.OnAck(a.number, k.Sent)
}

// send sends a frame. On false the session is over, which its reader sees too.
func (a *agent) send(ctx context.Context, f gpuai.Frame) bool {
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	a.sending.Lock()
	defer a.sending.Unlock()
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := conn.Send(ctx, f); err != nil {
		conn.Close()
		return false
	}
	return true
}

// take takes note of leases: new ones begin to run, revoking ones stop.
func (a *agent) take(ctx context.Context, set *gpuai.LeaseSet, at int64) {
	for i := range set.Leases {
		l := &set.Leases[i].Lease
		if a.isNew(l.ID) {
			a.fleet.cfg.OnLease(l.Job, at)
			a.begin(ctx, l.ID)
		}
		if l.State == gpuai.LeaseRevoking {
			a.report(ctx, l.ID, 2, gpuai.ReportStopped)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range set.Ended {
		delete(a.leases, t)
		delete(a.reports, t)
	}
	if !set.Full {
		return
	}
	live := make(map[gpuai.Token]struct{}, len(set.Leases))
	for i := range set.Leases {
		live[set.Leases[i].Lease.ID] = struct{}{}
	}
	a.leases = live
}

func (a *agent) isNew(t gpuai.Token) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, known := a.leases[t]
	a.leases[t] = struct{}{}
	return !known
}

// begin lets a task's time run.
func (a *agent) begin(ctx context.Context, t gpuai.Token) {
	if d := a.fleet.cfg.TaskTime; d > 0 {
		time.AfterFunc(d, func() { a.report(ctx, t, 1, gpuai.ReportDone) })
	}
}

// report says that a task has ended. It is said again in the next session, until
// it is answered.
func (a *agent) report(ctx context.Context, t gpuai.Token, seq uint32, s gpuai.ReportState) {
	a.mu.Lock()
	_, live := a.leases[t]
	_, said := a.reports[t]
	r := gpuai.Report{Lease: t, Seq: seq, Incarnation: a.inc, State: s}
	if live && !said {
		a.reports[t] = r
	}
	a.mu.Unlock()
	if live && !said && ctx.Err() == nil {
		a.send(ctx, gpuai.Frame{Kind: gpuai.FrameReport, Report: &r})
	}
}

// reported takes note of a report's answer; any answer is final.
func (a *agent) reported(r *gpuai.Reported) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.reports, r.Lease)
	delete(a.leases, r.Lease)
}

// repeat sends the reports that the session before left without an answer.
func (a *agent) repeat(ctx context.Context) {
	a.mu.Lock()
	var again []gpuai.Report
	for _, r := range a.reports {
		r.Incarnation = a.inc
		again = append(again, r)
	}
	a.mu.Unlock()
	for i := range again {
		a.send(ctx, gpuai.Frame{Kind: gpuai.FrameReport, Report: &again[i]})
	}
}
