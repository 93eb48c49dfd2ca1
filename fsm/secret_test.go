package fsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// putSecret is a secret of tenant default whose sealed value is text.
func putSecret(name, text string) *PutSecret {
	return &PutSecret{Name: name, Tenant: "default", KeyID: SecretKeyID{1}, Seal: []byte("key of " + name), Box: []byte(text)}
}

// wantingSpec is a job that wants secrets: the first as a file, others as variables.
func wantingSpec(names ...string) *gpuai.JobSpec {
	s := jobSpec("x", 1, 1)
	for i, n := range names {
		use := gpuai.TaskSecret{Name: n, Path: n, Mode: 0o400}
		if i > 0 {
			use = gpuai.TaskSecret{Name: n, Env: strings.ToUpper(n)}
		}
		s.Groups[0].Task.Secrets = append(s.Groups[0].Task.Secrets, use)
	}
	return s
}

func secretRegion(t *testing.T) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.node("a", 4)
	return r
}

func give(l gpuai.Lease) *GiveSecrets {
	return &GiveSecrets{Node: l.Node, Lease: l.ID, Incarnation: l.Incarnation}
}

func TestSecretsHaveVersions(t *testing.T) {
	r := secretRegion(t)
	r.do(putSecret("token", "one"))
	r.do(putSecret("token", "two"))
	s, ok := r.m.Secret("default", "token")
	if !ok || s.Version != 2 || string(s.Box) != "two" || string(s.Seal) != "key of token" || s.Key != "01000000" {
		t.Fatalf("%+v %v", s, ok)
	}
	other := putSecret("token", "theirs")
	other.Tenant = "acme"
	r.do(other)
	if page, next := r.m.Secrets(0, 10, "acme"); len(page) != 1 || next != 0 || page[0].Version != 1 {
		t.Fatalf("%+v %d", page, next)
	}
	if page, next := r.m.Secrets(0, 1, ""); len(page) != 1 || next != 1 {
		t.Fatalf("%+v %d", page, next)
	}
	anew := &PutSecret{Name: "token", Tenant: "default", Reseal: 1, KeyID: SecretKeyID{2}, Seal: []byte("key under another"), Box: s.Seal}
	r.refuse(anew, gpuai.PreconditionFailed)
	anew.Reseal = 2
	r.do(anew)
	if s, _ = r.m.Secret("default", "token"); s.Version != 2 || string(s.Box) != "two" || string(s.Seal) != "key under another" {
		t.Fatalf("resealed: %+v", s)
	}
	if s, slot, ok := r.m.NextSecretUnder(0, SecretKeyID{2}); !ok || slot != 1 || s.Tenant != "acme" {
		t.Fatalf("under another key: %+v at %d, %v", s, slot, ok)
	}
	r.do(&DeleteSecret{Name: "token", Tenant: "default"})
	r.refuse(&DeleteSecret{Name: "token", Tenant: "default"}, gpuai.NotFound)
	anew.Reseal = 2
	r.refuse(anew, gpuai.NotFound)
	for _, value := range []string{"three", "four"} { // made anew it has its version 2, too, under another data key
		again := putSecret("token", value)
		again.Seal = []byte("another data key")
		r.do(again)
	}
	r.refuse(anew, gpuai.PreconditionFailed)
	if _, ok := r.m.Secret("acme", "token"); !ok {
		t.Fatal("another tenant's secret of the name is gone, too")
	}
}

func TestSecretsAreBounded(t *testing.T) {
	t.Parallel()
	r := secretRegion(t)
	for _, bad := range []*PutSecret{
		putSecret("No", "x"), putSecret("", "x"), putSecret("ok", ""), putSecret("ok", strings.Repeat("x", MaxSecretBox+1)),
		{Name: "ok", Tenant: "No", Seal: []byte("k"), Box: []byte("x")}, {Name: "ok", Tenant: "a", Box: []byte("x")},
		{Name: "ok", Tenant: "a", Seal: make([]byte, MaxSecretKey+1), Box: []byte("x")},
		{Name: "ok", Tenant: "a", Seal: []byte("k"), Reseal: 1},
	} {
		r.refuse(bad, gpuai.InvalidSpec)
	}
	big := strings.Repeat("x", MaxSecretBox)
	r.check = false // the whole is, at the end
	n := 0
	for ; (n+1)*len(big) <= MaxTenantSecretBytes; n++ {
		r.do(putSecret(fmt.Sprint("s", n), big))
	}
	r.refuse(putSecret("more", big), gpuai.TooLarge)
	r.do(putSecret("s0", big)) // in place of one as long
	r.do(putSecret("s0", "x"))
	for ; n < MaxTenantSecrets; n++ {
		r.do(putSecret(fmt.Sprint("s", n), "x"))
	}
	r.refuse(putSecret("more", "x"), gpuai.TooLarge)
	r.do(putSecret("s1", "y"))
	other := putSecret("theirs", big)
	other.Tenant = "acme"
	r.check = true
	r.do(other)
}

