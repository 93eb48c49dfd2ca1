package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server/offline"
	"github.com/gpuai/gpuai/store"
)

// formSecure forms a region with authentication of n servers.
func formSecure(t *testing.T, n int, ttl time.Duration) *region {
	t.Helper()
	return formSecureWith(t, n, func(c *Config) { c.CertificateTTL = ttl })
}

func formSecureWith(t *testing.T, n int, change func(*Config)) *region {
	t.Helper()
	r := &region{t: t}
	var cfgs []Config
	for i := range n {
		cfgs = append(cfgs, Config{
			ID: gpuai.ServerID(fmt.Sprintf("s%d", i+1)), DataDir: t.TempDir(), HTTP: listen(t), Raft: listen(t),
			Logger: testLogger(t),
		})
		change(&cfgs[i])
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := Form(ctx, cfgs, func(s *Server) {
		m := &member{cfg: s.cfg}
		m.cfg.Metrics = nil
		r.servers = append(r.servers, m)
		r.run(m, s)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.write(func(m *member) error {
		_, err := m.CreateTenant(t.Context(), gpuai.TenantRequest{ID: gpuai.DefaultTenant})
		if isCode(err, gpuai.Conflict) {
			return nil
		}
		return err
	})
	return r
}

func (r *region) urls() (out []string) {
	for _, m := range r.servers {
		out = append(out, "https://"+m.HTTPAddr())
	}
	return out
}

// token makes a join token at the leader.
func (r *region) token(q gpuai.JoinTokenRequest) (text string) {
	r.t.Helper()
	r.write(func(m *member) error {
		out, err := m.CreateJoinToken(r.t.Context(), &q)
		text = out.Token
		return err
	})
	return text
}

// enrol joins with a token and returns the certificate of who joined.
func (r *region) enrol(id gpuai.Identity, token string) (*identity.Source, error) {
	r.t.Helper()
	parsed, err := identity.ParseJoinToken(token)
	if err != nil {
		r.t.Fatal(err)
	}
	key, csr, err := identity.NewKey(id, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	c := r.client(identity.JoinConfig(parsed))
	out, err := c.Join(r.t.Context(), gpuai.JoinRequest{Token: token, CSR: csr})
	if err != nil {
		return nil, err
	}
	cred, err := parsed.Accept(identity.Answer{Key: key, For: id, Issued: &out, Now: time.Now()})
	if err != nil {
		r.t.Fatal(err)
	}
	src := identity.NewSource(identity.SourceConfig{})
	src.Set(cred)
	return src, nil
}

func (r *region) client(cfg *tls.Config) *client.Client {
	r.t.Helper()
	c, err := client.New(client.Config{Addrs: r.urls(), TLS: cfg, RetryFor: patience})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func nodeNamed(name string) gpuai.Identity {
	return gpuai.Identity{Kind: gpuai.IdentityNode, Name: name}
}

// joined is a node that has joined.
func (r *region) joined(name string) *identity.Source {
	r.t.Helper()
	src, err := r.enrol(nodeNamed(name), r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode, Name: name}))
	if err != nil {
		r.t.Fatal(err)
	}
	return src
}

// hello opens a session with one server and returns its first answer.
func (r *region) hello(src *identity.Source, url, node string) (*client.Session, gpuai.Frame, error) {
	r.t.Helper()
	s, err := r.client(src.ClientConfig()).DialSession(r.t.Context(), url)
	if err != nil {
		return nil, gpuai.Frame{}, err
	}
	r.t.Cleanup(func() { s.Close() })
	h := helloOf(node, 1)
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameHello, Hello: &h}); err != nil {
		return s, gpuai.Frame{}, err
	}
	f, err := s.Recv(ctx)
	return s, f, err
}

func (r *region) mustWelcome(src *identity.Source, url, node string) *client.Session {
	r.t.Helper()
	var s *client.Session
	eventually(r.t, "welcome of node "+node, func() bool {
		var f gpuai.Frame
		var err error
		s, f, err = r.hello(src, url, node)
		return err == nil && f.Kind == gpuai.FrameWelcome
	})
	return s
}

// Servers and agents of a region with authentication go on without its leader;
// a server that starts again uses its certificate.
func TestSecureRegionLosesItsLeader(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 3, 0)
	n1 := r.joined("n1")
	for _, url := range r.urls() {
		r.mustWelcome(n1, url, "n1")
	}
	r.submit(jobSpec("j", 1), "k")
	leader := r.leader()
	r.halt(leader)
	for _, m := range r.servers {
		if m != leader {
			r.mustWelcome(n1, "https://"+m.HTTPAddr(), "n1")
		}
	}
	leader.cfg.RaftAddr = leader.RaftAddr()
	leader.cfg.Join, leader.cfg.JoinToken, leader.cfg.Bootstrap = nil, "", false
	leader.cfg.HTTP, leader.cfg.Raft = listen(t), nil
	r.start(leader)
	eventually(t, "ready server again", func() bool { return leader.Status().Ready })
	r.mustWelcome(n1, "https://"+leader.HTTPAddr(), "n1")
	r.equalDigests()
	for _, name := range []string{store.CredentialFile, store.KeyringFile} {
		if info, err := os.Stat(filepath.Join(leader.cfg.DataDir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(leader.cfg.DataDir, store.CredentialFile)); err != nil || strings.Contains(string(text), "BEGIN PRIVATE KEY") {
		t.Errorf("the server's key is not sealed: %v", err)
	}
}

// What is refused with which sentence: a token that is used again, of the wrong
// kind or unknown; a session in another's name, of a server, without a
// certificate; who was revoked, whose live session ends too.
func TestSecureRegionRefuses(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	url := r.urls()[0]
	says := func(what string, err error, code gpuai.Code, text string) {
		t.Helper()
		if !isCode(err, code) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %s: …%s…", what, err, code, text)
		}
	}
	token := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
	n1, err := r.enrol(nodeNamed("n1"), token)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.enrol(nodeNamed("n2"), token)
	says("a replayed join token", err, gpuai.Unauthenticated, "used already")
	_, err = r.enrol(gpuai.Identity{Kind: gpuai.IdentityServer, Name: "x"}, r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode}))
	says("a node's token for a server", err, gpuai.Forbidden, "for a node")
	_, err = r.enrol(nodeNamed("n1"), r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode}))
	says("case 14: a name that has joined", err, gpuai.Conflict, "--name")
	_, err = r.enrol(nodeNamed("n3"), identity.NewJoinToken(r.servers[0].mustHash(t)).Text())
	says("a token that nobody made", err, gpuai.Unauthenticated, "not known")

	refused := func(what string, src *identity.Source, code gpuai.Code, text string) {
		t.Helper()
		_, f, err := r.hello(src, url, "n2")
		if err != nil || f.Refused == nil || f.Refused.Code != code || !strings.Contains(f.Refused.Detail, text) {
			t.Errorf("%s: %+v, %v", what, f, err)
		}
	}
	refused("a hello of another node", n1, gpuai.Forbidden, "the certificate is that of node n1, and the agent says that it is node n2")
	_, _, err = r.hello(r.servers[0].source(), url, "n2")
	says("a server as an agent", err, gpuai.Forbidden, "it takes a node's certificate")

	live := r.mustWelcome(n1, url, "n1")
	if err := r.servers[0].RevokeIdentity(t.Context(), nodeNamed("n1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for err = nil; err == nil; {
		_, err = live.Recv(ctx)
	}
	if ctx.Err() != nil {
		t.Error("case 34: the live session of a revoked node goes on")
	}
	if _, _, err := r.hello(n1, url, "n1"); err == nil {
		t.Error("case 34: a revoked node has a session")
	}
	_, err = r.client(n1.ClientConfig()).Raft(ctx)
	says("case 34: a revoked node's request", err, gpuai.Unauthenticated, "refused the certificate")
	r.mustWelcome(r.joined("n1"), url, "n1") // with a token that names it
	if err := r.servers[0].RevokeIdentity(t.Context(), nodeNamed("nobody")); !isCode(err, gpuai.NotFound) {
		t.Error(err)
	}
	if resp, err := http.Get("http://" + r.servers[0].HTTPAddr() + "/healthz"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("plain HTTP is served")
		}
	}
}

