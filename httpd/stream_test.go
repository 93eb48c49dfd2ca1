package httpd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/getkin/kin-openapi/openapi3"

	"github.com/gpuai/gpuai"
)

// stream opens a stream and returns a function for its next line that is no
// sign of life; it fails the test after 5 s.
func stream(t *testing.T, url string, headers ...string) (next func() string, resp *http.Response) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		t.Helper()
		late := time.AfterFunc(5*time.Second, cancel)
		defer late.Stop()
		for lines.Scan() {
			if text := lines.Text(); text != "" && text != ":" {
				return text
			}
		}
		return fmt.Sprintf("end: %v", lines.Err())
	}, resp
}

func TestEventsAsLines(t *testing.T) {
	b := newTwin()
	s, doc := serve(t, b), newContract(t).doc
	next, resp := stream(t, s.URL+"/v1/events")
	if resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Error(resp.Header)
	}
	ask(t, s, "POST", "/v1/nodes/gpu-0/drain", "")
	ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	for i, kind := range []string{"node_changed", "job_submitted"} {
		line := next()
		e := object(t, line)
		if e["kind"] != kind || e["index"] != float64(11+i) {
			t.Errorf("%s, want %s", line, kind)
		}
		if err := doc.Components.Schemas["Event"].Value.VisitJSON(map[string]any(e), openapi3.MultiErrors()); err != nil {
			t.Error(err)
		}
	}
	next, _ = stream(t, s.URL+"/v1/events?index=10&node=gpu-0")
	if line := next(); object(t, line)["node"] != "gpu-0" {
		t.Error(line)
	}
}

func TestEventsAsSSE(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	b.mu.Lock()
	for i := range 3 { // one index with three events
		e := gpuai.Event{Index: 11, Ordinal: uint32(i), Kind: gpuai.LeaseGrantedEvent}
		b.events = append(b.events, e)
	}
	b.index = 11
	b.mu.Unlock()
	next, resp := stream(t, s.URL+"/v1/events?index=10", "Accept: text/event-stream")
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Error(resp.Header)
	}
	var got []string
	for range 7 {
		name, value, _ := strings.Cut(next(), ": ")
		if name == "data" {
			value = fmt.Sprint(object(t, value)["ordinal"])
		}
		got = append(got, name+"="+value)
	}
	want := "[event=lease_granted data=0 event=lease_granted data=1 event=lease_granted id=11 data=2]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v\nwant %s: only an index's last event has its id", got, want)
	}
	ask(t, s, "POST", "/v1/nodes/gpu-0/drain", "")
	next, _ = stream(t, s.URL+"/v1/events?index=3", "Accept: text/event-stream", "Last-Event-ID: 11")
	if line := next(); line != "event: node_changed" {
		t.Errorf("resumed after 11 with %q", line)
	}
}

func TestEventsReset(t *testing.T) {
	b := newTwin()
	b.first = 8
	s := serve(t, b)
	next, _ := stream(t, s.URL+"/v1/events?index=3")
	if line := next(); line != `{"kind":"reset","index":10}` {
		t.Fatal(line)
	}
	ask(t, s, "POST", "/v1/nodes/gpu-0/drain", "")
	if line := next(); !strings.Contains(line, "node_changed") {
		t.Errorf("after the reset: %s", line)
	}
	next, _ = stream(t, s.URL+"/v1/events", "Last-Event-ID: 3", "Accept: text/event-stream")
	for _, want := range []string{"event: reset", "id: 11", `data: {"kind":"reset","index":11}`} {
		if line := next(); line != want {
			t.Errorf("%q, want %q", line, want)
		}
	}
}

