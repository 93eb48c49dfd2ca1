package fsm

import (
	"github.com/gpuai/gpuai/internal/mem"
)

// A cohortRec is what the members of a cohort have of what their quotas bound, in
// all: so one lookup judges what any of them may borrow, however many they are. All
// of it is derived.
type cohortRec struct {
	first      ref // member
	members    uint32
	have, most [numBounds]uint64
	kept       [numBounds]uint64 // what is owed to members: nobody borrows it
}

// A lentModel is what the members of a cohort that bound a model have of it.
type lentModel struct {
	cohort     uint32
	name       uint32 // string number
	members    uint32
	have, most uint64
	kept       uint64 // what is owed to members
}

// cohorts are all cohorts.
type cohorts struct {
	recs   *mem.Table[cohortRec]
	byName *mem.Table[ref] // by string number

	models     *mem.Table[lentModel]
	modelSlots *mem.Slots
	byModel    *mem.Hash
}

func newCohorts(s *mem.Space) *cohorts {
	return &cohorts{
		recs: mem.NewTable[cohortRec](s, 4), byName: mem.NewTable[ref](s, 10),
		models: mem.NewTable[lentModel](s, 5), modelSlots: mem.NewSlots(s), byModel: mem.NewHash(s),
	}
}

func (c *cohorts) fork(ns *mem.Space) *cohorts {
	return &cohorts{
		recs: c.recs.Fork(ns), byName: c.byName.Fork(ns),
		models: c.models.Fork(ns), modelSlots: c.modelSlots.Fork(ns), byModel: c.byModel.Fork(ns),
	}
}

// slot returns a cohort by its string number; it makes one.
func (c *cohorts) slot(name uint32) uint32 {
	c.byName.Grow(name + 1)
	if at := *c.byName.Get(name); at != 0 {
		return at.slot()
	}
	slot := c.recs.Append(cohortRec{})
	*c.byName.Mut(name) = refTo(slot)
	return slot
}

// members returns how many members a cohort has by its string number.
func (c *cohorts) members(name uint32) uint32 {
	if name >= c.byName.Len() || *c.byName.Get(name) == 0 {
		return 0
	}
	return c.recs.Get(c.byName.Get(name).slot()).members
}

func hashLentModel(cohort, name uint32) uint64 { return mem.Mix(uint64(cohort)<<32|uint64(name), 19) }

func (c *cohorts) model(cohort, name uint32) (slot uint32, ok bool) {
	return c.byModel.Find(hashLentModel(cohort, name), func(s uint32) bool {
		r := c.models.Get(s)
		return r.cohort == cohort && r.name == name
	})
}

// joinModel counts a member that bounds a model, or no longer: then by is -1.
func (c *cohorts) joinModel(cohort uint32, x *modelBound, have, kept uint64, by int32) {
	slot, ok := c.model(cohort, x.name)
	if !ok {
		slot, _ = c.modelSlots.Alloc() // no more than members by MaxQuotaModels
		c.models.Put(slot, lentModel{cohort: cohort, name: x.name})
		c.byModel.Insert(hashLentModel(cohort, x.name), slot)
	}
	r := c.models.Mut(slot)
	r.members = uint32(int32(r.members) + by)
	r.have += uint64(int64(by)) * have
	r.most += uint64(int64(by)) * x.most
	r.kept += uint64(int64(by)) * kept
	if r.members == 0 {
		c.byModel.Delete(hashLentModel(cohort, x.name), slot)
		*r = lentModel{}
		c.modelSlots.Free(slot)
	}
}

// sumCohort counts a member of its cohort with what it has and may have, or no
// longer: then by is -1.
func (m *Machine) sumCohort(slot uint32, by int32) {
	q, u, t := m.quotas.Get(slot), m.quotaUses.Get(slot), m.tally(slot)
	at := u.cohort.slot()
	c := m.cohorts.recs.Mut(at)
	c.members = uint32(int32(c.members) + by)
	for i := range q.bounds {
		if q.bounds[i] != noBound {
			c.have[i] += uint64(int64(by)) * t.of[i]
			c.most[i] += uint64(int64(by)) * q.bounds[i]
		}
		c.kept[i] += uint64(int64(by)) * u.kept[i]
	}
	for i := range q.models {
		if x := &q.models[i]; x.name != 0 {
			m.cohorts.joinModel(at, x, u.models[i], u.keptModels[i], by)
		}
	}
}

// joinCohort puts a quota among the members of its cohort, in the order of slots.
func (m *Machine) joinCohort(slot uint32) {
	name := m.quotas.Get(slot).cohort
	if name == 0 {
		return
	}
	c := m.cohorts.slot(name)
	m.quotaUses.Mut(slot).cohort = refTo(c)
	m.sumCohort(slot, 1)
	at := &m.cohorts.recs.Mut(c).first
	for *at != 0 && at.slot() < slot {
		at = &m.quotaUses.Mut(at.slot()).peer
	}
	next := *at
	*at = refTo(slot)
	m.quotaUses.Mut(slot).peer = next
}

func (m *Machine) leaveCohort(slot uint32) {
	c := m.quotaUses.Get(slot).cohort
	if c == 0 {
		return
	}
	m.sumCohort(slot, -1)
	at := &m.cohorts.recs.Mut(c.slot()).first
	for *at != refTo(slot) {
		at = &m.quotaUses.Mut(at.slot()).peer
	}
	u := m.quotaUses.Mut(slot)
	*at, u.peer, u.cohort = u.peer, 0, 0
}

// eachPeer calls f with each member of a quota's cohort, or with the quota alone.
func (m *Machine) eachPeer(slot uint32, f func(slot uint32)) {
	c := m.quotaUses.Get(slot).cohort
	if c == 0 {
		f(slot)
		return
	}
	for x := m.cohorts.recs.Get(c.slot()).first; x != 0; x = m.quotaUses.Get(x.slot()).peer {
		m.now.work -= workLook
		f(x.slot())
	}
}