func (s *Server) mustHash(t *testing.T) gpuai.SubjectHash {
	t.Helper()
	sign, err := s.mustSign()
	if err != nil {
		t.Fatal(err)
	}
	return sign.ca.Hash()
}

// Case 14: the Raft port takes servers of its own cluster only, under their own
// names.
func TestCase14RaftPortTakesOwnServersOnly(t *testing.T) {
	t.Parallel()
	r, other := formSecure(t, 1, 0), formSecure(t, 1, 0)
	n1 := r.joined("n1")
	for name, src := range map[string]*identity.Source{"a node": n1, "another cluster's server": other.servers[0].source(), "nobody": nil} {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if src != nil {
			cfg = src.ClientConfig()
			cfg.VerifyConnection = nil
		}
		c, err := tls.Dial("tcp", r.servers[0].RaftAddr(), cfg)
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			if _, err = c.Write([]byte{1, 1, 0, 2, 0, 0}); err == nil {
				_, err = io.ReadFull(c, make([]byte, 1))
			}
			c.Close()
		}
		if err == nil {
			t.Errorf("the Raft port answers %s", name)
		}
	}
	lie := r.servers[0].source() // a good certificate, and another's name
	c, err := tls.Dial("tcp", r.servers[0].RaftAddr(), lie.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello := "\x00other\x00" + string(r.servers[0].cfg.ID)
	if _, err := c.Write(append([]byte{1, 1, 0, byte(len(hello))}, hello...)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(io.LimitReader(c, 4096))
	if len(answer) == 0 || answer[0] == 0 || !strings.Contains(string(answer), "its certificate is that of server/") {
		t.Errorf("%q, %v", answer, err)
	}
	_, err = Open(Config{
		ID: "s9", DataDir: t.TempDir(), HTTP: listen(t), Raft: listen(t), Secure: true, Logger: testLogger(t),
		Join: []string{other.servers[0].HTTPAddr()}, JoinToken: r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityServer}),
	})
	if err == nil || !strings.Contains(err.Error(), "not of the region that the join token is for") {
		t.Errorf("a server joined another region than its token's: %v", err)
	}
}

