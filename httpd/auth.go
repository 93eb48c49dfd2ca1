package httpd

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// An Authenticator says who requests come from. It is called concurrently; its
// errors are *gpuai.Error.
type Authenticator interface {
	// Bearer says who shows the text of an access token. What is not the text of
	// a token that is good now is Unauthenticated, and takes as long whatever is
	// wrong with it.
	Bearer(ctx context.Context, text string) (*gpuai.Principal, error)
	// Again judges who was let in before, by this server or by the one that
	// forwarded the request: an error once that is over.
	Again(ctx context.Context, p *gpuai.Principal) error
}

// PeerOf says whose certificate the other side of a connection has shown, which
// was verified: kind is "node" or "server", and at when it was issued.
type PeerOf func(tls.ConnectionState) (kind, id string, at gpuai.Stamp, ok bool)

// headerPrincipal carries who a forwarded request comes from, as JSON. It is
// believed where other servers' requests come in, and only there.
const headerPrincipal = "X-GPUAI-Principal"

// insecure is who every request comes from where nobody has to say so.
var insecure = gpuai.Principal{Actor: "insecure", Scopes: gpuai.ScopesOf(gpuai.ScopeOperator)}

type peersKey struct{}

// FromServers wraps the handler of New for a listener that only the region's
// other servers can reach: what they say of whom they ask for is believed.
func FromServers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peersKey{}, true)))
	})
}

func fromServer(ctx context.Context) bool { return ctx.Value(peersKey{}) != nil }

// errNobody is the one answer to a request without, or with a wrong token.
func errNobody() error {
	return gpuai.NewError(gpuai.Unauthenticated, "this needs a token that is good now, as Authorization: Bearer gpu_…: log in with gpuai login, or ask an operator or your tenant's administrator for one")
}

// admit finds out who asks, and whether the route is for them.
func (c *call) admit() error {
	if urlHoldsToken(c.r) {
		c.r.URL = &url.URL{Path: "/"} // it is neither answered nor logged
		return gpuai.NewError(gpuai.InvalidSpec, "a token must not be in a URL, which is logged on its way: send it as Authorization: Bearer, and revoke this one with gpuai token revoke")
	}
	who, err := c.authenticate()
	if err == nil { // also for the audit of who may not
		c.r = c.r.WithContext(WithPrincipal(c.r.Context(), who))
	}
	if err == nil && !c.rt.takes(who, &c.api.cfg) {
		if err = errNobody(); who.Actor != "" {
			err = gpuai.NewError(gpuai.Forbidden, who.Actor+" may not do this: it takes "+c.rt.who.String())
		}
	}
	if err != nil {
		if e, status := classify(err); status == http.StatusUnauthorized {
			c.w.Header().Set("WWW-Authenticate", `Bearer realm="gpuai"`)
			err = e
		}
		return err
	}
	c.who = who
	return nil
}

// authenticate returns who asks; a zero principal for nobody. An error is a
// token that is not good.
func (c *call) authenticate() (*gpuai.Principal, error) {
	told := c.r.Header.Get(headerPrincipal)
	c.r.Header.Del(headerPrincipal)
	auth := c.api.cfg.Auth
	if fromServer(c.r.Context()) && told != "" {
		p := new(gpuai.Principal)
		if err := json.Unmarshal([]byte(told), p, strict); err != nil {
			return nil, gpuai.NewError(gpuai.Unauthenticated, "who a forwarded request comes from is malformed")
		}
		if auth == nil || !c.rt.judges(&c.api.cfg) {
			return p, nil
		}
		return p, auth.Again(c.r.Context(), p)
	}
	p := &gpuai.Principal{}
	switch shown := c.r.Header.Values("Authorization"); {
	case auth == nil:
		*p = insecure
	case !c.rt.judges(&c.api.cfg): // nothing hangs on who it is
	case len(shown) == 1:
		scheme, text, _ := strings.Cut(shown[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return nil, errNobody()
		}
		known, err := auth.Bearer(c.r.Context(), strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		*p = *known
	case len(shown) > 1:
		return nil, errNobody()
	case c.r.TLS != nil && c.api.cfg.PeerOf != nil:
		c.certified(p)
	}
	p.From = hostOf(c.r.RemoteAddr)
	return p, nil
}

// certified notes whose certificate a request comes with.
func (c *call) certified(p *gpuai.Principal) {
	kind, id, at, ok := c.api.cfg.PeerOf(*c.r.TLS)
	p.Issued = at
	switch {
	case ok && kind == "node":
		p.Actor, p.Node = "node/"+id, gpuai.NodeID(id)
	case ok && kind == "server":
		p.Actor, p.Server = "server/"+id, gpuai.ServerID(id)
	}
}

// hostOf returns an address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}

// urlHoldsToken reports whether somebody has put a token, or what is called one,
// into a URL.
func urlHoldsToken(r *http.Request) bool {
	u := r.URL
	for _, text := range [...]string{u.Path, u.RawPath, u.RawQuery, u.Fragment} {
		if holdsToken(text) {
			return true
		}
	}
	if u.RawQuery == "" {
		return false
	}
	if plain, err := url.QueryUnescape(u.RawQuery); err == nil && holdsToken(plain) {
		return true
	}
	values, _ := url.ParseQuery(u.RawQuery) // what can be read of it
	for name := range values {
		switch strings.ToLower(name) {
		case "token", "access_token", "id_token", "authorization", "bearer":
			return true
		}
	}
	return false
}

func holdsToken(text string) bool {
	for at := strings.Index(text, "gpu"); at >= 0; {
		rest := text[at:]
		if strings.HasPrefix(rest, "gpujoin_") {
			return true
		}
		if _, ok := gpuai.SplitAccessToken(rest); ok {
			return true
		}
		next := strings.Index(rest[1:], "gpu")
		if next < 0 {
			return false
		}
		at += 1 + next
	}
	return false
}

// stillEvery is how often who follows a stream is judged again.
const stillEvery = time.Second

// still returns a context of the request that ends when who asks is no longer let
// in, and a function that gives it up.
func (c *call) still() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(c.r.Context())
	if c.api.cfg.Auth != nil && c.who.Actor != "" {
		go func() { // ends with ctx
			t := time.NewTicker(stillEvery)
			defer t.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
				if err := c.api.cfg.Auth.Again(ctx, c.who); err != nil && ctx.Err() == nil {
					c.api.log.Info("a stream ends: who follows it is no longer let in", "actor", c.who.Actor, "request_id", c.id)
					cancel(err)
					return
				}
			}
		}()
	}
	return ctx, func() { cancel(context.Canceled) }
}
