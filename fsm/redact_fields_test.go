package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// stays is every text that a report holds as it was, as docs/asking.md says. A
// field that is new is in here, or redacted.
var stays = map[string]bool{
	"Spec.Tenant":                          true,
	"Spec.Groups.Resources.GPU.Any.Vendor": true,
	"Spec.Groups.Resources.GPU.Any.Model":  true,
	"Spec.Groups.Task.Runtime":             true, // a word of ours
	"Spec.ID":                              true,
	"Spec.Zone":                            true,
	"Spec.Version":                         true,
	"Spec.Devices.ID":                      true,
	"Spec.Devices.Vendor":                  true,
	"Spec.Devices.Model":                   true,
	"Devices.ID":                           true,
	"Devices.Vendor":                       true,
	"Devices.Model":                        true,
	"Report.Unclean":                       true, // IDs of devices
	"Node":                                 true,
	"Server":                               true,
	"Tenant":                               true,
	"For":                                  true, // of who may join
	"Contributor":                          true,
	"Identity.Name":                        true,
	"Mapping.Tenant":                       true,
	"Mapping.Contributor":                  true,
	"Notes.Tenant":                         true,
	"Demand.Resources.GPU.Any.Vendor":      true,
	"Demand.Resources.GPU.Any.Model":       true,
}

// A filler gives every text below a value a canary that says which it is.
type filler struct {
	first int               // number of its first canary
	paths []string          // of the canaries, by number
	skip  map[string]bool   // paths that stay as they are
	form  map[string]string // how a text of a path must look, with a %s
}

const fieldCanary = "hunter2-%04d-x"

func (f *filler) text(path string) string {
	f.paths = append(f.paths, path)
	s := fmt.Sprintf(fieldCanary, f.first+len(f.paths)-1)
	if form := f.form[path]; form != "" {
		s = fmt.Sprintf(form, s)
	}
	return s
}

// fill visits every field there is: empty lists and maps get a member.
func (f *filler) fill(v reflect.Value, path string) {
	if f.skip[path] {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(f.text(path))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				f.fill(v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."))
			}
		}
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		f.fill(v.Elem(), path)
	case reflect.Slice:
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		}
		for i := range v.Len() {
			f.fill(v.Index(i), path)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		f.fill(key, path+".key")
		f.fill(value, path)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	}
}

var canaries = regexp.MustCompile(`hunter2-(\d{4})-x`)

