package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

const ranks = 4

// A ganged is what one run of a gang came to, by rank.
type ganged struct {
	out  [ranks]string
	errs [ranks]error
}

// A watched buffer calls seen with all that was written so far.
type watched struct {
	mu   sync.Mutex // guards below
	buf  bytes.Buffer
	seen func(string)
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	if w.seen != nil {
		w.seen(w.buf.String())
	}
	return n, err
}

func environ(rank, size int, port string, more map[string]string) func(string) string {
	vars := map[string]string{
		gpuai.EnvNodeRank: strconv.Itoa(rank), gpuai.EnvNodes: strconv.Itoa(size),
		gpuai.EnvMasterAddr: "127.0.0.1", gpuai.EnvMasterPort: port,
		gpuai.EnvJob: "01JD0000000000000000000000", gpuai.EnvTaskGroup: "worker",
		gpuai.EnvTaskIndex: strconv.Itoa(rank), gpuai.EnvToken: "1000",
	}
	for k, v := range more {
		vars[k] = v
	}
	return func(k string) string { return vars[k] }
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// A play says how a gang is run: who is told to stop, and when.
type play struct {
	args   []string
	env    map[string]string
	stop   int    // rank that is told to stop …
	atLine string // … once rank 0 has printed this; "": never
}

// run runs four ranks in this process, over loopback.
func (p play) run(t *testing.T) (g ganged) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	port := freePort(t)
	var wg sync.WaitGroup
	var outs [ranks]watched
	outs[0].seen = func(s string) {
		if p.atLine != "" && strings.Contains(s, p.atLine) {
			cancel()
		}
	}
	for r := range ranks {
		wg.Go(func() {
			own := t.Context()
			if r == p.stop {
				own = ctx
			}
			g.errs[r] = run(own, p.args, environ(r, ranks, port, p.env), &outs[r])
		})
	}
	wg.Wait()
	for r := range ranks {
		g.out[r] = outs[r].buf.String()
	}
	return g
}

func (g *ganged) want(t *testing.T, target error) {
	t.Helper()
	for r, err := range g.errs {
		if !errors.Is(err, target) {
			t.Errorf("rank %d: %v, want %v\n%s", r, err, target, g.out[r])
		}
	}
}

// last returns what follows the last occurrence of mark in its line.
func last(t *testing.T, out, mark string) string {
	t.Helper()
	i := strings.LastIndex(out, mark)
	if i < 0 {
		t.Fatalf("no %q in %q", mark, out)
	}
	word, _, _ := strings.Cut(strings.TrimRight(out[i+len(mark):], "\n"), "\n")
	return word
}

func losses(t *testing.T, out string) (all []float64) {
	t.Helper()
	for line := range strings.Lines(out) {
		var step int
		var loss float64
		if n, _ := fmt.Sscanf(line, "step %d loss %f", &step, &loss); n == 2 {
			all = append(all, loss)
		}
	}
	return all
}

func TestLossFalls(t *testing.T) {
	dir := t.TempDir()
	g := play{args: []string{"-steps", "120", "-rate", "0.1"}, env: map[string]string{beat.EnvDir: dir}}.run(t)
	g.want(t, nil)
	all := losses(t, g.out[0])
	if len(all) != 12 {
		t.Fatalf("%d lines of loss:\n%s", len(all), g.out[0])
	}
	for i := 1; i < len(all); i++ {
		if all[i] >= all[i-1] {
			t.Errorf("the loss rose from %v to %v", all[i-1], all[i])
		}
	}
	if all[11] > all[0]/5 {
		t.Errorf("the loss fell from %v to %v only", all[0], all[11])
	}
	for r := 1; r < ranks; r++ {
		if got, want := last(t, g.out[r], "weights "), last(t, g.out[0], "weights "); got != want {
			t.Errorf("rank %d ends with weights %s, rank 0 with %s", r, got, want)
		}
	}
	if runs, err := beat.ReadRuns(dir); err != nil || len(runs) != ranks {
		t.Errorf("%d traces of beats, %v", len(runs), err)
	}
}

func TestResumeGoesOnBitForBit(t *testing.T) {
	args := []string{"-steps", "90", "-pace", "1ms", "-checkpoint-every", "7", "-report-every", "1"}
	whole := play{args: args}.run(t)
	whole.want(t, nil)
	want := last(t, whole.out[0], "done: ")
	for stopped := range 2 {
		env := map[string]string{"CHECKPOINT": filepath.Join(t.TempDir(), "state")}
		p := play{args: args, env: env, stop: stopped, atLine: "step 40 "}
		broken := p.run(t)
		broken.want(t, errStopped)
		env[gpuai.EnvToken] = "2000"
		resumed := play{args: args, env: env}.run(t)
		resumed.want(t, nil)
		if at, _ := strconv.Atoi(last(t, resumed.out[3], "starts at step ")); at < 41 {
			t.Errorf("rank 3 starts at step %d", at)
		}
		if got := last(t, resumed.out[0], "done: "); got != want {
			t.Errorf("resumed: %s; unbroken: %s", got, want)
		}
		again := play{args: args, env: env}.run(t)
		again.want(t, nil)
		if got := last(t, again.out[2], "done: "); got != want {
			t.Errorf("after the end: %s; unbroken: %s", got, want)
		}
	}
}

