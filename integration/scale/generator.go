package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/loadgen"
)

// envGenerator makes this program a generator; it holds its generatorConfig.
const envGenerator = "GPUAI_SCALE_GENERATOR"

// A generatorConfig says which agents a generator process holds.
type generatorConfig struct {
	Addrs    []string
	From, To int
	Label    string // their label "pool"
	CA       string // file of the region's CA; "" in a region without authentication
	token    gpuai.Secret
}

// envToken holds the operator's token with which a generator's agents join.
const envToken = "GPUAI_SCALE_TOKEN"

// access is to the region of cfg.
func (cfg *generatorConfig) access() (a loadgen.Access, err error) {
	if cfg.CA == "" {
		return a, nil
	}
	ca, err := os.ReadFile(cfg.CA)
	if err != nil {
		return a, err
	}
	return loadgen.NewAccess(ca, gpuai.NewSecret(os.Getenv(envToken)))
}

const (
	nodeGPUs = 8
	// connecting is how many agents of a generator connect at once.
	connecting = 64
	// ackWithin is for how long an agent waits for an ack: as a real one.
	ackWithin = 2 * time.Second
	tellEvery = 250 * time.Millisecond
)

// A word is a line that a generator writes. The first one comes when all its
// agents are registered.
type word struct {
	// A lease that is new to its agent, with when it was read, by
	// CLOCK_MONOTONIC.
	Job string `json:"job,omitempty"`
	At  int64  `json:"at,omitempty"`
	// Welcomes and Lost count sessions opened and broken, Oldest is the agent's
	// whose newest answered beat was sent first, by CLOCK_BOOTTIME.
	Welcomes int64     `json:"welcomes,omitempty"`
	Lost     int64     `json:"lost,omitempty"`
	Oldest   int64     `json:"oldest,omitempty"`
	Acks     *spectrum `json:"acks,omitempty"` // from sent to answered
}

// generatorMain runs agents until stdin ends.
func generatorMain(text string, stdin io.Reader, stdout, stderr io.Writer) int {
	var cfg generatorConfig
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		err = generate(cfg, stdin, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "generator:", err)
		return 1
	}
	return 0
}

func generate(cfg generatorConfig, stdin io.Reader, stdout io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, stdin) // an error is an end as well
	}()
	var mu sync.Mutex
	enc := json.NewEncoder(stdout)
	say := func(w word) {
		mu.Lock()
		defer mu.Unlock()
		if enc.Encode(w) != nil {
			cancel() // nobody reads
		}
	}
	var welcomes atomic.Int64
	sent := make([]atomic.Int64, cfg.To-cfg.From)
	var acks spectrum
	to, err := cfg.access()
	if err != nil {
		return err
	}
	fleet, err := loadgen.StartFleet(ctx, loadgen.FleetConfig{
		Addrs: cfg.Addrs, Access: to, From: cfg.From, To: cfg.To, GPUs: nodeGPUs, Labels: map[string]string{"pool": cfg.Label},
		Connecting: connecting, AckWithin: ackWithin,
		OnLease:   func(job gpuai.JobID, at int64) { say(word{Job: job.String(), At: at}) },
		OnWelcome: func(int) { welcomes.Add(1) },
		OnAck: func(agent int, at int64) {
			sent[agent-cfg.From].Store(at)
			acks.add(time.Duration(clock(unix.CLOCK_BOOTTIME) - at))
		},
	})
	if err != nil {
		return err
	}
	defer fleet.Stop()
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for {
		oldest := int64(math.MaxInt64)
		for i := range sent {
			oldest = min(oldest, sent[i].Load())
		}
		say(word{Welcomes: welcomes.Load(), Lost: fleet.Lost(), Oldest: oldest, Acks: acks.copy()})
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// clock reads a clock of the kernel, in nanoseconds.
func clock(id int32) int64 {
	var t unix.Timespec
	if unix.ClockGettime(id, &t) != nil {
		return 0 // these clocks are always there
	}
	return t.Nano()
}

// A generator is the process of some agents, seen from outside.
type generator struct {
	generatorConfig
	proc  *process
	stdin io.Closer
	ready chan struct{} // closed with the first word
	lease func(job string, at int64)

	mu   sync.Mutex // guards below
	last word       // its newest counts
}

// startGenerator starts a process and returns before its agents are there.
func startGenerator(s *starter, cfg generatorConfig, lease func(string, int64)) (*generator, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envGenerator+"="+string(text), envToken+"="+cfg.token.Reveal())
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	g := &generator{generatorConfig: cfg, ready: make(chan struct{}), lease: lease}
	if g.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if g.proc, err = s.start(fmt.Sprintf("generator-%d", cfg.From), cmd); err != nil {
		return nil, err
	}
	go g.listen(out)
	return g, nil
}

// listen reads words until the process ends.
func (g *generator) listen(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for first := true; lines.Scan(); {
		var w word
		if json.Unmarshal(lines.Bytes(), &w) != nil {
			continue // the last line of a killed process
		}
		if w.Job != "" {
			g.lease(w.Job, w.At)
			continue
		}
		g.mu.Lock()
		g.last = w
		g.mu.Unlock()
		if first {
			first = false
			close(g.ready)
		}
	}
	g.proc.wait()
}

func (g *generator) counts() word {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// await waits until all agents are registered.
func (g *generator) await(ctx context.Context) error {
	select {
	case <-g.ready:
		return nil
	case <-g.proc.done:
		return errors.New("a generator ended: " + strings.TrimSpace(g.proc.tail()))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *generator) signal(s syscall.Signal) error { return g.proc.cmd.Process.Signal(s) }

// A spectrum counts times by size, in steps of a quarter. It is safe for
// concurrent use.
type spectrum struct {
	N [64]atomic.Int64
}

const (
	spectrumMin  = float64(time.Millisecond)
	spectrumStep = 1.25
)

func (s *spectrum) add(d time.Duration) {
	i := 0
	if f := float64(d); f > spectrumMin {
		i = min(int(math.Ceil(math.Log(f/spectrumMin)/math.Log(spectrumStep))), len(s.N)-1)
	}
	s.N[i].Add(1)
}

func (s *spectrum) copy() *spectrum {
	c := new(spectrum)
	c.plus(s, 1)
	return c
}

// plus adds another's counts, so many times.
func (s *spectrum) plus(o *spectrum, times int64) {
	for i := range s.N {
		s.N[i].Add(times * o.N[i].Load())
	}
}

func (s *spectrum) count() (n int64) {
	for i := range s.N {
		n += s.N[i].Load()
	}
	return n
}

// at returns a bound of a quantile in milliseconds: it is not above it, and at
// most a fifth below.
func (s *spectrum) at(q float64) float64 {
	left := int64(math.Ceil(q * float64(s.count())))
	for i := range s.N {
		if left -= s.N[i].Load(); left <= 0 {
			return math.Round(math.Pow(spectrumStep, float64(i))*10) / 10
		}
	}
	return 0
}

// MarshalJSON writes the counts.
func (s *spectrum) MarshalJSON() ([]byte, error) {
	var n [len(s.N)]int64
	for i := range n {
		n[i] = s.N[i].Load()
	}
	return json.Marshal(n)
}

// UnmarshalJSON reads the counts.
func (s *spectrum) UnmarshalJSON(b []byte) error {
	var n [len(s.N)]int64
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	for i := range n {
		s.N[i].Store(n[i])
	}
	return nil
}
