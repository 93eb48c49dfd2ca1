package server

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// kindOf says of what kind the values of each query parameter are; "" names
// nothing of anybody's. A route with a parameter that is not here fails the walk.
var kindOf = map[string]string{
	"job": "job", "node": "node", "lease": "lease", "tenant": "tenant", "cursor": "cursor", "server": "server", "at": "server", "id": "command",

	"archived": "", "attempt": "", "consistency": "", "estimate": "", "fields": "", "filter": "", "follow": "", "from": "", "group": "",
	"hold_anyway": "", "incarnation": "", "index": "", "key": "", "limit": "", "live": "", "offset": "", "seconds": "", "since": "", "since_ms": "", "status": "",
	"stream": "", "tail": "", "task": "", "times": "", "to": "", "wait": "",
}

// A refBody is a body that names what is of a kind, as REF; without a kind, nothing.
type refBody struct{ kind, text string }

var (
	refJob   = `{"name":"x","groups":[{"count":1,"resources":{"gpu":{"count":1}},"task":{"command":["/bin/true"]`
	plainJob = refJob + `}}]}`
	usesREF  = refJob + `,"secrets":[{"name":"REF"}]}}]}`
	waitsREF = `{"after":[{"job":"REF"}],` + plainJob[1:]
	ofREF    = `{"tenant":"REF",` + plainJob[1:]
)

// bodiesOf has for each route that is no GET the bodies that it is walked with: the
// first names nothing. A route that is not here fails the walk.
var bodiesOf = map[string][]refBody{
	"POST /v1/jobs":      {{"", `{"name":"-"}`}, {"secret", usesREF}, {"job", waitsREF}, {"tenant", ofREF}},
	"POST /v1/jobs:plan": {{"", plainJob}, {"secret", usesREF}, {"job", waitsREF}, {"tenant", ofREF}},
	"POST /v1/jobs:batch": {
		{"", `{"jobs":[]}`}, {"secret", `{"jobs":[` + usesREF + `]}`}, {"job", `{"jobs":[` + waitsREF + `]}`}, {"tenant", `{"jobs":[` + ofREF + `]}`},
	},
	"POST /v1/plan": {
		{"", `{"submit":[` + plainJob + `]}`}, {"secret", `{"submit":[` + usesREF + `]}`}, {"job", `{"submit":[` + waitsREF + `]}`}, {"tenant", `{"submit":[` + ofREF + `]}`},
		{"node", `{"drain":["REF"]}`}, {"node", `{"undrain":["REF"]}`}, {"node", `{"lose":["REF"]}`}, {"node", `{"add":[{"count":1,"like":"REF"}]}`},
		{"tenant", `{"quotas":[{"tenant":"REF","quota":{}}]}`}, {"tenant", `{"budgets":[{"tenant":"REF","budget":{}}]}`},
		{"node", `{"node_prices":[{"node":"REF","price_micros_per_gpu_hour":"1"}]}`},
		{"node", `{"node_asks":[{"node":"REF","price_micros_per_gpu_hour":"1"}]}`}, {"node", `{"node_schedules":[{"node":"REF","schedule":{}}]}`},
	},
	"POST /v1/tokens":                                   {{"", `{"scopes":[]}`}, {"tenant", `{"tenant":"REF","scopes":["read"]}`}, {"contributor", `{"contributor":"REF","scopes":["contributor"]}`}},
	"PUT /v1/secrets/{secret}":                          {{"", `{"value":"eA=="}`}, {"tenant", `{"tenant":"REF","value":"eA=="}`}},
	"PUT /v1/nodes/{node}/ask":                          {{"", `{"price_micros_per_gpu_hour":"5"}`}},
	"PUT /v1/nodes/{node}/schedule":                     {{"", `{"windows":[{}]}`}},
	"POST /v1/jobs/{job}/stop":                          {{"", ""}},
	"POST /v1/nodes/{node}/drain":                       {{"", ""}},
	"POST /v1/nodes/{node}/undrain":                     {{"", ""}},
	"POST /v1/tokens/{token}/revoke":                    {{"", ""}},
	"DELETE /v1/secrets/{secret}":                       {{"", ""}},
	"POST /v1/login/oidc":                               {{"", `{"id_token":"x"}`}},
	"POST /v1/operator/bootstrap":                       {{"", `{"secret":"gpuboot-x"}`}},
	"POST /v1/join":                                     {{"", `{"token":"x","csr":"eA=="}`}},
	"POST /v1/agent/certificate":                        {{"", `{"csr":"eA=="}`}},
	"POST /v1/agent/store/grants":                       {{"", `{"objects":[]}`}, {"node", `{"node":"REF","objects":[{"key":"x"}]}`}},
	"POST /v1/agent/store/objects:delete":               {{"", `{"keys":[]}`}, {"node", `{"node":"REF","keys":["x"]}`}},
	"PUT /v1/agent/store/object":                        {{"", "x"}},
	"POST /v1/tenants":                                  {{"", `{"id":"x"}`}, {"tenant", `{"id":"REF"}`}},
	"PUT /v1/tenants/{tenant}/weight":                   {{"", `{"weight":2}`}},
	"PUT /v1/tenants/{tenant}/quota":                    {{"", `{}`}},
	"PUT /v1/tenants/{tenant}/budget":                   {{"", `{}`}},
	"PUT /v1/roles":                                     {{"", `{"claim":"groups","value":"x","tenant":"x","scopes":["read"]}`}},
	"PUT /v1/nodes/{node}/contributor":                  {{"", `{"contributor":"x"}`}},
	"PUT /v1/nodes/{node}/price":                        {{"", `{"price_micros_per_gpu_hour":"5"}`}},
	"PUT /v1/operator/prices":                           {{"", `{}`}},
	"PUT /v1/operator/policy":                           {{"", `{}`}},
	"PUT /v1/operator/demand":                           {{"", `{}`}},
	"POST /v1/operator/members":                         {{"", `{"server":"s9","address":"127.0.0.1:1"}`}},
	"POST /v1/operator/members/{server}/promote":        {{"", ""}},
	"POST /v1/operator/members/{server}/remove":         {{"", ""}},
	"POST /v1/operator/join-tokens":                     {{"", `{"join":"node"}`}},
	"POST /v1/operator/authorities/rotate":              {{"", ""}},
	"POST /v1/operator/keys/rotate":                     {{"", ""}},
	"POST /v1/operator/keys/{key}/retire":               {{"", ""}},
	"POST /v1/operator/identities/{kind}/{name}/revoke": {{"", ""}},
}

