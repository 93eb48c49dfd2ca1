package httpd

import (
	"context"

	"github.com/gpuai/gpuai"
)

// principalKey is the context's key of who a request comes from.
type principalKey struct{}

// WithPrincipal returns a context of a request that comes from p.
func WithPrincipal(ctx context.Context, p *gpuai.Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalOf returns who a request comes from; nobody where that was not
// proven. It must not be changed.
func PrincipalOf(ctx context.Context) *gpuai.Principal {
	if p, ok := ctx.Value(principalKey{}).(*gpuai.Principal); ok {
		return p
	}
	return &gpuai.Principal{}
}
