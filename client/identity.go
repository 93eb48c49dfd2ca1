package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/identity"
)

// certificateRefused is the error of a connection that one side's certificate
// ended, which asking again does not change; nil for any other.
func certificateRefused(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, identity.ErrRefused):
		return &gpuai.Error{Code: gpuai.Unauthenticated, Detail: "the server is not to be trusted: " + err.Error()}
	case errors.As(err, &op) && op.Op == "remote error":
		return &gpuai.Error{
			Code:   gpuai.Unauthenticated,
			Detail: "the server refused the certificate that was shown, which has ended, was revoked, or is of another region (" + op.Err.Error() + "): its log says why; a new join token gets a new one",
		}
	}
	return nil
}

const authoritiesPath = "/v1/operator/authorities"

// Join asks for a certificate with a join token. The client's Config.TLS should
// be identity.JoinConfig of the token, which speaks to its region only. It is safe
// to repeat with the same request.
func (c *Client) Join(ctx context.Context, r gpuai.JoinRequest) (out gpuai.IssuedCertificate, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/join", body: r}, decode(&out))
	return out, err
}

// Renew asks for a new certificate of the identity whose present one the client
// shows. The request is in PEM.
func (c *Client) Renew(ctx context.Context, csr string) (out gpuai.IssuedCertificate, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/agent/certificate", body: gpuai.RenewRequest{CSR: csr}}, decode(&out))
	return out, err
}

// CreateJoinToken lets one node or server join the region, once.
func (c *Client) CreateJoinToken(ctx context.Context, r gpuai.JoinTokenRequest) (out gpuai.JoinToken, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/operator/join-tokens", body: r, key: NewKey()}, decode(&out))
	return out, err
}

// Authorities returns the region's CAs that are trusted.
func (c *Client) Authorities(ctx context.Context) (gpuai.AuthorityList, error) {
	return get[gpuai.AuthorityList](ctx, c, authoritiesPath, url.Values{})
}

// RotateAuthority has a new CA issue the region's certificates.
func (c *Client) RotateAuthority(ctx context.Context) (out gpuai.AuthorityList, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: authoritiesPath + "/rotate", key: NewKey()}, decode(&out))
	return out, err
}

const keysPath = "/v1/operator/keys"

// RegionKeys returns the keys under which the region seals, and who has them.
func (c *Client) RegionKeys(ctx context.Context) (gpuai.RegionKeyList, error) {
	return get[gpuai.RegionKeyList](ctx, c, keysPath, url.Values{})
}

// RotateKey has the region seal under a new key, or leaves a rotation that has
// begun to go on. It is over once RegionKeyList.Rotating says so.
func (c *Client) RotateKey(ctx context.Context) (out gpuai.RegionKeyList, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: keysPath + "/rotate", key: NewKey()}, decode(&out))
	return out, err
}

// RetireKey has the servers delete an old key, under which nothing is sealed.
func (c *Client) RetireKey(ctx context.Context, id string) (out gpuai.RegionKeyList, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: keysPath + "/" + url.PathEscape(id) + "/retire", key: NewKey()}, decode(&out))
	return out, err
}

// RevokeIdentity voids all certificates of a node or a server, at once.
func (c *Client) RevokeIdentity(ctx context.Context, id gpuai.Identity) (out gpuai.AuthorityList, err error) {
	path := "/v1/operator/identities/" + id.Kind.String() + "/" + url.PathEscape(id.Name) + "/revoke"
	err = c.do(ctx, request{method: http.MethodPost, path: path, key: NewKey()}, decode(&out))
	return out, err
}
