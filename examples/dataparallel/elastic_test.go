package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// An elastic gang of 2 to 4 in this process.
type elasticGang struct {
	t    *testing.T
	args []string
	env  map[string]string
	port string
	out  [ranks]*watched
	errs [ranks]chan error
	stop [ranks]context.CancelFunc
}

func newElasticGang(t *testing.T, args ...string) *elasticGang {
	return &elasticGang{t: t, args: args, port: freePort(t), env: map[string]string{
		gpuai.EnvNodesMin: "2", gpuai.EnvNodesMax: strconv.Itoa(ranks), "CHECKPOINT": filepath.Join(t.TempDir(), "state"),
	}}
}

// start starts a rank, when then is done with each of what it has printed.
func (g *elasticGang) start(rank int, then func(out string)) {
	ctx, cancel := context.WithCancel(g.t.Context())
	g.t.Cleanup(cancel)
	g.stop[rank], g.out[rank], g.errs[rank] = cancel, &watched{seen: then}, make(chan error, 1)
	errs, out := g.errs[rank], g.out[rank]
	go func() { errs <- run(ctx, g.args, environ(rank, 2, g.port, g.env), out) }()
}

func (g *elasticGang) wait(rank int, target error) string {
	g.t.Helper()
	if err := <-g.errs[rank]; !errors.Is(err, target) {
		g.t.Errorf("rank %d: %v, want %v\n%s", rank, err, target, g.out[0].buf.String())
	}
	return g.out[rank].buf.String()
}

// done says that rank 0 has printed something, once.
func done(mark string) (seen func(string), there chan struct{}) {
	there = make(chan struct{})
	open := true
	return func(s string) {
		if open && strings.Contains(s, mark) {
			open = false
			close(there)
		}
	}, there
}

// Members come and go, one without a word, and the weights are those of a fixed
// gang of full size, to the last bit.
func TestElasticTrainingIsThatOfTheFullGang(t *testing.T) {
	args := []string{"-steps", "400", "-pace", "2ms", "-report-every", "1"}
	whole := play{args: args}.run(t)
	whole.want(t, nil)
	want := last(t, whole.out[0], "done: ")

	g := newElasticGang(t, args...)
	marks := []string{"step 20 ", "members [0 1 2 3]", "step 120 ", "members [0 1 3]", "step 200 ", "members [0 3]", "members [0 2 3]"}
	var at []chan struct{}
	var seen []func(string)
	for _, m := range marks {
		f, c := done(m)
		seen, at = append(seen, f), append(at, c)
	}
	g.start(0, func(s string) {
		for _, f := range seen {
			f(s)
		}
	})
	g.start(1, nil)
	<-at[0]
	g.start(3, nil)
	g.start(2, nil)
	<-at[1] // all four
	<-at[2]
	g.stop[2]() // is drained
	g.wait(2, errStopped)
	<-at[3]
	<-at[4]
	g.stop[1]() // is drained as well
	g.wait(1, errStopped)
	<-at[5]
	g.start(2, nil) // a place elsewhere
	<-at[6]
	mute(t, g) // and one that dies without a word
	out := g.wait(0, nil)
	if got := last(t, out, "done: "); got != want {
		t.Errorf("elastic: %s\nof full size: %s\n%s", got, want, out)
	}
	for _, r := range []int{2, 3} {
		if got := last(t, g.wait(r, nil), "weights "); got != last(t, want, "weights ") {
			t.Errorf("rank %d ends with weights %s", r, got)
		}
	}
}

// mute joins as rank 1 and hangs up once it was given work.
func mute(t *testing.T, g *elasticGang) {
	t.Helper()
	cfg, err := parseConfig(g.args, environ(1, 2, g.port, g.env))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", cfg.master)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	run := cfg.fingerprint()
	peer := newTrainer(cfg, new(bytes.Buffer))
	if err := writeMessage(conn, &message{kind: kindHello, run: run, number: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn, &message{kind: kindState, run: run, values: peer.state}); err != nil {
		t.Fatal(err)
	}
	if m, err := readMessage(conn, &message{kind: kindWork, run: run, values: make([]float64, 2)}); err != nil || m.values[1] != 4 {
		t.Fatalf("%+v, %v", m, err)
	}
}

// When rank 0 is told to stop all stop, and a gang that is placed again goes on
// from its checkpoint.
func TestElasticTrainingResumes(t *testing.T) {
	args := []string{"-steps", "90", "-pace", "1ms", "-checkpoint-every", "7", "-report-every", "1"}
	whole := play{args: args}.run(t)
	whole.want(t, nil)
	g := newElasticGang(t, args...)
	seen, at := done("step 40 ")
	g.start(0, seen)
	g.start(1, nil)
	<-at
	g.stop[0]()
	g.wait(0, errStopped)
	g.wait(1, errStopped)
	g.env[gpuai.EnvToken] = "2000"
	g.start(0, nil)
	g.start(3, nil)
	out := g.wait(0, nil)
	g.wait(3, nil)
	if got, want := last(t, out, "done: "), last(t, whole.out[0], "done: "); got != want || !strings.Contains(out, "resumed from the checkpoint") {
		t.Errorf("resumed: %s; unbroken: %s\n%s", got, want, out)
	}
}

// Members that lose rank 0 end: the gang is placed again. Too few do not start.
func TestElasticTrainingEnds(t *testing.T) {
	g := newElasticGang(t, "-peer-timeout", "300ms")
	g.start(0, nil)
	if err := <-g.errs[0]; exitCode(err) != 1 || !strings.Contains(err.Error(), "for 2 members, and only [0] came") {
		t.Errorf("alone: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+g.port)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g.args = nil
	g.start(2, nil)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := <-g.errs[2]; exitCode(err) != 1 || !errors.Is(err, errLost) {
		t.Errorf("without rank 0: %v", err)
	}
	g.env[gpuai.EnvNodesMin] = "5"
	if _, err := parseConfig(nil, environ(1, 2, g.port, g.env)); err == nil || !strings.Contains(err.Error(), "GPUAI_NODES_MIN") {
		t.Errorf("a least above the most: %v", err)
	}
}
