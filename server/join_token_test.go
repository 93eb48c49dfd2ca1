package server

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// A joiner is a host that asks to join, again and again with one key.
type joiner struct {
	t     *testing.T
	token string
	csr   string
}

func newJoiner(t *testing.T, name, token string) *joiner {
	t.Helper()
	_, csr, err := identity.NewKey(nodeNamed(name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &joiner{t: t, token: token, csr: csr}
}

// at asks one server.
func (j *joiner) at(m *member) error {
	parsed, err := identity.ParseJoinToken(j.token)
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Addrs: []string{"https://" + m.HTTPAddr()}, TLS: identity.JoinConfig(parsed), RetryFor: patience})
	if err != nil {
		return err
	}
	_, err = c.Join(j.t.Context(), gpuai.JoinRequest{Token: j.token, CSR: j.csr})
	return err
}

// race has two hosts ask a server each at once.
func race(r *region, a, b *joiner) (errA, errB error) {
	other := make(chan error)
	go func() { other <- b.at(r.servers[1]) }()
	errA = a.at(r.servers[0])
	return errA, <-other
}

// Case 34: of two hosts that come with one token to two servers one joins; of two
// with a token each for one name the last alone goes on, whichever server it asks,
// also one that has started again.
func TestCase34UsedTokensAtTwoServers(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 2, 0)
	named := gpuai.JoinTokenRequest{Join: gpuai.IdentityNode, Name: "n1"}
	one := r.token(named)
	a, b := newJoiner(t, "n1", one), newJoiner(t, "n1", one)
	errA, errB := race(r, a, b)
	if (errA == nil) == (errB == nil) {
		t.Fatalf("two hosts with one token: %v and %v", errA, errB)
	}
	if errA != nil {
		a, b, errB = b, a, errA
	}
	refusedAs(t, errB, gpuai.Unauthenticated)
	everywhere := func(j *joiner, code gpuai.Code) {
		t.Helper()
		for _, m := range r.servers {
			if err := j.at(m); code == gpuai.OK && err != nil || code != gpuai.OK && !isCode(err, code) {
				t.Errorf("at %s: %v, want %v", m.cfg.ID, err, code)
			}
		}
	}
	everywhere(a, gpuai.OK) // its answer was lost
	everywhere(b, gpuai.Unauthenticated)

	c, d := newJoiner(t, "n1", r.token(named)), newJoiner(t, "n1", r.token(named))
	errC, errD := race(r, c, d)
	if errC != nil && errD != nil {
		t.Fatalf("two hosts with a token each: %v and %v", errC, errD)
	}
	if c.at(r.servers[0]) != nil {
		c, d = d, c
	}
	everywhere(c, gpuai.OK)
	everywhere(d, gpuai.Unauthenticated)
	everywhere(a, gpuai.Unauthenticated)

	m := r.servers[1]
	r.halt(m)
	m.cfg.RaftAddr = m.RaftAddr()
	m.cfg.Join, m.cfg.JoinToken, m.cfg.Bootstrap = nil, "", false
	m.cfg.HTTP, m.cfg.Raft = listen(t), nil
	r.start(m)
	eventually(t, "ready server again", func() bool { return m.Status().Ready })
	everywhere(c, gpuai.OK)
	everywhere(d, gpuai.Unauthenticated)
	everywhere(a, gpuai.Unauthenticated)
}