// filterOf has filters of lists that name what is of a kind.
var filterOf = map[string]refBody{
	"/v1/jobs": {"job", `name == "REF" or id == "REF"`}, "/v1/leases": {"node", `node == "REF"`}, "/v1/nodes": {"node", `id == "REF"`},
	"/v1/tenants": {"tenant", `id == "REF"`}, "/v1/tokens": {"tenant", `tenant == "REF"`}, "/v1/secrets": {"secret", `name == "REF"`},
	"/v1/usage": {"tenant", `tenant == "REF"`}, "/v1/queue/pending": {"job", `name == "REF"`}, "/v1/contributors": {"contributor", `contributor == "REF"`},
}

func plainBody(route string) string {
	if all := bodiesOf[route]; len(all) > 0 {
		return all[0].text
	}
	return ""
}

// headersOf are what a route wants beside a token.
var headersOf = map[string]map[string]string{
	"/v1/jobs/{job}/exec": {"Sec-WebSocket-Protocol": gpuai.ExecProtocol},
	"/v1/agent/exec":      {"Sec-WebSocket-Protocol": gpuai.ExecProtocol},
}

// mayRefuse are routes that refuse some of those whom the table lets in: what they
// ask has to be put otherwise.
var mayRefuse = map[string]bool{
	"GET /v1/leases":              true, // of a contributor without node
	"GET /v1/jobs/{job}/exec":     true, // a node without exec
	"POST /v1/login/oidc":         true,
	"POST /v1/operator/bootstrap": true,
	"POST /v1/join":               true,
}

