package httpd

import (
	"context"
	"net/http"

	"github.com/gpuai/gpuai"
)

// Identities are those who may be part of the region, and its CA. In a region
// without authentication all of it is PreconditionFailed.
type Identities interface {
	// Join gives a certificate to who has a join token. Any server does it.
	Join(ctx context.Context, r *gpuai.JoinRequest) (gpuai.IssuedCertificate, error)
	// Renew gives a new one to who has shown a certificate that is good, issued at
	// the stamp of the principal in ctx. Any server does it.
	Renew(ctx context.Context, id gpuai.Identity, r *gpuai.RenewRequest) (gpuai.IssuedCertificate, error)
	CreateJoinToken(ctx context.Context, r *gpuai.JoinTokenRequest) (gpuai.JoinToken, error)
	Authorities() gpuai.AuthorityList
	// RotateAuthority has a new CA issue in place of the present one.
	RotateAuthority(ctx context.Context) error
	// RegionKeys returns the keys under which things are sealed, and who has them.
	RegionKeys(ctx context.Context) (gpuai.RegionKeyList, error)
	// RotateKey has the region seal under a new key, or goes on with the rotation
	// that has begun. It does not wait for its end.
	RotateKey(ctx context.Context) error
	// RetireKey has the servers delete an old key, under which nothing is sealed.
	RetireKey(ctx context.Context, id string) error
	// RevokeIdentity voids all certificates of an identity.
	RevokeIdentity(ctx context.Context, id gpuai.Identity) error
}

// join answers POST /v1/join. The token in the body is the only proof.
func (c *call) join() error {
	var r gpuai.JoinRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	out, err := c.api.backend.Join(c.r.Context(), &r)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.reply(http.StatusOK, &out)
}

// renew answers POST /v1/agent/certificate.
func (c *call) renew() error {
	var r gpuai.RenewRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if c.who.Node == "" {
		return gpuai.NewError(gpuai.Unauthenticated, "a certificate is renewed over a connection that shows it, and none was shown")
	}
	id := gpuai.Identity{Kind: gpuai.IdentityNode, Name: string(c.who.Node)}
	out, err := c.api.backend.Renew(c.r.Context(), id, &r)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.reply(http.StatusOK, &out)
}

// createJoinToken answers POST /v1/operator/join-tokens.
func (c *call) createJoinToken() error {
	var r gpuai.JoinTokenRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	out, err := c.api.backend.CreateJoinToken(c.r.Context(), &r)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	c.setIndex(out.Index)
	return c.reply(http.StatusOK, &out)
}

// listAuthorities answers GET /v1/operator/authorities.
func (c *call) listAuthorities() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.replyAuthorities()
}

func (c *call) replyAuthorities() error {
	list := c.api.backend.Authorities()
	c.setIndex(list.Index)
	return c.reply(http.StatusOK, &list)
}

// rotateAuthority answers POST /v1/operator/authorities/rotate.
func (c *call) rotateAuthority() error {
	if err := c.noBody(); err != nil {
		return err
	}
	if err := c.api.backend.RotateAuthority(c.r.Context()); err != nil {
		return err
	}
	return c.replyAuthorities()
}

// revokeIdentity answers POST /v1/operator/identities/{kind}/{name}/revoke.
func (c *call) revokeIdentity() error {
	kind, err := c.variable("kind")
	if err != nil {
		return err
	}
	name, err := c.variable("name")
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	id, err := gpuai.ParseIdentity(kind + "/" + name)
	if err != nil {
		return gpuai.NewError(gpuai.InvalidSpec, err.Error())
	}
	if err := c.api.backend.RevokeIdentity(c.r.Context(), id); err != nil {
		return err
	}
	return c.replyAuthorities()
}