// A CA is replaced while everybody goes on: certificates are made anew, the old
// CA is trusted no more once its have ended.
func TestAuthorityIsReplacedWithoutDowntime(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	r := formSecure(t, 3, ttl)
	n1 := r.joined("n1")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		n1.Run(ctx, func(ctx context.Context) error { return r.renewNode(ctx, n1, "n1") })
	})
	defer wg.Wait()
	defer cancel()
	first := r.servers[0].mustHash(t)
	r.write(func(m *member) error { return m.RotateAuthority(t.Context()) })
	if r.servers[0].mustHash(t) == first {
		eventually(t, "another CA", func() bool { return r.servers[0].mustHash(t) != first })
	}
	spec := 0
	eventually(t, "the old CA to be retired", func() bool {
		r.mustWelcome(n1, r.urls()[spec%3], "n1")
		r.submit(jobSpec("j", 1), fmt.Sprintf("k%d", spec))
		spec++
		return len(r.servers[spec%3].Authorities().Authorities) == 1
	})
	for _, m := range r.servers {
		eventually(t, "certificates of the new CA", func() bool {
			sign, err := m.mustSign()
			return err == nil && len(sign.list) == 1 && sign.ca.Issued(m.source().Credential()) && len(m.source().Trust().Roots()) == 1
		})
	}
	r.mustWelcome(n1, r.urls()[0], "n1")
	if sign, err := r.servers[0].mustSign(); err != nil || !sign.ca.Issued(n1.Credential()) {
		t.Errorf("the node's certificate is of the old CA: %v", err)
	}
	r.equalDigests()
}

func (r *region) renewNode(ctx context.Context, src *identity.Source, name string) error {
	key, csr, err := identity.NewKey(nodeNamed(name), nil)
	if err != nil {
		return err
	}
	out, err := r.client(src.ClientConfig()).Renew(ctx, csr)
	if err != nil {
		return err
	}
	cred, err := src.Trust().Accept(identity.Answer{Key: key, For: nodeNamed(name), Issued: &out, Now: time.Now()})
	if err == nil {
		src.Set(cred)
	}
	return err
}

