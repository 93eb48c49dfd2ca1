package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// A fakeClock stands still until it is moved.
type fakeClock struct {
	mu    sync.Mutex // guards below
	now   time.Time
	waits []wait
	// asleep, where there is one, takes each time that is waited for.
	asleep chan time.Time
}

type wait struct {
	at time.Time
	ch chan time.Time
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waits = append(c.waits, wait{c.now.Add(d), ch})
	if c.asleep != nil {
		c.asleep <- c.now.Add(d)
	}
	return ch
}

func (c *fakeClock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for _, w := range c.waits {
		if !w.at.After(c.now) {
			select {
			case w.ch <- c.now:
			default:
			}
		}
	}
}

var (
	nodeN1  = gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n1"}
	serverA = gpuai.Identity{Kind: gpuai.IdentityServer, Name: "a"}
)

// A realm is a region's CA in tests.
type realm struct {
	t     *testing.T
	clock *fakeClock
	ca    *Authority
	roots []*x509.Certificate
}

func newRealm(t *testing.T, cluster gpuai.ClusterID) *realm {
	clock := newClock()
	ca, err := NewAuthority(cluster, clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &realm{t, clock, ca, []*x509.Certificate{ca.Certificate}}
}

func (r *realm) trust() *Trust { return NewTrust(r.ca.Cluster, r.roots...) }

func (r *realm) rotate() {
	next, err := r.ca.Next(r.clock.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	r.ca, r.roots = next, append(r.roots, next.Certificate)
}

func (r *realm) credential(id gpuai.Identity, at gpuai.Stamp) *Credential {
	r.t.Helper()
	key, csr, err := NewKey(id, []string{"127.0.0.1", "gpuai.example"})
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := ReadRequest(csr)
	if err != nil {
		r.t.Fatal(err)
	}
	chain, err := r.ca.Issue(req, Issue{Identity: id, Stamp: at, Now: r.clock.Now(), Also: r.roots})
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := NewCredential(key, chain, r.trust())
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *realm) source(id gpuai.Identity, cfg SourceConfig) *Source {
	cfg.Clock = r.clock
	s := NewSource(cfg)
	s.Set(r.credential(id, 7))
	return s
}

// connect has a client greet a server over TLS, and returns both ends and their
// errors.
func connect(t *testing.T, server func(net.Conn) *tls.Conn, client func(net.Conn) *tls.Conn) (sc, cc *tls.Conn, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sc, cc = server(accepted), client(raw)
	t.Cleanup(func() { sc.Close(); cc.Close() })
	done := make(chan error, 1)
	go func() {
		err := sc.Handshake()
		if err == nil {
			_, err = sc.Write([]byte("x"))
		} else {
			sc.Close()
		}
		done <- err
	}()
	if clientErr = cc.Handshake(); clientErr == nil {
		_, clientErr = cc.Read(make([]byte, 1))
	} else {
		cc.Close()
	}
	return sc, cc, <-done, clientErr
}

func anyServer(s *Source) func(net.Conn) *tls.Conn {
	return func(c net.Conn) *tls.Conn { return s.Server(c, Want{}) }
}

func clientOf(s *Source, want Want) func(net.Conn) *tls.Conn {
	return func(c net.Conn) *tls.Conn { return s.Client(c, want) }
}

func TestPeersKnowEachOther(t *testing.T) {
	r := newRealm(t, "c1")
	sc, cc, err, err2 := connect(t, anyServer(r.source(serverA, SourceConfig{})), clientOf(r.source(nodeN1, SourceConfig{}), Want{Kind: gpuai.IdentityServer, Name: "a"}))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if kind, id, at, ok := PeerOf(sc.ConnectionState()); kind != "node" || id != "n1" || at != 7 || !ok || sc.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("the client is %s/%s, %v", kind, id, ok)
	}
	if kind, id, _, ok := PeerOf(cc.ConnectionState()); kind != "server" || id != "a" || !ok {
		t.Errorf("the server is %s/%s, %v", kind, id, ok)
	}
	if _, _, _, ok := PeerOf(tls.ConnectionState{}); ok {
		t.Error("nobody is somebody")
	}
	// Other programs know the server by its host names.
	leaf := sc.ConnectionState() // its own certificate is that of the other end
	_ = leaf
	if err := cc.ConnectionState().PeerCertificates[0].VerifyHostname("gpuai.example"); err != nil {
		t.Error(err)
	}
}

// Every certificate that is not good is refused with a sentence: expired, of a
// wrong cluster, of a wrong kind, of another name, revoked, of an unknown CA.
func TestCertificatesAreRefused(t *testing.T) {
	r, other := newRealm(t, "c1"), newRealm(t, "c2")
	forged := newRealm(t, "c1")
	revoked := func(p Peer) error {
		if p.Name == "bad" {
			return refusal("%s was revoked: join again with a token that names it", p.Identity)
		}
		return nil
	}
	late := newRealm(t, "c1")
	late.ca, late.roots = r.ca, r.roots
	late.clock.move(-48 * time.Hour)
	bad := gpuai.Identity{Kind: gpuai.IdentityNode, Name: "bad"}
	for name, c := range map[string]struct {
		client *Source
		want   Want
		says   string
	}{
		"expired":           {client: late.source(nodeN1, SourceConfig{}), says: "correct the clock, or join again with a new token"},
		"case 14 cluster":   {client: other.source(nodeN1, SourceConfig{}), says: "it is node/n1 of cluster c2, and this is cluster c1"},
		"role":              {client: r.source(nodeN1, SourceConfig{}), want: Want{Kind: gpuai.IdentityServer}, says: "only a server may come here"},
		"name":              {client: r.source(serverA, SourceConfig{}), want: Want{Kind: gpuai.IdentityServer, Name: "b"}, says: "server/b was meant"},
		"case 34 revoked":   {client: r.source(bad, SourceConfig{}), says: "node/bad was revoked"},
		"unknown authority": {client: forged.source(nodeN1, SourceConfig{}), says: "not signed by an authority that this region trusts"},
	} {
		t.Run(name, func(t *testing.T) {
			server := r.source(serverA, SourceConfig{Judge: revoked})
			blind := func(raw net.Conn) *tls.Conn { // it would talk to any server
				return tls.Client(raw, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: c.client.clientCertificate})
			}
			_, _, err, clientErr := connect(t, func(raw net.Conn) *tls.Conn { return server.Server(raw, c.want) }, blind)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says) || clientErr == nil {
				t.Errorf("the server says %v, the client %v; want %q", err, clientErr, c.says)
			}
		})
	}
	t.Run("a node as a server", func(t *testing.T) {
		_, _, _, err := connect(t, anyServer(r.source(nodeN1, SourceConfig{})), clientOf(r.source(serverA, SourceConfig{}), Want{Kind: gpuai.IdentityServer}))
		if !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		server := r.source(serverA, SourceConfig{})
		cfg := TrustConfig(NewTrust("c1", r.roots...))
		cfg.VerifyConnection = nil
		client := func(raw net.Conn) *tls.Conn { return tls.Client(raw, cfg) }
		if _, _, err, err2 := connect(t, anyServer(server), client); err != nil || err2 != nil {
			t.Error("where anybody may come:", err, err2)
		}
		if _, _, err, _ := connect(t, func(raw net.Conn) *tls.Conn { return server.Server(raw, Want{Kind: gpuai.IdentityServer}) }, client); err == nil {
			t.Error("a server's port took somebody without a certificate")
		}
	})
	t.Run("before there is one", func(t *testing.T) {
		if _, _, err, _ := connect(t, anyServer(NewSource(SourceConfig{})), clientOf(r.source(nodeN1, SourceConfig{}), Want{})); !errors.Is(err, errNoCertificate) {
			t.Error(err)
		}
	})
}

