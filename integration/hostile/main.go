package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	bin, role, addr, from      string
	rounds, rate, flooders     int
	conns, holders, tenantRate int
	each                       time.Duration
	json                       bool
}

func main() {
	var o options
	flag.StringVar(&o.bin, "gpuai", "bin/gpuai", "the command that is measured")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each situation is measured, by turns")
	flag.DurationVar(&o.each, "each", 6*time.Second, "how long each time")
	flag.IntVar(&o.rate, "rate", 100, "requests a second of the probe, submits and reads by turns")
	flag.IntVar(&o.flooders, "flooders", 64, "connections of the flood, each of which sends as fast as it is answered")
	flag.IntVar(&o.tenantRate, "tenant-rate", 200, "the server's --tenant-rate")
	flag.IntVar(&o.conns, "conns", 4_500, "connections of each process that holds some")
	flag.IntVar(&o.holders, "holders", 2, "processes that hold connections")
	flag.BoolVar(&o.json, "json", false, "print the figures as JSON")
	flag.StringVar(&o.role, "role", "", "of a process that this one starts: flood or hold")
	flag.StringVar(&o.addr, "addr", "", "the server, of such a process")
	flag.StringVar(&o.from, "from", "", "its own address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch o.role {
	case "flood":
		err = o.flood(ctx)
	case "hold":
		err = o.hold(ctx)
	default:
		err = o.measure(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

// A row is what the probe saw in one situation.
type row struct {
	What     string  `json:"what"`
	Requests int     `json:"requests"`
	Failed   int     `json:"failed"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	// Harm is what the hostile processes said of themselves.
	Harm []string `json:"harm,omitempty"`

	took []time.Duration
}

// measure runs the server and the rounds.
func (o *options) measure(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "gpuai-hostile-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	stop, err := o.serve(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	quiet, flood, held := row{What: "quiet"}, row{What: "beside a flood"}, row{What: "beside held connections"}
	for i := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", i+1, o.rounds)
		o.probe(ctx, &quiet)
		if err := o.beside(ctx, &flood, "flood", 1); err != nil {
			return err
		}
		o.probe(ctx, &quiet)
		if err := o.beside(ctx, &held, "hold", o.holders); err != nil {
			return err
		}
	}
	rows := []*row{&quiet, &flood, &held}
	for _, r := range rows {
		r.sum()
	}
	if o.json {
		return json.NewEncoder(os.Stdout).Encode(rows)
	}
	for _, r := range rows {
		fmt.Printf("%-26s %6d requests, %d failed   p50 %7.2f ms   p99 %7.2f ms   p99 is %.2f of quiet\n", r.What, r.Requests, r.Failed, r.P50, r.P99, r.P99/quiet.P99)
		for _, h := range r.Harm {
			fmt.Println("    " + h)
		}
	}
	return ctx.Err()
}

// serve runs a server until stop is called.
func (o *options) serve(ctx context.Context, dir string) (stop func(), err error) {
	ports := make([]string, 2)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		ports[i] = l.Addr().String()
		l.Close()
	}
	o.addr = ports[0]
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, o.bin, "server", "run", "--id", "a", "--data", filepath.Join(dir, "a"), "--http", ports[0], "--raft", ports[1],
		"--bootstrap", "--insecure-plaintext", "--tenant-rate", strconv.Itoa(o.tenantRate), "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: run make build first, or name the command by --gpuai", err)
	}
	stop = func() { _ = cmd.Cancel(); _ = cmd.Wait(); log.Close() } // its end says nothing new
	for range 100 {
		resp, err := http.Get("http://" + o.addr + "/readyz")
		if err == nil {
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK {
			return stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	said, _ := os.ReadFile(log.Name()) // as much as there is
	return nil, fmt.Errorf("the server did not become ready: %s", said)
}

// beside runs hostile processes while the probe is at work.
func (o *options) beside(ctx context.Context, r *row, role string, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var cmds []*exec.Cmd
	var outs []*strings.Builder
	for i := range n {
		cmd := exec.CommandContext(ctx, os.Args[0], "-role", role, "-addr", o.addr, "-from", fmt.Sprintf("127.0.%d.2", i+1),
			"-flooders", strconv.Itoa(o.flooders), "-conns", strconv.Itoa(o.conns))
		out := new(strings.Builder)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		ready, err := cmd.StdinPipe() // closed when it is to begin counting
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		defer ready.Close()
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	time.Sleep(o.settle(role))
	o.probe(ctx, r)
	cancel()
	for i, cmd := range cmds {
		_ = cmd.Wait() // it was told to end
		r.Harm = append(r.Harm, strings.TrimSpace(outs[i].String()))
	}
	return nil
}

// settle is how long the harm takes to be what it is.
func (o *options) settle(role string) time.Duration {
	if role == "hold" {
		return time.Second + time.Duration(o.conns/dialsPerSecond)*time.Second
	}
	return time.Second
}

// probe sends submits and reads by turns, at its rate whatever the answers take,
// and notes how long they take.
func (o *options) probe(ctx context.Context, r *row) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	defer client.CloseIdleConnections()
	type answer struct {
		took time.Duration
		ok   bool
	}
	n := int(o.each.Seconds() * float64(o.rate))
	answers := make(chan answer, n)
	tick := time.NewTicker(time.Second / time.Duration(o.rate))
	defer tick.Stop()
	for i := range n {
		<-tick.C
		go func() { // ends with its timeout at the latest
			began := time.Now()
			ok := o.ask(ctx, client, i%2 == 0)
			answers <- answer{time.Since(began), ok}
		}()
	}
	for range n {
		a := <-answers
		if r.Requests++; !a.ok {
			r.Failed++
		}
		r.took = append(r.took, a.took)
	}
}

const job = `{"name":"probe","groups":[{"resources":{"gpu":{"count":1}},"task":{"command":["true"]}}]}`

// ask sends one submit or one read.
func (o *options) ask(ctx context.Context, c *http.Client, submit bool) bool {
	method, path, body := http.MethodGet, "/v1/jobs?limit=10", io.Reader(http.NoBody)
	if submit {
		method, path, body = http.MethodPost, "/v1/jobs?hold_anyway=true", strings.NewReader(job)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+o.addr+path, body)
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode < 300
}

func (r *row) sum() {
	slices.Sort(r.took)
	at := func(q float64) float64 {
		if len(r.took) == 0 {
			return 0
		}
		return float64(r.took[min(len(r.took)-1, int(q*float64(len(r.took))))].Microseconds()) / 1e3
	}
	r.P50, r.P99 = at(0.50), at(0.99)
}
