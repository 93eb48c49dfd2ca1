package fsm

import (
	"reflect"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// newNames are what tenants of the walks are called otherwise: in another order, of
// other lengths.
var newNames = map[gpuai.TenantID]gpuai.TenantID{
	"a": "zz", "b": "m-9", "c": "a", "d": "a-long-name-of-a-tenant", "acme": "b", "beta": "0",
}

// rename gives tenants their other names, wherever a value names one.
func rename(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			rename(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				rename(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			rename(v.Index(i))
		}
	case reflect.String:
		if old, ok := v.Interface().(gpuai.TenantID); ok && newNames[old] != "" && v.CanSet() {
			v.Set(reflect.ValueOf(newNames[old]))
		}
	}
}

// renamed returns a copy of a list with other tenants' names.
func renamed[T any](list []T) []T {
	out := slices.Clone(list)
	rename(reflect.ValueOf(&out))
	return out
}

// Names of tenants decide nothing: a log with other names, of tenants with weights,
// quotas, cohorts, budgets, secrets and tokens, whose jobs displace each other, has
// the same results, the same events and the same queue, up to names.
func TestRenamingTenantsChangesOnlyNames(t *testing.T) {
	grants, of := 0, map[gpuai.TenantID]int{}
	for seed := range few(9, 2) {
		w := newQuotaWalk(t, 700+seed)
		w.check, w.opens, w.hides = false, true, true
		other := &region{t: t, m: New(w.m.opts), term: w.term}
		for _, entry := range w.log {
			other.applyEntry(entry)
		}
		for n := range 250 {
			cmds := w.later(func() Command {
				if w.r.IntN(25) == 0 {
					return &SetTenantWeight{Tenant: gpuai.TenantID(walkTenants[w.r.IntN(4)]), Weight: 1 + w.r.Uint32N(300)}
				}
				return w.command()
			})
			mine := w.apply(cmds...)
			w.see()
			for i, c := range cmds {
				if _, ok := c.(*Checkpoint); ok {
					cmds[i] = &Checkpoint{Index: other.index, Digest: other.m.Digest()}
				}
				rename(reflect.ValueOf(cmds[i]))
			}
			other.time, other.term, other.wall = w.time, w.term, w.wall
			theirs := other.applyAs(Envelope{Tenant: "default"}, cmds...)
			if !slices.Equal(mine.Results, theirs.Results) {
				t.Fatalf("seed %d, entry %d: results %+v, with other names %+v", seed, n, mine.Results, theirs.Results)
			}
			if want := renamed(mine.Events); !slices.Equal(want, theirs.Events) {
				t.Fatalf("seed %d, entry %d: events %+v, with other names %+v", seed, n, want, theirs.Events)
			}
			if a, b := renamed(w.m.QueueEntries(0, 50)), other.m.QueueEntries(0, 50); !slices.Equal(a, b) {
				t.Fatalf("seed %d, entry %d: the queue is %+v, with other names %+v", seed, n, a, b)
			}
			if w.m.NextDeadline() != other.m.NextDeadline() {
				t.Fatalf("seed %d, entry %d: the next deadline is %d, with other names %d", seed, n, w.m.NextDeadline(), other.m.NextDeadline())
			}
			for _, e := range mine.Events {
				if e.Kind == gpuai.LeaseGrantedEvent {
					grants++
					l, _ := w.m.Lease(e.Lease)
					of[l.Tenant]++
				}
			}
		}
		shares, _ := w.m.Tenants(0, 100)
		if theirs, _ := other.m.Tenants(0, 100); !slices.Equal(renamed(shares), theirs) {
			t.Fatalf("seed %d: shares are %+v, with other names %+v", seed, renamed(shares), theirs)
		}
		if err := other.m.Check(); err != nil {
			t.Fatal(err)
		}
	}
	if t.Logf("%d grants, by tenant %v", grants, of); grants < 50 || len(of) < 4 {
		t.Errorf("the walks granted little: %d leases, by tenant %v", grants, of)
	}
}
