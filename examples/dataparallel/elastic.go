package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"
)

// In an elastic gang the samples are in as many parts as it has members at most,
// and each step has the gradients of all parts, whoever computes them: rank 0
// deals them out to the members that there are, does itself what one does not
// deliver, and adds them up in the order of the parts. So who was there, and when,
// leaves no trace in the weights: they are those of a gang of full size.

// trainElastic is train for a member of an elastic gang.
func trainElastic(ctx context.Context, cfg *config, out io.Writer) error {
	t := newTrainer(cfg, out)
	all := moons(cfg.samples, cfg.seed)
	for k := range cfg.size {
		t.parts = append(t.parts, shard(all, k, cfg.size))
	}
	work := t.follow
	if cfg.rank == 0 {
		work = t.lead
	}
	if err := work(ctx); err != nil {
		return err
	}
	t.say("done: %d steps, loss %.6f, weights %08x", t.step, *t.loss, t.weightSum())
	return nil
}

// A company is the members of an elastic gang, as rank 0 knows them. One goroutine
// uses it, beside those that wait for callers.
type company struct {
	cfg     *config
	run     uint64
	members map[int]net.Conn // by rank, others than 0
	callers chan caller
	end     func()
}

// A caller said which rank it is.
type caller struct {
	rank int
	conn net.Conn
}

