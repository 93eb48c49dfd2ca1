package httpd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// maxFrameValues bounds the values of one frame.
const maxFrameValues = 1 << 18

// session answers GET /v1/agent/session: it accepts the WebSocket and hands it
// to the backend until one of them ends it.
func (c *call) session() error {
	if !c.offers(gpuai.SessionProtocol) {
		return gpuai.NewError(gpuai.InvalidSpec, "this path is for agents: a WebSocket with the subprotocol "+gpuai.SessionProtocol)
	}
	if err := c.turn(); err != nil {
		return err
	}
	w := &lean{ResponseWriter: c.w}
	conn, err := websocket.Accept(w, c.r, &websocket.AcceptOptions{
		Subprotocols: []string{gpuai.SessionProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		c.status = http.StatusBadRequest // Accept has answered
		return fmt.Errorf("accept an agent's session: %w", err)
	}
	c.status = http.StatusSwitchingProtocols
	conn.SetReadLimit(gpuai.MaxFrameBytes)
	c.lasting = true
	go c.api.session(WithPrincipal(context.Background(), c.who), &agentConn{conn: conn, wire: w.wire, addr: c.r.RemoteAddr}, c.id)
	return nil
}

// session has the backend serve an agent until one of them ends it. It is no
// part of the request, which is over: its buffers and its goroutine's stack
// would be several times what a session needs.
func (a *api) session(ctx context.Context, agent *agentConn, request string) {
	defer a.gate.leave(classSession)
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("an agent's session panicked", "request_id", request, "panic", p, "stack", string(debug.Stack()))
			_ = agent.conn.CloseNow()
		}
	}()
	// A hijacked request's context does not end with the connection; Recv does.
	err := a.backend.Agent(ctx, agent)
	if err == nil || errors.Is(err, context.Canceled) {
		_ = agent.conn.Close(websocket.StatusNormalClosure, "") // the peer may be gone
		return
	}
	_ = agent.conn.CloseNow()
	a.log.Debug("an agent's session ended", "request_id", request, "error", err)
}

// Buffers of a session. An agent's frames are small, and what is larger goes past
// the buffer; a frame for it is collected elsewhere, see wire.
const (
	sessionReads  = 512
	sessionWrites = 16 // the least that bufio takes
)

// lean hands a connection over with small buffers, not those of a request.
type lean struct {
	http.ResponseWriter
	wire *wire // once it was handed over
}

// Unwrap is what http.ResponseController asks for.
func (l *lean) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// Hijack implements http.Hijacker.
func (l *lean) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(l.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	n := rw.Reader.Buffered() // what came behind the request
	early, err := rw.Reader.Peek(n)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	r := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn), max(n, sessionReads))
	if _, err := r.Peek(n); err != nil { // in the buffer, where it is looked for
		return nil, nil, errors.Join(err, conn.Close())
	}
	l.wire = &wire{Conn: conn}
	return l.wire, bufio.NewReadWriter(r, bufio.NewWriterSize(l.wire, sessionWrites)), nil
}

// A wire is a session's connection. What is written to it between hold and
// release goes out in one piece.
type wire struct {
	net.Conn
	mu   sync.Mutex    // held while something is written; guards below
	held *bytes.Buffer // nil: nothing is held
}

// frames keeps buffers for what is written: idle sessions have none.
var frames = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// keptFrame is the largest buffer that frames keeps.
const keptFrame = 64 << 10

func keepFrame(b *bytes.Buffer) {
	if b.Cap() <= keptFrame {
		b.Reset()
		frames.Put(b)
	}
}

// Write implements io.Writer.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held != nil {
		return w.held.Write(p)
	}
	if err := w.SetWriteDeadline(time.Time{}); err != nil { // that of what was held last
		return 0, err
	}
	return w.Conn.Write(p)
}

func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = frames.Get().(*bytes.Buffer)
}

// release writes what was held, until a deadline; zero is none.
func (w *wire) release(deadline time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.held
	w.held = nil
	defer keepFrame(b)
	if b.Len() == 0 {
		return nil
	}
	if err := w.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := w.Conn.Write(b.Bytes())
	return err
}

// maxTurn is for how long an agent waits for its turn; it has two seconds to
// connect.
const maxTurn = time.Second

// turn waits until one more session may be opened. Agents that would wait for
// long are sent away before anything was done for them.
func (c *call) turn() error {
	r := c.api.opening.Reserve()
	wait := r.Delay()
	if wait > maxTurn {
		r.Cancel()
		return &gpuai.Error{
			Code: gpuai.RateLimited, RetryAfter: gpuai.Duration(wait / time.Millisecond),
			Detail: "more agents come at once than this server takes; retry, or go to another server",
		}
	}
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.r.Context().Done():
		return c.r.Context().Err()
	}
}

// offers reports whether the caller speaks a WebSocket subprotocol.
func (c *call) offers(protocol string) bool {
	for _, line := range c.r.Header.Values("Sec-WebSocket-Protocol") {
		if slices.ContainsFunc(strings.Split(line, ","), func(s string) bool { return strings.TrimSpace(s) == protocol }) {
			return true
		}
	}
	return false
}

// agentConn is an AgentConn over a WebSocket.
type agentConn struct {
	conn    *websocket.Conn
	wire    *wire
	addr    string
	sending sync.Mutex // from hold to release
}

var _ AgentConn = (*agentConn)(nil)

// Recv implements AgentConn. A frame that is no frame ends the session.
func (a *agentConn) Recv(ctx context.Context) (f gpuai.Frame, err error) {
	kind, r, err := a.conn.Reader(ctx)
	if err != nil {
		return f, err
	}
	if kind != websocket.MessageText {
		return f, gpuai.NewError(gpuai.InvalidSpec, "frames are JSON text")
	}
	return decodeFrame(r)
}

// decodeFrame reads one frame: strict, and nothing after it.
func decodeFrame(r io.Reader) (f gpuai.Frame, err error) {
	g := &guard{r: r, limit: maxFrameValues}
	if err := json.UnmarshalRead(g, &f, strict); err != nil {
		if g.err != nil {
			return f, g.err
		}
		return f, explainJSON(err)
	}
	return f, nil
}

// Send implements AgentConn. Of ctx it heeds the deadline; what ends a session
// closes its connection, and so ends a Send that waits.
func (a *agentConn) Send(ctx context.Context, f gpuai.Frame) error {
	b := frames.Get().(*bytes.Buffer)
	defer keepFrame(b)
	if err := json.MarshalWrite(b, &f); err != nil {
		return err
	}
	a.sending.Lock()
	defer a.sending.Unlock()
	a.wire.hold()
	err := a.conn.Write(context.Background(), websocket.MessageText, b.Bytes()) // to memory
	deadline, _ := ctx.Deadline()
	return errors.Join(err, a.wire.release(deadline))
}

// RemoteAddr implements AgentConn.
func (a *agentConn) RemoteAddr() string { return a.addr }
