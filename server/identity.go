package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

const (
	// wardenEvery is how often it is looked for what is due.
	wardenEvery = time.Second
	// joinTimeout bounds a server's request for its first certificate.
	joinTimeout = 30 * time.Second
	// authorityAAD is what a CA's key is sealed as.
	authorityAAD = "authority key"
)

// A warden keeps this server's certificate good, makes the region's first CA,
// and signs certificates. Every server can: each has the keyring, under which the
// state holds the CA's key.
type warden struct {
	s       *Server
	clock   identity.Clock
	src     *identity.Source
	changed chan struct{} // trust, who is revoked, or region keys
	rotates chan struct{} // the same, for the leader's duty; see reign.reseals
	// ring is what this server's key file holds; nil before it has one.
	ring    atomic.Pointer[identity.Keyring]
	changes sync.Mutex // held while the key file is written
	// sealed is the region key under which credential.pem is; of run alone.
	sealed identity.KeyID

	mu   sync.Mutex // guards below
	last *signer    // of the newest authorities
}

// A signer is what certificates are made with.
type signer struct {
	ca    *identity.Authority
	trust *identity.Trust
	stamp gpuai.Stamp
	now   gpuai.Instant
	list  []fsm.Authority
}

// newWarden returns the warden of a region with authentication; nil where there is
// none.
func newWarden(s *Server) *warden {
	if !s.cfg.Secure {
		return nil
	}
	w := &warden{s: s, clock: s.cfg.Clock, changed: make(chan struct{}, 1), rotates: make(chan struct{}, 1)}
	if w.clock == nil {
		w.clock = identity.SystemClock
	}
	w.src = identity.NewSource(identity.SourceConfig{Clock: w.clock, Judge: w.judge, Refused: (&refusals{log: s.log}).say})
	return w
}

// IsSecure reports whether a data directory is that of a server of a region with
// authentication.
func IsSecure(dataDir string) bool {
	for _, name := range []string{store.CredentialFile, store.KeyringFile} {
		if _, err := os.Stat(filepath.Join(dataDir, name)); err == nil {
			return true
		}
	}
	return false
}

// errNeedsKeyring is returned where a region with authentication would be served
// without it.
var errNeedsKeyring = errors.New("this region has authentication, and this server has neither its key file nor a certificate: copy the file keyring of another server into the data directory, or name it with --key-file, or join with --join and --join-token")

// checkSecure refuses to serve a state with a CA as if there were none.
func (s *Server) checkSecure() (err error) {
	if s.warden == nil {
		s.node.View(func(m *fsm.Machine) {
			if m.HasAuthority() {
				err = errNeedsKeyring
			}
		})
	}
	return err
}

// trustChanged is told when the state may have other authorities, or others that
// were revoked. It does not block.
func (s *Server) trustChanged() {
	if s.warden != nil {
		nudge(s.warden.changed)
		nudge(s.warden.rotates)
		return
	}
	if s.opened.Load() != nil { // else Open looks itself
		go func() { // not in Apply
			if err := s.checkSecure(); err != nil {
				s.fail(err)
			}
		}()
	}
}

// source returns what connections are made with; nil for plaintext.
func (s *Server) source() *identity.Source {
	if s.warden == nil {
		return nil
	}
	return s.warden.src
}

// judge refuses who was revoked. Before the state is there it refuses nobody: the
// state comes over such connections.
func (w *warden) judge(p identity.Peer) error {
	node := w.s.opened.Load()
	if node == nil {
		return nil
	}
	var st fsm.Standing
	node.View(func(m *fsm.Machine) { st = m.Standing(p.Identity) })
	switch {
	case st.Good(p.Stamp):
		return nil
	case st.Removed:
		return fmt.Errorf("%w: %s was removed from this region", identity.ErrRefused, p.Identity)
	case st.Revoked:
		return fmt.Errorf("%w: %s was revoked: it can join again with a token that names it, which 'gpuai token create --join %s --name %s' makes", identity.ErrRefused, p.Identity, p.Kind, p.Name)
	}
	if st.Stranger != 0 {
		return fmt.Errorf("%w: the region knows nobody called %s (an agent must register within two days of its join): it can join with a new token, which 'gpuai token create --join %s' makes", identity.ErrRefused, p.Identity, p.Kind)
	}
	return fmt.Errorf("%w: that of %s is void, since it has joined anew or the region was restored from a backup", identity.ErrRefused, p.Identity)
}

// open reads this server's keys, or has it join a region.
func (w *warden) open(dir *store.Dir) error {
	if err := w.openKeyring(dir); err != nil {
		return err
	}
	text, err := store.ReadPrivate(dir.Path(store.CredentialFile))
	if err != nil {
		return err
	}
	id := gpuai.Identity{Kind: gpuai.IdentityServer, Name: string(w.s.cfg.ID)}
	if text != nil {
		c, err := identity.ReadCredential(text, w.ring.Load())
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", dir.Path(store.CredentialFile), err)
		case c.Peer.Identity == id:
			w.src.Set(c)
			return w.resumeJoin(dir)
		}
		w.s.log.Info("the certificate in the data directory is another's, and not used", "of", c.Peer.Identity)
	}
	switch {
	case w.s.cfg.JoinToken != "":
		return w.join(dir, id)
	case w.ring.Load() != nil:
		return nil // it makes its own, from the state
	}
	return errors.New("this server has no certificate and no key file: join with --join and --join-token, form a region with --bootstrap, or name the region's key file with --key-file")
}