// walked fails the test for what a route has and the walk does not know.
func walked(t *testing.T, who *foreigner, foreign map[string][]string) {
	t.Helper()
	for _, rt := range httpd.Routes() {
		for _, m := range variableInPath.FindAllStringSubmatch(rt.Path, -1) {
			if who.own[m[1]] == "" || len(foreign[m[1]]) == 0 {
				t.Errorf("%s: the walk knows no %s of one's own and of somebody else: give it both", rt, m[1])
			}
		}
		for _, name := range rt.Query {
			if kind, known := kindOf[name]; !known || kind != "" && kind != "cursor" && len(foreign[kind]) == 0 {
				t.Errorf("%s: the walk does not know what ?%s= names: say so in kindOf", rt, name)
			}
		}
		if rt.Method != "GET" && bodiesOf[rt.String()] == nil {
			t.Errorf("%s: the walk has no body for it: give it one in bodiesOf, and one for each thing that it may name", rt)
		}
	}
}

// Whoever asks for what is somebody else's, by whatever route and wherever in the
// request it is named, is answered to the letter as for what never was, and no
// answer tells anything of it. The walk is over the table of routes.
func TestForeignIDsAreUnknownByEveryRoute(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 3, 0)
	w := newWalk(t, r.leader())
	s := newStage(t, r)
	w.foreign, w.secret = s.foreign, s.secret
	beta, dave := s.somebody("beta"), s.somebody("dave")
	walked(t, beta, w.foreign)
	before := s.state(t)
	for _, at := range []*member{r.leader(), r.followers()[0]} {
		w.brief, w.at = w.at != at, at // a follower passes most of it on
		for _, rt := range httpd.Routes() {
			for _, who := range []*foreigner{beta, dave} {
				w.route(who, rt)
			}
			if rt.Anyone {
				w.route(&foreigner{name: "nobody", own: beta.own}, rt)
			}
		}
	}
	theirKey := refQuestion{method: "POST", path: "/v1/jobs", body: plainJob, header: map[string]string{"Idempotency-Key": "key-" + planted + "-run"}}
	a := w.ask(beta, theirKey, "")
	w.discreet(beta, theirKey, "", a)
	if a.status != 202 || !strings.Contains(a.raw, `"tenant":"beta"`) {
		t.Errorf("under another tenant's idempotency key: %s", a.raw)
	}
	if after := s.state(t); after != before {
		t.Errorf("what is another's has changed from\n%s\nto\n%s", before, after)
	}
}

// Nor do lists tell of what is between one's own rows, whether they are read row by
// row or from where others had come.
func TestListsTellNothingBetweenTheirRows(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	w, s := newWalk(t, r.leader()), newStage(t, r)
	w.secret = s.secret
	beta, dave := s.somebody("beta"), s.somebody("dave")
	others := []*foreigner{s.somebody("acme"), s.somebody("carol"), s.somebody("operator")}
	n := 0
	for _, rt := range httpd.Routes() {
		if strings.Contains(strings.Join(rt.Query, " "), "cursor") {
			w.list(beta, rt, others)
			w.list(dave, rt, others)
			n++
		}
	}
	if n < 10 {
		t.Errorf("%d lists were read: this tests nothing", n)
	}
}

// A stage is a region in which two tenants and two contributors have things.
type stage struct {
	r       *region
	tokens  map[string]gpuai.NewAccessToken
	own     map[string]map[string]string
	foreign map[string][]string
	secret  []string
}

func (s *stage) do(cmd []byte) {
	s.r.t.Helper()
	if did, err := s.r.leader().propose(s.r.t.Context(), cmd); err != nil || did[0].Code != gpuai.OK {
		s.r.t.Fatalf("%+v %v", did, err)
	}
}

func (s *stage) somebody(name string) *foreigner {
	return &foreigner{name: name, token: s.tokens[name].Text, own: s.own[name]}
}

func (s *stage) register(id gpuai.NodeID, gpus int, owner gpuai.ContributorID) {
	spec := nodeSpec(string(id), gpus)
	s.do((&fsm.RegisterNode{BootID: "b", Nonce: "n", Spec: spec}).Append(nil, fsm.Envelope{}))
	s.do((&fsm.SetNodeOwner{Node: id, Contributor: owner}).Append(nil, fsm.Envelope{}))
}

