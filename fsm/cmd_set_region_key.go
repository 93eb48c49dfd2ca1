package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetRegionKey says what a key of the servers' keyrings is for. The key itself
// is never in the log. It is compare-and-set:
//
//   - KeyOffered has the servers hold a new key. Other is the offered key that it
//     takes the place of, zero where none is offered.
//   - KeyActive makes the offered key the one under which everything is sealed.
//     The proposer has seen that every voter holds it. Other is the key that was
//     active, which becomes an old one.
//   - KeyRetired has the servers delete an old key, under which nothing is sealed.
//     Other is zero.
//
// Rejected: NotFound for a key that is not there; Conflict for a step that the
// key's state does not allow, and when Other is another one; PreconditionFailed
// while something is sealed under a key that would be retired; TooLarge when
// MaxRegionKeys are in use; InvalidSpec below LevelTenants. A repeated one changes
// nothing.
type SetRegionKey struct {
	Key   SecretKeyID
	State gpuai.RegionKeyState
	Other SecretKeyID
}

// Append appends the encoded command to dst. The key comes first, as a name: the
// audit has it.
func (c *SetRegionKey) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetRegionKey, env, func(b []byte) []byte {
		b = append(wire.AppendStr(b, c.Key.Text()), uint8(c.State))
		return append(b, c.Other[:]...)
	})
}

func readSetRegionKey(r *wire.Reader) (c SetRegionKey, ok bool) {
	c.Key, ok = ParseSecretKeyID(r.Str())
	c.State = gpuai.RegionKeyState(r.U8())
	copy(c.Other[:], r.Bytes(len(c.Other)))
	return c, ok && r.Done() == nil
}

func (m *Machine) applySetRegionKey(r *wire.Reader) Result {
	c, ok := readSetRegionKey(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case c.Key == SecretKeyID{} || c.Key == c.Other:
		return rejected(gpuai.InvalidSpec, "a region key has a name of its own, 8 hexadecimal digits that are not all zero")
	}
	m.now.work -= workLook * MaxRegionKeys
	var res Result
	switch c.State {
	case gpuai.KeyOffered:
		res = m.offerKey(&c)
	case gpuai.KeyActive:
		res = m.activateKey(&c)
	case gpuai.KeyRetired:
		res = m.retireKey(&c)
	default:
		res = rejected(gpuai.InvalidSpec, "a region key is offered, made active or retired")
	}
	if res.Code == gpuai.OK {
		m.out.Trust = true
	}
	return res
}

var staleKeys = rejected(gpuai.Conflict, "the region's keys have changed meanwhile: look again with 'gpuai operator key show'")

func (m *Machine) offerKey(c *SetRegionKey) Result {
	offered, some := m.regionKeyIn(gpuai.KeyOffered)
	if some && m.regionKeys.Get(offered).id == c.Key {
		return Result{}
	}
	if _, known := m.regionKeySlot(c.Key); known {
		return rejected(gpuai.Conflict, "this key was in use before: rotate to a new one")
	}
	if some && m.regionKeys.Get(offered).id != c.Other || !some && c.Other != (SecretKeyID{}) {
		return staleKeys
	}
	if some {
		m.dropRegionKey(offered)
	}
	room := uint32(1)
	if _, some := m.regionKeyIn(gpuai.KeyActive); !some {
		room++ // for the one that this will replace
	}
	if !m.makeRoomForKey(room) {
		return rejected(gpuai.TooLarge, "the region has as many keys as it can: retire old ones first")
	}
	m.addRegionKey(c.Key, gpuai.KeyOffered)
	return Result{}
}

func (m *Machine) activateKey(c *SetRegionKey) Result {
	slot, known := m.regionKeySlot(c.Key)
	if !known {
		return rejected(gpuai.NotFound, "this key is not offered")
	}
	switch m.regionKeys.Get(slot).state {
	case gpuai.KeyActive:
		return Result{}
	case gpuai.KeyOffered:
	default:
		return rejected(gpuai.Conflict, "this key was replaced by another")
	}
	active, some := m.regionKeyIn(gpuai.KeyActive)
	if c.Other == (SecretKeyID{}) || some && m.regionKeys.Get(active).id != c.Other {
		return staleKeys
	}
	if some {
		m.setKeyState(active, gpuai.KeyOld)
	} else {
		m.addRegionKey(c.Other, gpuai.KeyOld)
	}
	m.setKeyState(slot, gpuai.KeyActive)
	return Result{}
}

func (m *Machine) retireKey(c *SetRegionKey) Result {
	slot, known := m.regionKeySlot(c.Key)
	if !known {
		return rejected(gpuai.NotFound, "the region has no such key: 'gpuai operator key show' lists them")
	}
	switch m.regionKeys.Get(slot).state {
	case gpuai.KeyRetired:
		return Result{}
	case gpuai.KeyOld:
	default:
		return rejected(gpuai.Conflict, "this key is in use: replace it first with 'gpuai operator key rotate'")
	}
	if m.sealsAnything(c.Key) {
		return rejected(gpuai.PreconditionFailed, "something is still sealed under this key: servers seal it anew by themselves, 'gpuai operator key show' counts what is left")
	}
	m.setKeyState(slot, gpuai.KeyRetired)
	return Result{}
}
