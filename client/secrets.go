package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
)

type secretList struct {
	Secrets []gpuai.SecretInfo `json:"secrets"`
	Next    string             `json:"next_cursor"`
}

// Secrets returns a page of the secrets that the asker may name, without their
// values, and the cursor of the next page.
func (c *Client) Secrets(ctx context.Context, p Page) ([]gpuai.SecretInfo, string, error) {
	out, err := get[secretList](ctx, c, "/v1/secrets", p.values())
	return out.Secrets, out.Next, err
}

// PutSecret gives a secret a value; an absent tenant is the asker's own.
func (c *Client) PutSecret(ctx context.Context, name string, r gpuai.SecretRequest) (out gpuai.SecretSet, err error) {
	err = c.do(ctx, request{method: http.MethodPut, path: "/v1/secrets/" + url.PathEscape(name), body: r, key: NewKey()}, decode(&out))
	return out, err
}

// DeleteSecret forgets a secret of a tenant; "" is the asker's own.
func (c *Client) DeleteSecret(ctx context.Context, name string, tenant gpuai.TenantID) (out gpuai.SecretSet, err error) {
	q := url.Values{}
	if tenant != "" {
		q.Set("tenant", string(tenant))
	}
	err = c.do(ctx, request{method: http.MethodDelete, path: "/v1/secrets/" + url.PathEscape(name), query: q, key: NewKey()}, decode(&out))
	return out, err
}