// run submits a job of one task.
func (s *stage) run(tenant gpuai.TenantID, name string) gpuai.Submitted {
	spec := jobSpec(name, 1)
	spec.Tenant, spec.Groups[0].Name = tenant, name
	spec.LeaseTTL = gpuai.MaxLeaseTTL // no agent renews it
	spec.Groups[0].Task.Env = map[string]string{"X": name}
	return s.r.submit(spec, "key-"+name)
}

func (s *stage) end(sub gpuai.Submitted) {
	l := sub.Leases[0]
	for i, state := range []gpuai.ReportState{gpuai.ReportRunning, gpuai.ReportDone} {
		rep := gpuai.Report{Lease: l.ID, Seq: uint32(i + 1), Incarnation: l.Incarnation, State: state}
		s.do((&fsm.ReportLease{Node: l.Node, Report: rep}).Append(nil, fsm.Envelope{}))
	}
}

func (s *stage) token(name string, q gpuai.TokenRequest) {
	s.r.write(func(m *member) (err error) {
		q.Defaults()
		q.TTL = gpuai.Hour
		s.tokens[name], err = m.CreateToken(s.r.t.Context(), q)
		return err
	})
}

const (
	acme  = gpuai.TenantID(planted + "-a")
	carol = planted + "-c"
	acmes = gpuai.NodeID(planted + "-n")
)

// newStage gives tenant acme and contributor carol what nobody else may know of, and
// tenant beta and contributor dave some of their own.
func newStage(t *testing.T, r *region) *stage {
	t.Helper()
	s := &stage{r: r, tokens: map[string]gpuai.NewAccessToken{}}
	for _, id := range []gpuai.TenantID{acme, "beta"} {
		s.do((&fsm.CreateTenant{Tenant: id, Name: string(id)}).Append(nil, fsm.Envelope{}))
		s.do((&fsm.SetTenantWeight{Tenant: id, Weight: 3}).Append(nil, fsm.Envelope{}))
		all := []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeSubmit, gpuai.ScopeTenantAdmin}
		s.token(strings.Replace(string(id), planted+"-a", "acme", 1), gpuai.TokenRequest{Tenant: id, Scopes: all, Description: string(id)})
	}
	for name, id := range map[string]gpuai.ContributorID{"carol": carol, "dave": "dave"} {
		s.token(name, gpuai.TokenRequest{Contributor: id, Scopes: []gpuai.Scope{gpuai.ScopeContributor}, Description: string(id)})
	}
	s.token("operator", gpuai.TokenRequest{Scopes: []gpuai.Scope{gpuai.ScopeOperator}, Description: planted})
	s.secrets()
	s.register(acmes, 1, carol)
	gone := s.run(acme, planted+"-gone")
	s.end(gone)
	s.do((&fsm.RetireJobs{Jobs: []gpuai.JobID{gone.Job.ID}}).Append(nil, fsm.Envelope{}))
	done := s.run(acme, planted+"-done")
	s.end(done)
	run := s.run(acme, planted+"-run")
	s.publish(run)
	s.register("n2", 2, "dave")
	mine, beside := s.run("beta", "mine"), s.run(acme, planted+"-beside")
	wait := s.run(acme, planted+"-wait")
	waits := s.run("beta", "mine-waits")
	s.foreign = map[string][]string{
		"job":   {run.Job.ID.String(), done.Job.ID.String(), wait.Job.ID.String(), gone.Job.ID.String(), planted + "-run", planted + "-gone", run.Job.ID.String()[:20]},
		"lease": {run.Leases[0].ID.String(), done.Leases[0].ID.String(), gone.Leases[0].ID.String()},
		"token": {s.tokens["acme"].Token.ID.String(), s.tokens["operator"].Token.ID.String(), s.tokens["carol"].Token.ID.String()},
		"node":  {string(acmes)}, "tenant": {string(acme)}, "contributor": {carol}, "secret": {planted + "-s"}, "server": {"s1"}, "what": {"logs"}, "key": {"k1"}, "kind": {"node"}, "name": {string(acmes)},
		"command":         {"command"},
		"cursor of jobs":  {makeCursor("jobs", run.Job.ID.String()+":99"), makeCursor("jobs", run.Job.ID.String()+":0")},
		"cursor of nodes": {makeCursor("nodes", string(acmes))},
	}
	s.secret = []string{planted}
	for _, kind := range []string{"job", "lease", "token"} {
		s.secret = append(s.secret, s.foreign[kind]...)
	}
	s.secret = append(s.secret, beside.Job.ID.String())
	common := map[string]string{"server": "s1", "what": "logs", "key": "k1", "kind": "node", "name": "n2", "secret": "own"}
	own := func(scopes string, sub *gpuai.Submitted, as string, more map[string]string) map[string]string {
		x := map[string]string{"scopes": scopes, "job": sub.Job.ID.String(), "lease": sub.Leases[0].ID.String(), "token": s.tokens[as].Token.ID.String()}
		for _, m := range []map[string]string{common, more} {
			for k, v := range m {
				x[k] = v
			}
		}
		return x
	}
	// A token of one's own is not the one that is walked with: it would be revoked.
	s.token("beta's other", gpuai.TokenRequest{Tenant: "beta", Scopes: []gpuai.Scope{gpuai.ScopeRead}})
	s.own = map[string]map[string]string{
		"beta":     own("read submit tenant-admin", &mine, "beta's other", map[string]string{"tenant": "beta", "node": "n2", "waits": waits.Job.ID.String()}),
		"dave":     own("contributor", &mine, "dave", map[string]string{"tenant": "beta", "node": "n2"}),
		"acme":     own("read submit tenant-admin", &run, "acme", map[string]string{"tenant": string(acme), "node": string(acmes)}),
		"carol":    own("contributor", &run, "carol", map[string]string{"tenant": string(acme), "node": string(acmes)}),
		"operator": own("operator", &run, "operator", map[string]string{"tenant": string(acme), "node": string(acmes)}),
	}
	return s
}