// resumeJoin has a server that has its certificate ask the Raft ports of those
// that it joins: the configuration names their APIs.
func (w *warden) resumeJoin(dir *store.Dir) error {
	if len(w.s.cfg.Join) == 0 {
		return nil
	}
	text, err := store.ReadPrivate(dir.Path(store.JoinFile))
	if text != nil {
		w.s.cfg.Join = strings.Fields(string(text))
	}
	return err
}

// openKeyring reads the key file, or makes that of a new region.
func (w *warden) openKeyring(dir *store.Dir) error {
	path := w.keyFile(dir)
	text, err := store.ReadPrivate(path)
	if err != nil {
		return err
	}
	known, _ := dir.Identity()
	switch {
	case text != nil:
		ring, err := identity.ReadKeyring(text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		w.ring.Store(ring)
	case w.s.cfg.Bootstrap && !known.Formed:
		_, err := w.changeRing(dir, func(*identity.Keyring) *identity.Keyring { return identity.NewKeyring() })
		return err
	case known.Formed && w.s.cfg.JoinToken == "":
		return fmt.Errorf("the key file %s is missing: copy it from another server of the region, or name it with --key-file", path)
	}
	return nil
}

func (w *warden) keyFile(dir *store.Dir) string {
	if w.s.cfg.KeyFile != "" {
		return w.s.cfg.KeyFile
	}
	return dir.Path(store.KeyringFile)
}

// join gets this server's first certificate, and the keyring, from a server of
// the region, which then is asked to take it in.
func (w *warden) join(dir *store.Dir, id gpuai.Identity) error {
	token, err := identity.ParseJoinToken(w.s.cfg.JoinToken)
	if err != nil {
		return err
	}
	key, csr, err := identity.NewKey(id, w.hosts())
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Addrs: w.s.cfg.Join, TLS: identity.JoinConfig(token), Logger: w.s.log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(w.s.ctx, joinTimeout)
	defer cancel()
	out, err := c.Join(ctx, gpuai.JoinRequest{Token: token.Text(), CSR: csr})
	if err != nil {
		return fmt.Errorf("join the region at %v: %w", w.s.cfg.Join, err)
	}
	cred, err := token.Accept(identity.Answer{Key: key, For: id, Issued: &out, Now: w.clock.Now()})
	if err != nil {
		return err
	}
	ring, err := identity.OpenRing(key, out.Keyring)
	if err != nil {
		return err
	}
	if _, err := w.changeRing(dir, func(*identity.Keyring) *identity.Keyring { return ring }); err != nil {
		return err
	}
	w.src.Set(cred)
	w.s.cfg.Join = out.Servers
	if err := store.WritePrivate(dir.Path(store.JoinFile), []byte(strings.Join(out.Servers, "\n"))); err != nil {
		return err
	}
	w.s.log.Info("joined the region: this server has its certificate", "cluster", out.Cluster, "not_after", cred.NotAfter())
	return w.keep(dir, cred)
}

// keep writes a certificate down.
func (w *warden) keep(dir *store.Dir, c *identity.Credential) error {
	ring := w.ring.Load()
	text, err := c.Encode(ring)
	if err != nil {
		return err
	}
	if err := store.WritePrivate(dir.Path(store.CredentialFile), text); err != nil {
		return err
	}
	w.sealed = ring.ActiveID()
	return store.WritePublic(dir.Path(store.TrustFile), c.Trust.PEM()) // for clients, who are told by another way too
}

// hosts are the names and addresses at which this server is reached.
func (w *warden) hosts() []string { return w.s.cfg.reachedAt() }

// reachedAt returns the names and addresses at which a server is reached.
func (c *Config) reachedAt() []string {
	out := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		out = append(out, name)
	}
	for _, addr := range append([]string{c.Advertise, c.HTTP.Addr().String()}, c.Hosts...) {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			host = addr
		}
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
			out = append(out, host)
		}
	}
	return out
}

// run works until ctx ends.
func (w *warden) run(ctx context.Context) {
	said := ""
	for {
		err := w.step(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			w.s.log.Warn("this server's certificate", "error", err)
		}
		select {
		case <-w.changed:
		case <-w.clock.After(wardenEvery):
		case <-ctx.Done():
			return
		}
	}
}

// step brings this server's keys, trust and certificate up to the state.
func (w *warden) step(ctx context.Context) error {
	err := w.followKeys(ctx)
	return errors.Join(err, w.certify(ctx))
}

