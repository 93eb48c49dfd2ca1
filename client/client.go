package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/gpuai/gpuai"
)

// A Config says how to reach a region.
type Config struct {
	// Addrs are the servers' URLs, such as http://127.0.0.1:7470. At least one.
	Addrs []string
	// Token is sent as a bearer token; the zero value sends none.
	Token gpuai.Secret
	// HTTP makes the requests; nil is a client with a pool of its own. It must
	// have no Timeout where events or sessions are used.
	HTTP *http.Client
	// TLS, where HTTP is nil, is how servers are spoken to: addresses without a
	// scheme are https then, and those with http refused. It may change what it shows and trusts meanwhile.
	TLS *tls.Config
	// Logger hears of retries; nil is silence.
	Logger *slog.Logger
	// AttemptTimeout is how long one server may take to answer before the next
	// is asked, beside what a request waits for at its own wish; 0 is 10 s.
	AttemptTimeout time.Duration
	// RetryFor bounds the retries of a call whose context has no deadline; 0 is
	// one minute, negative means no retries at all, whatever the context says.
	RetryFor time.Duration
	// OnRequest is called before each attempt with the body that is sent, such
	// as to print the equivalent curl. It must change neither.
	OnRequest func(r *http.Request, body []byte)
}

// A Client talks to one region. It is safe for concurrent use.
type Client struct {
	addrs []string
	token gpuai.Secret
	http  *http.Client
	log   *slog.Logger
	cfg   Config
	at    atomic.Uint32 // the address that answered last
}

// New returns a client. It contacts nobody.
func New(cfg Config) (*Client, error) {
	if len(cfg.Addrs) == 0 {
		return nil, errors.New("a client needs the address of at least one server")
	}
	c := &Client{token: cfg.Token, http: cfg.HTTP, log: cfg.Logger, cfg: cfg}
	for _, a := range cfg.Addrs {
		a = strings.TrimSuffix(a, "/")
		if !strings.Contains(a, "://") {
			a = c.scheme() + "://" + a
		}
		if u, err := url.Parse(a); err != nil || u.Hostname() == "" || u.Path != "" {
			return nil, fmt.Errorf("the server's address %q is no URL such as http://127.0.0.1:7470", a)
		} else if u.Scheme == "http" && cfg.TLS != nil {
			return nil, fmt.Errorf("the server's address %q is not encrypted, and this client must be sure who it speaks to: use https", a)
		}
		c.addrs = append(c.addrs, a)
	}
	if c.http == nil {
		c.http = &http.Client{Transport: newTransport(cfg.TLS), CheckRedirect: noRedirect}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.cfg.AttemptTimeout <= 0 {
		c.cfg.AttemptTimeout = 10 * time.Second
	}
	if c.cfg.RetryFor == 0 {
		c.cfg.RetryFor = time.Minute
	}
	return c, nil
}

// newTransport keeps enough connections for a busy caller, and gives a host
// that does not answer up soon enough to ask another.
func newTransport(secure *tls.Config) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 512, 256
	t.DisableCompression = true // the servers do not compress
	t.TLSClientConfig = secure
	return t
}

// noRedirect follows nothing: servers forward by themselves, and what a request
// holds, a join token above all, is for who was named.
func noRedirect(to *http.Request, _ []*http.Request) error {
	return fmt.Errorf("the server sends requests on to %s, which no server of a region does: name the address of a server", to.URL.Redacted())
}

// scheme is that of addresses without one.
func (c *Client) scheme() string {
	if c.cfg.TLS != nil {
		return "https"
	}
	return "http"
}

// Addrs returns the servers' URLs.
func (c *Client) Addrs() []string { return slices.Clone(c.addrs) }

// NewKey returns a new idempotency key.
func NewKey() string { return ulid.MustNew(ulid.Now(), rand.Reader).String() }

// Ready reports whether a server says that it is ready: nil, or why not. It
// tries each server once.
func (c *Client) Ready(ctx context.Context) error {
	r := request{method: http.MethodGet, path: "/readyz"}
	err := c.round(ctx, &r, func(*http.Response) error { return nil })
	if err == nil {
		return nil
	}
	return c.final(ctx, &r, nil, err)
}