func (s *stage) secrets() {
	for name, tenant := range map[string]gpuai.TenantID{planted + "-s": acme, "own": "beta"} {
		s.r.write(func(m *member) error {
			_, err := m.PutSecret(s.r.t.Context(), name, gpuai.SecretRequest{Tenant: tenant, Value: []byte(planted)})
			return err
		})
	}
}

// publish gives a running task a checkpoint.
func (s *stage) publish(sub gpuai.Submitted) {
	l := sub.Leases[0]
	p := gpuai.Publish{Lease: l.ID, Incarnation: l.Incarnation, Task: l.TaskRef, Digest: gpuai.BlobDigest{1}, Bytes: 1, Keep: 2}
	s.do((&fsm.ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportRunning}}).Append(nil, fsm.Envelope{}))
	s.do((&fsm.PublishCheckpoint{Node: l.Node, Publish: p}).Append(nil, fsm.Envelope{}))
}

// costInBody grows by itself.
var costInBody = regexp.MustCompile(`"(cost":\{[^}]*\}|earned_[a-z_]*":"[^"]*")`)

// state is what the first tenant and contributor have, as an operator sees it.
func (s *stage) state(t *testing.T) string {
	w := newWalk(t, s.r.leader())
	op := s.somebody("operator")
	var all bytes.Buffer
	for _, path := range []string{"/v1/jobs/" + s.foreign["job"][0], "/v1/jobs/" + s.foreign["job"][2], "/v1/leases/" + s.foreign["lease"][0]} {
		text := w.ask(op, refQuestion{method: "GET", path: path}, "").text
		all.WriteString(costInBody.ReplaceAllString(text, ""))
	}
	node := w.ask(op, refQuestion{method: "GET", path: "/v1/nodes/" + string(acmes)}, "").text // which turns suspect without beats
	for _, said := range []string{"drained", "ask_micros", "schedule", carol} {
		fmt.Fprintln(&all, said, strings.Contains(node, said))
	}
	for _, list := range []string{"/v1/tokens", "/v1/secrets"} {
		for _, row := range strings.Split(w.ask(op, refQuestion{method: "GET", path: list}, "").text, "},{") {
			if strings.Contains(row, planted) {
				row, _, _ = strings.Cut(row[strings.LastIndex(row, "{")+1:], "}") // without what is around the list
				all.WriteString(row + "\n")
			}
		}
	}
	return all.String()
}