// A peer that speaks the protocol up to a step, and then is gone.
func TestLostPeer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	port := freePort(t)
	env := map[string]string{"CHECKPOINT": file}
	args := []string{"-steps", "1000", "-pace", "1ms", "-checkpoint-every", "1000"}
	errs := make(chan error, 1)
	go func() { errs <- run(t.Context(), args, environ(0, 2, port, env), new(bytes.Buffer)) }()
	cfg, err := parseConfig(args, environ(1, 2, port, env))
	if err != nil {
		t.Fatal(err)
	}
	peer := newTrainer(cfg, new(bytes.Buffer))
	g, err := join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	peer.gang = g
	if _, err := g.agree(0, peer.state); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := peer.one(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.close()
	err = <-errs
	if exitCode(err) != 1 || !errors.Is(err, errLost) || !strings.Contains(err.Error(), "rank 1 was lost at step 3") {
		t.Errorf("got %v, exit code %d", err, exitCode(err))
	}
	v := vault{path: file, token: 1000}
	if c, err := v.claim(len(peer.state)); err != nil || c == nil || c.step != 3 {
		t.Errorf("checkpoint %+v, %v, want one of step 3", c, err)
	}
}

func TestStopWhilePeersStart(t *testing.T) {
	for rank := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 1)
		go func() { errs <- run(ctx, nil, environ(rank, 2, freePort(t), nil), new(bytes.Buffer)) }()
		cancel()
		select {
		case err := <-errs:
			if exitCode(err) != 143 {
				t.Errorf("rank %d: %v, exit code %d", rank, err, exitCode(err))
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("rank %d did not stop", rank)
		}
	}
}

func TestPeersThatDoNotCome(t *testing.T) {
	args := []string{"-peer-timeout", "300ms"}
	port := freePort(t)
	err := run(t.Context(), args, environ(0, 3, port, nil), new(bytes.Buffer))
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "ranks [1 2] did not come") {
		t.Errorf("rank 0: %v", err)
	}
	err = run(t.Context(), args, environ(2, 3, port, nil), new(bytes.Buffer))
	if exitCode(err) != 1 || !strings.Contains(err.Error(), "found no rank 0 at 127.0.0.1:"+port) {
		t.Errorf("rank 2: %v", err)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	port := freePort(t)
	errs := make(chan error, 1)
	go func() {
		errs <- run(t.Context(), []string{"-peer-timeout", "2s"}, environ(0, 2, port, nil), new(bytes.Buffer))
	}()
	err := run(t.Context(), []string{"-peer-timeout", "2s", "-seed", "9"}, environ(1, 2, port, nil), new(bytes.Buffer))
	if !errors.Is(err, errLost) {
		t.Errorf("the stranger: %v", err)
	}
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("rank 0: %v", err)
	}
}

func TestWrongEnvironment(t *testing.T) {
	cases := []struct {
		name   string
		args   []string
		change map[string]string
		err    string
	}{
		{"no gang", nil, map[string]string{gpuai.EnvNodes: ""}, "run this as a gang"},
		{"no rank", nil, map[string]string{gpuai.EnvNodeRank: ""}, "GPUAI_NODE_RANK is not set"},
		{"rank beyond the gang", nil, map[string]string{gpuai.EnvNodeRank: "4"}, "from 0 to 3"},
		{"no master", nil, map[string]string{gpuai.EnvMasterAddr: ""}, "MASTER_ADDR is not set"},
		{"no port", nil, map[string]string{gpuai.EnvMasterPort: "http"}, "MASTER_PORT"},
		{"bad token", nil, map[string]string{gpuai.EnvToken: "x"}, gpuai.EnvToken},
		{"bad token, with beats", nil, map[string]string{gpuai.EnvToken: "x", beat.EnvDir: os.TempDir()}, gpuai.EnvToken},
		{"unknown flag", []string{"-stepz", "1"}, nil, "stepz"},
		{"argument", []string{"more"}, nil, "no flag"},
		{"no steps", []string{"-steps", "0"}, nil, "-steps"},
		{"few samples", []string{"-samples", "3"}, nil, "-samples"},
		{"rate is no number", []string{"-rate", "NaN"}, nil, "-rate"},
		{"no neurons", []string{"-hidden", "0"}, nil, "-hidden"},
		{"never a checkpoint", []string{"-checkpoint-every", "0"}, nil, "-checkpoint-every"},
		{"no patience", []string{"-peer-timeout", "0s"}, nil, "-peer-timeout"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := run(t.Context(), c.args, environ(1, ranks, "1", c.change), new(bytes.Buffer))
			if exitCode(err) != 2 || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, exit code %d, want %q", err, exitCode(err), c.err)
			}
		})
	}
}

func TestDivergenceIsAnError(t *testing.T) {
	args := []string{"-rate", "1e308", "-steps", "50", "-hidden", "4"}
	err := run(t.Context(), args, environ(0, 1, "", nil), new(bytes.Buffer))
	if err == nil || !strings.Contains(err.Error(), "smaller -rate") {
		t.Errorf("got %v", err)
	}
}
