package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/integration/sibling"
)

// registering is how many registrations one message has.
const registering = 400

// register registers nodes that have no agents, as another server would. They
// never beat, so that the policy must let nodes be silent for long.
func (b *bed) register(ctx context.Context, nodes, gpus int) error {
	b.r.say("registering %d nodes without agents", nodes)
	p, err := b.api.Policy(ctx)
	if err != nil {
		return err
	}
	p.SuspectAfter = gpuai.Hour
	if err := b.api.SetPolicy(ctx, p); err != nil {
		return err
	}
	st, err := b.api.Raft(ctx)
	if err != nil {
		return err
	}
	t := &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialLeader(ctx, &st)
	}}
	defer t.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for from := 0; from < nodes; from += registering {
		g.Go(func() error {
			var cmds [][]byte
			for i := from; i < min(from+registering, nodes); i++ {
				cmds = append(cmds, registration(i, gpus))
			}
			answer, err := sibling.Ask(ctx, t, st.Leader, "propose", sibling.Commands(cmds))
			if err == nil {
				_, err = sibling.Outcomes(answer, len(cmds))
			}
			return err
		})
	}
	b.nodes = nodes
	return g.Wait()
}

// dialLeader connects to the leader's Raft port in the name of another member.
func dialLeader(ctx context.Context, st *gpuai.RaftStatus) (net.Conn, error) {
	leader := slices.IndexFunc(st.Members, func(m gpuai.RaftMember) bool { return m.Server == st.Leader })
	other := slices.IndexFunc(st.Members, func(m gpuai.RaftMember) bool { return m.Server != st.Leader })
	if leader < 0 || other < 0 {
		return nil, errors.New("the region has no leader and another member")
	}
	return sibling.Dial(ctx, st.Members[leader].Address, sibling.As{From: st.Members[other].Server}, st.Leader)
}

// registration encodes the registration of a node, as agents of loadgen are.
func registration(i, gpus int) []byte {
	id := gpuai.NodeID(fmt.Sprintf("planned-%06d", i))
	c := fsm.RegisterNode{BootID: "goals", Nonce: "goals", Spec: gpuai.NodeSpec{
		ID: id, Zone: fmt.Sprintf("bench-%d", i%4), Address: "127.0.0.1", Simulated: true,
		CPU: gpuai.MilliCPU(16_000 * gpus), Memory: gpuai.Bytes(128<<30) * gpuai.Bytes(gpus), PortMin: 20_000, PortCount: 64, Version: gpuai.Version,
	}}
	for d := range gpus {
		c.Spec.Devices = append(c.Spec.Devices, gpuai.Device{ID: gpuai.DeviceID(fmt.Sprintf("%s-%02d", id, d)), Vendor: "sim", Model: "bench-80", Memory: 80 << 30})
	}
	return c.Append(nil, fsm.Envelope{Actor: "node/" + string(id)})
}

// plan asks what a submit would lead to.
func plan(ctx context.Context, b *bed, x *row) error {
	const rounds = 100
	spec := job(b.r.o.gpus, 1)
	var took []float64
	c, err := b.spend(ctx, func() error {
		for range rounds {
			began := time.Now()
			sub, err := b.api.Plan(ctx, &spec)
			if err != nil {
				return err
			}
			if len(sub.Leases) != 1 {
				return fmt.Errorf("a plan for a job of %d GPUs has %d leases", b.r.o.gpus, len(sub.Leases))
			}
			took = append(took, float64(time.Since(began).Microseconds())/1_000)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(took)
	p50, p99 := took[rounds/2], took[rounds*99/100-1]
	x.Values["p50_ms"], x.Values["p99_ms"], x.Values["cpu_ms"], x.Values["nodes"] = p50, p99, 1_000*c.cpu/rounds, float64(b.nodes)
	x.Measured = fmt.Sprintf("p50 %.1f ms, p99 %.1f ms (%.1f CPU-ms of the servers)", p50, p99, 1_000*c.cpu/rounds)
	x.How = fmt.Sprintf("%d times jobs:plan of a job that takes a whole node, one after the other, over HTTP, with the read point behind a barrier; %d nodes are registered over the protocol between servers and have no agents", rounds, b.nodes)
	x.Met = p99 <= 50
	return nil
}
