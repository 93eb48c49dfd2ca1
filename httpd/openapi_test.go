package httpd

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/gpuai/gpuai"
)

// A contract checks answers against openapi.json, hardened: an answer must not
// have a field that the document does not name.
type contract struct {
	doc    *openapi3.T
	router routers.Router
	seen   map[string]bool // "METHOD path status"
}

func newContract(t *testing.T) *contract {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openapi)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, s := range doc.Components.Schemas {
		harden(s.Value)
		if name == "Part" {
			s.Value.Not = openapi3.NewSchemaRef("", openapi3.NewSchema()) // no row is cut unless asked
		}
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &contract{doc: doc, router: router, seen: map[string]bool{}}
}

// harden refuses unnamed fields in s and in what it is made of in place.
func harden(s *openapi3.Schema) {
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil {
		no := false
		s.AdditionalProperties = openapi3.BoolSchema{Has: &no}
	}
	for _, p := range s.Properties {
		if p.Ref == "" {
			harden(p.Value)
			if p.Value.Items != nil && p.Value.Items.Ref == "" {
				harden(p.Value.Items.Value)
			}
		}
	}
}

// check validates one answer, and the request where it succeeded.
func (c *contract) check(t *testing.T, req *http.Request, resp *http.Response, body string) {
	t.Helper()
	route, params, err := c.router.FindRoute(&http.Request{Method: req.Method, URL: &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath}})
	if err != nil { // 404 and 405 are of no operation: the problem's own schema holds
		c.checkProblem(t, resp, body)
		return
	}
	options := &openapi3filter.Options{IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route, Options: options}
	if resp.StatusCode < 300 {
		if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil {
			t.Errorf("%s %s was answered %d but is no request of the document: %v", req.Method, req.URL, resp.StatusCode, err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header,
		Body: io.NopCloser(strings.NewReader(body)), Options: options,
	}
	if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
		t.Errorf("%s %s → %d does not fit the document: %v\n%s", req.Method, req.URL, resp.StatusCode, err, body)
	}
	c.seen[req.Method+" "+route.Path] = true
	if resp.StatusCode >= 400 {
		c.checkProblem(t, resp, body)
	}
}

func (c *contract) checkProblem(t *testing.T, resp *http.Response, body string) {
	t.Helper()
	var v any
	if err := decodeAny(body, &v); err != nil {
		t.Fatalf("%d: %v: %s", resp.StatusCode, err, body)
	}
	if err := c.doc.Components.Schemas["Problem"].Value.VisitJSON(v); err != nil {
		t.Errorf("%d: %v: %s", resp.StatusCode, err, body)
	}
	p := v.(map[string]any)
	if resp.Header.Get("Content-Type") != problemType || p["status"] != float64(resp.StatusCode) ||
		p["request_id"] != resp.Header.Get(headerRequestID) || p["detail"] == nil {
		t.Errorf("%d is an incomplete problem: %v %s", resp.StatusCode, resp.Header, body)
	}
	if s := resp.StatusCode; (s == 429 || s == 503) && resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d comes without Retry-After: %s", s, body)
	}
}

// An exchange is a request and the status it must be answered with.
type exchange struct {
	method, path, body string
	status             int
	headers            []string
}

// questions are requests that ask on a copy of the state.
func questions() []exchange {
	return []exchange{
		{"POST", "/v1/plan", `{"submit":[` + spec("e", 1, 1) + `],"drain":["gpu-1"],"policy":{"flap_limit":4},"add":[{"count":3,"like":"gpu-1"}]}`, 200, nil},
		{"POST", "/v1/plan", `{}`, 400, nil},
		{"POST", "/v1/plan", `{"submit":[{"name":"-"}]}`, 400, nil},
		{"POST", "/v1/plan", `{"policy":{"flap_limt":4}}`, 400, nil},
		{"POST", "/v1/plan", `{"policy":{"flap_limit":0}}`, 400, nil},
		{"POST", "/v1/plan", `{"drain":["nobody"]}`, 404, nil},
		{"GET", "/v1/jobs/b?estimate=true", "", 200, nil},
		{"GET", "/v1/jobs/b?estimate=maybe", "", 400, nil},
		{"GET", "/v1/jobs/a/explain?index=1", "", 200, nil},
		{"GET", "/v1/jobs/a/explain?index=x", "", 400, nil},
		{"GET", "/v1/jobs/a/explain?index=999999", "", 404, nil},
	}
}

