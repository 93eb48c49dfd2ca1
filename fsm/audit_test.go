package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// links returns the audit of outputs, and checks the chain up to the state's end.
func links(t *testing.T, m *Machine, outs ...*Output) (entries []gpuai.AuditEntry) {
	t.Helper()
	var v AuditVerifier
	for _, out := range outs {
		if out.Audit == nil {
			continue
		}
		e, err := ReadAudit(out.Audit)
		if err != nil {
			t.Fatal(err)
		}
		if e.Index != out.Index || e.At != out.Time {
			t.Errorf("the link of index %d at %d says %d at %d", out.Index, out.Time, e.Index, e.At)
		}
		raw, err := json.Marshal(&e) // what is exported must do for the chain
		if err != nil {
			t.Fatal(err)
		}
		var again gpuai.AuditEntry
		if err := json.Unmarshal(raw, &again); err != nil {
			t.Fatal(err)
		}
		if err := v.Add(&again); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	h := m.AuditHead()
	if err := v.End(&h, 0); err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestAuditSaysWhoDidWhat(t *testing.T) {
	r := newRegion(t)
	if out := r.applyAs(Envelope{Actor: "token/A@10.0.0.7"}, &SetTenantWeight{Tenant: "t", Weight: 3}); out.Audit != nil || r.m.AuditHead() != (gpuai.AuditHead{}) {
		t.Fatal("there is an audit below its level")
	}
	r.refuse(&AuditNote{Notes: []gpuai.AuditNote{{Count: 1}}}, gpuai.PreconditionFailed)
	user := Envelope{Tenant: "default", Actor: "token/A@10.0.0.7", Key: "k"}
	job, gone := r.newID(), r.newID()
	outs := []*Output{
		r.applyAs(Envelope{Actor: "operator@local"}, &SetFeatureLevel{Level: LevelTenants}),
		r.applyAs(Envelope{Actor: "node/n1@10.0.0.9"}, &RegisterNode{Spec: nodeSpec("n1", 2, "H100"), BootID: "b", Nonce: "n"}),
		r.applyAs(Envelope{Actor: "node/n1@10.0.0.9"}, &RegisterNode{Spec: nodeSpec("n1", 2, "H100"), BootID: "b", Nonce: "n"}, &Tick{}),
		r.applyAs(user, &SubmitJob{ID: job, Spec: jobSpec("j", 1, 1)}),
		r.applyAs(user, &SubmitJob{ID: job, Spec: jobSpec("j", 1, 1)}, &ConfirmBeats{Term: 1}),
		r.applyAs(Envelope{Tenant: "default", Actor: "token/B@::1"}, &StopJob{Job: gone}, &StopJob{Job: job},
			&SetNodeEligibility{Node: "n1", Drained: true}, &SetTenantWeight{Tenant: "hunter2 is no name", Weight: 1},
			&AuditNote{Notes: []gpuai.AuditNote{{Actor: "token/C@10.1.1.1", Request: "GET /v1/jobs/{job}", Code: gpuai.Forbidden, Count: 7}}}),
	}
	var got []string
	for _, e := range links(t, r.m, outs...) {
		for _, x := range e.Records {
			got = append(got, strings.TrimRight(fmt.Sprintf("%d %s %s %s %s%s %d %v %s", e.First, x.Actor, x.Command, x.Code, x.Subject, x.Request, x.Count, x.Repeated, x.Tenant), " "))
			if want := x.Command == "submit_job" || x.Command == "stop_job"; want == x.Job.IsZero() {
				t.Errorf("%+v: its job", x)
			}
		}
	}
	want := []string{
		"1 operator@local set_feature_level ok region 0 false",
		"2 node/n1@10.0.0.9 register_node ok n1 0 false",
		"3 token/A@10.0.0.7 submit_job ok  0 false default",
		"4 token/A@10.0.0.7 submit_job ok  0 true default",
		"5 token/C@10.1.1.1 audit_note forbidden GET /v1/jobs/{job} 7 false",
		"5 token/B@::1 stop_job not_found  0 false default",
		"5 token/B@::1 stop_job ok  0 false default",
		"5 token/B@::1 set_node_eligibility ok n1 0 false default",
		"5 token/B@::1 set_tenant_weight invalid_spec  0 false default",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the audit says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if h := r.m.AuditHead(); h.Records != 9 || restored(t, r.m).AuditHead() != h || r.m.Fork().AuditHead() != h {
		t.Errorf("%+v, restored %+v", h, restored(t, r.m).AuditHead())
	}
}

// No text that a user writes into a job, a key or a policy is in the audit.
func TestCase37AuditHasNoSecrets(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	// What the audit takes of bodies: names of what there is, and of a role mapping
	// the claim and its value.
	subjects := map[string]bool{
		"Tenant": true, "Node": true, "Server": true, "For": true, "Contributor": true, "Identity.Name": true, "Spec.ID": true, "Address": true,
		"Mapping.Claim": true, "Mapping.Value": true, "Mapping.Tenant": true, "Mapping.Contributor": true, "Name": true,
	}
	cmds, fs := filledCommands()
	for i, c := range cmds {
		if _, note := c.(*AuditNote); note {
			continue // what servers themselves write
		}
		if s, ok := c.(*SubmitJob); ok {
			s.Spec.Name, s.Spec.Tenant = "hunter2", "default"
		}
		out := r.applyAs(Envelope{Tenant: "default", Actor: "token/A@10.0.0.7", Key: "hunter2-key"}, c)
		e, err := ReadAudit(out.Audit)
		if out.Audit != nil && err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(&e)
		_, person := c.(*CreateTenant) // whose Name is for people
		for _, p := range fs[i].found(raw) {
			if !subjects[p] || p == "Name" && person {
				t.Errorf("the audit of %T holds the text of %s: %s", c, p, raw)
			}
		}
		if bytes.Contains(raw, []byte("hunter2-key")) || bytes.Contains(raw, []byte(`"hunter2"`)) {
			t.Errorf("the audit of %T holds what a user wrote: %s", c, raw)
		}
	}
	long := r.applyAs(Envelope{Tenant: "default", Actor: strings.Repeat("ü\xff", 500)}, &SetNodeEligibility{Node: "x"})
	if e, err := ReadAudit(long.Audit); err != nil || len(e.Records[0].Actor) > 2*gpuai.MaxAuditText {
		t.Errorf("%v, an actor of %d bytes", err, len(e.Records[0].Actor))
	}
}

// chainOf returns a chain of n entries, and its end.
func chainOf(t *testing.T, n int) ([]gpuai.AuditEntry, gpuai.AuditHead) {
	first, r := chainStart(t)
	outs := []*Output{}
	for i := range n {
		outs = append(outs, r.apply(&SetTenantWeight{Tenant: gpuai.TenantID(fmt.Sprint("t", i)), Weight: 5}, &Tick{}))
	}
	entries := []gpuai.AuditEntry{first}
	for _, out := range outs {
		e, err := ReadAudit(out.Audit)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries, r.m.AuditHead()
}

// chainStart is the entry with which every chain begins.
func chainStart(t *testing.T) (gpuai.AuditEntry, *region) {
	r := newRegion(t)
	out := r.apply(&SetFeatureLevel{Level: MaxLevel})
	e, err := ReadAudit(out.Audit)
	if err != nil {
		t.Fatal(err)
	}
	return e, r
}

// Whatever is changed, left out, put in or moved is found, with where.
func TestAuditVerifyFindsEveryChange(t *testing.T) {
	good, head := chainOf(t, 6)
	clone := func() []gpuai.AuditEntry {
		c := slices.Clone(good)
		for i := range c {
			c[i].Records = slices.Clone(c[i].Records)
		}
		return c
	}
	verify := func(entries []gpuai.AuditEntry) error {
		var v AuditVerifier
		for i := range entries {
			if err := v.Add(&entries[i]); err != nil {
				return err
			}
		}
		return v.End(&head, 0)
	}
	if err := verify(clone()); err != nil {
		t.Fatal(err)
	}
	if err := verify(clone()[3:]); err != nil {
		t.Errorf("the oldest made way: %v", err)
	}
	for name, c := range map[string]struct {
		change func(e []gpuai.AuditEntry) []gpuai.AuditEntry
		says   string
	}{
		"another actor":     {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[2].Records[0].Actor = "x"; return e }, "record 3 (index 3) was changed after being recorded"},
		"another result":    {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[2].Records[0].Code = gpuai.Forbidden; return e }, "index 3"},
		"another subject":   {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[6].Records[0].Subject = "t9"; return e }, "index 7"},
		"another change":    {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[2].Records[0].Change = "weight 1 -> 5"; return e }, "index 3"},
		"another time":      {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[1].At++; return e }, "index 2"},
		"another wall time": {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[1].Wall++; return e }, "index 2"},
		"a record more": {func(e []gpuai.AuditEntry) []gpuai.AuditEntry {
			e[2].Records = append(e[2].Records, e[2].Records[0])
			return e
		}, "index 3"},
		"an entry left out":  {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { return slices.Delete(e, 3, 4) }, "records 4 to 4 are missing, between index 3 and index 5"},
		"the end left out":   {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { return e[:5] }, "records 6 to 7 were cut off its end"},
		"an entry put in":    {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { return slices.Insert(e, 3, e[2]) }, "record 3 (index 3) was repeated"},
		"two changed places": {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[2], e[3] = e[3], e[2]; return e }, "missing"},
		"a false beginning":  {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[1].First = 1; return e[1:] }, "the first of all"},
		"an unknown command": {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[2].Records[0].Command = "launder"; return e }, "does not know"},
		"the end rewritten":  {func(e []gpuai.AuditEntry) []gpuai.AuditEntry { e[6].Records[0].Code = 1; return e }, "did not happen"},
	} {
		if err := verify(c.change(clone())); !errors.Is(err, ErrAuditBroken) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestAuditNoteBounds(t *testing.T) {
	_, r := chainStart(t)
	good := gpuai.AuditNote{Actor: "a@b", Request: "exec", Count: 1}
	with := func(f func(n *gpuai.AuditNote)) *AuditNote {
		n := good
		f(&n)
		return &AuditNote{Notes: []gpuai.AuditNote{n}}
	}
	r.do(&AuditNote{Notes: slices.Repeat([]gpuai.AuditNote{good}, gpuai.MaxAuditNotes)})
	r.do(with(func(n *gpuai.AuditNote) { n.Actor = strings.Repeat("a", gpuai.MaxAuditText) }))
	before := r.m.AuditHead()
	for _, c := range []*AuditNote{
		{}, {Notes: slices.Repeat([]gpuai.AuditNote{good}, gpuai.MaxAuditNotes+1)},
		with(func(n *gpuai.AuditNote) { n.Count = 0 }),
		with(func(n *gpuai.AuditNote) { n.Actor = strings.Repeat("a", gpuai.MaxAuditText+1) }),
		with(func(n *gpuai.AuditNote) { n.Request = "\xff" }),
		with(func(n *gpuai.AuditNote) { n.Subject = "\xc3\x28" }),
	} {
		r.refuse(c, gpuai.InvalidSpec)
	}
	if r.m.AuditHead() != before {
		t.Error("a refused note is in the audit")
	}
}

// FuzzAudit reads links from anywhere, as those of another server's archive are.
func FuzzAudit(f *testing.F) {
	r := newRegion(f)
	f.Add(r.apply(&SetFeatureLevel{Level: MaxLevel}).Audit)
	f.Add(r.applyAs(Envelope{Tenant: "t", Actor: "a"}, &StopJob{Job: gpuai.JobID{1}}, &SetNodeEligibility{Node: "n"}).Audit)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ReadAudit(b)
		if err != nil {
			return
		}
		_, _ = HashAudit(&e)
		var v AuditVerifier
		_ = v.Add(&e)
	})
}

