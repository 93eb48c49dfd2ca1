package server

import (
	"context"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// maxActor bounds an actor in the log.
const maxActor = 128

// actorSelf is who a server's own work is done for.
const actorSelf = "operator@local"

// envelopeOf returns the envelope of a command that a request leads to: who asks
// is in ctx. tenant is whose command it is; key is its idempotency key, "" for
// none.
func envelopeOf(ctx context.Context, tenant gpuai.TenantID, key string) fsm.Envelope {
	return fsm.Envelope{Tenant: tenant, Actor: actorOf(httpd.PrincipalOf(ctx)), Key: key}
}

// actorOf returns how the log names somebody.
func actorOf(p *gpuai.Principal) string {
	actor := p.Actor
	switch {
	case actor == "" && p.From == "":
		return actorSelf
	case actor == "": // from elsewhere, and nothing was proven
		actor = "anonymous"
	}
	if p.From != "" {
		actor += "@" + p.From
	}
	return actor[:min(len(actor), maxActor)]
}

// tenantOf returns whose commands those of a request are that name no tenant.
func tenantOf(ctx context.Context) gpuai.TenantID {
	if t := httpd.PrincipalOf(ctx).Tenant; t != "" {
		return t
	}
	return gpuai.DefaultTenant
}

// asker returns the tenant whose jobs an answer may name; "" is all.
func asker(ctx context.Context) gpuai.TenantID {
	p := httpd.PrincipalOf(ctx)
	if p.Operator() || p.Actor == "" {
		return ""
	}
	return p.Tenant
}