// A live connection ends when its peer is revoked, and when the authority of its
// certificate is trusted no more.
func TestLiveConnectionsEnd(t *testing.T) {
	r := newRealm(t, "c1")
	var revoked atomic.Bool
	server := r.source(serverA, SourceConfig{Judge: func(Peer) error {
		if revoked.Load() {
			return refusal("revoked")
		}
		return nil
	}})
	node := r.source(nodeN1, SourceConfig{})
	live := func() *tls.Conn {
		t.Helper()
		_, cc, err, err2 := connect(t, anyServer(server), clientOf(node, Want{}))
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		server.Sweep()
		return cc
	}
	ended := func(c *tls.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the connection goes on: %v", err)
		}
	}
	first := live()
	revoked.Store(true)
	server.Sweep()
	ended(first)
	revoked.Store(false)

	second := live()
	old := r.roots
	r.rotate()
	server.Set(r.credential(serverA, 9))
	if err := echo(second); err != nil {
		t.Errorf("a CA was replaced, and a connection ended: %v", err)
	}
	third := live() // node knows the old authority only, and follows the cross certificate
	node.Set(r.credential(nodeN1, 9))
	fourth := live()
	r.roots = r.roots[len(old):]
	server.SetTrust(r.trust())
	ended(second)
	ended(third)
	if err := echo(fourth); err != nil {
		t.Errorf("a connection of the new authority ended: %v", err)
	}
	if n := len(server.conns); n > 1 {
		t.Errorf("%d connections are kept in mind", n)
	}
}