// An entry of a thousand submits with its audit.
func BenchmarkAudit(b *testing.B) {
	for _, level := range []uint32{LevelPlacement, LevelTenants} {
		b.Run(fmt.Sprint("level=", level), func(b *testing.B) {
			base := newRegion(b)
			base.check = false
			base.do(&SetFeatureLevel{Level: level})
			var cmds [][]byte
			env := Envelope{Tenant: "default", Actor: "token/01J9Z3V5WQ00@10.20.30.40"}
			for i := range MaxCommands {
				c := SubmitJob{ID: base.newID(), Spec: jobSpec(fmt.Sprint("j", i), 1, 1), HoldAnyway: true}
				cmds = append(cmds, c.Append(nil, env))
			}
			entry := AppendEntry(nil, Header{Time: 1, Wall: 1, Term: 1}, cmds...)
			if len(entry) > MaxEntryBytes {
				b.Fatal("the entry is too large")
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			best := time.Hour // the least is what nothing disturbed
			var out Output
			for b.Loop() {
				m := base.m.Fork()
				runtime.GC()
				before := threadTime()
				if err := m.Apply(base.index+1, 1, entry, &out); err != nil {
					b.Fatal(err)
				}
				best = min(best, threadTime()-before)
			}
			b.ReportMetric(float64(best.Nanoseconds())/1e3, "us/entry-least")
			b.ReportMetric(float64(len(out.Audit)), "audit-B")
		})
	}
}

// What the audit adds to an entry of a thousand submits.
func BenchmarkAuditTrail(b *testing.B) {
	m := New(Options{Region: "test"})
	m.meta.Mut().level = LevelTenants
	m.sp.Commit()
	m.out = &Output{}
	actor, tenant := []byte("token/01J9Z3V5WQ00@10.20.30.40"), []byte("default")
	c, res := wire.Command{Type: typeSubmitJob, Actor: actor, Tenant: tenant}, Result{}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	best := time.Hour // the least is what nothing disturbed
	for b.Loop() {
		before := threadTime()
		for i := range MaxCommands {
			res.Job[15], res.Job[14] = byte(i), byte(i>>8)
			m.record(&c, &res, m.auditBefore(&c))
		}
		m.sealTrail()
		m.sp.Commit()
		best = min(best, threadTime()-before)
	}
	b.ReportMetric(float64(best.Nanoseconds())/1e3, "us/entry-least")
}