// assemble listens for members until ctx ends.
func assemble(ctx context.Context, cfg *config) (*company, error) {
	c := &company{cfg: cfg, run: cfg.fingerprint(), members: map[int]net.Conn{}, callers: make(chan caller, cfg.size)}
	if cfg.size == 1 {
		c.end = func() {}
		return c, nil
	}
	_, port, err := net.SplitHostPort(cfg.master)
	if err != nil {
		return nil, fmt.Errorf("the address of rank 0, %q: %w", cfg.master, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", ":"+port)
	if err != nil {
		return nil, fmt.Errorf("rank 0 cannot listen at MASTER_PORT: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	c.end = func() { cancel(); l.Close() }
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			go c.greet(ctx, conn)
		}
	}()
	return c, nil
}

// greet reads a caller's hello.
func (c *company) greet(ctx context.Context, conn net.Conn) {
	err := conn.SetDeadline(time.Now().Add(helloTimeout))
	var m *message
	if err == nil {
		m, err = readMessage(conn, &message{kind: kindHello, run: c.run})
	}
	if err != nil || m.number < 1 || m.number >= uint64(c.cfg.size) {
		conn.Close()
		return
	}
	select {
	case c.callers <- caller{int(m.number), conn}:
	case <-ctx.Done():
		conn.Close()
	}
}

// close ends all connections.
func (c *company) close() {
	c.end()
	for _, conn := range c.members {
		conn.Close()
	}
}

// ranks returns the members, rank 0 among them, in order.
func (c *company) ranks() []int { return append([]int{0}, slices.Sorted(maps.Keys(c.members))...) }

// send sends a message to a member; one that cannot be reached is let go.
func (t *trainer) send(c *company, rank int, m *message) {
	if conn := c.members[rank]; conn != nil {
		if err := writeMessage(conn, m); err != nil {
			t.dismiss(c, rank, err.Error())
		}
	}
}

// dismiss lets a member go.
func (t *trainer) dismiss(c *company, rank int, why string) {
	c.members[rank].Close()
	delete(c.members, rank)
	t.say("rank %d left at step %d, members %v: %s", rank, t.step, c.ranks(), why)
}

// welcome makes a caller a member: it is sent the state after the last step.
func (t *trainer) welcome(ctx context.Context, c *company, x caller) {
	if old := c.members[x.rank]; old != nil {
		t.dismiss(c, x.rank, "it called again")
	}
	c.members[x.rank] = x.conn
	t.patience(ctx, c)
	t.say("rank %d joined at step %d, members %v", x.rank, t.step, c.ranks())
	t.send(c, x.rank, &message{kind: kindState, run: c.run, number: uint64(t.step), values: t.state})
}

// patience gives every member the time of one step; less when there is no more.
func (t *trainer) patience(ctx context.Context, c *company) {
	d := t.cfg.pace + t.cfg.peerTimeout
	if ctx.Err() != nil {
		d = stopPatience
	}
	for _, conn := range c.members {
		_ = conn.SetDeadline(time.Now().Add(d)) // fails on a closed one only
	}
}

// gather waits until as many members are there as the gang starts with at least.
func (t *trainer) gather(ctx context.Context, c *company) error {
	over := time.NewTimer(t.cfg.peerTimeout)
	defer over.Stop()
	for len(c.ranks()) < t.cfg.least {
		select {
		case x := <-c.callers:
			t.welcome(ctx, c, x)
		case <-over.C:
			return fmt.Errorf("rank 0 waited %v for %d members, and only %v came", t.cfg.peerTimeout, t.cfg.least, c.ranks())
		case <-ctx.Done():
			return fmt.Errorf("%w while the members were starting", errStopped)
		}
	}
	return nil
}

// lead is the work of rank 0.
func (t *trainer) lead(ctx context.Context) error {
	if err := t.resume(); err != nil {
		return err
	}
	c, err := assemble(ctx, t.cfg)
	if err != nil {
		return err
	}
	defer c.close()
	if err := t.gather(ctx, c); err != nil {
		return err
	}
	t.say("rank 0 starts at step %d with members %v of at most %d", t.step, c.ranks(), t.cfg.size)
	for t.step < t.cfg.steps {
		began := time.Now()
		for len(c.callers) > 0 {
			t.welcome(ctx, c, <-c.callers)
		}
		t.patience(ctx, c)
		stop := ctx.Err() != nil
		t.add(t.collect(c))
		for _, r := range c.ranks() {
			t.send(c, r, &message{kind: kindSum, stop: stop, run: c.run, number: uint64(t.step), values: t.sum})
		}
		if err := t.apply(); err != nil {
			return err
		}
		last := t.step == t.cfg.steps
		if stop || last || t.step%t.cfg.every == 0 {
			if err := t.save(); err != nil {
				return err
			}
		}
		if stop && !last {
			return fmt.Errorf("%w after step %d", errStopped, t.step)
		}
		if !last {
			t.wait(ctx, began)
		}
	}
	for _, r := range c.ranks() {
		t.send(c, r, &message{kind: kindDone, run: c.run, number: uint64(t.step)})
	}
	return nil
}

// collect returns the gradient, then loss, of each part.
func (t *trainer) collect(c *company) [][]float64 {
	n := len(t.sum)
	order, grads := c.ranks(), make([][]float64, t.cfg.size)
	for i, r := range order {
		t.send(c, r, &message{kind: kindWork, run: c.run, number: uint64(t.step), values: []float64{float64(i), float64(len(order))}})
	}
	t.compute(grads, 0, len(order))
	for i, r := range order {
		conn := c.members[r]
		if conn == nil {
			continue // it is rank 0, or was let go
		}
		mine := dealt(t.cfg.size, i, len(order))
		m, err := readMessage(conn, &message{kind: kindGradient, run: c.run, values: make([]float64, n*len(mine))})
		switch {
		case err != nil:
			t.dismiss(c, r, err.Error())
		case m.number != uint64(t.step):
			t.dismiss(c, r, fmt.Sprintf("it is at step %d", m.number))
		default:
			for j, k := range mine {
				grads[k] = m.values[j*n : (j+1)*n]
			}
			if m.stop {
				t.dismiss(c, r, "it was told to stop")
			}
		}
	}
	t.compute(grads, 0, 1) // what nobody delivered
	return grads
}

// dealt returns the parts that fall to the i-th of n members.
func dealt(parts, i, n int) (mine []int) {
	for k := i; k < parts; k += n {
		mine = append(mine, k)
	}
	return mine
}

// compute fills in the gradients of the i-th of n members that are not there yet.
func (t *trainer) compute(grads [][]float64, i, n int) {
	for _, k := range dealt(len(grads), i, n) {
		if grads[k] == nil {
			w := len(t.sum) - 1
			grads[k] = make([]float64, w+1)
			grads[k][w] = t.model.gradient(t.parts[k], grads[k][:w])
		}
	}
}

// add sums the gradients up, in the order of the parts.
func (t *trainer) add(grads [][]float64) {
	copy(t.sum, grads[0])
	for _, g := range grads[1:] {
		for i, v := range g {
			t.sum[i] += v
		}
	}
}

// follow is the work of every other rank: it comes when it comes, and goes when it
// is told to.
func (t *trainer) follow(ctx context.Context) error {
	g, err := join(ctx, t.cfg)
	if err != nil {
		return err
	}
	defer g.close()
	g.patience(ctx)
	if t.step, err = g.agree(0, t.state); err != nil {
		return stoppedOr(ctx, err)
	}
	t.say("rank %d joins at step %d", t.cfg.rank, t.step)
	for t.step < t.cfg.steps {
		g.patience(ctx)
		stop, err := t.assist(ctx, g)
		if err != nil {
			return stoppedOr(ctx, err)
		}
		if stop {
			return fmt.Errorf("%w at step %d", errStopped, t.step)
		}
	}
	g.patience(ctx)
	return g.finish(t.step)
}

// assist does a member's part of one step. It reports whether this member, or all,
// were told to stop.
func (t *trainer) assist(ctx context.Context, g *gang) (stop bool, err error) {
	m, err := g.receive(0, &message{kind: kindWork, run: g.run, number: uint64(t.step), values: make([]float64, 2)})
	if err != nil {
		return false, err
	}
	i, n := int(m.values[0]), int(m.values[1])
	if i < 0 || i >= n || n > t.cfg.size {
		return false, fmt.Errorf("rank 0 dealt parts to member %d of %d", i, n)
	}
	grads := make([][]float64, t.cfg.size)
	t.compute(grads, i, n)
	own := &message{kind: kindGradient, stop: ctx.Err() != nil, run: g.run, number: uint64(t.step)}
	for _, k := range dealt(t.cfg.size, i, n) {
		own.values = append(own.values, grads[k]...)
	}
	if err := g.send(0, own); err != nil || own.stop {
		return own.stop, err
	}
	sum, err := g.receive(0, &message{kind: kindSum, run: g.run, number: own.number, values: t.sum})
	if err != nil {
		return false, err
	}
	copy(t.sum, sum.values)
	return sum.stop, t.apply()
}

// stoppedOr is err, unless it came of this member's being told to stop.
func stoppedOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(errStopped, err)
	}
	return err
}
