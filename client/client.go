package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/oklog/ulid/v2"
	"github.com/sethvargo/go-retry"

	"github.com/gpuai/gpuai"
)

// A Config says how to reach a region.
type Config struct {
	// Addrs are the servers' URLs, such as http://127.0.0.1:7470. At least one.
	Addrs []string
	// Token is sent as a bearer token; "" sends none.
	Token string
	// HTTP makes the requests; nil is a client without a timeout of its own.
	HTTP *http.Client
	// Logger hears of retries; nil is silence.
	Logger *slog.Logger
}

// A Client talks to one region. It is safe for concurrent use.
type Client struct {
	addrs []string
	token string
	http  *http.Client
	log   *slog.Logger
	at    atomic.Uint32 // the address that answered last
}

// New returns a client. It contacts nobody.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, errors.New("a client needs the address of at least one server")
	}
	c := &Client{token: cfg.Token, http: cfg.HTTP, log: cfg.Logger}
	for _, a := range cfg.Addrs {
		a = strings.TrimSuffix(a, "/")
		if !strings.Contains(a, "://") {
			a = "http://" + a
		}
		if u, err := url.Parse(a); err != nil || u.Hostname() == "" || u.Path != "" {
			return nil, fmt.Errorf("the server's address %q is no URL such as http://127.0.0.1:7470", a)
		}
		c.addrs = append(c.addrs, a)
	}
	if c.http == nil {
		c.http = &http.Client{}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Addrs returns the servers' URLs.
func (c *Client) Addrs() []string { return slices.Clone(c.addrs) }

// NewKey returns a new idempotency key.
func NewKey() string { return ulid.MustNew(ulid.Now(), rand.Reader).String() }

// A request is one call of the API.
type request struct {
	method string
	path   string
	query  url.Values
	body   any    // sent as JSON; nil sends none
	key    string // idempotency key
	accept string // "" is JSON
}

// Limits of one call.
const (
	maxAnswer  = 64 << 20
	retryFirst = 50 * time.Millisecond
	retryMost  = 2 * time.Second
)

// do makes a call, over all servers, until one answers for good or ctx ends,
// and hands the body of the answer to read.
func (c *Client) do(ctx context.Context, r request, read func(*http.Response) error) error {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body, json.Deterministic(true)); err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
	}
	wait := retry.WithCappedDuration(retryMost, retry.WithJitterPercent(20, retry.NewExponential(retryFirst)))
	for {
		err := c.round(ctx, &r, body, read)
		delay, worth := again(err)
		if err == nil || !worth || ctx.Err() != nil {
			return err
		}
		pause, _ := wait.Next()
		pause = max(pause, delay)
		c.log.Debug("retrying a request", "path", r.path, "after", pause, "error", err)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return err // what went wrong says more than that the time is over
		case <-t.C:
		}
	}
}

// round tries each server once, the one that answered last first.
func (c *Client) round(ctx context.Context, r *request, body []byte, read func(*http.Response) error) error {
	start := c.at.Load()
	var err error
	for i := range uint32(len(c.addrs)) {
		at := (start + i) % uint32(len(c.addrs))
		if err = c.try(ctx, c.addrs[at], r, body, read); err == nil {
			c.at.Store(at)
			return nil
		}
		if _, worth := again(err); !worth || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// again reports whether a failed try is worth another, and after how long.
func again(err error) (time.Duration, bool) {
	var api *gpuai.Error
	if errors.As(err, &api) {
		switch api.Code {
		case gpuai.NoLeader, gpuai.OutcomeUnknown, gpuai.RateLimited:
			return time.Duration(api.RetryAfter) * time.Millisecond, true
		}
		return 0, false
	}
	var broken *transportError
	return 0, errors.As(err, &broken)
}

// A transportError is a request that got no answer.
type transportError struct{ err error }

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

func (c *Client) try(ctx context.Context, addr string, r *request, body []byte, read func(*http.Response) error) error {
	u := addr + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making a request for %s: %w", u, err)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	accept := r.accept
	if accept == "" {
		accept = "application/json"
	}
	req.Header.Set("Accept", accept)
	if r.key != "" {
		req.Header.Set("Idempotency-Key", r.key)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return &transportError{err}
	}
	defer res.Body.Close()
	if res.StatusCode >= 400 {
		return problem(res)
	}
	return read(res)
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
func problem(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return &transportError{fmt.Errorf("reading the server's answer: %w", err)}
	}
	var p problemBody
	if json.Unmarshal(b, &p) != nil || p.Code == gpuai.OK {
		return fmt.Errorf("the server answered %s, and no reason that this client knows: %s", res.Status, bytes.TrimSpace(b[:min(len(b), 200)]))
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
		if err := json.UnmarshalRead(io.LimitReader(res.Body, maxAnswer), into); err != nil {
			return &transportError{fmt.Errorf("reading the server's answer: %w", err)}
		}
		return nil
	}
}

// Ready reports whether a server says that it is ready.
func (c *Client) Ready(ctx context.Context) error {
	return c.round(ctx, &request{method: http.MethodGet, path: "/readyz", accept: "*/*"}, nil, func(*http.Response) error { return nil })
}
