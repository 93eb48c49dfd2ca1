package server

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

var errInsecure = gpuai.NewError(gpuai.PreconditionFailed, "this region has no authentication: it was formed with --insecure-plaintext, and has no certificates")

// mustSign returns what certificates are made with.
func (s *Server) mustSign() (*signer, error) {
	if s.warden == nil {
		return nil, errInsecure
	}
	sign, err := s.warden.signer()
	if err == nil && sign == nil {
		err = gpuai.NewError(gpuai.NoLeader, "the region has no authority yet; retry")
	}
	return sign, err
}

// Join implements httpd.Identities.
func (s *Server) Join(ctx context.Context, r *gpuai.JoinRequest) (out gpuai.IssuedCertificate, err error) {
	sign, err := s.mustSign()
	if err != nil {
		return out, err
	}
	token, err := identity.ParseJoinToken(r.Token)
	if err != nil {
		return out, gpuai.NewError(gpuai.Unauthenticated, err.Error())
	}
	csr, err := identity.ReadRequest(r.CSR)
	if err != nil {
		return out, gpuai.NewError(gpuai.InvalidSpec, err.Error())
	}
	c := fsm.Join{Token: token.Hash(), Identity: csr.Identity, Key: csr.Hash()}
	if err := s.mayJoin(ctx, &c); err != nil {
		return out, err
	}
	done, err := s.propose(ctx, c.Append(nil, fsm.Envelope{Actor: actorOf(&gpuai.Principal{Actor: csr.Identity.String(), From: httpd.PrincipalOf(ctx).From})}))
	switch {
	case err != nil:
		return out, err
	case done[0].Code != gpuai.OK:
		return out, gpuai.NewError(done[0].Code, done[0].Detail)
	}
	if err := s.node.WaitApplied(ctx, done[0].Index); err != nil {
		return out, err
	}
	if !s.joinedWith(csr.Identity, c.Token) {
		return out, gpuai.NewError(gpuai.Unauthenticated, "another join token was used for "+csr.Identity.String()+" at the same time: ask for a new one, which 'gpuai token create --join' makes with --name")
	}
	s.log.Info("joined with a token", "identity", csr.Identity, "token", token)
	return s.issue(csr, csr.Identity, gpuai.StampOf(sign.stamp.Epoch(), done[0].Index))
}

// joinedWith reports whether a token is the newest with which an identity joined.
// One of another entry is told by the stamp of the join, two of one entry have the
// same.
func (s *Server) joinedWith(id gpuai.Identity, token [32]byte) bool {
	var st fsm.Standing
	s.node.View(func(m *fsm.Machine) { st = m.Standing(id) })
	return st.Token == token
}

// mayJoin judges who joins by this server's state, or by one that is as new as the
// leader's: only who has a token that is good comes into the log, since anybody
// can ask. The audit counts the others with what is refused here.
func (s *Server) mayJoin(ctx context.Context, c *fsm.Join) error {
	var res fsm.Result
	look := func() bool {
		s.node.View(func(m *fsm.Machine) { res = m.MayJoin(c) })
		return res.Code == gpuai.OK
	}
	if !look() { // the token may be newer than this server's state
		if further, err := s.keeper.settle(ctx); err != nil {
			return err
		} else if !further || !look() {
			return gpuai.NewError(res.Code, res.Detail)
		}
	}
	return s.node.AdmitClient()
}

// Renew implements httpd.Identities.
func (s *Server) Renew(ctx context.Context, id gpuai.Identity, r *gpuai.RenewRequest) (out gpuai.IssuedCertificate, err error) {
	csr, err := identity.ReadRequest(r.CSR)
	if err != nil {
		return out, gpuai.NewError(gpuai.InvalidSpec, err.Error())
	}
	if csr.Identity != id {
		return out, gpuai.NewError(gpuai.Forbidden, fmt.Sprintf("the certificate is that of %s, and the request is for %s: who is one cannot become another", id, csr.Identity))
	}
	return s.issue(csr, id, httpd.PrincipalOf(ctx).Stamp)
}

// issue signs a request of who has proven who it is, by a certificate issued at
// shown or by a token: both are good as of the state that the new one is of.
func (s *Server) issue(r *identity.Request, id gpuai.Identity, shown gpuai.Stamp) (out gpuai.IssuedCertificate, err error) {
	sign, err := s.mustSign()
	if err != nil {
		return out, err
	}
	var st fsm.Standing
	s.node.View(func(m *fsm.Machine) { st = m.Standing(id) })
	if !st.Good(sign.stamp) || !st.Good(shown) {
		return out, gpuai.NewError(gpuai.Forbidden, id.String()+" was revoked, or has joined anew with another key: it can join again with a token that names it")
	}
	chain, err := s.warden.issue(sign, r, id)
	if err != nil {
		return out, err
	}
	out = gpuai.IssuedCertificate{
		Certificate: identity.ChainText(chain), Trust: string(sign.trust.PEM()), Cluster: sign.ca.Cluster,
	}
	if id.Kind == gpuai.IdentityServer {
		if out.Keyring, err = r.SealRing(s.warden.ring.Load()); err != nil {
			return gpuai.IssuedCertificate{}, err
		}
		for _, m := range s.node.Members() {
			out.Servers = append(out.Servers, m.Addr)
		}
	}
	return out, nil
}

// CreateJoinToken implements httpd.Identities. It has no idempotency: a token that
// was not told is of no use to anybody.
func (s *Server) CreateJoinToken(ctx context.Context, r *gpuai.JoinTokenRequest) (out gpuai.JoinToken, err error) {
	sign, err := s.mustSign()
	if err != nil {
		return out, err
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = gpuai.DefaultJoinTTL
	}
	token := identity.NewJoinToken(sign.ca.Hash())
	c := fsm.CreateJoinToken{Hash: token.Hash(), Kind: r.Join, TTL: ttl, For: r.Name, Contributor: r.Contributor}
	a, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	if err != nil {
		return out, err
	}
	return gpuai.JoinToken{Token: token.Text(), Join: r.Join, TTL: ttl, Name: r.Name, Contributor: r.Contributor, Index: a.Index}, nil
}

// Authorities implements httpd.Identities.
func (s *Server) Authorities() (out gpuai.AuthorityList) {
	out.Authorities = []gpuai.Authority{}
	var list []fsm.Authority
	s.node.View(func(m *fsm.Machine) { list, out.Index, out.Time = m.Authorities(), m.Index(), m.Time() })
	for i := range list {
		a := &list[i]
		out.Cluster = a.Domain
		out.Authorities = append(out.Authorities, gpuai.Authority{
			Hash: hex.EncodeToString(a.Hash[:]), Active: a.RetireAt == 0, RetireAt: a.RetireAt,
			Certificate: identity.ChainText([][]byte{a.Certificate}),
		})
	}
	return out
}

// RotateAuthority implements httpd.Identities.
func (s *Server) RotateAuthority(ctx context.Context) error {
	sign, err := s.mustSign()
	if err != nil {
		return err
	}
	next, err := sign.ca.Next(s.warden.clock.Now())
	if err != nil {
		return err
	}
	return s.warden.put(ctx, next, sign.ca.Hash())
}

// RevokeIdentity implements httpd.Identities.
func (s *Server) RevokeIdentity(ctx context.Context, id gpuai.Identity) error {
	if s.warden == nil {
		return errInsecure
	}
	c := fsm.RevokeIdentity{Identity: id}
	_, err := s.command(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}
