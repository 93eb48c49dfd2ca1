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
	conn, err := websocket.Accept(lean{c.w}, c.r, &websocket.AcceptOptions{
		Subprotocols: []string{gpuai.SessionProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		c.status = http.StatusBadRequest // Accept has answered
		return fmt.Errorf("accept an agent's session: %w", err)
	}
	c.status = http.StatusSwitchingProtocols
	conn.SetReadLimit(gpuai.MaxFrameBytes)
	c.lasting = true
	go c.api.session(&agentConn{conn: conn, addr: c.r.RemoteAddr}, c.id)
	return nil
}

// session has the backend serve an agent until one of them ends it. It is no
// part of the request, which is over: its buffers and its goroutine's stack
// would be several times what a session needs.
func (a *api) session(agent *agentConn, request string) {
	defer a.gate.leave(classSession)
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("an agent's session panicked", "request_id", request, "panic", p, "stack", string(debug.Stack()))
			_ = agent.conn.CloseNow()
		}
	}()
	// A hijacked request's context does not end with the connection; Recv does.
	err := a.backend.Agent(context.Background(), agent)
	if err == nil || errors.Is(err, context.Canceled) {
		_ = agent.conn.Close(websocket.StatusNormalClosure, "") // the peer may be gone
		return
	}
	_ = agent.conn.CloseNow()
	a.log.Debug("an agent's session ended", "request_id", request, "error", err)
}

// Buffers of a session: an agent's frames are small, and a set of leases for it
// mostly fits in one write. What is larger goes past them.
const (
	sessionReads  = 512
	sessionWrites = 2_048
)

// lean hands a connection over with small buffers, not those of a request.
type lean struct{ http.ResponseWriter }

// Unwrap is what http.ResponseController asks for.
func (l lean) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// Hijack implements http.Hijacker.
func (l lean) Hijack() (net.Conn, *bufio.ReadWriter, error) {
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
	return conn, bufio.NewReadWriter(r, bufio.NewWriterSize(conn, sessionWrites)), nil
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
	conn *websocket.Conn
	addr string
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

// Send implements AgentConn.
func (a *agentConn) Send(ctx context.Context, f gpuai.Frame) error {
	w, err := a.conn.Writer(ctx, websocket.MessageText)
	if err != nil {
		return err
	}
	if err := json.MarshalWrite(w, &f); err != nil {
		return err
	}
	return w.Close()
}

// RemoteAddr implements AgentConn.
func (a *agentConn) RemoteAddr() string { return a.addr }
