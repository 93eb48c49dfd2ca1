package httpd

import (
	"context"
	"encoding/base64"
	"strings"

	"github.com/gpuai/gpuai"
)

// twinSecrets are the twin's secrets, without values.
type twinSecrets []gpuai.SecretInfo

func (t *twin) PutSecret(_ context.Context, name string, r gpuai.SecretRequest) (gpuai.SecretSet, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	at := t.secretAt(name, r.Tenant)
	if at < 0 {
		at = len(t.secrets)
		t.secrets = append(t.secrets, gpuai.SecretInfo{Name: name, Tenant: r.Tenant, Key: "01020304", Set: 1})
	}
	s := &t.secrets[at]
	s.Version, s.Bytes, s.ModifyIndex = s.Version+1, uint32(len(r.Value)), t.index
	return gpuai.SecretSet{Name: name, Tenant: r.Tenant, Version: s.Version, Index: t.index}, nil
}

func (t *twin) secretAt(name string, tenant gpuai.TenantID) int {
	for i := range t.secrets {
		if t.secrets[i].Name == name && t.secrets[i].Tenant == tenant {
			return i
		}
	}
	return -1
}

func (t *twin) DeleteSecret(_ context.Context, name string, tenant gpuai.TenantID) (gpuai.SecretSet, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.secretAt(name, tenant)
	if at < 0 {
		return gpuai.SecretSet{}, notThere("secret " + name)
	}
	t.secrets = append(t.secrets[:at:at], t.secrets[at+1:]...)
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return gpuai.SecretSet{Name: name, Tenant: tenant, Index: t.index}, nil
}

func (t *twin) Secrets(p Page) ([]gpuai.SecretInfo, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []gpuai.SecretInfo{}
	for _, s := range t.secrets {
		if p.Tenant == "" || s.Tenant == p.Tenant {
			out = append(out, s)
		}
	}
	return out, "", nil
}

// secretExchanges are requests about secrets.
var secretExchanges = []exchange{
	{"PUT", "/v1/secrets/token", `{"value":"aHVudGVyMg=="}`, 200, nil},
	{"PUT", "/v1/secrets/token", `{"value":"aHVudGVyMg==","tenant":"acme"}`, 200, nil},
	{"PUT", "/v1/secrets/token", `{"value":""}`, 400, nil},
	{"PUT", "/v1/secrets/token", `{"value":"no base64"}`, 400, nil},
	{"PUT", "/v1/secrets/token", `{"valeu":"aHVudGVyMg=="}`, 400, nil},
	{"PUT", "/v1/secrets/token", `{"value":"aHVudGVyMg==","tenant":"A"}`, 400, nil},
	{"PUT", "/v1/secrets/A_B", `{"value":"aHVudGVyMg=="}`, 400, nil},
	{"PUT", "/v1/secrets/token", `{"value":"` + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", gpuai.MaxSecretBytes+1))) + `"}`, 400, nil},
	{"GET", "/v1/secrets", "", 200, nil},
	{"DELETE", "/v1/secrets/token?tenant=acme", "", 200, nil},
	{"DELETE", "/v1/secrets/token?tenant=acme", "", 404, nil},
	{"DELETE", "/v1/secrets/token?tenant=A", "", 400, nil},
	{"DELETE", "/v1/secrets/token", "", 200, nil},
	{"GET", "/v1/secrets/token", "", 405, nil},
}
