package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/sethvargo/go-retry"

	"github.com/gpuai/gpuai"
)

// A request is one call of the API.
type request struct {
	method string
	path   string
	query  url.Values
	body   any    // sent as JSON; nil sends none
	raw    []byte // sent as it is, in place of body
	key    string // idempotency key
	kind   string // of raw; "" is JSON
	accept string // "" is JSON
	// wait is how long the answer may be held at the caller's own wish.
	wait gpuai.Duration
	// stream means that the answer may last: it has no time limit.
	stream bool
	// doubt is why it may have been done, although nobody has said so.
	doubt error
}

// Limits of one call.
const (
	maxAnswer  = 64 << 20
	retryFirst = 50 * time.Millisecond
	retryMost  = 2 * time.Second
	// retryAfterMost bounds what a server may ask a caller to wait.
	retryAfterMost = 30 * time.Second
	// jitter is in percent, both ways: callers that failed together must not
	// come again together.
	jitter = 40
)

// do makes a call, over all servers, until one answers for good or ctx ends,
// and hands the body of the answer to read.
func (c *Client) do(ctx context.Context, r request, read func(*http.Response) error) error {
	if r.body != nil {
		var err error
		if r.raw, err = json.Marshal(r.body, json.Deterministic(true)); err != nil {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "this cannot be written as JSON: " + err.Error()}
		}
	}
	wait := c.backoff(ctx)
	var told error // by a server, before the context ended
	for {
		err := c.round(ctx, &r, read)
		if err == nil {
			return nil
		}
		delay, worth := again(err)
		if !worth {
			return err
		}
		if api := new(*gpuai.Error); ctx.Err() == nil || errors.As(err, api) {
			told = err
		}
		pause, stop := wait.Next()
		if stop || ctx.Err() != nil || !c.pause(ctx, max(pause, delay), &r, err) {
			return c.final(ctx, &r, told, err)
		}
	}
}

// backoff returns the pauses between rounds.
func (c *Client) backoff(ctx context.Context) retry.Backoff {
	if c.cfg.RetryFor < 0 {
		return retry.WithMaxRetries(0, retry.NewConstant(retryFirst))
	}
	b := retry.WithJitterPercent(jitter, retry.WithCappedDuration(retryMost, retry.NewExponential(retryFirst)))
	if _, bounded := ctx.Deadline(); bounded {
		return b
	}
	return retry.WithMaxDuration(c.cfg.RetryFor, b)
}

// pause waits for d, or returns false when ctx ended.
func (c *Client) pause(ctx context.Context, d time.Duration, r *request, why error) bool {
	c.log.Debug("retrying a request", "path", r.path, "after", d, "error", why)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// final is the error of a call that was given up: what a server told last, or
// else what is known of the request; with the context's end where that was it.
// Once it may have been done, that others could not take it says nothing.
func (c *Client) final(ctx context.Context, r *request, told, err error) error {
	var broken *transportError
	if told == nil {
		told = err
	}
	switch {
	case r.doubt != nil:
		told = r.doubtful()
	case errors.As(told, &broken):
		told = c.unanswered(broken.err)
	}
	if end := ctx.Err(); end != nil {
		return fmt.Errorf("%w (%w)", told, end)
	}
	return told
}

// mayBeDone reports whether a request may have been done although it failed so.
// Only what changes nothing, and so has no key, or was never written to a
// connection, or a server that says so, tells that nothing was done. (A dial
// that fails is not enough: behind a kept connection that breaks the transport
// dials and sends again by itself.)
func (r *request) mayBeDone(err error) bool {
	var broken *transportError
	if r.key == "" {
		return false
	}
	if errors.As(err, &broken) {
		return !broken.unsent
	}
	return errors.Is(err, &gpuai.Error{Code: gpuai.OutcomeUnknown})
}

// unanswered is the error of a request that nobody answered and nobody did.
func (c *Client) unanswered(err error) *gpuai.Error {
	return &gpuai.Error{
		Code: gpuai.NoLeader,
		Detail: "no server answers at " + strings.Join(c.addrs, ", ") + ": check the address, and that a server runs there (" +
			err.Error() + ")",
	}
}

// doubtful is the error of a request that may have been done.
func (r *request) doubtful() *gpuai.Error {
	return &gpuai.Error{
		Code: gpuai.OutcomeUnknown,
		Detail: "the connection broke, or the leader was lost, before the answer: whether it was done is not known; the same request with the key " +
			r.key + " is safe (" + r.doubt.Error() + ")",
	}
}

// round tries each server once, the one that answered last first. Of a read that
// none serves, what a server said tells more than that another is not there.
func (c *Client) round(ctx context.Context, r *request, read func(*http.Response) error) error {
	start := c.at.Load()
	var err, told error
	for i := range uint32(len(c.addrs)) {
		at := (start + i) % uint32(len(c.addrs))
		err = c.try(ctx, c.addrs[at], r, read)
		if _, worth := again(err); !worth {
			c.at.Store(at)
			return err
		}
		if r.mayBeDone(err) {
			r.doubt = err
		}
		if ctx.Err() != nil {
			return err
		}
		if api := new(*gpuai.Error); told == nil && errors.As(err, api) {
			told = err
		}
	}
	if told != nil && r.key == "" { // a write may have been done by who did not answer
		return told
	}
	return err
}

// again reports whether a failed try is worth another, and after how long at
// least. Only who sends too much is told to wait: an election is over sooner
// than the second that Retry-After can say.
func again(err error) (time.Duration, bool) {
	var api *gpuai.Error
	if errors.As(err, &api) {
		switch api.Code {
		case gpuai.NoLeader, gpuai.OutcomeUnknown:
			return 0, true
		case gpuai.RateLimited:
			return min(time.Duration(api.RetryAfter)*time.Millisecond, retryAfterMost), true
		}
		return 0, false
	}
	var broken *transportError
	return 0, errors.As(err, &broken)
}

// A transportError is a request that got no answer, or a part of one.
type transportError struct {
	err    error
	unsent bool // no connection ever took it
}

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

// try makes one request of one server.
func (c *Client) try(ctx context.Context, addr string, r *request, read func(*http.Response) error) error {
	if !r.stream {
		bounded, cancel := context.WithTimeout(ctx, c.cfg.AttemptTimeout+time.Duration(r.wait)*time.Millisecond)
		defer cancel()
		ctx = bounded
	}
	var got, sent atomic.Bool // by the transport's own second tries too
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { got.Store(true) },
		WroteHeaders: func() { sent.Store(true) },
	})
	req, err := c.newRequest(ctx, addr, r)
	if err != nil {
		return err
	}
	if c.cfg.OnRequest != nil {
		c.cfg.OnRequest(req, r.raw)
	}
	res, err := c.http.Do(req)
	if refused := certificateRefused(err); refused != nil {
		return refused
	}
	if err != nil {
		var op *net.OpError
		// Without a connection nothing is sent, later neither: ctx may have ended
		// in a dial. With one the transport may still be about to send.
		return &transportError{err, !got.Load() || !sent.Load() && errors.As(err, &op) && op.Op == "dial"}
	}
	defer res.Body.Close()
	if res.StatusCode >= 400 {
		return problem(res)
	}
	return read(res)
}

