package httpd

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// forwardLimit bounds a forwarded body; the leader judges each route's own.
const forwardLimit = maxBatchBody

// forward passes the whole request on to the leader, once: a request that
// comes forwarded already to a server that does not lead is answered, so that
// two servers with different ideas of the leader play no ping-pong.
func (c *call) forward(leader http.RoundTripper) error {
	if c.r.Header.Get(headerForwarded) != "" {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "the leader changed on the way: retry",
		}
	}
	limit := c.mostBody(forwardLimit)
	if c.r.ContentLength > limit {
		return tooLarge(limit)
	}
	if c.r.Body != nil && c.r.ContentLength != 0 {
		c.r.Body = http.MaxBytesReader(c.w, c.r.Body, limit)
		_ = c.ctl.SetReadDeadline(time.Now().Add(c.api.cfg.BodyTimeout))
	}
	var failed error
	var sent atomic.Bool
	ctx := httptrace.WithClientTrace(c.r.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	proxy := httputil.ReverseProxy{
		Rewrite:        c.rewrite,
		Transport:      leader,
		BufferPool:     &c.api.proxies,
		ModifyResponse: c.adopt,
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(&forwardWriter{c.w, c}, c.r.WithContext(ctx))
	if failed != nil {
		return c.notForwarded(failed, sent.Load())
	}
	if c.status < http.StatusBadRequest { // else the body may not have been read whole
		_ = c.ctl.SetReadDeadline(time.Time{})
	}
	return nil
}

// rewrite addresses the request to the leader. The ID goes along, so that both
// servers' logs name it.
func (c *call) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host = "http", "leader"
	p.Out.Host = p.In.Host
	p.Out.Header.Set(headerForwarded, "1")
	p.Out.Header.Del("Authorization") // who asks is known, and a token has gone far enough
	if who, err := json.Marshal(c.who); err == nil {
		p.Out.Header.Set(headerPrincipal, string(who))
	}
	p.Out.Header.Set(headerRequestID, c.id)
}

// adopt makes the leader's answer ours: its headers replace those that were set
// here, which spoke of this server's index.
func (c *call) adopt(resp *http.Response) error {
	h := c.w.Header()
	for name := range resp.Header {
		h.Del(name)
	}
	c.status = resp.StatusCode
	if c.rt.write && resp.StatusCode < http.StatusBadRequest {
		c.settle(resp.Header.Get(headerIndex))
	}
	return nil
}

// writeSettles bounds how long the answer to a forwarded write is held back.
const writeSettles = time.Second

// settle waits until this server has applied what the leader's answer tells
// of, so that whoever reads here what it has just written finds it: logs and
// events are always read here. A server that lags for longer answers all the
// same. One that cannot apply does not wait: it serves no logs and no events.
func (c *call) settle(index string) {
	n, err := strconv.ParseUint(index, 10, 64)
	if err != nil || n == 0 || c.api.backend.Status().Stalled != "" {
		return
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), writeSettles)
	defer cancel()
	_ = c.waitIndex(ctx, n-1) // the write is done either way
}

// A forwardWriter gives each write of a forwarded answer a deadline of its own.
type forwardWriter struct {
	http.ResponseWriter
	c *call
}

// Write implements http.ResponseWriter.
func (w *forwardWriter) Write(p []byte) (int, error) {
	_ = w.c.ctl.SetWriteDeadline(time.Now().Add(w.c.api.cfg.WriteTimeout))
	return w.ResponseWriter.Write(p)
}

// Unwrap lets the proxy flush.
func (w *forwardWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// notForwarded says what became of a request whose answer did not come. Only
// that it was never written to a connection says that nothing was done. (A dial
// that fails is not enough: behind a kept connection that breaks the transport
// dials and sends again by itself.)
func (c *call) notForwarded(err error, sent bool) error {
	var big *http.MaxBytesError
	var op *net.OpError
	var own *gpuai.Error
	switch {
	case c.r.Context().Err() != nil:
		return context.Cause(c.r.Context())
	case errors.As(err, &big):
		return tooLarge(big.Limit)
	case errors.As(err, &own):
		return own
	case !c.rt.write || !sent && errors.As(err, &op) && op.Op == "dial":
		c.api.log.Info("leader not reached", "request_id", c.id, "error", err)
		return &gpuai.Error{Code: gpuai.NoLeader, RetryAfter: gpuai.Second, Detail: "the leader did not answer this server: retry"}
	}
	c.api.log.Warn("leader's answer lost", "request_id", c.id, "error", err)
	return &gpuai.Error{
		Code: gpuai.OutcomeUnknown, RetryAfter: gpuai.Second,
		Detail: "the leader was lost before it answered: send the request again with the same Idempotency-Key",
	}
}

// proxyBuffers keeps the buffers that forwarded answers are copied through.
type proxyBuffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (p *proxyBuffers) Get() []byte {
	if b, ok := p.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

// Put implements httputil.BufferPool.
func (p *proxyBuffers) Put(b []byte) { p.pool.Put(&b) }
