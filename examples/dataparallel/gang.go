package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// A gang is this rank's ends of the connections with its peers: rank 0 has one
// with each of the others, which have one with rank 0. Not safe for concurrent
// use.
type gang struct {
	cfg   *config
	run   uint64
	peers []net.Conn // by rank; nil at this rank, and between others
	undo  func() bool
}

const (
	helloTimeout = 5 * time.Second
	retryEvery   = 100 * time.Millisecond
	// stopPatience bounds a step once this rank was told to stop: it fits
	// well into the grace of a stop.
	stopPatience = 2 * time.Second
)

// join connects this rank with the others and waits until it can. Only while
// it waits does the end of ctx break connections at once; later, it cuts the
// patience with peers short.
func join(ctx context.Context, cfg *config) (*gang, error) {
	g := &gang{cfg: cfg, run: cfg.fingerprint(), peers: make([]net.Conn, cfg.size), undo: func() bool { return true }}
	bounded, cancel := context.WithTimeout(ctx, cfg.peerTimeout)
	defer cancel()
	var err error
	switch {
	case cfg.size == 1:
	case cfg.rank == 0:
		err = g.gather(bounded)
	default:
		err = g.dial(bounded)
	}
	if err != nil {
		g.close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w while the ranks were starting", errStopped)
		}
		return nil, err
	}
	g.undo = context.AfterFunc(ctx, func() { g.deadline(stopPatience) })
	return g, nil
}

// gather accepts one connection of each other rank.
func (g *gang) gather(ctx context.Context) error {
	_, port, err := net.SplitHostPort(g.cfg.master)
	if err != nil {
		return fmt.Errorf("the address of rank 0, %q: %w", g.cfg.master, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+port)
	if err != nil {
		return fmt.Errorf("rank 0 cannot listen at MASTER_PORT: %w", err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	refused := errors.New("nobody else called")
	for missing := g.missing(); len(missing) > 0; missing = g.missing() {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("rank 0 waited %v at port %s, and ranks %v did not come; the last caller: %w", g.cfg.peerTimeout, port, missing, refused)
		}
		if err := g.admit(conn); err != nil {
			conn.Close()
			refused = fmt.Errorf("%s: %w", conn.RemoteAddr(), err)
		}
	}
	return nil
}

// missing lists the ranks that have not come yet.
func (g *gang) missing() (ranks []int) {
	for r := 1; r < g.cfg.size; r++ {
		if g.peers[r] == nil {
			ranks = append(ranks, r)
		}
	}
	return ranks
}

// admit reads a caller's hello. A rank that calls again gave its first
// connection up.
func (g *gang) admit(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	m, err := readMessage(conn, &message{kind: kindHello, run: g.run})
	if err != nil {
		return err
	}
	if m.number < 1 || m.number >= uint64(g.cfg.size) {
		return fmt.Errorf("it says that it is rank %d of %d", m.number, g.cfg.size)
	}
	if old := g.peers[m.number]; old != nil {
		old.Close()
	}
	g.peers[m.number] = conn
	return nil
}

// dial connects with rank 0, which may not have started yet.
func (g *gang) dial(ctx context.Context) error {
	var last error
	for {
		conn, err := (&net.Dialer{Timeout: helloTimeout}).DialContext(ctx, "tcp", g.cfg.master)
		if err == nil {
			g.peers[0] = conn
			return writeMessage(conn, &message{kind: kindHello, run: g.run, number: uint64(g.cfg.rank)})
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rank %d found no rank 0 at %s within %v: %w", g.cfg.rank, g.cfg.master, g.cfg.peerTimeout, last)
		case <-time.After(retryEvery):
		}
	}
}

// agree makes the state of rank 0, after its step, that of all, and returns
// the step. The state is overwritten in place at the others.
func (g *gang) agree(step int, state []float64) (int, error) {
	m := &message{kind: kindState, run: g.run, number: uint64(step), values: state}
	if g.cfg.rank == 0 {
		return step, g.sendAll(m)
	}
	got, err := g.receive(0, m)
	if err != nil {
		return 0, err
	}
	copy(state, got.values)
	return int(got.number), nil
}

// reduce replaces values by their sum over all ranks, added up in the order of
// the ranks, and reports whether any rank was told to stop.
func (g *gang) reduce(step int, values []float64, stop bool) (bool, error) {
	own := &message{kind: kindGradient, stop: stop, run: g.run, number: uint64(step), values: values}
	if g.cfg.rank > 0 {
		if err := g.send(0, own); err != nil {
			return false, err
		}
		sum, err := g.receive(0, &message{kind: kindSum, run: g.run, number: own.number, values: values})
		if err != nil {
			return false, err
		}
		copy(values, sum.values)
		return sum.stop, nil
	}
	for r := 1; r < g.cfg.size; r++ {
		m, err := g.receive(r, own)
		if err != nil {
			return false, err
		}
		for i, v := range m.values {
			values[i] += v
		}
		stop = stop || m.stop
	}
	return stop, g.sendAll(&message{kind: kindSum, stop: stop, run: g.run, number: own.number, values: values})
}

// finish holds the other ranks until rank 0 calls it: when the last checkpoint
// is written.
func (g *gang) finish(step int) error {
	m := &message{kind: kindDone, run: g.run, number: uint64(step)}
	if g.cfg.rank == 0 {
		return g.sendAll(m)
	}
	_, err := g.receive(0, m)
	return err
}

// close ends all connections.
func (g *gang) close() {
	g.undo()
	for _, c := range g.peers {
		if c != nil {
			c.Close()
		}
	}
}

// deadline gives every peer so long from now.
func (g *gang) deadline(d time.Duration) {
	for _, c := range g.peers {
		if c != nil {
			_ = c.SetDeadline(time.Now().Add(d)) // fails on a closed one only
		}
	}
}

// patience renews the deadlines for one step, unless a stop has cut them.
func (g *gang) patience(ctx context.Context) {
	if ctx.Err() == nil {
		g.deadline(g.cfg.pace + g.cfg.peerTimeout)
	}
	if ctx.Err() != nil {
		g.deadline(stopPatience)
	}
}

func (g *gang) sendAll(m *message) error {
	for r := range g.peers {
		if r == g.cfg.rank {
			continue
		}
		if err := g.send(r, m); err != nil {
			return err
		}
	}
	return nil
}

func (g *gang) send(rank int, m *message) error {
	if err := writeMessage(g.peers[rank], m); err != nil {
		return lost(rank, m, err)
	}
	return nil
}

// receive reads a message like m from a rank; for all kinds but the state,
// the step must be m's too.
func (g *gang) receive(rank int, m *message) (*message, error) {
	got, err := readMessage(g.peers[rank], m)
	if err == nil && m.kind != kindState && got.number != m.number {
		err = fmt.Errorf("it is at step %d", got.number)
	}
	if err != nil {
		return nil, lost(rank, m, err)
	}
	return got, nil
}

// errLost is wrapped by the errors that a peer's end brings.
var errLost = errors.New("the gang has to be placed again")

func lost(rank int, m *message, err error) error {
	at := fmt.Sprintf("at step %d", m.number)
	if m.kind == kindState {
		at = "before the first step"
	}
	return fmt.Errorf("rank %d was lost %s: %w; %w", rank, at, err, errLost)
}