// echo reports whether a connection lives, by a read that finds nothing.
func echo(c *tls.Conn) error {
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// A certificate is renewed at half of its time, and again until that succeeds.
func TestRenewsAtHalfOfItsTime(t *testing.T) {
	r := newRealm(t, "c1")
	r.clock.asleep = make(chan time.Time, 100)
	s := r.source(nodeN1, SourceConfig{})
	asked := make(chan time.Time)
	fail := true
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		s.Run(ctx, func(context.Context) error {
			asked <- r.clock.Now()
			if fail {
				fail = false
				return errors.New("no leader")
			}
			s.Set(r.credential(nodeN1, 8))
			return nil
		})
	})
	start := r.clock.Now()
	next := func() time.Duration {
		for {
			select {
			case at := <-asked:
				return at.Sub(start)
			case at := <-r.clock.asleep:
				r.clock.move(max(at.Sub(r.clock.Now()), 0))
			}
		}
	}
	first, second, third := next(), next(), next()
	if first < 12*time.Hour || first > 12*time.Hour+time.Minute || second <= first || second > first+2*time.Minute ||
		third < second+12*time.Hour || third > second+12*time.Hour+2*time.Minute {
		t.Errorf("renewed after %s, %s, %s", first, second, third)
	}
	cancel()
	wg.Wait()
}

func TestCredentialsInFiles(t *testing.T) {
	r := newRealm(t, "c1")
	c := r.credential(nodeN1, 3)
	ring := NewKeyring()
	for name, k := range map[string]*Keyring{"plain": nil, "sealed": ring} {
		b, err := c.Encode(k)
		if err != nil {
			t.Fatal(err)
		}
		if sealed := !strings.Contains(string(b), "BEGIN PRIVATE KEY"); sealed != (k != nil) {
			t.Errorf("%s: the key is sealed: %v", name, sealed)
		}
		got, err := ReadCredential(b, k)
		if err != nil || got.Peer != c.Peer || !got.Trust.Equal(c.Trust) || !got.NotAfter().Equal(c.NotAfter()) || !got.key.Equal(c.key) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for _, cut := range []int{0, len(b) / 3, len(b) / 2} {
			if _, err := ReadCredential(b[:cut], k); err == nil {
				t.Errorf("%s: a file of %d bytes was read", name, cut)
			}
		}
	}
	sealed, _ := c.Encode(ring)
	for _, k := range []*Keyring{nil, NewKeyring()} {
		if _, err := ReadCredential(sealed, k); !errors.Is(err, ErrKeyring) || !strings.Contains(err.Error(), "--key-file") {
			t.Errorf("with another keyring: %v", err)
		}
	}
}

