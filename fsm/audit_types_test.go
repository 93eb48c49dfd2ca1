package fsm

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gpuai/gpuai"
)

// Whether a command is in the audit is decided for each type: who adds one says so
// here, and in auditKinds, whose zero value is a command that is about a job.
func TestEveryCommandIsDecidedUponForTheAudit(t *testing.T) {
	audited := map[uint8]bool{
		typeRegisterNode: true, typeSetNodeEligibility: true, typeSubmitJob: true, typeStopJob: true, typeSetPolicy: true,
		typeSetFeatureLevel: true, typeRetireServer: true, typeMoveServer: true, typeSetDemand: true, typeSetTenantWeight: true,
		typePutAuthority: true, typeCreateJoinToken: true, typeJoin: true, typeRevokeIdentity: true, typeRetireAuthority: true,
		typeCreateTenant: true, typeCreateToken: true, typeRevokeToken: true, typeSetRole: true, typeSetNodeOwner: true,
		typeSetQuota: true, typeSetBudget: true, typeSetPrices: true, typeSetNodePrice: true,
		typePutSecret: true, typeDeleteSecret: true, typeGiveSecrets: true, typeSetRegionKey: true, typeSetNodeSchedule: true, typeSetNodeAsk: true,
		typeUpdateDevices: false, typeExpireLeases: false, typeReportLease: false, typeConfirmBeats: false, typeTick: false,
		typeCheckpoint: false, typeRetireJobs: false, typePublishCheckpoint: false, typeAuditNote: false,
		typeTouchTokens: true, // by servers, when they have seen tokens
	}
	for kind, name := range commandNames {
		want, decided := audited[uint8(kind)]
		switch {
		case name == "":
		case !decided:
			t.Errorf("%s (type %d): say whether it is in the audit", name, kind)
		case want == auditKinds[kind].silent:
			t.Errorf("%s: in the audit %v, want %v", name, !want, want)
		case want && auditKinds[kind].about == nil && uint8(kind) != typeSubmitJob && uint8(kind) != typeStopJob:
			t.Errorf("%s: the audit does not say what it is about: see auditKinds", name)
		}
	}
}

// An auditCase is a command, and what the audit is to say of it.
type auditCase struct {
	do      Command
	subject string
	change  string
	code    gpuai.Code
}

// What the audit says of each type, in a region in which all of it happens.
func TestAuditNamesTheSubjectOfEveryCommand(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	said := map[string]bool{}
	for _, cases := range [][]auditCase{auditedNodes(), auditedAccess(), auditedMoney(), auditedIdentities()} {
		for i := range cases {
			said[r.audits(&cases[i])] = true
		}
	}
	job := r.newID()
	r.audits(&auditCase{putSecret("token", "hush"), "token@1", "", 0})
	r.audits(&auditCase{&SubmitJob{ID: job, Spec: wantingSpec("token")}, "", "", 0})
	lease := r.live(job)[0]
	for _, c := range []auditCase{
		{give(lease), "token@1", "lease " + lease.ID.String() + ", node n1", 0},
		{&GiveSecrets{Node: "n1", Lease: 9}, "lease 9", "", gpuai.Conflict},
		{&StopJob{Job: job}, "", "", 0},
		{&DeleteSecret{Name: "token", Tenant: "default"}, "token", "", 0},
	} {
		said[r.audits(&c)] = true
	}
	said["put_secret"], said["submit_job"] = true, true
	for kind, name := range commandNames {
		if name != "" && !auditKinds[kind].silent && !said[name] {
			t.Errorf("%s: say here what the audit says of it", name)
		}
	}
}

// audits applies a command, and checks what the audit says of it.
func (r *region) audits(c *auditCase) (command string) {
	r.t.Helper()
	out := r.applyAs(Envelope{Actor: "operator@local"}, c.do)
	e, err := ReadAudit(out.Audit)
	if err != nil || len(e.Records) != 1 {
		r.t.Fatalf("%T: %v, %+v, %+v", c.do, err, e, out.Results)
	}
	x := e.Records[0]
	if x.Subject != c.subject || x.Change != c.change || x.Code != c.code {
		r.t.Errorf("%T (%s): of %q, %q %s, want %q, %q %s", c.do, out.Results[0].Detail, x.Subject, x.Change, x.Code, c.subject, c.change, c.code)
	}
	if raw, _ := json.Marshal(&e); strings.Contains(string(raw), "hush") {
		r.t.Errorf("%T: %s", c.do, raw)
	}
	return x.Command
}

