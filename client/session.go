package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// A Session is an agent's connection to one server. Send and Recv may run
// beside each other, each from one goroutine at a time.
type Session struct{ ws *websocket.Conn }

// DialSession opens an agent session to one server, by its URL.
func (c *Client) DialSession(ctx context.Context, addr string) (*Session, error) {
	h := http.Header{}
	if !c.token.IsZero() {
		h.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	ws, res, err := websocket.Dial(ctx, addr+"/v1/agent/session", &websocket.DialOptions{
		HTTPClient: c.http, HTTPHeader: h, Subprotocols: []string{gpuai.SessionProtocol},
	})
	if err != nil {
		if res != nil && res.Body != nil && res.StatusCode >= 400 {
			return nil, problem(res)
		}
		if refused := certificateRefused(err); refused != nil {
			return nil, refused
		}
		return nil, fmt.Errorf("opening a session with %s: %w", addr, err)
	}
	if ws.Subprotocol() != gpuai.SessionProtocol {
		ws.CloseNow()
		return nil, fmt.Errorf("the server at %s does not speak %s: is it a GPUAI server of this version?", addr, gpuai.SessionProtocol)
	}
	ws.SetReadLimit(gpuai.MaxFrameBytes)
	return &Session{ws}, nil
}

// Send sends a frame.
func (s *Session) Send(ctx context.Context, f gpuai.Frame) error {
	b, err := json.Marshal(&f)
	if err != nil {
		return fmt.Errorf("encoding a %s frame: %w", f.Kind, err)
	}
	if len(b) > gpuai.MaxFrameBytes {
		return fmt.Errorf("a %s frame of %d bytes is larger than the limit of %d", f.Kind, len(b), gpuai.MaxFrameBytes)
	}
	return s.ws.Write(ctx, websocket.MessageText, b)
}

// Recv waits for the next frame.
func (s *Session) Recv(ctx context.Context) (gpuai.Frame, error) {
	var f gpuai.Frame
	typ, b, err := s.ws.Read(ctx)
	if err != nil {
		return f, err
	}
	if typ != websocket.MessageText {
		return f, errors.New("the server sent a frame that is no text")
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("decoding a frame: %w", err)
	}
	return f, nil
}

// Close ends the session without waiting for the server.
func (s *Session) Close() error { return s.ws.CloseNow() }
