package httpd

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

// memberTimeout bounds the wait for another server's answer, beside the time
// that a profile takes.
const memberTimeout = 5 * time.Second

// askMember passes a request about another server of the region on to it.
func (c *call) askMember(id gpuai.ServerID) error {
	transport, err := c.api.backend.ForwardTo(c.r.Context(), id)
	if err != nil {
		return err
	}
	seconds, err := c.seconds()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), memberTimeout+time.Duration(seconds)*time.Second)
	defer cancel()
	c.r = c.r.WithContext(ctx)
	err = c.forward(transport)
	if err == nil || c.status != 0 {
		return err
	}
	if own := new(gpuai.Error); errors.As(err, &own) && own.Code != gpuai.NoLeader {
		return err
	}
	return &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
		Detail: "server " + string(id) + " does not answer this server, " + string(c.api.backend.Status().Server) + ": is it down?",
	}
}

// serverInfo answers GET /v1/operator/server.
func (c *call) serverInfo() error {
	info := c.api.backend.Info()
	return c.reply(http.StatusOK, &info)
}

// debugKinds are what the debug route writes, with its content type.
var debugKinds = map[string]string{
	gpuai.DebugLogs: "text/plain; charset=utf-8", gpuai.DebugGoroutines: "text/plain; charset=utf-8",
	gpuai.DebugHeap: "text/plain; charset=utf-8", gpuai.DebugMetrics: "text/plain; charset=utf-8",
	gpuai.DebugCPU: "application/octet-stream",
}

// debug answers GET /v1/operator/debug/{what}.
func (c *call) debug() error {
	what, err := c.variable("what")
	if err != nil {
		return err
	}
	kind, ok := debugKinds[what]
	if !ok {
		return gpuai.NewError(gpuai.NotFound, "there is no debug text "+strconv.Quote(what)+": there are logs, goroutines, heap, cpu and metrics")
	}
	if what == gpuai.DebugMetrics {
		return c.serveMetrics()
	}
	seconds, err := c.seconds()
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", kind)
	err = c.api.backend.Debug(c.r.Context(), what, seconds, &slowWriter{c})
	if err == nil && c.status == 0 {
		c.begin(http.StatusOK)
	}
	return err
}

// seconds is how long a profile takes: 1 unless given.
func (c *call) seconds() (uint32, error) {
	if !slices.Contains(c.rt.query, "seconds") || c.query.Get("seconds") == "" {
		return 1, nil
	}
	n, err := c.unsigned("seconds", 32)
	if err == nil && (n == 0 || n > gpuai.MaxDebugSeconds) {
		err = badQuery("seconds", "is 1 to "+strconv.Itoa(gpuai.MaxDebugSeconds))
	}
	return uint32(n), err
}