// certify brings this server's trust and certificate up to the state.
func (w *warden) certify(ctx context.Context) error {
	sign, err := w.signer()
	if err != nil {
		return err
	}
	if sign == nil {
		return w.found(ctx)
	}
	w.src.SetTrust(sign.trust)
	w.src.Sweep()
	w.retire(ctx, sign)
	cred := w.src.Credential()
	due := cred == nil || w.src.RenewDue() || cred.Peer.Cluster != sign.ca.Cluster || !sign.ca.Issued(cred) || cred.Peer.Stamp.Epoch() != sign.stamp.Epoch()
	if !due || cred != nil && cred.Peer.Stamp > sign.stamp { // this server's state is older than its certificate
		return nil
	}
	return w.renew(sign)
}

// renew gives this server a new certificate.
func (w *warden) renew(sign *signer) error {
	id := gpuai.Identity{Kind: gpuai.IdentityServer, Name: string(w.s.cfg.ID)}
	key, csr, err := identity.NewKey(id, w.hosts())
	if err != nil {
		return err
	}
	req, err := identity.ReadRequest(csr)
	if err != nil {
		return err
	}
	chain, err := w.issue(sign, req, id)
	if err != nil {
		return err
	}
	cred, err := identity.NewCredential(key, chain, sign.trust)
	if err != nil {
		return err
	}
	if err := w.keep(w.s.dir, cred); err != nil {
		return err
	}
	w.src.Set(cred)
	w.s.log.Info("this server's certificate is a new one", "not_after", cred.NotAfter(), "authority", hex.EncodeToString(sign.list[0].Hash[:8]))
	return nil
}

func (w *warden) issue(sign *signer, r *identity.Request, id gpuai.Identity) ([][]byte, error) {
	return sign.ca.Issue(r, identity.Issue{
		Identity: id, Stamp: sign.stamp, Now: w.clock.Now(), TTL: w.s.cfg.CertificateTTL, Also: sign.trust.Roots(),
	})
}

// signer reads the authorities of the state; nil where there is none yet.
func (w *warden) signer() (*signer, error) {
	var list []fsm.Authority
	now := signer{}
	w.s.node.View(func(m *fsm.Machine) { list, now.stamp, now.now = m.Authorities(), m.Stamp(), m.Time() })
	if len(list) == 0 {
		return nil, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == nil || !sameAuthorities(w.last.list, list) {
		s, err := w.openAuthorities(list)
		if err != nil {
			return nil, err
		}
		w.last = s
	}
	now.ca, now.trust, now.list = w.last.ca, w.last.trust, list
	return &now, nil
}

func sameAuthorities(a, b []fsm.Authority) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Hash != b[i].Hash || a[i].RetireAt != b[i].RetireAt {
			return false
		}
	}
	return true
}

func (w *warden) openAuthorities(list []fsm.Authority) (*signer, error) {
	first := &list[0]
	key, err := w.ring.Load().Open(authorityAAD, first.Key)
	if err != nil {
		return nil, err
	}
	ca, err := identity.OpenAuthority(first.Domain, first.Certificate, first.Cross, key)
	if err != nil {
		return nil, err
	}
	var text []byte
	for i := range list {
		text = append(text, identity.ChainText([][]byte{list[i].Certificate})...)
	}
	trust, err := identity.ReadTrust(first.Domain, text)
	return &signer{ca: ca, trust: trust, list: list}, err
}

// found makes the region's first CA, where this server leads it.
func (w *warden) found(ctx context.Context) error {
	if !w.s.node.IsLeader() || w.s.level() < fsm.LevelTenants {
		return nil
	}
	ca, err := identity.NewAuthority(w.s.cluster(), w.clock.Now())
	if err != nil {
		return err
	}
	return w.put(ctx, ca, gpuai.SubjectHash{})
}

// put has a CA issue in place of another.
func (w *warden) put(ctx context.Context, ca *identity.Authority, replaces gpuai.SubjectHash) error {
	key, err := ca.Key()
	if err != nil {
		return err
	}
	c := fsm.PutAuthority{
		Hash: ca.Hash(), Replaces: replaces, Domain: ca.Cluster, Certificate: ca.Certificate.Raw,
		Key: w.ring.Load().Seal(authorityAAD, key), Retire: gpuai.Duration(w.ttl()/time.Millisecond) * 5 / 4, // a quarter longer than its certificates
	}
	if ca.Cross != nil {
		c.Cross = ca.Cross.Raw
	}
	_, err = w.s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}

func (w *warden) ttl() time.Duration {
	if w.s.cfg.CertificateTTL > 0 {
		return w.s.cfg.CertificateTTL
	}
	return time.Duration(gpuai.CertificateTTL) * time.Millisecond
}

// retire has CAs trusted no more whose time is over. One that fails is tried again.
func (w *warden) retire(ctx context.Context, sign *signer) {
	for i := range sign.list {
		a := &sign.list[i]
		if a.RetireAt == 0 || a.RetireAt > sign.now || !w.s.node.IsLeader() {
			continue
		}
		c := fsm.RetireAuthority{Hash: a.Hash}
		if _, err := w.s.command(ctx, c.Append(nil, envelopeOf(ctx, "", ""))); err != nil {
			w.s.log.Warn("a replaced authority could not be retired; it is tried again", "error", err)
		}
	}
}
