package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
)

// A Clock tells the time by which certificates are judged.
type Clock interface {
	Now() time.Time
	// After sends on the channel once d has passed.
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// SystemClock is this host's wall clock.
var SystemClock Clock = systemClock{}

// A Source holds the certificate and the trust of this process. What it makes of
// them, configurations of TLS and listeners, use those of the moment for each new
// connection. It is safe for concurrent use.
type Source struct {
	clock Clock
	// judge refuses certificates that are signed well, those of revoked identities;
	// nil refuses none. It must not block.
	judge func(Peer) error
	// refused is told of each refusal, nil of none.
	refused func(from net.Addr, why error)

	now     atomic.Pointer[held]
	changed chan struct{} // the credential is another one

	mu    sync.Mutex // guards below
	conns map[*conn]struct{}
}

// held is a credential, and from when on it should be renewed.
type held struct {
	*Credential
	trust   *Trust // that of the region now; at first the credential's
	renewAt time.Time
}

// A SourceConfig says how a Source judges.
type SourceConfig struct {
	Clock   Clock                          // nil is SystemClock
	Judge   func(Peer) error               // see Source
	Refused func(from net.Addr, why error) // see Source
}

// NewSource returns a Source without a certificate: connections fail until it is
// given one.
func NewSource(cfg SourceConfig) *Source {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock
	}
	return &Source{
		clock: cfg.Clock, judge: cfg.Judge, refused: cfg.Refused,
		changed: make(chan struct{}, 1), conns: make(map[*conn]struct{}),
	}
}

// Set takes a new certificate over, and its trust. It is renewed after half of
// the time that it is still good for.
func (s *Source) Set(c *Credential) {
	now := s.clock.Now().Round(0) // by the wall clock, also when it is put back or forward
	s.now.Store(&held{c, c.Trust, now.Add(c.NotAfter().Sub(now) / 2)})
	select {
	case s.changed <- struct{}{}:
	default:
	}
	s.Sweep()
}

// SetTrust has new connections judged by t, and ends those whose authority is in
// it no more.
func (s *Source) SetTrust(t *Trust) {
	for {
		old := s.now.Load()
		if old == nil || old.trust.Equal(t) {
			return
		}
		next := *old
		if next.trust = t; s.now.CompareAndSwap(old, &next) {
			s.Sweep()
			return
		}
	}
}

// Credential returns the present one; nil before there is one.
func (s *Source) Credential() *Credential {
	if h := s.now.Load(); h != nil {
		return h.Credential
	}
	return nil
}

// Trust returns the present one; nil before there is one.
func (s *Source) Trust() *Trust {
	if h := s.now.Load(); h != nil {
		return h.trust
	}
	return nil
}

// wait is how long the certificate needs no other. One that was signed by a clock
// which has been put back since needs one at once: it is not good yet.
func (h *held) wait(now time.Time) time.Duration {
	if now.Before(h.NotBefore()) {
		return 0
	}
	return h.renewAt.Sub(now)
}

// RenewDue reports whether half of the certificate's time has passed, or it is not
// good yet.
func (s *Source) RenewDue() bool {
	h := s.now.Load()
	return h != nil && h.wait(s.clock.Now()) <= 0
}

// Retries of a renewal, and how often it is looked for connections whose
// certificates have ended.
const (
	renewRetryMin = time.Second
	renewRetryMax = time.Minute
	sweepEvery    = 10 * time.Minute
)

// Run renews the certificate at half of its time, and sweeps, until ctx ends. What renew
// returns is logged by it; it is tried again.
func (s *Source) Run(ctx context.Context, renew func(context.Context) error) {
	for ctx.Err() == nil {
		h := s.now.Load()
		wait := renewRetryMax
		if h != nil {
			wait = h.wait(s.clock.Now())
		}
		if h != nil && wait <= 0 {
			if renew(ctx) == nil {
				continue
			}
			wait = min(max(h.NotAfter().Sub(s.clock.Now())/20, renewRetryMin), renewRetryMax)
		}
		select {
		case <-s.clock.After(min(wait, sweepEvery)):
			s.Sweep()
		case <-s.changed:
		case <-ctx.Done():
		}
	}
}

var errNoCertificate = errors.New("this server has no certificate yet")

// A Want says whom a connection may be with.
type Want struct {
	Kind gpuai.IdentityKind // IdentityNone is anybody
	Name string             // "" is anybody of the kind
}

func (w Want) check(p Peer) error {
	if w.Kind != gpuai.IdentityNone && p.Kind != w.Kind {
		return refusal("it is that of %s, and only a %s may come here", p.Identity, w.Kind)
	}
	if w.Name != "" && p.Name != w.Name {
		return refusal("it is that of %s, and %s/%s was meant: correct the addresses", p.Identity, w.Kind, w.Name)
	}
	return nil
}

// Check judges who is at the other end by what holds now.
func (s *Source) Check(p Peer, want Want) error {
	if err := want.check(p); err != nil {
		return err
	}
	if s.judge != nil {
		return s.judge(p)
	}
	return nil
}

// protocols is all that is spoken above TLS: sessions of agents need HTTP/1.1.
var protocols = []string{"http/1.1"}

