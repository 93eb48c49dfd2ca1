package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"syscall"
	"time"
)

// errForbiddenAddress keeps a tenant's image name from reaching the services
// of the host: a registry, or where it redirects to, may not be there.
var errForbiddenAddress = errors.New("it is at a loopback or link-local address or at one of the node's own, where nodes fetch no images unless their operator allows it")

// idleTime is how long a registry may send nothing of an answer.
const idleTime = 30 * time.Second

// errIdle ends an answer that does not go on.
var errIdle = errors.New("it sent nothing for too long")

// newTransport is how registries are reached. A proxy that the agent's
// environment names is used; what it reaches is its own to rule, since only its
// address is seen here.
func newTransport(local bool, idle time.Duration) http.RoundTripper {
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return judgeAddress(at.Addr(), local)
	}}
	return &boundedTransport{idle: idle, next: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
	}}
}

// judgeAddress refuses the addresses where the host's own services are.
func judgeAddress(a netip.Addr, local bool) error {
	a = a.Unmap().WithZone("")
	if a.IsLinkLocalUnicast() || a == metadataIPv6 {
		return errForbiddenAddress
	}
	if local {
		return nil
	}
	if a.IsLoopback() || a.IsUnspecified() {
		return errForbiddenAddress
	}
	own, err := net.InterfaceAddrs() // now: they change
	if err != nil {
		return fmt.Errorf("the node's own addresses: %w", err)
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap().WithZone("") == a {
			return errForbiddenAddress
		}
	}
	return nil
}

// metadataIPv6 is where clouds serve an instance's secrets, beside the
// link-local 169.254.169.254.
var metadataIPv6 = netip.MustParseAddr("fd00:ec2::254")

// A boundedTransport bounds every answer but the layers of a manifest that was
// checked: the library reads those to their end. No answer may stand still for
// longer than idle.
type boundedTransport struct {
	next http.RoundTripper
	idle time.Duration
}

func (t *boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Request = req
	resp.Body = &idleBody{body: resp.Body, ctx: ctx, cancel: cancel, idle: t.idle}
	if resp.StatusCode != http.StatusOK || !isLayer(req) {
		resp.Body = &boundedBody{body: resp.Body, left: maxManifest}
	}
	return resp, nil
}

// An idleBody ends its request when a read gets nothing for too long.
type idleBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
}

func (b *idleBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle, func() { b.cancel(errIdle) })
	n, err := b.body.Read(p)
	timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errIdle) {
		err = errIdle // and not that it was canceled, which is the caller's
	}
	return n, err
}

func (b *idleBody) Close() error {
	defer b.cancel(nil)
	return b.body.Close()
}

// isLayer reports whether a request, or the one that it was redirected from,
// asks for a layer. How much of one is read is save's to bound.
func isLayer(req *http.Request) bool {
	layers, ok := req.Context().Value(layersKey{}).(*layerSet)
	for req.Response != nil && req.Response.Request != nil { // redirected
		req = req.Response.Request
	}
	dir, digest := path.Split(req.URL.Path)
	return ok && strings.HasSuffix(dir, "/blobs/") && layers.contains(digest)
}

type boundedBody struct {
	body io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, &RefusedError{Reason: fmt.Sprintf("its registry sends more than %d bytes where no layer was asked for", maxManifest)}
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (b *boundedBody) Close() error { return b.body.Close() }
