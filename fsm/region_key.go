package fsm

import (
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A regionKeyRec says what a key of the servers' keyrings is for. A region whose
// key was never rotated has none: its only key is the active one.
type regionKeyRec struct {
	id    SecretKeyID
	state gpuai.RegionKeyState
	since gpuai.Stamp // when it got its state
}

func (r *regionKeyRec) put(b []byte) []byte {
	b = append(append(b, r.id[:]...), uint8(r.state))
	return le.AppendUint64(b, uint64(r.since))
}

func (r *regionKeyRec) get(rd *wire.Reader) {
	copy(r.id[:], rd.Bytes(len(r.id)))
	r.state = gpuai.RegionKeyState(rd.U8())
	r.since = gpuai.Stamp(rd.U64())
}

// Text returns the ID as key files have it.
func (id SecretKeyID) Text() string { return hexText(id[:]) }

func hexText(b []byte) string {
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, hexDigits[c>>4], hexDigits[c&15])
	}
	return string(out)
}

const hexDigits = "0123456789abcdef"

// ParseSecretKeyID reads what Text wrote.
func ParseSecretKeyID(s string) (id SecretKeyID, ok bool) {
	if len(s) != 2*len(id) {
		return id, false
	}
	for i := range s {
		v := strings.IndexByte(hexDigits, s[i])
		if v < 0 {
			return SecretKeyID{}, false
		}
		id[i/2] = id[i/2]<<4 | byte(v)
	}
	return id, true
}

// A RegionKey is a key of the servers' keyrings as the machine knows it.
type RegionKey struct {
	ID    SecretKeyID
	State gpuai.RegionKeyState
}

// RegionKeys returns what the region's keys are for; none where none was ever
// rotated. At most one is offered, and one active.
func (m *Machine) RegionKeys() (out []RegionKey) {
	for s, ok := m.regionKeySlots.Next(0); ok; s, ok = m.regionKeySlots.Next(s + 1) {
		r := m.regionKeys.Get(s)
		out = append(out, RegionKey{r.id, r.state})
	}
	return out
}

// A SealCount is how much is sealed under a region key.
type SealCount struct {
	Key                  SecretKeyID
	Secrets, Authorities int
}

// SealCounts returns of every key under which something is sealed how much.
func (m *Machine) SealCounts() (out []SealCount) {
	add := func(id SecretKeyID, secrets, authorities int) {
		for i := range out {
			if out[i].Key == id {
				out[i].Secrets += secrets
				out[i].Authorities += authorities
				return
			}
		}
		out = append(out, SealCount{id, secrets, authorities})
	}
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		add(m.secrets.recs.Get(s).key, 1, 0)
	}
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		add(m.authorityKeyID(s), 0, 1)
	}
	return out
}

// authorityKeyID returns the region key under which an authority's key is sealed.
func (m *Machine) authorityKeyID(slot uint32) SecretKeyID {
	rd := wire.NewReader(m.blobs.Append(nil, uint32(m.authorities.Get(slot).body)))
	rd.Blob()
	rd.Blob()
	return sealedUnder(rd.Blob())
}

// sealedUnder returns which region key a seal names: it follows the version. See
// identity.Keyring.
func sealedUnder(seal []byte) (id SecretKeyID) {
	if len(seal) > len(id) {
		copy(id[:], seal[1:])
	}
	return id
}

// sealsAnything reports whether something is sealed under a key.
func (m *Machine) sealsAnything(id SecretKeyID) bool {
	m.now.work -= workLook * (int64(m.secrets.slots.Len()) + int64(m.authoritySlots.Len()))
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		if m.secrets.recs.Get(s).key == id {
			return true
		}
	}
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		if m.authorityKeyID(s) == id {
			return true
		}
	}
	return false
}

// regionKeyIn returns the slot of the key in a state; at most one is offered or
// active.
func (m *Machine) regionKeyIn(state gpuai.RegionKeyState) (uint32, bool) {
	for s, ok := m.regionKeySlots.Next(0); ok; s, ok = m.regionKeySlots.Next(s + 1) {
		if m.regionKeys.Get(s).state == state {
			return s, true
		}
	}
	return 0, false
}

func (m *Machine) regionKeySlot(id SecretKeyID) (uint32, bool) {
	for s, ok := m.regionKeySlots.Next(0); ok; s, ok = m.regionKeySlots.Next(s + 1) {
		if m.regionKeys.Get(s).id == id {
			return s, true
		}
	}
	return 0, false
}

// makeRoomForKey forgets the key that was retired first, where there is no room
// for another one.
func (m *Machine) makeRoomForKey(n uint32) bool {
	if m.regionKeySlots.Len()+n <= MaxRegionKeys {
		return true
	}
	first, found := uint32(0), false
	for s, ok := m.regionKeySlots.Next(0); ok; s, ok = m.regionKeySlots.Next(s + 1) {
		if r := m.regionKeys.Get(s); r.state == gpuai.KeyRetired && (!found || r.since < m.regionKeys.Get(first).since) {
			first, found = s, true
		}
	}
	if !found {
		return false
	}
	m.dropRegionKey(first)
	return m.makeRoomForKey(n)
}

func (m *Machine) dropRegionKey(slot uint32) {
	*m.regionKeys.Mut(slot) = regionKeyRec{}
	m.regionKeySlots.Free(slot)
}

func (m *Machine) setKeyState(slot uint32, state gpuai.RegionKeyState) {
	r := m.regionKeys.Mut(slot)
	r.state, r.since = state, m.stamp()
}

func (m *Machine) addRegionKey(id SecretKeyID, state gpuai.RegionKeyState) {
	slot, _ := m.regionKeySlots.Alloc()
	m.regionKeys.Put(slot, regionKeyRec{id, state, m.stamp()})
}

func (m *Machine) checkRegionKeys() error {
	var seen [8]int
	for s, ok := m.regionKeySlots.Next(0); ok; s, ok = m.regionKeySlots.Next(s + 1) {
		r := m.regionKeys.Get(s)
		if at, ok := m.regionKeySlot(r.id); !ok || at != s || !r.state.Valid() || r.id == (SecretKeyID{}) {
			return fmt.Errorf("region key %s in state %s is there twice, or in no state", r.id.Text(), r.state)
		}
		seen[r.state&7]++
	}
	if n := m.regionKeySlots.Len(); n > MaxRegionKeys || seen[gpuai.KeyOffered] > 1 || seen[gpuai.KeyActive] > 1 ||
		seen[gpuai.KeyOld]+seen[gpuai.KeyRetired] > 0 && seen[gpuai.KeyActive] != 1 {
		return fmt.Errorf("of %d region keys %d are offered, %d active", n, seen[gpuai.KeyOffered], seen[gpuai.KeyActive])
	}
	return nil
}