func auditedNodes() []auditCase {
	policy := gpuai.DefaultPolicy()
	policy.Packing, policy.Grace, policy.PriorityBatch = gpuai.PackingEFW, 6*gpuai.Second, 21
	demand := gpuai.DemandClass{Resources: jobSpec("x", 1, 1).Groups[0].Resources, Tasks: 1}
	return []auditCase{
		{&SetFeatureLevel{Level: MaxLevel}, "region", "feature_level 3 -> 4", 0},
		{&SetFeatureLevel{Level: MaxLevel}, "region", "", gpuai.Conflict},
		{&RegisterNode{Spec: nodeSpec("n1", 2, "H100"), BootID: "b", Nonce: "n"}, "n1", "", 0},
		{&RegisterNode{Spec: nodeSpec("n1", 2, "H100"), BootID: "b2", Nonce: "n", Replaces: 7}, "n1", "", gpuai.Conflict},
		{&SetNodeOwner{"n1", "carol"}, "n1", "contributor none -> carol", 0},
		{&SetNodeAsk{"n1", 7}, "n1", "ask_micros none -> 7", 0},
		{&SetNodeSchedule{"n1", gpuai.Schedule{Windows: []gpuai.Window{{From: 0, To: 480}}}}, "n1",
			"windows none -> mon 00:00-mon 08:00, utc_offset_minutes none -> 0", 0},
		{&SetNodeSchedule{"n1", gpuai.Schedule{}}, "n1", "windows mon 00:00-mon 08:00 -> none", 0},
		{&SetNodeEligibility{Node: "n1", Drained: true}, "n1", "drained false -> true", 0},
		{&SetNodeEligibility{Node: "n1"}, "n1", "drained true -> false", 0},
		{&SetPolicy{policy}, "region", "lease_grace_ms 5000 -> 6000, priority_batch 20 -> 21, packing bestfit -> efw", 0},
		{&SetDemand{Demand: []gpuai.DemandClass{demand}, Fixed: true}, "region", "1 kinds of tasks, fixed", 0},
		{&MoveServer{"s1", "10.0.0.1:7471"}, "s1", "address none -> 10.0.0.1:7471", 0},
		{&RetireServer{"s1"}, "s1", "", 0},
		{&RetireServer{"hush: no name"}, "", "", gpuai.InvalidSpec},
	}
}

func auditedAccess() []auditCase {
	token := aToken(0)
	token.Scopes, token.Description = gpuai.ScopesOf(gpuai.ScopeRead, gpuai.ScopeSubmit), "hush"
	id := token.ID.String()
	role := gpuai.RoleMapping{Claim: "groups", Value: "ml", Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead}}
	wider := role
	wider.Scopes = []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeSubmit}
	return []auditCase{
		{&CreateTenant{Tenant: "acme", Name: "hush"}, "acme", "", 0},
		{&CreateTenant{Tenant: "acme"}, "acme", "", gpuai.Conflict},
		{token, id, "tenant acme, scopes read+submit, ttl 1h", 0},
		{token, id, "tenant acme, scopes read+submit, ttl 1h", gpuai.Conflict},
		{&TouchTokens{IDs: []gpuai.AccessTokenID{token.ID, tokenID(9)}}, "2 tokens", "", 0},
		{&RevokeToken{ID: token.ID, Tenant: "beta"}, id, "", gpuai.NotFound},
		{&RevokeToken{ID: token.ID}, id, "tenant acme, scopes read+submit", 0},
		{&SetRole{role}, "groups=ml", "tenant acme, scopes none -> read", 0},
		{&SetRole{wider}, "groups=ml", "tenant acme, scopes read -> read+submit", 0},
	}
}

