package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Room that is kept counts against the budget of those it is kept for, by what the
// lease will hold: nobody is displaced for what cannot be paid.

// A purseKept is what holds have of a budget; derived.
type purseKept struct {
	money gpuai.Micros
	time  uint64
}

// payable reports whether the budget of a group's tenant suffices for one task in a
// place, and notes when not.
func (m *Machine) payable(group uint32, fit *scheduler.Fit) bool {
	_, _, ok := m.newBill(m.groups.Get(group).job.slot(), fit, m.priceAt(fit))
	if !ok {
		m.noteDear(fit)
	}
	return ok
}

// startsBeyond reports whether a group's job has no lease yet and its tenant runs as
// many jobs as it may: when room was kept for it they may have been fewer.
func (m *Machine) startsBeyond(quota, group uint32) bool {
	job := m.jobs.Get(m.groups.Get(group).job.slot())
	return job.status != gpuai.JobRunning && uint64(m.tally(quota).running) >= m.quotas.Get(quota).running
}

// keepBudget keeps what a hold's lease will hold.
func (m *Machine) keepBudget(h *holdRec) {
	job, fit := m.groups.Get(h.group.slot()).job.slot(), h.fit()
	purse, has := m.purseSlot(m.jobs.Get(job).tenant)
	if !has {
		return
	}
	if b, some, _ := m.newBill(job, &fit, m.priceAt(&fit)); some {
		h.money, h.time = b.hold, b.holdTime
		m.keepMore(purse, h)
	}
}

func (m *Machine) keepMore(purse uint32, h *holdRec) {
	p := m.purses.Mut(purse)
	p.kept.money += h.money
	p.kept.time += h.time
}

func (m *Machine) unkeepBudget(h *holdRec) {
	if h.money == 0 && h.time == 0 {
		return
	}
	purse, _ := m.purseSlot(m.tenantOfHold(h))
	p := m.purses.Mut(purse)
	p.kept.money -= h.money
	p.kept.time -= h.time
}

// rebuildKept counts what holds have of budgets: the machine was restored.
func (m *Machine) rebuildKept() error {
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		h := m.holds.Get(s)
		if h.money == 0 && h.time == 0 {
			continue
		}
		purse, has := m.purseSlot(m.tenantOfHold(h))
		if !has {
			return errSnapshot("room is kept at the cost of a budget that nobody has")
		}
		m.keepMore(purse, h)
	}
	return nil
}

// checkKept compares what holds have of budgets with what is recorded.
func (m *Machine) checkKept() error {
	want := make([]purseKept, m.purses.Len())
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		if h := m.holds.Get(s); h.money != 0 || h.time != 0 {
			purse, _ := m.purseSlot(m.tenantOfHold(h))
			want[purse].money += h.money
			want[purse].time += h.time
		}
	}
	for s := range want {
		if got := m.purses.Get(uint32(s)).kept; got != want[s] {
			return fmt.Errorf("purse %d keeps %+v for holds, recorded %+v", s, want[s], got)
		}
	}
	return nil
}