func TestSecretsOfJobs(t *testing.T) {
	r := secretRegion(t)
	r.do(putSecret("a", "one"))
	res := r.refuse(&SubmitJob{ID: r.newID(), Spec: wantingSpec("a", "b")}, gpuai.InvalidSpec)
	if !strings.Contains(res.Detail, "secret b ") || !strings.Contains(res.Detail, "gpuai secret put b") {
		t.Errorf("refused with %q", res.Detail)
	}
	r.do(putSecret("b", "two"))
	id := r.submit(wantingSpec("a", "b"))
	l := r.leases(id)[0]
	wrong := give(l)
	wrong.Node = "b"
	r.refuse(wrong, gpuai.Conflict)
	wrong = give(l)
	wrong.Incarnation++
	r.refuse(wrong, gpuai.Conflict)
	wrong = give(l)
	wrong.Lease++
	r.refuse(wrong, gpuai.Conflict)
	r.do(give(l))
	if got := r.leases(id)[0].Secrets; fmt.Sprint(got) != "[{a 1} {b 1}]" {
		t.Fatalf("given: %v", got)
	}
	r.do(putSecret("b", "three"))
	r.do(give(l)) // the agent had no answer
	if got := r.leases(id)[0].Secrets; fmt.Sprint(got) != "[{a 1} {b 2}]" {
		t.Fatalf("given again: %v", got)
	}
	if m := restored(t, r.m); m.Digest() != r.m.Digest() || fmt.Sprint(m.LeasesOfJob(id, 0, 9)[0].Secrets) != "[{a 1} {b 2}]" {
		t.Fatal("a restored machine has others")
	}
	r.report(l, gpuai.ReportRunning, 0)
	r.refuse(give(l), gpuai.Conflict) // its task has them
	later := r.submit(wantingSpec("b"))
	r.do(&DeleteSecret{Name: "b", Tenant: "default"})
	if res := r.refuse(give(r.leases(later)[0]), gpuai.NotFound); !strings.Contains(res.Detail, "secret b ") {
		t.Errorf("refused with %q", res.Detail)
	}
	plain := r.submit(jobSpec("plain", 1, 1))
	r.refuse(give(r.leases(plain)[0]), gpuai.PreconditionFailed)
	r.report(l, gpuai.ReportDone, 0)
	r.m.Check()
}

// What a lease was given is forgotten with the lease.
func TestGivenSecretsAreForgotten(t *testing.T) {
	r := secretRegion(t)
	r.do(putSecret("a", "one"))
	s := wantingSpec("a")
	s.Groups[0].Restart.On = []gpuai.RestartCause{gpuai.CauseFailure}
	s.Groups[0].Restart.Backoff = gpuai.Second
	id := r.submit(s)
	first := r.leases(id)[0]
	r.do(give(first))
	r.do(putSecret("a", "two"))
	r.report(first, gpuai.ReportFailed, 1)
	r.wait(gpuai.Minute)
	second := r.leases(id)[0]
	if second.ID == first.ID || second.Secrets != nil {
		t.Fatalf("%+v", second)
	}
	r.do(give(second))
	if got := r.leases(id)[0].Secrets; fmt.Sprint(got) != "[{a 2}]" || r.m.secrets.giving.Len() != 1 {
		t.Fatalf("the next attempt was given %v", got)
	}
	r.report(second, gpuai.ReportDone, 0)
	r.do(&RetireJobs{Jobs: []gpuai.JobID{id}})
	if n := r.m.secrets.giving.Len(); n != 0 {
		t.Fatalf("%d are remembered", n)
	}
}

// Below the level nothing of it is taken, and nothing changes.
func TestSecretsNeedTheLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelTenants - 1})
	r.node("a", 4)
	r.refuse(putSecret("a", "one"), gpuai.InvalidSpec)
	r.refuse(&DeleteSecret{Name: "a", Tenant: "default"}, gpuai.InvalidSpec)
	r.refuse(&GiveSecrets{Node: "a"}, gpuai.InvalidSpec)
	r.refuse(&SubmitJob{ID: r.newID(), Spec: wantingSpec("a")}, gpuai.InvalidSpec)
}