func TestKeyring(t *testing.T) {
	k := NewKeyring()
	sealed := k.Seal("a", []byte("secret"))
	again, err := ReadKeyring(k.Rotate().Encode())
	if err != nil || len(again.KeyIDs()) != 2 || again.KeyIDs()[1] != k.KeyIDs()[0] {
		t.Fatal(again, err)
	}
	if plain, err := again.Open("a", sealed); err != nil || string(plain) != "secret" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, err := k.Open("a", again.Seal("a", nil)); !errors.Is(err, ErrKeyring) {
		t.Errorf("an old keyring opened what a new key has sealed: %v", err)
	}
	if _, err := k.Open("b", sealed); !errors.Is(err, ErrKeyring) {
		t.Errorf("it was opened as something else: %v", err)
	}
	for i := range sealed {
		bad := append([]byte(nil), sealed...)
		bad[i] ^= 1
		if _, err := k.Open("a", bad); !errors.Is(err, ErrKeyring) {
			t.Fatalf("a flip in byte %d: %v", i, err)
		}
		if _, err := k.Open("a", sealed[:i]); !errors.Is(err, ErrKeyring) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for _, bad := range []string{"", "x", keyringHead, keyringHead + "\nxx yy", keyringHead + "\n00000000 AAAA"} {
		if _, err := ReadKeyring([]byte(bad)); !errors.Is(err, ErrKeyring) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestJoinTokens(t *testing.T) {
	r, other := newRealm(t, "c1"), newRealm(t, "c2")
	r.clock.now, other.clock.now = time.Now(), time.Now() // who joins has no clock of ours
	token := NewJoinToken(r.ca.Hash())
	got, err := ParseJoinToken(" " + token.Text() + "\n")
	if err != nil || got != token || !got.names(r.ca.Hash()) || got.names(other.ca.Hash()) {
		t.Fatal(got, err)
	}
	if s := token.GoString() + token.String(); strings.Contains(s, strings.Split(token.Text(), "_")[2]) {
		t.Errorf("%s shows the secret", s)
	}
	for i := range token.text {
		if bad := token.text[:i] + "!" + token.text[i+1:]; i > 0 {
			if _, err := ParseJoinToken(bad); err == nil {
				t.Fatalf("%q is a token", bad)
			}
		}
	}
	joiner := func(raw net.Conn) *tls.Conn { return tls.Client(raw, JoinConfig(token)) }
	if _, _, err, err2 := connect(t, anyServer(r.source(serverA, SourceConfig{})), joiner); err != nil || err2 != nil {
		t.Error(err, err2)
	}
	if _, _, _, err := connect(t, anyServer(other.source(serverA, SourceConfig{})), joiner); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not of the region that the join token is for") {
		t.Errorf("another region's server: %v", err)
	}
	if _, _, _, err := connect(t, anyServer(r.source(nodeN1, SourceConfig{})), joiner); !errors.Is(err, ErrRefused) {
		t.Errorf("a node plays a server: %v", err)
	}
	r.rotate()
	if _, _, _, err := connect(t, anyServer(r.source(serverA, SourceConfig{})), joiner); err != nil {
		t.Errorf("the CA was replaced since the token was made: %v", err)
	}
}

func TestRequestsAreRefused(t *testing.T) {
	_, csr, err := NewKey(nodeN1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, bad := range []string{"", "x", csr + csr, strings.Replace(csr, "REQUEST", "REQUESTS", 2), strings.Repeat("x", maxRequest+1), csr[:len(csr)/2]} {
		if _, err := ReadRequest(bad); err == nil {
			t.Errorf("%d was read", i)
		}
	}
	if _, csr, _ = NewKey(gpuai.Identity{Kind: gpuai.IdentityNode, Name: "No Name"}, nil); csr == "" {
		t.Fatal("no request")
	}
	if _, err := ReadRequest(csr); err == nil {
		t.Error("a name that is none was read")
	}
}

// FuzzReads takes any text for what is read from who has proven nothing yet.
func FuzzReads(f *testing.F) {
	_, csr, err := NewKey(nodeN1, []string{"h"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add(NewJoinToken(gpuai.SubjectHash{1}).Text())
	f.Add(string(NewKeyring().Encode()))
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ReadRequest(s); err == nil && !r.Identity.Valid() {
			t.Errorf("%q asks for %v", s, r.Identity)
		}
		if tok, err := ParseJoinToken(s); err == nil && tok.Text() != strings.TrimSpace(s) {
			t.Errorf("%q is the token %q", s, tok.Text())
		}
		_, _ = ReadCredential([]byte(s), nil)
		_, _ = ReadKeyring([]byte(s))
		_, _ = ReadTrust("c", []byte(s))
	})
}
