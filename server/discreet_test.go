package server

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A tenant whose job was displaced is told nowhere by which job of another.
func TestDisplacedByAForeignJob(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	operator := r.servers[0].as(t, op)
	tenant := map[gpuai.TenantID]*client.Client{}
	for _, id := range []gpuai.TenantID{"acme", "beta"} {
		if _, err := operator.CreateTenant(ctx, gpuai.TenantRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		made, err := operator.CreateToken(ctx, gpuai.TokenRequest{Tenant: id, Scopes: []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeSubmit}})
		if err != nil {
			t.Fatal(err)
		}
		tenant[id] = r.servers[0].as(t, made.Text)
	}
	p := gpuai.DefaultPolicy()
	p.PreemptionProtect = 0
	s := r.leader().Server
	if err := s.SetPolicy(ctx, p); err != nil {
		t.Fatal(err)
	}
	a := join(t, s, helloOf("n1", 1))
	defer a.keepBeating()()
	submit := func(id gpuai.TenantID, name string, priority gpuai.Priority) gpuai.Submitted {
		spec := jobSpec(name, 1)
		spec.Tenant, spec.Priority = "", priority
		out, err := tenant[id].Submit(ctx, client.SubmitRequest{Spec: spec, Key: name})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	low := submit("acme", "low", 0)
	a.awaitLeases(1)
	high := submit("beta", "high", 50).Job.ID
	l, err := operator.Lease(ctx, low.Leases[0].ID)
	if err != nil || l.PreemptedBy != high {
		t.Fatalf("%+v %v", l, err) // else nothing is tested
	}
	acme, id := tenant["acme"], low.Job.ID.String()
	answers := map[string]func() (any, error){
		"the same submit again": func() (any, error) { return submit("acme", "low", 0), nil },
		"events":                func() (any, error) { x, _, err := acme.JobEvents(ctx, id, client.Page{}); return x, err },
		"explanation":           func() (any, error) { return acme.Explain(ctx, id, 0) },
		"lease":                 func() (any, error) { return acme.Lease(ctx, low.Leases[0].ID) },
		"leases":                func() (any, error) { x, _, err := acme.Leases(ctx, client.LeaseQuery{}); return x, err },
	}
	for what, get := range answers {
		x, err := get()
		if err != nil {
			t.Fatal(what, err)
		}
		text, err := json.Marshal(x)
		if err != nil || len(text) < 10 {
			t.Fatal(what, err, string(text))
		}
		if strings.Contains(string(text), high.String()) {
			t.Errorf("%s names another tenant's job: %s", what, text)
		}
	}
}
