package httpd

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// raft answers GET /v1/operator/raft: this server's view.
func (c *call) raft() error {
	st := c.api.backend.Raft(c.r.Context())
	return c.reply(http.StatusOK, &st)
}

// digest answers GET /v1/operator/digest; without index, of the latest.
func (c *call) digest() error {
	index, err := c.unsigned("index", 64)
	if err != nil {
		return err
	}
	d, err := c.api.backend.DigestAt(index)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &d)
}

// snapshot answers GET /v1/operator/snapshot with the snapshot's own bytes.
func (c *call) snapshot() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.download("gpuai.snapshot", c.api.backend.Snapshot)
}

// report answers GET /v1/operator/report: of this server's log.
func (c *call) report() (err error) {
	var span gpuai.IndexRange
	if span.From, err = c.unsigned("from", 64); err != nil {
		return err
	}
	if span.To, err = c.unsigned("to", 64); err != nil {
		return err
	}
	return c.download("region.report", func(ctx context.Context, w io.Writer) error {
		return c.api.backend.Report(ctx, span, w)
	})
}

// download answers with bytes as they are made.
func (c *call) download(name string, write func(context.Context, io.Writer) error) error {
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	err := write(c.r.Context(), &slowWriter{c})
	if err == nil && c.status == 0 {
		c.begin(http.StatusOK)
	}
	if err != nil && c.status != 0 {
		c.api.log.Warn(name+" cut short", "request_id", c.id, "error", err)
		panic(http.ErrAbortHandler) // the reader must see that it is not whole
	}
	return err
}

// exportBuffer is how much of an export is sent at once.
const exportBuffer = 64 << 10

// export answers GET /v1/operator/export with lines of JSON. An answer that
// breaks off has no last line of the kind "end".
func (c *call) export() error {
	since, err := c.unsigned("since", 64)
	if err != nil {
		return err
	}
	if err := c.readPoint(); err != nil {
		return err
	}
	return writeLines(c, "export", func(f func(*gpuai.ExportLine) error) error { return c.api.backend.Export(c.r.Context(), since, f) })
}

// writeLines answers with a line of JSON for each value that each gives. An answer
// that has begun and cannot be ended is cut off: whoever reads it misses its end.
func writeLines[T any](c *call, what string, each func(func(*T) error) error) error {
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.Header().Set("Cache-Control", "no-store")
	w := bufio.NewWriterSize(&slowWriter{c}, exportBuffer)
	err := each(func(l *T) error {
		line, err := json.Marshal(l)
		if err == nil {
			_, err = w.Write(append(line, '\n'))
		}
		return err
	})
	if err == nil {
		err = w.Flush()
	}
	if err != nil && c.status != 0 {
		c.api.log.Warn(what+" cut short", "request_id", c.id, "error", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// A slowWriter writes an answer of any length: each write has its own deadline.
type slowWriter struct{ c *call }

func (s *slowWriter) Write(p []byte) (int, error) {
	if s.c.status == 0 {
		s.c.begin(http.StatusOK)
	}
	_ = s.c.ctl.SetWriteDeadline(time.Now().Add(s.c.api.cfg.WriteTimeout))
	return s.c.w.Write(p)
}

type health struct {
	Status string         `json:"status"` // "ok"
	Server gpuai.ServerID `json:"server"`
}

// healthz answers GET /healthz: this process serves.
func (c *call) healthz() error {
	return c.reply(http.StatusOK, &health{"ok", c.api.backend.Status().Server})
}

// readyz answers GET /readyz: 503 with the reason until this server serves.
func (c *call) readyz() error {
	st := c.api.backend.Status()
	if !st.Ready {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "server " + string(st.Server) + " is not ready: " + st.NotReady,
		}
	}
	return c.reply(http.StatusOK, &health{"ok", st.Server})
}

// serveMetrics answers GET /metrics.
func (c *call) serveMetrics() error {
	if c.api.cfg.Metrics == nil {
		return gpuai.NewError(gpuai.NotFound, "this server serves no metrics")
	}
	c.status = http.StatusOK
	_ = c.ctl.SetWriteDeadline(time.Now().Add(c.api.cfg.WriteTimeout))
	c.api.cfg.Metrics.ServeHTTP(c.w, c.r)
	return nil
}

// serveOpenAPI answers GET /v1/openapi.json.
func (c *call) serveOpenAPI() error {
	c.send(http.StatusOK, "application/json", openapi)
	return nil
}

// serveSchema answers GET /v1/schema/job.json.
func (c *call) serveSchema() error {
	if len(c.api.cfg.Schema) == 0 {
		return gpuai.NewError(gpuai.NotFound, "this server serves no schema")
	}
	c.send(http.StatusOK, "application/schema+json", c.api.cfg.Schema)
	return nil
}
