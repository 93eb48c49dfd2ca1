package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

// Objects is the region's store as agents use it: each for leases that it holds, or,
// for their output, has held. Any server judges, by a state that is as new as the
// leader's: what is not a lease's to do is Forbidden, what is over Conflict.
type Objects interface {
	// GrantObjects gives leave for each operation, or for none.
	GrantObjects(ctx context.Context, a *gpuai.StoreAsk) (gpuai.StoreGrants, error)
	// ListObjects returns a page of what a lease has stored of checkpoints.
	ListObjects(ctx context.Context, l *gpuai.StoreLease, cursor string) (gpuai.StoreObjects, error)
	// DeleteObjects deletes of what the same lease has stored.
	DeleteObjects(ctx context.Context, d *gpuai.StoreDelete) error
	// PutObject stores what r has, which is op.Bytes long; GetObject returns a blob
	// and its size, to be closed. Both are for stores of files.
	PutObject(ctx context.Context, l *gpuai.StoreLease, op gpuai.StoreOp, r io.Reader) error
	GetObject(ctx context.Context, l *gpuai.StoreLease, key string) (io.ReadCloser, int64, error)
}

// paceBytes is how much of an object is read, and may pass, at once.
const paceBytes = 64 << 10

// grantObjects answers POST /v1/agent/store/grants.
func (c *call) grantObjects() error {
	var a gpuai.StoreAsk
	if err := c.decodeValid(&a); err != nil {
		return err
	}
	if err := c.itself(a.Node); err != nil {
		return err
	}
	out, err := c.api.backend.GrantObjects(c.r.Context(), &a)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.reply(http.StatusOK, &out)
}

// deleteObjects answers POST /v1/agent/store/objects:delete.
func (c *call) deleteObjects() error {
	var d gpuai.StoreDelete
	if err := c.decodeValid(&d); err != nil {
		return err
	}
	if err := c.itself(d.Node); err != nil {
		return err
	}
	if err := c.api.backend.DeleteObjects(c.r.Context(), &d); err != nil {
		return err
	}
	return c.reply(http.StatusOK, &struct{}{})
}

// listObjects answers GET /v1/agent/store/objects.
func (c *call) listObjects() error {
	l, err := c.storeLease()
	if err != nil {
		return err
	}
	out, err := c.api.backend.ListObjects(c.r.Context(), &l, c.query.Get("cursor"))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &out)
}

// itself refuses who asks for another node than its certificate's.
func (c *call) itself(n gpuai.NodeID) error {
	switch {
	case c.who.Node == n && n != "" || c.api.cfg.Auth == nil && c.who.Node == "":
		return nil
	case c.who.Node == "":
		return gpuai.NewError(gpuai.Unauthenticated, "the store is used over a connection that shows a node's certificate, and none was shown")
	}
	return gpuai.NewError(gpuai.Forbidden, "the certificate is that of node "+string(c.who.Node)+", which asks for itself alone")
}

// storeLease reads for which lease a request is.
func (c *call) storeLease() (l gpuai.StoreLease, err error) {
	lease, err := c.unsigned("lease", 64)
	if err != nil {
		return l, err
	}
	incarnation, err := c.unsigned("incarnation", 64)
	if err != nil {
		return l, err
	}
	l = gpuai.StoreLease{Node: gpuai.NodeID(c.query.Get("node")), Lease: gpuai.Token(lease), Incarnation: gpuai.Incarnation(incarnation)}
	return l, c.itself(l.Node)
}

// putObject answers PUT /v1/agent/store/object.
func (c *call) putObject() error {
	l, err := c.storeLease()
	if err != nil {
		return err
	}
	if c.r.ContentLength < 0 {
		return gpuai.NewError(gpuai.InvalidSpec, "an object is sent with its Content-Length")
	}
	body := &paced{c: c, r: c.r.Body}
	op := gpuai.StoreOp{Put: true, Key: c.query.Get("key"), Bytes: c.r.ContentLength}
	if err := c.api.backend.PutObject(c.r.Context(), &l, op, body); err != nil {
		c.w.Header().Set("Connection", "close") // what is left of the body is not waited for
		if body.err != nil && !errors.Is(body.err, io.EOF) {
			err = gpuai.NewError(gpuai.InvalidSpec, "the object did not arrive whole: "+body.err.Error())
		}
		return err
	}
	_ = c.ctl.SetReadDeadline(time.Time{}) // a reader without deadlines is a test's
	return c.reply(http.StatusOK, &struct{}{})
}

// getObject answers GET /v1/agent/store/object.
func (c *call) getObject() error {
	l, err := c.storeLease()
	if err != nil {
		return err
	}
	r, size, err := c.api.backend.GetObject(c.r.Context(), &l, c.query.Get("key"))
	if err != nil {
		return err
	}
	defer r.Close()
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	c.begin(http.StatusOK)
	buf := make([]byte, paceBytes)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if c.pace(n) != nil {
				panic(http.ErrAbortHandler)
			}
			_ = c.ctl.SetWriteDeadline(time.Now().Add(c.api.cfg.WriteTimeout))
			if _, err := c.w.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			c.api.log.Warn("an object of the store was cut short", "request_id", c.id, "error", err)
			panic(http.ErrAbortHandler) // a plain end would look like the object's
		}
	}
}

// pace waits until so many bytes of objects may pass.
func (c *call) pace(n int) error { return c.api.objects.WaitN(c.r.Context(), n) }

// A paced reader reads the body of an object: as fast as all objects together may
// come, and with no longer a wait for each paceBytes of it than for any body. Else
// who sends it byte by byte would keep its place.
type paced struct {
	c    *call
	r    io.Reader
	n    int           // what of paceBytes is yet to come
	left time.Duration // and for how long it is waited for
	err  error         // of the last read
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (n int, err error) {
	if p.n == 0 {
		p.n, p.left = paceBytes, p.c.api.cfg.BodyTimeout
	}
	began := time.Now()
	_ = p.c.ctl.SetReadDeadline(began.Add(p.left))
	n, err = p.r.Read(b[:min(len(b), p.n)])
	p.n, p.left = p.n-n, p.left-time.Since(began)
	if wait := p.c.pace(n); err == nil {
		err = wait
	}
	p.err = err
	return n, err
}
