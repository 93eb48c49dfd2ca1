package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A kindRec is what groups of one tenant that have not ended ask for alike: the
// needs, the priority and, of a gang, its size and placement. The tables of shapes,
// filters and buckets hold no more than there are kinds, so that a bound on the
// kinds of a tenant is one on what it takes of them. Kinds are derived.
type kindRec struct {
	key    bucketKey
	groups uint32
	weight uint32
}

// kinds are all kinds of a machine.
type kinds struct {
	recs   *mem.Table[kindRec]
	slots  *mem.Slots
	byKey  *mem.Hash
	weight *mem.Table[uint32] // of a tenant's kinds, by string number
}

func newKinds(s *mem.Space) *kinds {
	return &kinds{
		recs: mem.NewTable[kindRec](s, 6), slots: mem.NewSlots(s), byKey: mem.NewHash(s),
		weight: mem.NewTable[uint32](s, 10),
	}
}

func (k *kinds) fork(ns *mem.Space) *kinds {
	return &kinds{k.recs.Fork(ns), k.slots.Fork(ns), k.byKey.Fork(ns), k.weight.Fork(ns)}
}

// kindOf returns what a group asks for. It changes when the group's job starts
// together only: what else of keyOf changes is left out.
func (m *Machine) kindOf(group uint32) bucketKey {
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	k := bucketKey{priority: j.priority, shape: g.shape, tenant: j.tenant}
	switch {
	case g.together != 0:
		k.gang, k.sig = m.togetherKey(g.job.slot())
	case g.gang:
		k.gang, k.min, k.same = g.count, g.min, g.same
	}
	return k
}

// joinKind counts a group of a kind. It reports whether it is the first.
func (m *Machine) joinKind(group uint32) (first bool) {
	k, key := m.kinds, m.kindOf(group)
	h := key.hash()
	slot, ok := k.byKey.Find(h, func(s uint32) bool { return k.recs.Get(s).key == key })
	if !ok {
		w := m.sched.ShapeWeight(key.shape)
		slot, _ = k.slots.Alloc() // no more than groups, whose limit is below that of slots
		k.recs.Put(slot, kindRec{key: key, weight: w})
		k.byKey.Insert(h, slot)
		k.weight.Grow(key.tenant + 1)
		*k.weight.Mut(key.tenant) += w
	}
	k.recs.Mut(slot).groups++
	m.groups.Mut(group).kind = refTo(slot)
	return !ok
}

// leaveKind counts a group less.
func (m *Machine) leaveKind(group uint32) {
	k, slot := m.kinds, m.groups.Get(group).kind.slot()
	m.groups.Mut(group).kind = 0
	r := k.recs.Mut(slot)
	if r.groups--; r.groups > 0 {
		return
	}
	*k.weight.Mut(r.key.tenant) -= r.weight
	k.byKey.Delete(r.key.hash(), slot)
	*r = kindRec{}
	k.slots.Free(slot)
}

// joinKinds counts the groups of a new job. It is refused one of a new kind when
// its tenant has more than its allowance, and the region holds half of all
// that it can: the other half is for those who have not.
func (m *Machine) joinKinds(job uint32) Result {
	more := false
	for g := m.jobs.Get(job).group; g != 0; g = m.groups.Get(g.slot()).next {
		more = m.joinKind(g.slot()) || more
	}
	if !more || m.Level() < LevelPlacement {
		return Result{}
	}
	w := *m.kinds.weight.Get(m.jobs.Get(job).tenant)
	if w <= MaxTenantKinds || m.kinds.slots.Len() <= MaxBuckets/2 && !m.sched.Crowded() {
		return Result{}
	}
	return rejected(gpuai.RateLimited, fmt.Sprintf(
		"the jobs of this tenant that have not ended ask for %d different kinds of things, above its allowance of %d, and the region has no more to spare: "+
			"submit with resources, constraints, priority and gang size as others of its jobs have, or wait until some have ended", w, MaxTenantKinds))
}

// joinAllKinds counts the groups of a restored machine.
func (m *Machine) joinAllKinds() {
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		if !m.groups.Get(s).ended {
			m.joinKind(s)
		}
	}
}

// checkKinds compares the kinds with the groups that have not ended.
func (m *Machine) checkKinds() error {
	k := m.kinds
	groups := make(map[uint32]uint32)
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		g := m.groups.Get(s)
		if g.ended != (g.kind == 0) || !g.ended && k.recs.Get(g.kind.slot()).key != m.kindOf(s) {
			return fmt.Errorf("group %d is of kind %d, which asks for other things", s, g.kind)
		}
		if !g.ended {
			groups[g.kind.slot()]++
		}
	}
	weights := make([]uint32, k.weight.Len())
	for s, ok := k.slots.Next(0); ok; s, ok = k.slots.Next(s + 1) {
		r := k.recs.Get(s)
		if r.groups == 0 || r.groups != groups[s] {
			return fmt.Errorf("kind %d has %d groups, recorded %d", s, groups[s], r.groups)
		}
		weights[r.key.tenant] += r.weight
	}
	for tenant, w := range weights {
		if *k.weight.Get(uint32(tenant)) != w {
			return fmt.Errorf("tenant %q has kinds of weight %d, recorded %d", m.strs.Get(uint32(tenant)), w, *k.weight.Get(uint32(tenant)))
		}
	}
	return nil
}
