package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetPolicy replaces the region's policy whole. Leases that were granted keep
// the terms they were granted with.
//
// Rejected: InvalidSpec (see gpuai.Policy.Validate).
type SetPolicy struct{ Policy gpuai.Policy }

// Append appends the encoded command to dst.
func (c *SetPolicy) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetPolicy, env, func(b []byte) []byte {
		return wire.AppendSettings(wire.AppendPolicy(b, &c.Policy), &c.Policy)
	})
}

func (m *Machine) applySetPolicy(r *wire.Reader) Result {
	p, err := wire.ReadPolicyFrom(r)
	if err != nil {
		return malformed
	}
	extended, err := wire.ReadSettings(r, &p)
	if err != nil || r.Done() != nil || extended && m.Level() < LevelPlacement || p.AskMin|p.AskMax != 0 && m.Level() < LevelTenants {
		return malformed
	}
	if len(p.Validate()) > 0 {
		return rejected(gpuai.InvalidSpec, "the policy has settings out of range")
	}
	old := *m.policy.Get()
	if p.Packing == gpuai.PackingFGD && !m.opts.Simulated {
		return rejected(gpuai.InvalidSpec, "the packing policy fgd is a reference for simulations: use efw or bestfit")
	}
	if p.HalfLife() != old.HalfLife() {
		m.bringUpAll()
		m.turns.touchAll()
	}
	m.policy.Mut().Policy = p
	m.sched.SetPacking(p.Packing)
	if p.PreemptionGap != old.PreemptionGap || p.PreemptionProtect != old.PreemptionProtect {
		m.lookAtHungry()
	}
	m.emit(gpuai.Event{Kind: gpuai.PolicySet})
	return Result{}
}

func (p *policyRec) put(b []byte) []byte {
	return wire.AppendSettings(wire.AppendPolicy(b, &p.Policy), &p.Policy)
}