// An index that another server told of is waited for, so that a job that was
// just submitted there is found here.
func TestEventsCatchUp(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	done := make(chan error, 1)
	go func() {
		<-entered(s.Config.Handler.(*api), classStream)
		job := gpuai.JobSpec{Name: "a", Groups: make([]gpuai.Group, 1)}
		_, err := b.Submit(context.Background(), SubmitRequest{Spec: &job})
		done <- err
	}()
	next, resp := stream(t, s.URL+"/v1/events?index=11&job="+gpuai.JobID{0: 1}.String())
	if resp.StatusCode != 200 {
		t.Fatal(next())
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.commit(gpuai.Event{Kind: gpuai.JobEnded, Job: gpuai.JobID{0: 1}})
	b.mu.Unlock()
	if line := next(); !strings.Contains(line, "job_ended") {
		t.Error(line)
	}
}

// entered returns a channel that is closed once a request of class c is under
// way.
func entered(a *api, c class) <-chan struct{} {
	in := make(chan struct{})
	go func() {
		defer close(in)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for inFlight(a, c) == 0 {
			<-tick.C
		}
	}()
	return in
}

// flooding sends events without end.
type flooding struct{ *twin }

func (flooding) Events(ctx context.Context, q EventQuery, f func([]gpuai.Event, uint64) error) error {
	batch := make([]gpuai.Event, 1000)
	for i := range batch {
		batch[i] = gpuai.Event{Index: q.From + 1, Ordinal: uint32(i), Kind: gpuai.LeaseStarted}
	}
	for ctx.Err() == nil {
		if err := f(batch, q.From+1); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// A reader that does not read is cut; nothing is kept for it.
func TestSlowReaderIsCut(t *testing.T) {
	s := serve(t, flooding{newTwin()}, func(c *Config) { c.WriteTimeout = 200 * time.Millisecond })
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
	before := heap()
	cut := func() bool { return inFlight(s.Config.Handler.(*api), classStream) == 0 }
	waitFor(t, "the stream to begin", func() bool { return !cut() })
	waitFor(t, "the stream to be cut", cut)
	if after := heap(); after > before+32<<20 {
		t.Errorf("the heap grew by %d MiB for it", (after-before)>>20)
	}
}

func inFlight(a *api, c class) int64 { return a.gate.counter(c).Load() }

// waitFor polls a condition for at most 10 s.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestStreamsEndWithTheirReader(t *testing.T) {
	s := serve(t, newTwin())
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/v1/events", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	waitFor(t, "the stream to end", func() bool { return inFlight(s.Config.Handler.(*api), classStream) == 0 })
}

func TestLogs(t *testing.T) {
	b := newTwin()
	b.output = []byte("one\ntwo\n")
	s := serve(t, b)
	ask(t, s, "POST", "/v1/jobs", spec("a", 1, 1))
	resp, body := ask(t, s, "GET", "/v1/jobs/a/logs?offset=-4", "")
	if body != "two\n" || resp.Header.Get(headerLogOffset) != "4" || resp.Header.Get(headerLogEOF) != "false" ||
		resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%q %v", body, resp.Header)
	}
	_, body = ask(t, s, "GET", "/v1/jobs/a/logs?limit=3", "", "Accept: application/json")
	if c := object(t, body); c["data"] != "b25l" || c["offset"] != float64(0) {
		t.Error(body)
	}
	if resp, _ := ask(t, s, "GET", "/v1/jobs/a/logs?follow=true", "", "Accept: application/json"); resp.StatusCode != 400 {
		t.Error("follow as JSON was taken")
	}
	for _, q := range []string{"times=true", "attempt=1&lease=5", "since_ms=-1", "tail=x"} {
		if resp, body := ask(t, s, "GET", "/v1/jobs/a/logs?"+q, ""); resp.StatusCode != 400 {
			t.Errorf("%s: %d %s", q, resp.StatusCode, body)
		}
	}
	_, body = ask(t, s, "GET", "/v1/jobs/a/logs?times=true&since_ms=7&tail=2", "", "Accept: application/json")
	if c := object(t, body); fmt.Sprint(c["times"]) != "[map[at_ms:7 offset:0]]" {
		t.Error(body)
	}
	next, _ := stream(t, s.URL+"/v1/jobs/a/logs?follow=true")
	for i, line := range []string{"one", "two", "three"} {
		if i == 2 {
			b.mu.Lock()
			b.output, b.ended = append(b.output, "three\n"...), true
			b.commit(gpuai.Event{})
			b.mu.Unlock()
		}
		if got := next(); got != line {
			t.Fatalf("%q, want %q", got, line)
		}
	}
	if got := next(); got != "end: <nil>" {
		t.Errorf("after the task's end: %q", got)
	}
}

// unreadable has output that its node cannot read.
type unreadable struct{ *twin }

func (unreadable) Logs(context.Context, LogQuery) (gpuai.LogChunk, error) {
	return gpuai.LogChunk{Error: "the file is gone"}, nil
}

func TestUnreadableLogs(t *testing.T) {
	s := serve(t, unreadable{newTwin()})
	resp, body := ask(t, s, "GET", "/v1/jobs/a/logs", "")
	newContract(t).checkProblem(t, resp, body)
	if resp.StatusCode != 409 || !strings.Contains(body, "the file is gone") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// A snapshot that breaks off must not look whole.
func TestSnapshotBreaksOff(t *testing.T) {
	s := serve(t, breaking{newTwin()})
	resp, err := http.Get(s.URL + "/v1/operator/snapshot")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("half a snapshot ended like a whole one")
	}
	b := newTwin()
	b.fail = errors.New("disk")
	h := serve(t, b)
	if resp, _ := ask(t, h, "GET", "/v1/operator/snapshot?consistency=stale", ""); resp.StatusCode != 500 {
		t.Errorf("a snapshot that did not begin: %d", resp.StatusCode)
	}
}

type breaking struct{ *twin }

func (breaking) Snapshot(_ context.Context, w io.Writer) error {
	if _, err := w.Write(make([]byte, 100_000)); err != nil {
		return err
	}
	return errors.New("disk")
}

func dial(t *testing.T, url string, protocols ...string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, url+"/v1/agent/session", &websocket.DialOptions{Subprotocols: protocols})
	if err == nil {
		t.Cleanup(func() { c.CloseNow() })
		c.SetReadLimit(gpuai.MaxFrameBytes)
	}
	return c, resp, err
}

