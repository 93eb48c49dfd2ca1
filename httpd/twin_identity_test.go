package httpd

import (
	"context"
	"testing"

	"github.com/gpuai/gpuai"
)

// identityExchanges are those of the routes of identities.
var identityExchanges = []exchange{
	{"POST", "/v1/join", `{"token":"gpujoin_x","csr":"x"}`, 200, nil},
	{"POST", "/v1/join", `{"token":"bad","csr":"x"}`, 401, nil},
	{"POST", "/v1/join", `{"token":"gpujoin_x"}`, 400, nil},
	{"POST", "/v1/join?token=gpujoin_x", `{}`, 400, nil},
	{"POST", "/v1/agent/certificate", `{"csr":"x"}`, 401, nil},
	{"POST", "/v1/operator/join-tokens", `{"join":"node","ttl_ms":60000,"name":"n1","contributor":"ann"}`, 200, nil},
	{"POST", "/v1/operator/join-tokens", `{"join":"user"}`, 400, nil},
	{"GET", "/v1/operator/authorities", "", 200, nil},
	{"POST", "/v1/operator/authorities/rotate", "", 200, nil},
	{"POST", "/v1/operator/authorities/rotate", `{"now":true}`, 400, nil},
	{"GET", "/v1/operator/keys", "", 200, nil},
	{"POST", "/v1/operator/keys/rotate", "", 200, nil},
	{"POST", "/v1/operator/keys/rotate", `{"key":"AAAA"}`, 400, nil},
	{"POST", "/v1/operator/keys/01020304/retire", "", 200, nil},
	{"POST", "/v1/operator/keys/ffffffff/retire", "", 404, nil},
	{"POST", "/v1/operator/identities/node/n1/revoke", "", 200, nil},
	{"POST", "/v1/operator/identities/node/n2/revoke", "", 404, nil},
	{"POST", "/v1/operator/identities/user/n1/revoke", "", 400, nil},
}

func TestClientOfIdentities(t *testing.T) {
	c, ctx := connect(t, serve(t, newTwin()).URL), t.Context()
	if tok, err := c.CreateJoinToken(ctx, gpuai.JoinTokenRequest{Join: gpuai.IdentityServer}); err != nil || tok.Join != gpuai.IdentityServer || tok.Token == "" {
		t.Errorf("%+v, %v", tok, err)
	}
	if l, err := c.RotateAuthority(ctx); err != nil || len(l.Authorities) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.Authorities(ctx); err != nil || l.Cluster != "c" {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.RotateKey(ctx); err != nil || l.Keys[0].State != gpuai.KeyActive {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := c.RegionKeys(ctx); err != nil || !l.Servers[0].Holds("01020304") {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := c.RetireKey(ctx, "ffffffff"); !is(err, gpuai.NotFound) {
		t.Error(err)
	}
	if _, err := c.RevokeIdentity(ctx, gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n1"}); err != nil {
		t.Error(err)
	}
	if out, err := c.Join(ctx, gpuai.JoinRequest{Token: "gpujoin_x", CSR: "x"}); err != nil || out.Cluster != "c" {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := c.Renew(ctx, "x"); !is(err, gpuai.Unauthenticated) {
		t.Errorf("a renewal without a certificate: %v", err)
	}
}

func (t *twin) Join(_ context.Context, r *gpuai.JoinRequest) (gpuai.IssuedCertificate, error) {
	switch {
	case r.CSR == "":
		return gpuai.IssuedCertificate{}, gpuai.NewError(gpuai.InvalidSpec, "no csr")
	case r.Token != "gpujoin_x":
		return gpuai.IssuedCertificate{}, gpuai.NewError(gpuai.Unauthenticated, "the join token is not known")
	}
	return gpuai.IssuedCertificate{Certificate: "c", Trust: "t", Cluster: "c"}, nil
}

func (t *twin) Renew(context.Context, gpuai.Identity, *gpuai.RenewRequest) (gpuai.IssuedCertificate, error) {
	return gpuai.IssuedCertificate{Certificate: "c", Trust: "t", Cluster: "c"}, nil
}

func (t *twin) CreateJoinToken(_ context.Context, r *gpuai.JoinTokenRequest) (gpuai.JoinToken, error) {
	return gpuai.JoinToken{Token: "gpujoin_x", Join: r.Join, TTL: gpuai.Minute, Name: r.Name, Contributor: r.Contributor, Index: 3}, nil
}

func (t *twin) Authorities() gpuai.AuthorityList {
	return gpuai.AuthorityList{Authorities: []gpuai.Authority{{Hash: "aa", Active: true, Certificate: "c"}}, Cluster: "c", Index: 3}
}

func (t *twin) RotateAuthority(context.Context) error { return nil }

func (t *twin) RegionKeys(context.Context) (gpuai.RegionKeyList, error) {
	return gpuai.RegionKeyList{
		Keys:    []gpuai.RegionKey{{ID: "01020304", State: gpuai.KeyActive, Secrets: 1, Authorities: 1}},
		Servers: []gpuai.KeyHolder{{Server: "a", Voter: true, Keys: []string{"01020304"}}, {Server: "b", Keys: []string{}, Error: "down"}}, Index: 3,
	}, nil
}

func (t *twin) RotateKey(context.Context) error { return nil }

func (t *twin) RetireKey(_ context.Context, id string) error {
	if id != "01020304" {
		return gpuai.NewError(gpuai.NotFound, "the region has no such key")
	}
	return nil
}

func (t *twin) RevokeIdentity(_ context.Context, id gpuai.Identity) error {
	if id.Name != "n1" {
		return gpuai.NewError(gpuai.NotFound, "nobody of this name has joined the region")
	}
	return nil
}