// The audit has names and versions, and nothing that is sealed.
func TestSecretsInTheAudit(t *testing.T) {
	r := secretRegion(t)
	var said []string
	note := func(c Command) {
		out := r.applyAs(Envelope{Actor: "token/t", Tenant: "default"}, c)
		if bytes.Contains(out.Audit, []byte("canary")) || bytes.Contains(out.Audit, []byte("key of")) {
			t.Errorf("the audit holds what is sealed: %q", out.Audit)
		}
		e, err := ReadAudit(out.Audit)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range e.Records {
			said = append(said, fmt.Sprint(x.Command, " ", x.Subject, " ", x.Code))
		}
	}
	note(putSecret("a", "canary"))
	note(putSecret("a", "canary2"))
	id := r.submit(wantingSpec("a"))
	note(give(r.leases(id)[0]))
	note(&DeleteSecret{Name: "a", Tenant: "default"})
	note(&DeleteSecret{Name: "a\nb", Tenant: "default"})
	want := []string{"put_secret a@1 ok", "put_secret a@2 ok", "give_secrets a@2 ok", "delete_secret a ok", "delete_secret  not_found"}
	if fmt.Sprintf("%q", said) != fmt.Sprintf("%q", want) {
		t.Errorf("%q, not %q", said, want)
	}
}

// recordSecrets has tenants set secrets and jobs want them, before the level that
// knows them and from it on.
func recordSecrets(w *goldenWalk) {
	w.hides = true
	w.steps(20)
	w.apply(&SetFeatureLevel{Level: LevelTenants})
	w.flush()
	w.steps(80)
	w.line("snapshot level-4-secrets.snap")
	w.steps(60)
}

// secretCommand returns a random command about secrets.
func (w *walk) secretCommand() Command {
	name := []string{"a", "b", "c"}[w.r.IntN(3)]
	tenant := []gpuai.TenantID{"default", "default", "acme"}[w.r.IntN(3)]
	switch w.r.IntN(10) {
	case 8, 9:
		return w.keyCommand()
	case 0, 1, 2:
		c := putSecret(name, strings.Repeat("x", 1+w.r.IntN(300)))
		c.Tenant, c.KeyID = tenant, SecretKeyID{byte(w.r.IntN(3))}
		if w.r.IntN(3) == 0 {
			c.Reseal, c.Box = 1+w.r.Uint32N(5), []byte("another key")
			if old, ok := w.m.Secret(tenant, name); ok && w.r.IntN(4) > 0 {
				c.Reseal, c.Box = old.Version, old.Seal
			}
		}
		return c
	case 3:
		return &DeleteSecret{Name: name, Tenant: tenant}
	case 4, 5:
		id := w.newID()
		w.ids = append(w.ids, id)
		return &SubmitJob{ID: id, Spec: wantingSpec([]string{"a", "b", "c"}[:1+w.r.IntN(3)]...), HoldAnyway: true}
	}
	all, _ := w.m.Leases(0, 100, true)
	if len(all) == 0 {
		return &Tick{}
	}
	c := give(all[w.r.IntN(len(all))])
	if w.r.IntN(8) == 0 {
		c.Node = gpuai.NodeID(walkNodes[w.r.IntN(len(walkNodes))])
	}
	return c
}

// Commands that are cut off, or longer than they should be, change nothing.
func TestSecretCommandsOfHostileBytes(t *testing.T) {
	r := secretRegion(t)
	r.do(putSecret("a", "one"))
	l := r.leases(r.submit(wantingSpec("a")))[0]
	for _, c := range []Command{putSecret("b", "two"), &DeleteSecret{Name: "a", Tenant: "default"}, give(l)} {
		body := bodyOf(c)
		for n := range len(body) + 2 {
			cut := append(bytes.Clone(body), 0)[:n]
			if n == len(body) {
				continue // the whole
			}
			kind := typeGiveSecrets
			switch c.(type) {
			case *PutSecret:
				kind = typePutSecret
			case *DeleteSecret:
				kind = typeDeleteSecret
			}
			cmd, at := wire.BeginCommand(nil, kind, 1, "default", "", "")
			out := r.applyEntry(AppendEntry(nil, Header{Term: r.term, Time: r.time}, wire.EndCommand(append(cmd, cut...), at)))
			if res := out.Results[0]; res.Code != gpuai.InvalidSpec || out.Panics > 0 {
				t.Fatalf("%T of %d of %d bytes: %+v", c, n, len(body), res)
			}
		}
	}
	if s, ok := r.m.Secret("default", "a"); !ok || s.Version != 1 || r.leases(l.Job)[0].Secrets != nil {
		t.Errorf("%+v %v", s, ok)
	}
}
