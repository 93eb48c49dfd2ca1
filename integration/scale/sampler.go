package main

import (
	"context"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
)

// A sample is what was counted until a moment.
type sample struct {
	at       time.Time
	lead     gpuai.ServerID
	cpu      map[gpuai.ServerID]float64 // seconds
	welcomes int64
	lost     int64
	beats    int64 // injected, confirmed
	failed   int64
	real     *spectrum
	injected *spectrum
}

// A sampler counts once a second.
type sampler struct {
	b *bench

	mu  sync.Mutex // guards below
	all []sample
}

func newSampler(b *bench) *sampler { return &sampler{b: b} }

func (s *sampler) run(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.take()
		}
	}
}

// take counts now.
func (s *sampler) take() sample {
	x := sample{at: time.Now(), cpu: make(map[gpuai.ServerID]float64), real: new(spectrum), injected: s.b.injector.acks.copy()}
	if lead := s.b.lead.Load(); lead != nil {
		x.lead = lead.id
	}
	for _, m := range s.b.alive() {
		x.cpu[m.id] = m.proc.cpu()
	}
	for _, g := range append(s.b.canary[:], s.b.generators...) {
		w := g.counts()
		x.welcomes += w.Welcomes
		x.lost += w.Lost
		if w.Acks != nil {
			x.real.plus(w.Acks, 1)
		}
	}
	x.beats, x.failed = s.b.injector.confirmed.Load(), s.b.injector.failed.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
	return x
}

// since returns the samples from x on.
func (s *sampler) since(x sample) []sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		if !s.all[i].at.Before(x.at) {
			return append([]sample(nil), s.all[i:]...)
		}
	}
	return nil
}

// use is the processor time of a server, in percent of one processor.
type use struct {
	Mean float64 `json:"mean"`
	Max  float64 `json:"max_of_a_second"`
}

// cpuOf returns what a server used over some samples.
func cpuOf(of []sample, id gpuai.ServerID) (u use) {
	for i := 1; i < len(of); i++ {
		if span := of[i].at.Sub(of[i-1].at).Seconds(); span > 0.5 {
			u.Max = max(u.Max, round(100*(of[i].cpu[id]-of[i-1].cpu[id])/span))
		}
	}
	if n := len(of); n > 1 {
		u.Mean = round(100 * (of[n-1].cpu[id] - of[0].cpu[id]) / of[n-1].at.Sub(of[0].at).Seconds())
		u.Max = max(u.Max, u.Mean)
	}
	return u
}

// accepts returns the most sessions that were opened in a second.
func accepts(of []sample) (most float64) {
	for i := 1; i < len(of); i++ {
		if span := of[i].at.Sub(of[i-1].at).Seconds(); span > 0.5 {
			most = max(most, round(float64(of[i].welcomes-of[i-1].welcomes)/span))
		}
	}
	return most
}

// quantiles are bounds in milliseconds: not above, and at most a fifth below.
type quantiles struct {
	N   int64   `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// between returns the times of what came between two counts.
func between(from, to *spectrum) quantiles {
	d := to.copy()
	d.plus(from, -1)
	return quantiles{N: d.count(), P50: d.at(0.5), P99: d.at(0.99)}
}