func TestAgentSession(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	c, _, err := dial(t, s.URL, gpuai.SessionProtocol)
	if err != nil {
		t.Fatal(err)
	}
	beat := `{"kind":"beat","beat":{"seq":1,"sent_boottime_ns":5}}`
	if err := c.Write(t.Context(), websocket.MessageText, []byte(beat)); err != nil {
		t.Fatal(err)
	}
	if _, got, err := c.Read(t.Context()); err != nil || string(got) != beat {
		t.Errorf("%s %v", got, err)
	}
	if n := inFlight(s.Config.Handler.(*api), classSession); n != 1 {
		t.Errorf("%d sessions are counted", n)
	}
	c.CloseNow()
	waitFor(t, "the session to end", func() bool { return inFlight(s.Config.Handler.(*api), classSession) == 0 })
}

func TestAgentSessionIsRefused(t *testing.T) {
	s := serve(t, newTwin(), func(c *Config) { c.MaxSessions = 1 })
	for _, protocol := range []string{"", "other"} {
		_, resp, err := dial(t, s.URL, protocol)
		if err == nil || resp == nil || resp.StatusCode != 400 {
			t.Errorf("protocol %q: %v", protocol, err)
		}
	}
	if _, _, err := dial(t, s.URL, gpuai.SessionProtocol); err != nil {
		t.Fatal(err)
	}
	if _, resp, err := dial(t, s.URL, gpuai.SessionProtocol); err == nil || resp.StatusCode != 429 {
		t.Errorf("one too many: %v", err)
	}
}

func TestBadFrames(t *testing.T) {
	errs := make(chan error, 1)
	b := newTwin()
	b.agent = func(ctx context.Context, c AgentConn) error {
		_, err := c.Recv(ctx)
		errs <- err
		return err
	}
	s := serve(t, b)
	for name, frame := range map[string]string{
		"no JSON":       `beat`,
		"unknown field": `{"kind":"beat","extra":1}`,
		"unknown kind":  `{"kind":"dance"}`,
		"duplicate":     `{"kind":"beat","kind":"beat"}`,
		"two frames":    `{"kind":"beat"}{"kind":"beat"}`,
		"deep":          `{"hello":` + strings.Repeat("[", 1000),
		"too large":     `{"kind":"` + strings.Repeat("a", gpuai.MaxFrameBytes) + `"}`,
		"nulls":         `{"kind":"devices","devices":[` + strings.Repeat("null,", 300_000) + `null]}`,
	} {
		c, _, err := dial(t, s.URL, gpuai.SessionProtocol)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Write(t.Context(), websocket.MessageText, []byte(frame)) // the server may cut it short
		if err := <-errs; err == nil {
			t.Errorf("%s was taken", name)
		}
		if _, _, err := c.Read(t.Context()); err == nil {
			t.Errorf("%s: the session went on", name)
		}
	}
	c, _, err := dial(t, s.URL, gpuai.SessionProtocol)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Write(t.Context(), websocket.MessageBinary, []byte(`{"kind":"beat"}`))
	if err := <-errs; err == nil {
		t.Error("a binary frame was taken")
	}
}
