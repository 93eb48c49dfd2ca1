package httpd

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// TestCase26AcceptRate: agents that all come at once are let in at a bounded
// rate, and those for whom there is no turn within a second are sent away with
// a time to come back.
func TestCase26AcceptRate(t *testing.T) {
	const perSecond, agents = 20, 60
	s := serve(t, newTwin(), func(c *Config) { c.SessionsPerSecond = perSecond })
	began := time.Now()
	var opened, refused atomic.Int64
	var wg sync.WaitGroup
	for range agents {
		wg.Go(func() {
			_, resp, err := dial(t, s.URL, gpuai.SessionProtocol)
			switch {
			case err == nil:
				opened.Add(1)
			case resp != nil && resp.StatusCode == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "":
				refused.Add(1)
			default:
				t.Errorf("an agent was answered %v: %v", resp, err)
			}
		})
	}
	wg.Wait()
	// The burst is a tenth, and whoever waits does so for a second at most.
	most := perSecond/10 + int64(perSecond*(time.Since(began).Seconds()+0.1))
	if n := opened.Load(); n < perSecond || n > most {
		t.Errorf("%d of %d agents were let in within %v, want %d to %d", n, agents, time.Since(began), perSecond, most)
	}
	if refused.Load() == 0 || opened.Load()+refused.Load() != agents {
		t.Errorf("%d let in and %d sent away, of %d", opened.Load(), refused.Load(), agents)
	}
}

// An agent may send its first frame right behind the request that opens the
// session: what the server has read of it already is not lost.
func TestSessionKeepsWhatCameBehindItsRequest(t *testing.T) {
	got := make(chan gpuai.Frame, 1)
	tw := newTwin()
	tw.agent = func(ctx context.Context, c AgentConn) error {
		f, err := c.Recv(ctx)
		got <- f
		return err
	}
	s := serve(t, tw)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := "GET /v1/agent/session HTTP/1.1\r\nHost: " + s.Listener.Addr().String() + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + gpuai.SessionProtocol + "\r\n\r\n"
	// Larger than the session's own buffer; masked with zeroes.
	text := `{"kind":"beat","beat":{"seq":7,"sent_boottime_ns":1}` + strings.Repeat(" ", 3*sessionReads) + "}"
	frame := append([]byte{0x81, 0x80 | 126, byte(len(text) >> 8), byte(len(text)), 0, 0, 0, 0}, text...)
	if _, err := conn.Write(append([]byte(request), frame...)); err != nil {
		t.Fatal(err)
	}
	select {
	case f := <-got:
		if f.Beat == nil || f.Beat.Seq != 7 {
			t.Errorf("the server read %+v", f)
		}
	case <-time.After(10 * time.Second):
		t.Error("the frame was lost")
	}
}

// A session that panics ends alone, and frees its place.
func TestSessionThatPanics(t *testing.T) {
	tw := newTwin()
	tw.agent = func(context.Context, AgentConn) error { panic("a defect") }
	s := serve(t, tw)
	conn, _, err := dial(t, s.URL, gpuai.SessionProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the connection goes on")
	}
	waitFor(t, "the session's place", func() bool { return inFlight(s.Config.Handler.(*api), classSession) == 0 })
}