// exchanges are requests for every route, good and bad, in an order in which
// they work on a new twin.
func exchanges(t *testing.T) []exchange {
	long := strings.Repeat("k", gpuai.MaxKeyLen+1)
	return append([]exchange{
		{"POST", "/v1/jobs", spec("a", 1, 2), 201, []string{"Idempotency-Key: k1"}},
		{"POST", "/v1/jobs", spec("a", 1, 2), 201, []string{"Idempotency-Key: k1"}},
		{"POST", "/v1/jobs", spec("b", 1, 2), 422, []string{"Idempotency-Key: k1"}},
		{"POST", "/v1/jobs", spec("b", 1, 8), 202, nil},
		{"POST", "/v1/jobs", spec("c", 9, 1), 422, nil},
		{"POST", "/v1/jobs?hold_anyway=true", spec("c", 9, 1), 202, nil},
		{"POST", "/v1/jobs?hold_anyway=yes", spec("c", 9, 1), 400, nil},
		{"POST", "/v1/jobs", `{"name":"-"}`, 400, nil},
		{"POST", "/v1/jobs", spec("d", 1, 1), 400, []string{"Idempotency-Key: " + long}},
		{"POST", "/v1/jobs", "name: a", 415, []string{"Content-Type: application/yaml"}},
		{"POST", "/v1/jobs:plan", spec("e", 1, 1), 200, nil},
		{"POST", "/v1/jobs:plan?consistency=stale", spec("e", 1, 1), 200, nil},
		{"POST", "/v1/jobs:batch", `{"jobs":[` + spec("f", 1, 1) + `,` + spec("g", 9, 1) + `]}`, 200, []string{"Idempotency-Key: k2"}},
		{"POST", "/v1/jobs:batch", `{"jobs":[` + spec("f", 1, 1) + `,{"name":"x"}]}`, 400, nil},
		{"GET", "/v1/jobs", "", 200, nil},
		{"GET", "/v1/jobs?status=running&limit=1", "", 200, nil},
		{"GET", "/v1/jobs?status=lost", "", 400, nil},
		{"GET", "/v1/jobs?limit=1001", "", 400, nil},
		{"GET", "/v1/jobs?cursor=zzz", "", 400, nil},
		{"GET", "/v1/jobs/a", "", 200, nil},
		{"GET", "/v1/jobs/nope", "", 404, nil},
		{"GET", "/v1/jobs/a/tasks", "", 200, nil},
		{"GET", "/v1/jobs/a/checkpoints", "", 200, nil},
		{"GET", "/v1/jobs/a/checkpoints?limit=1&filter=step+==+200", "", 200, nil},
		{"GET", "/v1/jobs/none/checkpoints", "", 404, nil},
		{"GET", "/v1/jobs/a/leases?live=true", "", 200, nil},
		{"GET", "/v1/jobs?archived=true", "", 200, nil},
		{"GET", "/v1/jobs/a/events?limit=1", "", 200, nil},
		{"GET", "/v1/jobs/nope/events", "", 404, nil},
		{"GET", "/v1/jobs/nope/leases", "", 404, nil},
		{"GET", "/v1/jobs/b/explain", "", 200, nil},
		{"GET", "/v1/jobs/a/logs", "", 200, nil},
		{"GET", "/v1/jobs/a/logs?offset=-3&stream=stderr", "", 200, []string{"Accept: application/json"}},
		{"GET", "/v1/jobs/a/logs?stream=progress", "", 200, []string{"Accept: application/json"}},
		{"GET", "/v1/jobs/a/logs?stream=both", "", 400, nil},
		{"GET", "/v1/leases", "", 200, nil},
		{"GET", "/v1/leases?node=gpu-0&job=a", "", 200, nil},
		{"GET", "/v1/leases/" + gpuai.MakeToken(0, 11, 0).String(), "", 200, nil},
		{"GET", "/v1/leases/7", "", 404, nil},
		{"GET", "/v1/leases/seven", "", 404, nil},
		{"GET", "/v1/nodes", "", 200, nil},
		{"GET", "/v1/nodes/gpu-1", "", 200, nil},
		{"GET", "/v1/nodes/gpu-9", "", 404, nil},
		{"POST", "/v1/nodes/gpu-1/drain", "", 200, nil},
		{"POST", "/v1/nodes/gpu-1/undrain", "{}", 200, nil},
		{"POST", "/v1/nodes/gpu-1/undrain", `{"force":true}`, 400, nil},
		{"POST", "/v1/nodes/gpu-9/drain", "", 404, nil},
		{"GET", "/v1/queue", "", 200, nil},
		{"GET", "/v1/queue/pending", "", 200, nil},
		{"PUT", "/v1/tenants/default/weight", `{"weight": 5}`, 200, nil},
		{"PUT", "/v1/tenants/default/weight", `{"weight": 0}`, 400, nil},
		{"PUT", "/v1/tenants/No/weight", `{"weight": 5}`, 400, nil},
		{"GET", "/v1/tenants", "", 200, nil},
		{"POST", "/v1/jobs/a/stop", "", 200, []string{"Idempotency-Key: k3"}},
		{"POST", "/v1/jobs/a/stop", "", 409, nil},
		{"GET", "/v1/agent/session", "", 400, nil},
		{"GET", "/v1/agent/exec", "", 400, nil}, {"GET", "/v1/jobs/a/exec", "", 400, nil},
		{"GET", "/v1/events?job=nope", "", 404, nil},
		{"GET", "/v1/openapi.json", "", 200, nil},
		{"GET", "/v1/schema/job.json", "", 200, nil},
		{"GET", "/healthz", "", 200, nil},
		{"GET", "/readyz", "", 200, nil},
		{"GET", "/metrics", "", 200, nil},
		{"GET", "/v1/allocations", "", 404, nil},
		{"DELETE", "/v1/jobs/a", "", 405, nil},
	}, slices.Concat(questions(), operatorExchanges(t), termExchanges(), ownerExchanges())...)
}

