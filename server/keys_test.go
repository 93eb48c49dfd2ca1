package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

func (r *region) keys() (out gpuai.RegionKeyList) {
	r.t.Helper()
	r.write(func(m *member) (err error) {
		out, err = m.RegionKeys(r.t.Context())
		return err
	})
	return out
}

func (r *region) rotateKey() {
	r.t.Helper()
	r.write(func(m *member) error { return m.RotateKey(r.t.Context()) })
}

// sealed returns the secret's value as a server reads it.
func (m *member) sealed(t *testing.T, name string) string {
	t.Helper()
	var x fsm.SealedSecret
	m.node.View(func(f *fsm.Machine) { x, _ = f.Secret(gpuai.DefaultTenant, name) })
	plain, err := m.keyring().OpenEnvelope(secretAAD(gpuai.DefaultTenant, name), x.Seal, x.Box)
	if err != nil {
		t.Errorf("server %s: %v", m.cfg.ID, err)
	}
	return string(plain)
}

// ringOf reads a server's key file.
func (m *member) ringOf(t *testing.T) *identity.Keyring {
	t.Helper()
	text, err := store.ReadPrivate(filepath.Join(m.cfg.DataDir, store.KeyringFile))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := identity.ReadKeyring(text)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// A region key is replaced while one voter is down: nothing is sealed under the
// new one before that is back and has it. Then everything is, a new CA too, and
// the old key is deleted; servers start with the new one alone.
func TestRegionKeyIsRotatedWithAServerDown(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 3, 0)
	r.write(func(m *member) error { return m.RotateAuthority(t.Context()) }) // two CAs
	r.write(func(m *member) error {
		_, err := m.PutSecret(t.Context(), "a", gpuai.SecretRequest{Tenant: gpuai.DefaultTenant, Value: []byte("hunter2")})
		return err
	})
	old := r.keys().Keys[0].ID
	lead := r.leader()
	var down *member
	for _, m := range r.servers {
		if m != lead {
			down = m
		}
	}
	r.halt(down)
	r.rotateKey()
	eventually(t, "every server that runs to hold the new key", func() bool {
		l := r.keys()
		n := 0
		for i := range l.Servers {
			if h := &l.Servers[i]; h.Error == "" && len(h.Keys) == 2 && h.Keys[0] == old {
				n++
			}
		}
		return n == 2
	})
	r.rotateKey() // goes on with the same one
	l := r.keys()
	if what := l.Rotating(); len(l.Keys) != 2 || l.Keys[0].ID != old || l.Keys[1].State != gpuai.KeyOffered || !strings.Contains(what, "server "+string(down.cfg.ID)+", which does not answer") {
		t.Fatalf("%+v waits for %q", l, what)
	}
	r.again(down)
	eventually(t, "end of the rotation", func() bool { l = r.keys(); return l.Rotating() == "" && len(l.Keys) == 2 })
	now := ""
	for _, k := range l.Keys {
		switch {
		case k.State == gpuai.KeyActive && k.Secrets == 1 && k.Authorities == 2:
			now = k.ID
		case k.ID != old || k.State != gpuai.KeyOld || k.Secrets+k.Authorities != 0:
			t.Errorf("%+v", k)
		}
	}
	if now == "" || now == old {
		t.Fatalf("%+v", l)
	}
	r.write(func(m *member) error { return m.RetireKey(t.Context(), old) })
	for _, m := range r.servers {
		eventually(t, "the old key to be gone", func() bool {
			ids := m.ringOf(t).KeyIDs()
			return len(ids) == 1 && ids[0] == now
		})
		if got := m.sealed(t, "a"); got != "hunter2" {
			t.Errorf("server %s reads %q", m.cfg.ID, got)
		}
	}
	for _, m := range r.servers {
		r.halt(m)
		r.again(m) // its certificate is sealed under the new key
	}
	r.submit(jobSpec("j", 1), "k")
	r.mustWelcome(r.joined("n1"), r.urls()[0], "n1")
	r.equalDigests()
}

// A server whose key file was put back to an older one fetches what it lacks from
// the others; an offered key that nobody has any more is replaced.
func TestKeyFileIsBroughtUpToDate(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	m := r.servers[0]
	before, err := os.ReadFile(filepath.Join(m.cfg.DataDir, store.KeyringFile))
	if err != nil {
		t.Fatal(err)
	}
	lostKey := fsm.SetRegionKey{Key: fsm.SecretKeyID{1, 2, 3, 4}, State: gpuai.KeyOffered}
	if err := m.must(t.Context(), lostKey.Append(nil, fsm.Envelope{})); err != nil {
		t.Fatal(err)
	}
	r.rotateKey()
	eventually(t, "rotation past a lost key", func() bool { l := r.keys(); return len(l.Keys) == 2 && l.Rotating() == "" })
	ids := m.ringOf(t).KeyIDs()
	if err := m.RetireKey(t.Context(), ids[0]); !isCode(err, gpuai.Conflict) {
		t.Errorf("the active key was retired: %v", err)
	}
	if err := m.RetireKey(t.Context(), "x"); !isCode(err, gpuai.InvalidSpec) {
		t.Error(err)
	}
	want := gpuai.Identity{Kind: gpuai.IdentityServer, Name: "s2"}
	second := &member{cfg: Config{
		ID: "s2", DataDir: t.TempDir(), HTTP: listen(t), Raft: listen(t), Secure: true, Logger: testLogger(t),
		Join: []string{m.HTTPAddr()}, JoinToken: r.token(gpuai.JoinTokenRequest{Join: want.Kind, Name: want.Name}),
	}}
	r.start(second)
	r.servers = append(r.servers, second)
	eventually(t, "second voter", func() bool { x, ok := m.node.Member("s2"); return ok && x.Voter })
	r.halt(second)
	// Its own key must be one that the older file has, as when both were put back.
	old, err := identity.ReadKeyring(before)
	if err != nil {
		t.Fatal(err)
	}
	text, err := second.source().Credential().Encode(old)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{store.CredentialFile: text, store.KeyringFile: before} {
		if err := store.WritePrivate(filepath.Join(second.cfg.DataDir, name), b); err != nil {
			t.Fatal(err)
		}
	}
	r.again(second)
	eventually(t, "the key file to be up to date", func() bool {
		got := second.ringOf(t).KeyIDs()
		return len(got) == 2 && got[0] == ids[0] && got[1] == ids[1]
	})
}

// again starts a server of a region with authentication again.
func (r *region) again(m *member) {
	r.t.Helper()
	m.cfg.RaftAddr = m.RaftAddr()
	m.cfg.Join, m.cfg.JoinToken, m.cfg.Bootstrap = nil, "", false
	m.cfg.HTTP, m.cfg.Raft = listen(r.t), nil
	r.start(m)
	eventually(r.t, "ready server again", func() bool { return m.Status().Ready })
}
