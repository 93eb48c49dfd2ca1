package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// TouchTokens notes that access tokens were used, about now. Those that are
// not known, or over, are passed over.
//
// Rejected: InvalidSpec, also below LevelTenants and for more than MaxTouched.
type TouchTokens struct{ IDs []gpuai.AccessTokenID }

// Append appends the encoded command to dst.
func (c *TouchTokens) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeTouchTokens, env, func(b []byte) []byte {
		for i := range c.IDs {
			b = append(b, c.IDs[i][:]...)
		}
		return b
	})
}

func (m *Machine) applyTouchTokens(r *wire.Reader) Result {
	all := r.Rest()
	var id gpuai.AccessTokenID
	if m.Level() < LevelTenants || len(all)%len(id) != 0 || len(all) > MaxTouched*len(id) {
		return malformed
	}
	for ; len(all) > 0; all = all[len(id):] {
		copy(id[:], all)
		m.now.work -= workLook
		slot, ok := m.accessTokenSlot(id)
		if !ok {
			continue
		}
		if _, over := m.tokens.Get(slot).over(m.now.time); !over {
			m.tokens.Mut(slot).used = max(m.now.time, 1)
		}
	}
	return Result{}
}