// serverConfig is the configuration of one accepted connection.
func (s *Source) serverConfig(c *conn, want Want) (*tls.Config, error) {
	h := s.now.Load()
	if h == nil {
		return nil, errNoCertificate
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{*h.cert}, MinVersion: tls.VersionTLS13, Time: s.clock.Now,
		ClientAuth: tls.RequestClientCert, NextProtos: protocols, SessionTicketsDisabled: true,
	}
	if want.Kind != gpuai.IdentityNone {
		cfg.ClientAuth = tls.RequireAnyClientCert
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil // ClientAuth has decided that this may be
		}
		return s.meet(c, state.PeerCertificates, want)
	}
	return cfg, nil
}

// meet judges the other end of a connection and remembers who it is.
func (s *Source) meet(c *conn, chain []*x509.Certificate, want Want) error {
	h := s.now.Load()
	p, err := h.trust.Verify(chain, s.clock.Now())
	if err == nil {
		c.peer.Store(&p) // first: a sweep beside this must not miss it
		err = s.Check(p, want)
	}
	if err != nil {
		if s.refused != nil {
			s.refused(c.RemoteAddr(), err)
		}
	}
	return err
}

// Server returns the server's side of TLS over raw. It is closed as soon as its
// peer is revoked. The caller does the handshake, or its first read does.
func (s *Source) Server(raw net.Conn, want Want) *tls.Conn {
	c := s.track(raw)
	return tls.Server(c, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.serverConfig(c, want) },
	})
}

// Client returns the client's side of TLS over raw, with a server.
func (s *Source) Client(raw net.Conn, want Want) *tls.Conn {
	c := s.track(raw)
	return tls.Client(c, s.clientConfig(c, want))
}

func (s *Source) clientConfig(c *conn, want Want) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Time: s.clock.Now, NextProtos: protocols,
		InsecureSkipVerify: true, // by host names; VerifyConnection verifies by identities
		VerifyConnection: func(state tls.ConnectionState) error {
			if s.now.Load() == nil {
				return errNoCertificate
			}
			return s.meet(c, state.PeerCertificates, want)
		},
		GetClientCertificate: s.clientCertificate,
	}
}

func (s *Source) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if h := s.now.Load(); h != nil {
		return h.cert, nil
	}
	return nil, errNoCertificate
}

// ClientConfig returns a configuration for clients that connect to servers of
// the region by any address. Each connection uses what s holds then.
func (s *Source) ClientConfig() *tls.Config {
	return s.clientConfig(&conn{}, Want{Kind: gpuai.IdentityServer})
}

// TrustConfig returns a configuration for clients without a certificate, who
// trust the servers of one cluster.
func TrustConfig(t *Trust) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			p, err := t.Verify(state.PeerCertificates, time.Now())
			if err == nil {
				err = Want{Kind: gpuai.IdentityServer}.check(p)
			}
			return err
		},
	}
}

// JoinConfig returns a configuration for who joins: it speaks to nobody but a
// server whose CA the token names.
func JoinConfig(t JoinToken) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: protocols, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			chain := state.PeerCertificates
			for _, ca := range chain {
				if !ca.IsCA || !t.names(HashOf(ca)) {
					continue
				}
				leaf, err := peerOf(chain[0])
				if err != nil {
					return refusal("%v", err)
				}
				p, err := NewTrust(leaf.Cluster, ca).Verify(chain, time.Now())
				if err == nil {
					err = Want{Kind: gpuai.IdentityServer}.check(p)
				}
				return err
			}
			return refusal("the server is not of the region that the join token is for: correct the address, or ask for a token of this region")
		},
	}
}

// A conn is a connection that ends when its peer is revoked.
type conn struct {
	net.Conn
	s    *Source
	peer atomic.Pointer[Peer]
}

func (s *Source) track(raw net.Conn) *conn {
	c := &conn{Conn: raw, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	return c
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr {
	if c.Conn == nil { // of a configuration, see ClientConfig
		return nil
	}
	return c.Conn.RemoteAddr()
}

// Sweep ends the connections of those that are good no more.
func (s *Source) Sweep() {
	h := s.now.Load()
	if h == nil {
		return
	}
	now := s.clock.Now()
	s.mu.Lock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		p := c.peer.Load()
		if p == nil {
			continue
		}
		err := s.Check(*p, Want{})
		if err == nil && !h.trust.believes(p.Issuer) {
			err = refusal("that of %s is of an authority that is trusted no more", p.Identity)
		}
		if err == nil && now.After(p.NotAfter.Add(maxSkew)) {
			err = refusal("that of %s ended at %s, and its holder connects again with its new one", p.Identity, stamp(p.NotAfter))
		}
		if err != nil {
			if s.refused != nil {
				s.refused(c.RemoteAddr(), fmt.Errorf("its connection is closed: %w", err))
			}
			_ = c.Close() // its user sees it
		}
	}
}

// A listener accepts over TLS.
type listener struct {
	net.Listener
	s    *Source
	want Want
}

// Listener returns l over TLS. With a Want of no kind, who has no certificate may
// come too. Handshakes are not waited for: the first read does them.
func (s *Source) Listener(l net.Listener, want Want) net.Listener { return &listener{l, s, want} }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.s.Server(c, l.want), nil
}
