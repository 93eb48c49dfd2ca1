package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RetireAuthority has a replaced CA trusted no more: once its time is over, or
// with Now at once, which cuts off everybody whose certificate is still its.
//
// Rejected: NotFound, Conflict for the one that issues, PreconditionFailed
// before its time, InvalidSpec below LevelTenants.
type RetireAuthority struct {
	Hash gpuai.SubjectHash
	Now  bool
}

// Append appends the encoded command to dst.
func (c *RetireAuthority) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRetireAuthority, env, func(b []byte) []byte {
		return append(append(b, c.Hash[:]...), bool8(c.Now))
	})
}

func readRetireAuthority(r *wire.Reader) (c RetireAuthority, ok bool) {
	copy(c.Hash[:], r.Bytes(len(c.Hash)))
	now := r.U8()
	c.Now = now == 1
	return c, r.Done() == nil && now <= 1
}

func (m *Machine) applyRetireAuthority(r *wire.Reader) Result {
	c, ok := readRetireAuthority(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	}
	slot, known := m.authoritySlot(c.Hash)
	if !known {
		return rejected(gpuai.NotFound, "the region trusts no such authority")
	}
	switch at := m.authorities.Get(slot).until; {
	case at == 0:
		return rejected(gpuai.Conflict, "this authority issues the region's certificates: replace it first with 'gpuai operator ca rotate'")
	case at > m.now.time && !c.Now:
		return rejected(gpuai.PreconditionFailed, "certificates of this authority are still good: wait, or retire it at once with --now")
	}
	m.dropAuthority(slot)
	m.out.Trust = true
	return Result{}
}
