package httpd

import (
	"context"
	"net/http"
	"strconv"

	"github.com/gpuai/gpuai"
)

// Secrets are what tenants have their tasks given. No method returns a value.
type Secrets interface {
	// PutSecret gives a secret a value of 1 to gpuai.MaxSecretBytes bytes.
	PutSecret(ctx context.Context, name string, r gpuai.SecretRequest) (gpuai.SecretSet, error)
	DeleteSecret(ctx context.Context, name string, tenant gpuai.TenantID) (gpuai.SecretSet, error)
	Secrets(p Page) ([]gpuai.SecretInfo, string, error)
}

// listSecrets answers GET /v1/secrets.
func (c *call) listSecrets() error { return list(c, "secrets", c.api.backend.Secrets) }

// putSecret answers PUT /v1/secrets/{secret}.
func (c *call) putSecret() error {
	name, err := c.variable("secret")
	if err != nil {
		return err
	}
	var r gpuai.SecretRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Tenant, err = c.secretTenant(r.Tenant); err != nil {
		return err
	}
	var wrong []gpuai.FieldError
	if !gpuai.ValidName(name) {
		wrong = append(wrong, gpuai.FieldError{Pointer: "", Detail: "a secret's name is 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end, not " + strconv.Quote(clip(name))})
	}
	if n := len(r.Value); n == 0 || n > gpuai.MaxSecretBytes {
		wrong = append(wrong, gpuai.FieldError{Pointer: "/value", Detail: "has 1 to " + strconv.Itoa(gpuai.MaxSecretBytes) + " bytes, not " + strconv.Itoa(n)})
	}
	if len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong}
	}
	return c.replySecret(c.api.backend.PutSecret(c.r.Context(), name, r))
}

// deleteSecret answers DELETE /v1/secrets/{secret}.
func (c *call) deleteSecret() error {
	name, err := c.variable("secret")
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	tenant, err := c.secretTenant(gpuai.TenantID(c.query.Get("tenant")))
	if err != nil {
		return err
	}
	return c.replySecret(c.api.backend.DeleteSecret(c.r.Context(), name, tenant))
}

// secretTenant returns whose secret a request is about: an operator may say so,
// others have their own.
func (c *call) secretTenant(said gpuai.TenantID) (gpuai.TenantID, error) {
	switch mine := c.tenant(); {
	case mine != "" && said != "" && said != mine:
		return "", gpuai.NewError(gpuai.Forbidden, "the secrets of tenant "+string(mine)+" are yours, and no others: leave the tenant out")
	case mine != "":
		return mine, nil
	case said == "":
		return gpuai.DefaultTenant, nil
	case !gpuai.ValidName(string(said)):
		return "", &gpuai.Error{Code: gpuai.InvalidSpec, Fields: []gpuai.FieldError{{Pointer: "/tenant", Detail: "is 1 to 63 characters of a-z, 0-9 and '-'"}}}
	}
	return said, nil
}

func (c *call) replySecret(s gpuai.SecretSet, err error) error {
	if err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &s)
}