// found returns the paths of the canaries in b.
func (f *filler) found(b []byte) []string {
	out := map[string]bool{}
	for _, m := range canaries.FindAllSubmatch(b, -1) {
		var n int
		fmt.Sscanf(string(m[1]), "%d", &n)
		if n -= f.first; n >= 0 && n < len(f.paths) {
			out[f.paths[n]] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// keeps says whether a text stays: the name of a tenant for people does not, nor
// that of a secret.
func keeps(what, path string) bool {
	return stays[path] && !(path == "Name" && (strings.HasSuffix(what, "CreateTenant") || strings.HasSuffix(what, "Secret")))
}

// check fails for each text that is left and must not be.
func (f *filler) check(t *testing.T, what string, b []byte) {
	t.Helper()
	for _, p := range f.found(b) {
		if !keeps(what, p) {
			t.Errorf("%s holds the text of %s", what, p)
		}
	}
}

// filledCommands are commands with texts in every field that may have one, and
// the fillers that know them. A task has a command or a script.
func filledCommands() (cmds []Command, fs []*filler) {
	add := func(c Command, f *filler) {
		f.first = 50 * len(fs)
		f.fill(reflect.ValueOf(c).Elem(), "")
		cmds, fs = append(cmds, c), append(fs, f)
	}
	forms := map[string]string{
		"Spec.Groups.Task.Cwd": "/%s", "Spec.Groups.Constraints.Attribute": "label.%s", "Demand.Constraints.Attribute": "label.%s",
	}
	for i, skip := range []string{"Spec.Groups.Task.Script", "Spec.Groups.Task.Command"} {
		s := jobSpec("x", 1, 1)
		if i == 1 {
			s.Groups[0].Task.Command = nil
		}
		add(&SubmitJob{ID: gpuai.JobID{9, byte(i)}, HoldAnyway: true, Spec: s}, &filler{form: forms, skip: map[string]bool{
			skip: true, []string{"Spec.Groups.Task.Secrets.Env", "Spec.Groups.Task.Secrets.Path"}[i]: true, "Spec.After": true, // IDs only, of jobs that there must be
		}})
	}
	full := nodeSpec("x", 1, "x")
	full.Refuses = &gpuai.Refusal{Code: gpuai.DiskFull}
	add(&RegisterNode{Spec: full}, &filler{})
	add(&UpdateDevices{Devices: nodeSpec("x", 1, "x").Devices, Refuses: &gpuai.Refusal{Code: gpuai.DiskFull}}, &filler{})
	add(&ReportLease{Report: gpuai.Report{Seq: 1, State: gpuai.ReportFailed}}, &filler{})
	add(&MoveServer{}, &filler{})
	add(&RetireServer{}, &filler{})
	add(&SetTenantWeight{Weight: 5}, &filler{})
	add(&PublishCheckpoint{Publish: gpuai.Publish{Digest: gpuai.BlobDigest{1}, Keep: 1}}, &filler{})
	add(&SetNodeEligibility{}, &filler{})
	add(&CreateTenant{}, &filler{})
	add(&CreateToken{ID: gpuai.AccessTokenID{1}, Scopes: gpuai.AllScopes, TTL: gpuai.Hour, Login: [32]byte{1}}, &filler{})
	add(&RevokeToken{}, &filler{})
	add(&SetRole{Mapping: gpuai.RoleMapping{Scopes: gpuai.AllScopes.List()}}, &filler{})
	add(&SetNodeOwner{}, &filler{})
	add(&SetNodeSchedule{}, &filler{})
	add(&SetNodeAsk{}, &filler{})
	add(authority(1), &filler{})
	add(&CreateJoinToken{Hash: secretOf("a"), Kind: gpuai.IdentityNode, TTL: gpuai.Minute}, &filler{})
	add(&Join{Token: secretOf("a"), Identity: gpuai.Identity{Kind: gpuai.IdentityNode}, Key: gpuai.SubjectHash{1}}, &filler{})
	add(&RevokeIdentity{gpuai.Identity{Kind: gpuai.IdentityNode}}, &filler{})
	add(&RetireAuthority{}, &filler{})
	add(&PutSecret{}, &filler{})
	add(&DeleteSecret{}, &filler{})
	add(&GiveSecrets{}, &filler{})
	add(&AuditNote{Notes: []gpuai.AuditNote{{Count: 1}}}, &filler{})
	one := jobSpec("x", 1, 1).Groups[0].Resources
	add(&SetDemand{Demand: []gpuai.DemandClass{{Resources: one, Tasks: 1}}}, &filler{form: forms})
	return cmds, fs
}

// createdTenant is the place of the CreateTenant among the filled commands.
const createdTenant = 10

// Every text of every command, found by looking at the types, is redacted or is
// known to stay: in entries, and in the state that they lead to.
func TestRedactsEveryField(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
	x := Redaction{Salt: 7}
	cmds, fs := filledCommands()
	for i, c := range cmds {
		f := fs[i]
		if c, ok := c.(*SubmitJob); ok {
			c.Spec.Tenant = "default"
			r.do(&PutSecret{Name: c.Spec.Groups[0].Task.Secrets[0].Name, Tenant: "default", Seal: []byte("s"), Box: []byte("b")})
		}
		whole := AppendEntry(nil, Header{}, c.Append(nil, Envelope{Actor: canary, Key: canary}))
		red, err := x.RedactEntry(whole, r.m)
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%T", c)
		if bytes.Contains(red, []byte(canary)) {
			t.Errorf("%s holds its actor or key", what)
		}
		f.check(t, what, red)
		// What stays is there: else it was not read, and this tests nothing.
		for _, p := range f.found(whole) {
			if keeps(what, p) && !slices.Contains(f.found(red), p) {
				t.Errorf("%s lost the text of %s", what, p)
			}
		}
		if len(f.found(whole)) < len(f.paths)-1 { // the tenant was replaced
			t.Errorf("%s: of %v only %v is encoded", what, f.paths, f.found(whole))
		}
		switch c := c.(type) { // of the tenant that is there
		case *CreateToken:
			c.Tenant = cmds[createdTenant].(*CreateTenant).Tenant
		case *SetRole:
			c.Mapping.Tenant = cmds[createdTenant].(*CreateTenant).Tenant
		}
		r.apply(c)
	}
	if page, _ := r.m.AccessTokens(0, 10, ""); len(page) != 1 || len(r.m.RoleMappings()) != 1 {
		t.Fatalf("tokens %v and mappings %v were refused", page, r.m.RoleMappings())
	}
	m := restored(t, r.m)
	x.RedactState(m)
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	var before, after bytes.Buffer
	if err := r.m.Fork().WriteSnapshot(&before); err != nil {
		t.Fatal(err)
	}
	if err := m.Fork().WriteSnapshot(&after); err != nil {
		t.Fatal(err)
	}
	for i, f := range fs {
		what := fmt.Sprintf("the state behind %T", cmds[i])
		f.check(t, what, after.Bytes())
		if _, ok := cmds[i].(*SubmitJob); ok && len(f.found(before.Bytes())) < 10 {
			t.Errorf("%s holds %v only: was the job refused?", what, f.found(before.Bytes()))
		}
	}
	if restored(t, m).Digest() != m.Digest() {
		t.Error("the redacted state is another when it is restored")
	}
}

// placedSpec asks for what labels, racks and the packing policy decide.
func placedSpec(i int) *gpuai.JobSpec {
	s := jobSpec(fmt.Sprintf("%s-%d", canary, i), 1+uint32(i%3), 1+uint32(i%2))
	g := &s.Groups[0]
	g.Resources.CPU = gpuai.MilliCPU(1_000 + 500*(i%4))
	label := func(key string, op gpuai.Op, values ...string) {
		g.Constraints = append(g.Constraints, gpuai.Constraint{Attribute: "label." + key, Op: op, Values: values})
	}
	switch i % 6 {
	case 0:
		label(canary+"-tier", gpuai.In, canary+"-gold", canary+"-iron")
	case 1:
		label(canary+"-tier", gpuai.NotEqual, canary+"-gold")
		label(canary+"-gen", gpuai.AtLeast, "3")
	case 2:
		label("a-"+canary, gpuai.NotEqual, canary)
		label(canary+"-gen", gpuai.Equal, "4")
	case 3:
		g.Gang, s.Placement.Same = true, gpuai.TopologyRack
	case 4:
		g.Gang, s.Placement.Near = true, gpuai.TopologyNVLink
	}
	return s
}

// placedRegion is a region whose nodes have labels, racks and NVLink domains.
func placedRegion(t *testing.T) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	for i := range 12 {
		s := nodeSpec(fmt.Sprintf("n%02d", i), 2+i%3, "H100")
		s.Rack, s.NVLinkDomain = fmt.Sprint(canary, "-r", i/3), fmt.Sprint(canary, "-v", i/2)
		s.Labels = map[string]string{canary + "-tier": []string{canary + "-gold", canary + "-iron", canary + "-tin"}[i%3], canary + "-gen": fmt.Sprint(i % 6)}
		if i%4 == 0 {
			s.Labels["a-"+canary] = canary
		}
		r.register(s)
	}
	r.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
	r.do(&SetDemand{Demand: []gpuai.DemandClass{
		{Resources: placedSpec(0).Groups[0].Resources, Constraints: placedSpec(0).Groups[0].Constraints, Tasks: 3},
		{Resources: placedSpec(2).Groups[0].Resources, Constraints: placedSpec(2).Groups[0].Constraints, Tasks: 2},
		{Resources: jobSpec("x", 1, 4).Groups[0].Resources, Tasks: 1},
	}})
	return r
}

// In other words for labels, racks and domains the same tasks go to the same
// devices, before and after a restore, and by the told demand.
func TestRedactedPlacementIsTheSame(t *testing.T) {
	r := placedRegion(t)
	var live []gpuai.Lease
	step := func(i int) {
		r.submit(placedSpec(i))
		if i%3 == 2 {
			live, _ = r.m.Leases(0, 1000, true)
			l := live[(i*7)%len(live)]
			r.report(l, gpuai.ReportDone, 0)
		}
		if i%10 == 9 {
			r.do(&SetDemand{Demand: []gpuai.DemandClass{{Resources: placedSpec(i).Groups[0].Resources, Constraints: placedSpec(i - 3).Groups[0].Constraints, Tasks: uint64(i)}}})
		}
	}
	for i := range 30 {
		step(i)
	}
	if r.m.Demand().Active != gpuai.PackingEFW {
		t.Fatal("efw does not decide")
	}
	x := Redaction{Salt: 99}
	m := restored(t, r.m)
	x.RedactState(m)
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	m = restored(t, m)
	from := len(r.log)
	for i := range 60 {
		step(30 + i)
	}
	for i, entry := range r.log[from:] {
		red, err := x.RedactEntry(entry, m)
		if err != nil {
			t.Fatal(err)
		}
		clean(t, "an entry", red)
		if err := m.Apply(uint64(from+i+1), r.term, red, &Output{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	was, _ := r.m.Leases(0, 1000, true)
	is, _ := m.Leases(0, 1000, true)
	if len(was) < 10 || len(was) != len(is) {
		t.Fatalf("%d leases, %d in the redacted state", len(was), len(is))
	}
	for i := range was {
		if a, b := was[i], is[i]; a.ID != b.ID || a.Node != b.Node || a.TaskRef != b.TaskRef || fmt.Sprint(a.Devices) != fmt.Sprint(b.Devices) {
			t.Errorf("%+v, in the redacted state %+v", a, b)
		}
	}
}
