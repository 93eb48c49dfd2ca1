package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetFeatureLevel raises the level that the machine behaves by. The leader
// proposes it once every voter has said that it knows the level.
//
// Rejected: Conflict for a level that is not above the present one. A machine
// that does not know the level stops before it applies the entry (ErrLevel).
type SetFeatureLevel struct{ Level uint32 }

// Append appends the encoded command to dst.
func (c *SetFeatureLevel) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetFeatureLevel, env, func(b []byte) []byte { return le.AppendUint32(b, c.Level) })
}

func (m *Machine) applySetFeatureLevel(r *wire.Reader) Result {
	level := r.U32()
	switch {
	case r.Done() != nil:
		return malformed
	case level <= m.Level():
		return rejected(gpuai.Conflict, "the feature level only grows")
	}
	meta := m.meta.Mut()
	if meta.level < LevelPlacement && level >= LevelPlacement {
		meta.reserve.wanted = true
		meta.countedFrom = gpuai.MakeToken(meta.epoch, m.now.index, uint16(m.now.ordinal))
	}
	tenants := meta.level < LevelTenants && level >= LevelTenants
	if tenants {
		m.bringUpAll() // what was held until now counts in no day, month or sum
	}
	if meta.level = level; level >= LevelPlacement {
		m.countScratch()
	}
	if tenants {
		m.relistScratch()
	}
	m.linkAll()
	m.lookAtHungry()
	m.emit(gpuai.Event{Kind: gpuai.LevelSet})
	return Result{}
}