func auditedMoney() []auditCase {
	four, eight, hours, money := uint32(4), uint32(8), uint32(100), gpuai.Micros(5_000_000)
	return []auditCase{
		{&SetTenantWeight{Tenant: "acme", Weight: 300}, "acme", "weight 100 -> 300", 0},
		{&SetTenantWeight{Tenant: "acme"}, "acme", "", gpuai.InvalidSpec},
		{&SetQuota{"acme", gpuai.Quota{GPUs: &eight, RunningJobs: &four, Models: []gpuai.ModelQuota{{Model: "H100", GPUs: 2}}}}, "acme",
			"gpus none -> 8, running_jobs none -> 4, model H100 none -> 2", 0},
		{&SetQuota{"acme", gpuai.Quota{GPUs: &four, RunningJobs: &four, Cohort: "lab"}}, "acme", "gpus 8 -> 4, cohort none -> lab, model H100 2 -> none", 0},
		{&SetBudget{"acme", gpuai.Budget{Day: gpuai.BudgetLimit{GPUHours: &hours}, Total: gpuai.BudgetLimit{Money: &money}}}, "acme",
			"day.gpu_hours none -> 100, total.money_micros none -> 5000000", 0},
		{&SetPrices{gpuai.Prices{FeeBps: 50, Models: []gpuai.ModelPrice{{Model: "H100", Price: 2_000_000}}}}, "region",
			"fee_bps 0 -> 50, model H100 none -> 2000000", 0},
		{&SetNodePrice{"n1", 1_500_000}, "n1", "price_micros none -> 1500000", 0},
		{&SetNodePrice{"n1", -1}, "n1", "price_micros 1500000 -> none", 0},
		{&SetNodePrice{"nobody", 1}, "nobody", "", gpuai.NotFound},
	}
}

func auditedIdentities() []auditCase {
	one, two := authority(1), authority(2)
	two.Replaces = one.Hash
	first, second := hexText(one.Hash[:]), hexText(two.Hash[:])
	i, j := secretOf("i"), secretOf("j")
	joined := "join token " + hexText(j[:])[:12]
	node, key := gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n2"}, regionKey(1)
	return []auditCase{
		{one, first, "", 0},
		{two, second, "replaces " + first[:16] + ", which is trusted for " + two.Retire.String(), 0},
		{&RetireAuthority{Hash: one.Hash}, first, "", gpuai.PreconditionFailed},
		{&RetireAuthority{Hash: one.Hash, Now: true}, first, "at once", 0},
		{&CreateJoinToken{Hash: i, Kind: gpuai.IdentityServer, TTL: gpuai.Minute}, "any new server", "join token " + hexText(i[:])[:12] + ", ttl 1m", 0},
		{&CreateJoinToken{Hash: j, Kind: node.Kind, For: node.Name, TTL: gpuai.Minute, Contributor: "carol"}, "node/n2", joined + ", ttl 1m, contributor carol", 0},
		{&Join{Token: j, Identity: node, Key: gpuai.SubjectHash{1}}, "node/n2", joined, 0},
		{&Join{Token: j, Identity: node, Key: gpuai.SubjectHash{2}}, "node/n2", joined, gpuai.Unauthenticated},
		{&RevokeIdentity{node}, "node/n2", "", 0},
		{&SetRegionKey{Key: key, State: gpuai.KeyOffered}, key.Text(), "offered", 0},
	}
}

// Texts in records are bounded, valid and printable, whatever bytes a body has.
func TestAuditTextsAreBounded(t *testing.T) {
	for _, s := range []string{
		strings.Repeat("x", 500), strings.Repeat("ü", 100), "a\x1b[31m\xff\u0085\nb", strings.Repeat("\xff", 300), "",
	} {
		got := string(auditPart(s))
		if len(got) > gpuai.MaxAuditText || !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\n\u0085") {
			t.Errorf("%q became %q", s, got)
		}
	}
	var many []auditValue
	for i := range 64 {
		many = append(many, auditValue{fmt.Sprintf("model M%d", i), strings.Repeat("9", 20*i)})
	}
	got := changes("tenant x", nil, many)
	if len(got) > gpuai.MaxAuditText || !strings.HasPrefix(got, "tenant x, model M1 none -> 9999") || !strings.HasSuffix(got, " more") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
	if got := changes("", many, many); got != "" {
		t.Errorf("nothing has changed: %q", got)
	}
}

// Each setting of the policy is compared, under its name in the API.
func TestAuditKnowsEverySettingOfThePolicy(t *testing.T) {
	r := newRegion(t)
	names := map[string]bool{}
	for _, x := range policyOf(r.m, nil) {
		names[x.name] = true
	}
	p := reflect.TypeFor[gpuai.Policy]()
	for i := range p.NumField() {
		name, _, _ := strings.Cut(p.Field(i).Tag.Get("json"), ",")
		if !names[name] {
			t.Errorf("policyOf does not have %s", name)
		}
	}
	if len(names) != p.NumField() {
		t.Errorf("policyOf has %d settings, the policy %d", len(names), p.NumField())
	}
}