func operatorExchanges(t *testing.T) []exchange {
	policy := string(mustJSON(t, gpuai.DefaultPolicy()))
	return []exchange{
		{"GET", "/v1/operator/policy", "", 200, nil},
		{"PUT", "/v1/operator/policy", policy, 200, nil},
		{"PUT", "/v1/operator/policy", `{}`, 400, nil},
		{"GET", "/v1/operator/demand", "", 200, nil},
		{"PUT", "/v1/operator/demand", `{"fixed":true,"classes":[{"resources":{"gpu":{"count":8}},"tasks":3,"constraints":[{"attribute":"gpu.model","op":"in","values":["H100"]}]}]}`, 200, nil},
		{"PUT", "/v1/operator/demand", `{"classes":[]}`, 200, nil},
		{"PUT", "/v1/operator/demand", `{"classes":[{"resources":{"gpu":{"count":65}},"tasks":1}]}`, 400, nil},
		{"PUT", "/v1/operator/demand", `{"classes":[{"resources":{},"tasks":0}]}`, 400, nil},
		{"PUT", "/v1/operator/demand", `{"classes":[{"resources":{},"tasks":1,"weight":3}]}`, 400, nil},
		{"GET", "/v1/operator/raft", "", 200, nil},
		{"GET", "/v1/operator/digest", "", 200, nil},
		{"GET", "/v1/operator/digest?index=999999", "", 404, nil},
		{"GET", "/v1/operator/raft?server=s1", "", 200, nil},
		{"GET", "/v1/operator/raft?server=s9", "", 404, nil},
		{"GET", "/v1/operator/server", "", 200, nil},
		{"GET", "/v1/operator/debug/logs", "", 200, nil},
		{"GET", "/v1/operator/debug/cpu?seconds=2", "", 200, nil},
		{"GET", "/v1/operator/debug/metrics", "", 200, nil},
		{"GET", "/v1/operator/debug/cpu?seconds=31", "", 400, nil},
		{"GET", "/v1/operator/debug/secrets", "", 404, nil},
		{"GET", "/v1/operator/snapshot", "", 200, nil},
		{"GET", "/v1/operator/report?from=3&to=9", "", 200, nil},
		{"GET", "/v1/operator/report?from=x", "", 400, nil},
		{"GET", "/v1/operator/report?to=999999", "", 404, nil},
		{"GET", "/v1/operator/export?since=x", "", 400, nil},
		{"GET", "/v1/operator/audit?since=x", "", 400, nil},
	}
}