func (c *Client) newRequest(ctx context.Context, addr string, r *request) (*http.Request, error) {
	u := addr + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.raw != nil {
		body = bytes.NewReader(r.raw)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, body)
	if err != nil {
		return nil, fmt.Errorf("making a request for %s: %w", u, err)
	}
	if r.raw != nil {
		req.Header.Set("Content-Type", cmp.Or(r.kind, "application/json"))
	}
	req.Header.Set("Accept", "application/json")
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if r.key != "" {
		req.Header.Set("Idempotency-Key", r.key)
	}
	if !c.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	return req, nil
}

// A problemBody is an RFC 9457 answer.
type problemBody struct {
	Code      gpuai.Code         `json:"code"`
	Title     string             `json:"title"`
	Detail    string             `json:"detail"`
	Errors    []gpuai.FieldError `json:"errors"`
	Reasons   []gpuai.Reason     `json:"reasons"`
	RequestID string             `json:"request_id"`
	Index     uint64             `json:"index"`
}

// problem makes an error of an answer that is none.
// plaintextRefused is what a port for TLS answers to plain HTTP, by net/http.
const plaintextRefused = "HTTP request to an HTTPS server"

func problem(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return &transportError{err: fmt.Errorf("reading the server's answer: %w", err)}
	}
	if res.StatusCode == http.StatusBadRequest && bytes.Contains(b, []byte(plaintextRefused)) {
		return &gpuai.Error{
			Code:   gpuai.Unauthenticated,
			Detail: "the region at " + res.Request.URL.Host + " has authentication and speaks TLS only: its address is https://" + res.Request.URL.Host,
		}
	}
	var p problemBody
	if json.Unmarshal(b, &p) != nil || p.Code == gpuai.OK {
		return &gpuai.Error{
			Code: gpuai.Internal, RequestID: res.Header.Get("X-Request-Id"),
			Detail: fmt.Sprintf("%s answered %s, and no reason that this client knows: is it a GPUAI server of this version? %s",
				res.Request.URL.Host, res.Status, bytes.TrimSpace(b[:min(len(b), 200)])),
		}
	}
	e := &gpuai.Error{
		Code: p.Code, Detail: p.Detail, Fields: p.Errors, Reasons: p.Reasons, Index: p.Index,
		RequestID: p.RequestID,
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = gpuai.Duration(s) * gpuai.Second
	}
	return e
}

// decode reads a JSON answer. Members that this client does not know are passed
// over: the API grows within v1.
func decode(into any) func(*http.Response) error {
	return func(res *http.Response) error {
		body := &watched{r: io.LimitReader(res.Body, maxAnswer)}
		err := json.UnmarshalRead(body, into)
		switch {
		case err == nil:
			return nil
		case body.err != nil: // it did not come whole
			return &transportError{err: fmt.Errorf("reading the server's answer: %w", body.err)}
		}
		return &gpuai.Error{
			Code: gpuai.Internal, RequestID: res.Header.Get("X-Request-Id"),
			Detail: "the answer of " + res.Request.URL.Host + " is not understood: is it a GPUAI server of this version? " + err.Error(),
		}
	}
}

// A watched reader remembers an error that is no end.
type watched struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}
