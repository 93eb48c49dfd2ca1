package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"
)

// errStopped is wrapped by what train returns when it was told to stop.
var errStopped = errors.New("told to stop")

// A trainer is one rank at work.
type trainer struct {
	cfg   *config
	out   io.Writer
	vault *vault // keeps nothing but at rank 0
	gang  *gang
	model *model
	state []float64 // all that goes on: weights, velocities, loss
	part  []sample
	parts [][]sample // of an elastic gang: all of them
	sum   []float64  // gradient, then loss
	step  int        // steps done
	loss  *float64   // mean over all samples, before the last step; in state
}

// train runs one rank until all steps are done, ctx ends or a peer is lost.
func train(ctx context.Context, cfg *config, out io.Writer) error {
	if cfg.least > 0 {
		return trainElastic(ctx, cfg, out)
	}
	t := newTrainer(cfg, out)
	if err := t.resume(); err != nil {
		return err
	}
	g, err := join(ctx, cfg)
	if err != nil {
		return err
	}
	defer g.close()
	t.gang = g
	g.patience(ctx)
	if t.step, err = g.agree(t.step, t.state); err != nil {
		return err
	}
	t.say("rank %d of %d starts at step %d", cfg.rank, cfg.size, t.step)
	if err := t.loop(ctx); err != nil {
		return err
	}
	t.say("done: %d steps, loss %.6f, weights %08x", t.step, *t.loss, t.weightSum())
	return nil
}

func newTrainer(cfg *config, out io.Writer) *trainer {
	m := newModel(cfg.hidden, cfg.seed)
	n := len(m.weights)
	state := append(append(make([]float64, 0, 2*n+1), m.weights...), m.velocity...)
	state = append(state, 0)
	m.weights, m.velocity = state[:n:n], state[n:2*n:2*n]
	t := &trainer{
		cfg: cfg, out: out, model: m, state: state, vault: new(vault),
		part: shard(moons(cfg.samples, cfg.seed), cfg.rank, cfg.size),
		sum:  make([]float64, n+1), loss: &state[2*n],
	}
	if cfg.rank == 0 {
		t.vault = &vault{path: cfg.checkpoint, token: cfg.token}
		if cfg.checkpoint == "" {
			t.vault.publish, t.vault.from = cfg.publish, cfg.from
		}
	}
	return t
}

// resume takes the last checkpoint up, if there is one.
func (t *trainer) resume() error {
	c, err := t.vault.claim(len(t.state))
	if err != nil || c == nil {
		return err
	}
	copy(t.state, c.state)
	t.step = c.step
	t.say("resumed from the checkpoint of step %d", c.step)
	return nil
}

// loop does the steps that are left.
func (t *trainer) loop(ctx context.Context) error {
	for t.step < t.cfg.steps {
		began := time.Now()
		t.gang.patience(ctx)
		stop, err := t.one(ctx)
		if err != nil {
			return t.saveBefore(err)
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
	t.gang.patience(ctx)
	return t.gang.finish(t.step)
}

// one does one step, and reports whether a rank was told to stop.
func (t *trainer) one(ctx context.Context) (stop bool, err error) {
	n := len(t.sum) - 1
	t.sum[n] = t.model.gradient(t.part, t.sum[:n])
	if stop, err = t.gang.reduce(t.step, t.sum, ctx.Err() != nil); err != nil {
		return false, err
	}
	return stop, t.apply()
}

// apply takes the step that the sum of all gradients says.
func (t *trainer) apply() error {
	n := len(t.sum) - 1
	*t.loss = t.sum[n] / float64(t.cfg.samples)
	if math.IsNaN(*t.loss) || math.IsInf(*t.loss, 0) {
		return fmt.Errorf("the loss at step %d is %v: try a smaller -rate", t.step, *t.loss)
	}
	if t.cfg.rank == 0 && t.step%t.cfg.report == 0 {
		t.say("step %d loss %.6f", t.step, *t.loss)
	}
	t.model.descend(t.sum[:n], t.cfg.samples, t.cfg.rate)
	t.step++
	return nil
}

// wait keeps the pace, which rank 0 sets for all.
func (t *trainer) wait(ctx context.Context, began time.Time) {
	left := time.Until(began.Add(t.cfg.pace))
	if t.cfg.rank > 0 || left <= 0 {
		return
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (t *trainer) save() error {
	return t.vault.save(&checkpoint{step: t.step, state: t.state})
}

// saveBefore keeps the steps that are done before the end that err is. A loss
// that is no number is nothing to keep.
func (t *trainer) saveBefore(err error) error {
	if t.step > 0 && errors.Is(err, errLost) {
		return errors.Join(err, t.save())
	}
	return err
}

// weightSum tells two sets of weights apart, to the last bit.
func (t *trainer) weightSum() uint32 {
	return crc32.Checksum(appendFloats(nil, t.model.weights), castagnoli)
}

// say prints a line. What cannot be printed is no reason to stop.
func (t *trainer) say(format string, args ...any) {
	fmt.Fprintf(t.out, format+"\n", args...)
}