// Every handler's answers, good and bad, fit the document.
func TestAnswersFitTheDocument(t *testing.T) {
	b := newTwin()
	b.output, b.ended = []byte("hello\n"), true
	s, doc := serve(t, b), newContract(t)
	for _, c := range slices.Concat(exchanges(t), memberExchanges, accessExchanges, identityExchanges, secretExchanges, storeExchanges) {
		resp, body := ask(t, s, c.method, c.path, c.body, c.headers...)
		if resp.StatusCode != c.status {
			t.Errorf("%s %s → %d, want %d: %s", c.method, c.path, resp.StatusCode, c.status, body)
			continue
		}
		req, err := http.NewRequest(c.method, s.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = resp.Request.Header
		doc.check(t, req, resp, body)
	}
	doc.checkEveryRoute(t)
}

// The check is not vacuous: answers that break the document are found.
func TestTheContractBites(t *testing.T) {
	good := string(mustJSON(t, &nodeReply{newTwin().nodes[0], 3}))
	for name, body := range map[string]string{
		"unnamed field":        strings.Replace(good, `"boot_id"`, `"extra":1,"boot_id"`, 1),
		"unnamed nested field": strings.Replace(good, `"vendor"`, `"extra":1,"vendor"`, 1),
		"missing field":        strings.Replace(good, `"boot_id":"b",`, "", 1),
		"wrong type":           strings.Replace(good, `"leases":0`, `"leases":"0"`, 1),
		"unknown enum":         strings.Replace(good, `"ready"`, `"tired"`, 1),
	} {
		if body == good {
			t.Fatalf("%s: nothing was changed in %s", name, good)
		}
		var v any
		if err := decodeAny(body, &v); err != nil {
			t.Fatal(err)
		}
		doc := newContract(t).doc
		if err := doc.Components.Schemas["NodeAnswer"].Value.VisitJSON(v); err == nil {
			t.Errorf("%s passed: %s", name, body)
		}
	}
}

// checkEveryRoute holds the document and the routes against each other.
func (c *contract) checkEveryRoute(t *testing.T) {
	t.Helper()
	var served []string
	for i := range routes {
		rt := &routes[i]
		served = append(served, rt.method+" "+rt.path)
		if item := c.doc.Paths.Value(rt.path); item == nil || item.GetOperation(rt.method) == nil {
			t.Errorf("%s %s is served but not in the document", rt.method, rt.path)
			continue
		}
		if security := c.doc.Paths.Value(rt.path).GetOperation(rt.method).Security; (rt.who&anyone != 0) != (security != nil && len(*security) == 0) {
			t.Errorf("%s %s is for %s, the document says otherwise: \"security\": [] is for those of anyone", rt.method, rt.path, rt.who)
		}
		if !c.seen[rt.method+" "+rt.path] {
			t.Errorf("no answer of %s %s was checked", rt.method, rt.path)
		}
		c.checkParameters(t, rt)
	}
	for path, item := range c.doc.Paths.Map() {
		for method := range item.Operations() {
			if !slices.Contains(served, method+" "+path) {
				t.Errorf("%s %s is in the document but not served", method, path)
			}
		}
	}
}

func (c *contract) checkParameters(t *testing.T, rt *route) {
	t.Helper()
	var documented []string
	for _, p := range c.doc.Paths.Value(rt.path).GetOperation(rt.method).Parameters {
		if p.Value.In == "query" {
			documented = append(documented, p.Value.Name)
		}
	}
	taken := rt.parameters()
	slices.Sort(documented)
	slices.Sort(taken)
	if !slices.Equal(documented, taken) {
		t.Errorf("%s %s takes %v, the document says %v", rt.method, rt.path, taken, documented)
	}
}

// termExchanges are those of quotas, budgets and prices.
func termExchanges() []exchange {
	return []exchange{
		{"GET", "/v1/tenants/t/quota", "", 404, nil},
		{"PUT", "/v1/tenants/t/quota", `{"gpus": 64, "models": [{"model": "H100", "gpus": 16}], "cohort": "lab", "borrow_gpus": 8}`, 200, nil},
		{"PUT", "/v1/tenants/t/quota", `{"borrow_gpus": 8}`, 400, nil},
		{"PUT", "/v1/tenants/No/quota", `{"gpus": 8}`, 400, nil},
		{"GET", "/v1/tenants/t/quota", "", 200, nil},
		{"GET", "/v1/tenants/t/usage", "", 404, nil},
		{"PUT", "/v1/tenants/t/budget", `{"month": {"gpu_hours": 100, "money_micros": "250000000"}}`, 200, nil},
		{"PUT", "/v1/tenants/t/budget", `{"day": {"money_micros": "-1"}}`, 400, nil},
		{"GET", "/v1/tenants/t/usage", "", 200, nil},
		{"GET", "/v1/usage?limit=1", "", 200, nil},
		{"PUT", "/v1/operator/prices", `{"models": [{"model": "H100", "price_micros_per_gpu_hour": "1850000"}], "fee_bps": 250}`, 200, nil},
		{"PUT", "/v1/operator/prices", `{"fee_bps": 20000}`, 400, nil},
		{"GET", "/v1/operator/prices", "", 200, nil},
		{"PUT", "/v1/nodes/gpu-1/price", `{"price_micros_per_gpu_hour": "500000"}`, 200, nil},
		{"PUT", "/v1/nodes/gpu-9/price", `{"price_micros_per_gpu_hour": "500000"}`, 404, nil},
		{"PUT", "/v1/nodes/gpu-1/price", `{"price_micros_per_gpu_hour": "9000000000000"}`, 400, nil},
		{"POST", "/v1/plan", `{"quotas": [{"tenant": "t", "quota": {"gpus": 1}}], "prices": {"fee_bps": 5}}`, 200, nil},
		{"POST", "/v1/plan", `{"quotas": [{"tenant": "t", "quota": {"borrow_gpus": 1}}]}`, 400, nil},
	}
}
