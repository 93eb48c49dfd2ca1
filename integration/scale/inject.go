package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/integration/sibling"
)

// This file speaks the protocol between servers (package sibling): it is to the
// leader what another server's collector and lane are.

const (
	window      = 250 * time.Millisecond
	beatTimeout = 2 * time.Second
	// registering is how many registrations one message has.
	registering = 400
)

// An injected node has no agent and no session: its beats are made here.
type injected struct {
	id    gpuai.NodeID
	inc   gpuai.Incarnation
	pool  string
	every time.Duration // between beats
	next  int64         // when it is due, by CLOCK_BOOTTIME
	acked int64         // when its newest confirmed beat was made
	muted bool
}

// An injector holds the injected nodes. Its lock guards what changes of them.
type injector struct {
	r    *region
	http *http.Transport
	acks spectrum // from a beat's message to its confirmation
	// confirmed counts beats, messages those that carried them.
	confirmed, messages, failed atomic.Int64

	mu    sync.Mutex // guards below
	nodes []*injected
	byID  map[gpuai.NodeID]*injected
}

func newInjector(r *region) *injector {
	in := &injector{r: r, byID: make(map[gpuai.NodeID]*injected)}
	in.http = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			id, err := sibling.Named(addr)
			if err != nil {
				return nil, err
			}
			return r.dialPeer(ctx, id)
		},
	}
	return in
}

// add makes n nodes of a pool, which are not registered yet.
func (in *injector) add(pool string, n int, every time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for range n {
		i := len(in.nodes)
		spread := time.Duration(uint32(i) * 2654435761 >> 22) // 0 … 1023
		x := &injected{id: gpuai.NodeID(fmt.Sprintf("inject-%06d", i)), pool: pool, every: every - every/5*spread/1024}
		in.nodes, in.byID[x.id] = append(in.nodes, x), x
	}
}

// of returns the nodes of a pool.
func (in *injector) of(pool string) (out []*injected) {
	for _, n := range in.nodes {
		if n.pool == pool {
			out = append(out, n)
		}
	}
	return out
}

// mute stops the beats of nodes, or lets them go on.
func (in *injector) mute(nodes []*injected, muted bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, n := range nodes {
		n.muted = muted
	}
}

// oldest returns when the newest confirmed beat of the node was made whose was
// made first.
func (in *injector) oldest() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	at := clock(unix.CLOCK_BOOTTIME)
	for _, n := range in.nodes {
		at = min(at, n.acked)
	}
	return at
}

// register registers all nodes.
func (in *injector) register(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for from := 0; from < len(in.nodes); from += registering {
		part := in.nodes[from:min(from+registering, len(in.nodes))]
		g.Go(func() error {
			var cmds [][]byte
			for _, n := range part {
				c := fsm.RegisterNode{Spec: n.spec(), BootID: "scale", Nonce: "scale"}
				cmds = append(cmds, c.Append(nil, fsm.Envelope{Actor: "node/" + string(n.id)}))
			}
			out, err := in.propose(ctx, cmds)
			if err != nil {
				return fmt.Errorf("registering injected nodes: %w", err)
			}
			for i, n := range part {
				n.inc, n.next = out[i].Incarnation, clock(unix.CLOCK_BOOTTIME)
			}
			return nil
		})
	}
	return g.Wait()
}

func (n *injected) spec() gpuai.NodeSpec {
	s := gpuai.NodeSpec{
		ID: n.id, Zone: "inject", Address: "127.0.0.1", Simulated: true, Labels: map[string]string{"pool": n.pool},
		CPU: 16_000 * nodeGPUs, Memory: gpuai.Bytes(128<<30) * nodeGPUs, PortMin: 20_000, PortCount: 64, Version: gpuai.Version,
	}
	for g := range nodeGPUs {
		s.Devices = append(s.Devices, gpuai.Device{ID: gpuai.DeviceID(fmt.Sprintf("%s-%02d", n.id, g)), Vendor: "sim", Model: "bench-80", Memory: 80 << 30})
	}
	return s
}

// run sends beats until ctx ends, as three servers with a third each would: in
// each window one message per server, whether the one before was answered or not.
func (in *injector) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for part := range servers {
		wg.Go(func() {
			t := time.NewTicker(window)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
				if due := in.due(part); len(due) > 0 {
					wg.Go(func() { in.send(ctx, due) })
				}
			}
		})
	}
}

// due returns the nodes of a part that beat now.
func (in *injector) due(part int) (out []*injected) {
	in.mu.Lock()
	defer in.mu.Unlock()
	now := clock(unix.CLOCK_BOOTTIME)
	for i := part; i < len(in.nodes); i += servers {
		if n := in.nodes[i]; n.next <= now && !n.muted {
			n.next = now + int64(n.every)
			out = append(out, n)
		}
	}
	return out
}

// send has beats confirmed. Those that were not are due again.
func (in *injector) send(ctx context.Context, due []*injected) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	made := clock(unix.CLOCK_BOOTTIME)
	var body []byte
	for _, n := range due {
		body = sibling.AppendText(body, string(n.id))
		body = binary.AppendUvarint(body, uint64(n.inc))
		body = binary.AppendUvarint(body, uint64(made))
	}
	answer, err := in.ask(ctx, "beats", body)
	r := sibling.Reader{B: answer}
	r.Number() // the index
	confirmed := make(map[gpuai.NodeID]bool, len(due))
	for err == nil && r.More() {
		confirmed[gpuai.NodeID(r.Text())] = true
		r.Number()
		r.Number()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.messages.Add(1)
	took := time.Duration(clock(unix.CLOCK_BOOTTIME) - made)
	for _, n := range due {
		if err != nil || r.Bad || !confirmed[n.id] {
			n.next = made
			in.failed.Add(1)
			continue
		}
		n.acked = max(n.acked, made)
		in.confirmed.Add(1)
		in.acks.add(took)
	}
}

// propose has commands judged, and proposes them again until they are: those of
// this program are safe to repeat.
func (in *injector) propose(ctx context.Context, cmds [][]byte) ([]sibling.Outcome, error) {
	body := sibling.Commands(cmds)
	for {
		out, err := in.proposeOnce(ctx, body, len(cmds))
		if err == nil {
			return out, nil
		}
		if errPause := pause(ctx, window); errPause != nil {
			return nil, errors.Join(err, errPause)
		}
	}
}

func (in *injector) proposeOnce(ctx context.Context, body []byte, n int) ([]sibling.Outcome, error) {
	answer, err := in.ask(ctx, "propose", body)
	if err != nil {
		return nil, err
	}
	return sibling.Outcomes(answer, n)
}

// ask posts a body to the leader.
func (in *injector) ask(ctx context.Context, what string, body []byte) ([]byte, error) {
	lead := in.r.lead.Load()
	if lead == nil {
		return nil, errors.New("no leader is known")
	}
	return sibling.Ask(ctx, in.http, lead.id, what, body)
}

// dialPeer connects to a server's Raft port in the name of another one.
func (r *region) dialPeer(ctx context.Context, id gpuai.ServerID) (net.Conn, error) {
	to, from := r.servers[0], r.servers[1]
	for i, m := range r.servers {
		if m.id == id {
			to, from = m, r.servers[(i+1)%servers]
		}
	}
	return sibling.Dial(ctx, to.raft, sibling.As{From: from.id, Source: from.source}, id)
}
