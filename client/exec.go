package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// ExecQuery names the task beside which a command is run. Lease wins over Group
// and Task; 0 is the task's latest lease.
type ExecQuery struct {
	Job   string
	Group uint16
	Task  uint32
	Lease gpuai.Token
}

// An ExecConn is one end of a command's input and output, see
// gpuai.ExecProtocol. Recv is for one goroutine at a time, the others for any.
type ExecConn struct {
	ws *websocket.Conn
	mu sync.Mutex // held while something is sent
}

// Exec runs a command beside a task. It returns before that is known to run:
// what is received says how it went.
func (c *Client) Exec(ctx context.Context, q ExecQuery, start gpuai.ExecStart) (*ExecConn, error) {
	v := url.Values{}
	for name, n := range map[string]uint64{"group": uint64(q.Group), "task": uint64(q.Task), "lease": uint64(q.Lease)} {
		if n != 0 {
			v.Set(name, strconv.FormatUint(n, 10))
		}
	}
	var err error
	for i := range c.addrs {
		at := (int(c.at.Load()) + i) % len(c.addrs)
		var conn *ExecConn
		if conn, err = c.dialExec(ctx, c.addrs[at]+jobPath(q.Job)+"/exec?"+v.Encode()); err == nil {
			return conn, conn.Control(ctx, &gpuai.ExecControl{Start: &start})
		}
		if _, worth := again(err); !worth {
			return nil, err
		}
	}
	return nil, err
}

// AnswerExec opens an agent's end of a command at a server, by its URL.
func (c *Client) AnswerExec(ctx context.Context, addr string, r *gpuai.ExecRequest) (*ExecConn, error) {
	v := url.Values{"id": {r.ID}, "at": {string(r.Server)}}
	return c.dialExec(ctx, addr+"/v1/agent/exec?"+v.Encode())
}

func (c *Client) dialExec(ctx context.Context, url string) (*ExecConn, error) {
	h := http.Header{}
	if !c.token.IsZero() {
		h.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	ws, res, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: h, Subprotocols: []string{gpuai.ExecProtocol},
	})
	if err != nil {
		if res != nil && res.Body != nil && res.StatusCode >= 400 {
			return nil, problem(res)
		}
		return nil, &transportError{err: fmt.Errorf("opening a command's connection: %w", err)}
	}
	ws.SetReadLimit(gpuai.MaxExecMessage)
	return &ExecConn{ws: ws}, nil
}

// Recv waits for the next message: a control, or data of a stream.
func (e *ExecConn) Recv(ctx context.Context) (control *gpuai.ExecControl, s gpuai.ExecStream, data []byte, err error) {
	kind, b, err := e.ws.Read(ctx)
	switch {
	case err != nil:
		return nil, 0, nil, err
	case kind == websocket.MessageText:
		control = &gpuai.ExecControl{}
		if err := json.Unmarshal(b, control); err != nil {
			return nil, 0, nil, fmt.Errorf("decoding a message: %w", err)
		}
		return control, 0, nil, nil
	case len(b) == 0:
		return nil, 0, nil, errors.New("a message is empty")
	}
	return nil, gpuai.ExecStream(b[0]), b[1:], nil
}

// Send sends data of a stream, at most gpuai.MaxExecData.
func (e *ExecConn) Send(ctx context.Context, s gpuai.ExecStream, data []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ws.Write(ctx, websocket.MessageBinary, append([]byte{byte(s)}, data...))
}

// Control sends a control.
func (e *ExecConn) Control(ctx context.Context, c *gpuai.ExecControl) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ws.Write(ctx, websocket.MessageText, b)
}

// Close ends the connection; what was sent is delivered first, if the other
// side is there.
func (e *ExecConn) Close() error { return e.ws.Close(websocket.StatusNormalClosure, "") }