// A server that cannot prove who it is says what is missing.
func TestSecureServerSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := func() Config {
		return Config{ID: "a", DataDir: dir, HTTP: listen(t), Raft: listen(t), Secure: true, Logger: testLogger(t)}
	}
	for what, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"nothing":      {func(*Config) {}, "join with --join and --join-token, form a region with --bootstrap"},
		"no token":     {func(c *Config) { c.Join = []string{"h:1"} }, "--join-token"},
		"no join":      {func(c *Config) { c.JoinToken = "x" }, "name one with --join"},
		"a bad token":  {func(c *Config) { c.Join, c.JoinToken = []string{"h:1"}, "x" }, "this is no join token"},
		"peers":        {func(c *Config) { c.Bootstrap, c.Peers = true, []raft.Peer{{ID: "a", Addr: "h:1"}} }, "--peers is for regions without authentication"},
		"plaintext":    {func(c *Config) { c.InsecurePlaintext = true }, "without --insecure-plaintext"},
		"no key there": {func(c *Config) { c.KeyFile = filepath.Join(dir, "missing") }, "form a region with --bootstrap"},
	} {
		conf := cfg()
		c.change(&conf)
		if s, err := Open(conf); err == nil {
			s.Close()
			t.Errorf("%s: it was opened", what)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want …%s…", what, err, c.says)
		}
	}
	r := startRegion(t, 1)
	if _, err := r.servers[0].Join(t.Context(), &gpuai.JoinRequest{}); !errors.Is(err, errInsecure) {
		t.Error(err)
	}
}

// Case 38: a backup of a region with authentication, restored: it needs the
// keyring, nodes come back with their certificates, who was revoked does not, and
// join tokens from before are gone.
func TestCase38SecureRegionIsRestored(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	old := r.servers[0]
	n1, n2 := r.joined("n1"), r.joined("n2")
	if err := old.RevokeIdentity(t.Context(), nodeNamed("n2")); err != nil {
		t.Fatal(err)
	}
	token := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
	file := filepath.Join(t.TempDir(), "backup")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(old.Snapshot(t.Context(), f), f.Close()); err != nil {
		t.Fatal(err)
	}
	oldServer := old.source()
	r.halt(old)

	next := &member{cfg: Config{ID: "s1", DataDir: t.TempDir(), HTTP: listen(t), Raft: listen(t), Logger: testLogger(t)}}
	_, err = offline.Restore(&offline.RestoreConfig{
		File: file, Targets: []offline.Target{{Server: "s1", Dir: next.cfg.DataDir}},
		Members: []store.Member{{Server: "s1", Addr: next.cfg.Raft.Addr().String()}}, MaxTTL: gpuai.MinLeaseTTL,
	})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Open(next.cfg); !errors.Is(err, errNeedsKeyring) {
		if err == nil {
			s.Close()
		}
		t.Fatalf("without its keyring it is opened: %v", err)
	}
	keys, err := os.ReadFile(filepath.Join(old.cfg.DataDir, store.KeyringFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.WritePrivate(filepath.Join(next.cfg.DataDir, store.KeyringFile), keys); err != nil {
		t.Fatal(err)
	}
	next.cfg.HTTP, next.cfg.RaftAddr, next.cfg.Raft = listen(t), next.cfg.Raft.Addr().String(), nil
	r.start(next)
	r.servers = []*member{next}
	eventually(t, "ready restored server", func() bool { return next.Status().Ready })
	url := r.urls()[0]
	r.mustWelcome(n1, url, "n1")
	if _, _, err := r.hello(n2, url, "n2"); err == nil {
		t.Error("who was revoked before the backup has a session")
	}
	if err := next.warden.judge(oldServer.Credential().Peer); err == nil {
		t.Error("a server of the old region is trusted")
	}
	if _, err := r.enrol(nodeNamed("n5"), token); !isCode(err, gpuai.Unauthenticated) {
		t.Errorf("a join token from before: %v", err)
	}
}
