package server

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// planted is in every text that a tenant chooses.
const planted = "hunter2"

// A contributor sees its nodes, how much of them is leased and what they earn, and
// nothing that tells of whose jobs run there: no answer to a contributor holds a text
// that the tenant chose, or the ID of its job.
func TestContributorSeesNothingOfTenants(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	operator := r.servers[0].as(t, op)
	if _, err := operator.CreateTenant(ctx, gpuai.TenantRequest{ID: planted, Name: planted}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []gpuai.NodeID{"gpu-1", "gpu-2"} {
		c := fsm.RegisterNode{BootID: "b", Nonce: "n", Spec: gpuai.NodeSpec{
			ID: id, Address: "10.0.0.1", CPU: 8_000, Memory: 64 << 30, Price: 3_000_000,
			Devices: []gpuai.Device{{ID: "g0", Vendor: "sim", Model: "H100", Memory: 80 << 30}},
		}}
		if did, err := r.servers[0].propose(ctx, c.Append(nil, fsm.Envelope{})); err != nil || did[0].Code != gpuai.OK {
			t.Fatalf("%+v %v", did, err)
		}
	}
	if _, err := operator.SetNodeOwner(ctx, "gpu-1", "carol"); err != nil {
		t.Fatal(err)
	}
	made, err := operator.CreateToken(ctx, gpuai.TokenRequest{Contributor: "carol", Scopes: []gpuai.Scope{gpuai.ScopeContributor}})
	if err != nil {
		t.Fatal(err)
	}
	carol := r.servers[1].as(t, made.Text)
	if n, err := carol.SetNodeAsk(ctx, "gpu-1", 2_000_000); err != nil || n.Price != 2_000_000 {
		t.Fatalf("%+v %v", n, err)
	}
	always := gpuai.Schedule{Windows: []gpuai.Window{{}}}
	if n, err := carol.SetNodeSchedule(ctx, "gpu-1", always); err != nil || n.Outside || n.Schedule == nil {
		t.Fatalf("%+v %v", n, err)
	}
	_, err = carol.SetNodeAsk(ctx, "gpu-2", 1)
	refusedAs(t, err, gpuai.NotFound)
	spec := jobSpec(planted, 2)
	spec.Tenant, spec.Groups[0].Name, spec.Groups[0].Task.Command = planted, planted, []string{planted}
	spec.Groups[0].Task.Env = map[string]string{planted: planted}
	sub, err := operator.Submit(ctx, client.SubmitRequest{Spec: spec})
	if err != nil || len(sub.Leases) != 2 {
		t.Fatalf("%+v %v", sub, err)
	}
	seen := seenBy(t, r.servers[1], made.Text, sub.Job.ID.String())
	for path, code := range map[string]int{"/v1/nodes/gpu-1": 200, "/v1/contributors": 200, "/v1/nodes/gpu-2": 404, "/v1/jobs": 403, "/v1/events": 403, "/v1/leases": 403} {
		if seen[path] != code {
			t.Errorf("%s is answered %d, want %d", path, seen[path], code)
		}
	}
	if n, err := carol.SetDrained(ctx, "gpu-1", true); err != nil || !n.Drained {
		t.Errorf("%+v %v", n, err)
	}
	_, err = carol.SetDrained(ctx, "gpu-2", true)
	refusedAs(t, err, gpuai.NotFound)
}

// seenBy asks for all that there is with a contributor's token, and returns the status
// of each answer. None may tell what a tenant planted, or the ID of its job.
func seenBy(t *testing.T, m *member, token, job string) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for _, path := range []string{
		"/v1/nodes", "/v1/nodes/gpu-1", "/v1/leases?node=gpu-1", "/v1/contributors", "/v1/whoami",
		"/v1/leases?node=gpu-2", "/v1/nodes/gpu-2", "/v1/leases", "/v1/jobs", "/v1/jobs/" + job, "/v1/queue", "/v1/events", "/v1/tenants",
		"/v1/leases?job=" + job, "/v1/nodes?filter=" + "leases+==+1", "/v1/leases?node=gpu-1&filter=state+!=+%22ended%22",
		"/v1/usage", "/v1/operator/prices", "/v1/operator/audit", "/v1/secrets",
	} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+m.HTTPAddr()+path, nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		var doc any
		if err := json.Unmarshal(body, &doc); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		seen[path] = resp.StatusCode
		walkTexts(doc, func(text string) {
			if strings.Contains(text, planted) || strings.Contains(text, job) && !strings.Contains(path, text[max(len(text)-26, 0):]) {
				t.Errorf("%s tells %q", path, text)
			}
		})
		switch path {
		case "/v1/nodes":
			if !strings.Contains(string(body), "gpu-1") || strings.Contains(string(body), "gpu-2") {
				t.Errorf("its nodes are %s", body)
			}
		case "/v1/leases?node=gpu-1":
			if !strings.Contains(string(body), `"devices":`) || !strings.Contains(string(body), `"granted_at`) {
				t.Errorf("its leases are %s", body)
			}
		}
	}
	return seen
}

// walkTexts calls f for each text of a JSON document, names of fields too.
func walkTexts(doc any, f func(string)) {
	switch x := doc.(type) {
	case string:
		f(x)
	case []any:
		for _, v := range x {
			walkTexts(v, f)
		}
	case map[string]any:
		for k, v := range x {
			f(k)
			walkTexts(v, f)
		}
	}
}
