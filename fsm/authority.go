package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// Sizes of what an authority consists of. The machine knows them as bytes only.
const (
	MaxCertificate = 4_096 // of one certificate, DER
	MaxSealedKey   = 1_024 // of a private key, sealed under the keyring
)

// MaxRetire* bound for how long a replaced authority stays trusted.
const (
	MinAuthorityRetire = gpuai.Second
	MaxAuthorityRetire = 30 * 24 * gpuai.Hour
)

// An authorityRec is a CA of the region. One is active, which issues; those that
// it replaced are trusted until their certificates have ended.
type authorityRec struct {
	hash   gpuai.SubjectHash
	sum    uint64        // of its body
	until  gpuai.Instant // 0: active
	since  gpuai.Stamp   // when it became active
	domain uint32        // string number of the cluster in its certificates' names
	body   ref           // blob: certificate, cross certificate, sealed key; its sum stands for it
}

func (r *authorityRec) put(b []byte) []byte {
	b = append(b, r.hash[:]...)
	b = le.AppendUint64(b, r.sum)
	b = put64(b, int64(r.until))
	b = le.AppendUint64(b, uint64(r.since))
	return le.AppendUint32(b, r.domain)
}

func (r *authorityRec) get(rd *wire.Reader) {
	copy(r.hash[:], rd.Bytes(len(r.hash)))
	r.sum = rd.U64()
	r.until = gpuai.Instant(rd.I64())
	r.since = gpuai.Stamp(rd.U64())
	r.domain = rd.U32()
}

// An Authority is a CA of the region as the machine keeps it.
type Authority struct {
	Hash   gpuai.SubjectHash
	Domain gpuai.ClusterID // in the names of its certificates
	// Certificate is its own, Cross the same key's by the authority that it
	// replaced; empty for the first. Both are DER.
	Certificate, Cross []byte
	// Key is its private key, sealed under the region's keyring.
	Key []byte
	// RetireAt is the region time at which it is trusted no more; 0 for the
	// active one.
	RetireAt gpuai.Instant
	// Since is when it became active.
	Since gpuai.Stamp
}

// Authorities returns the CAs that are trusted, the active one first; none in a
// region without authentication.
func (m *Machine) Authorities() (out []Authority) {
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		r := m.authorities.Get(s)
		rd := wire.NewReader(m.blobs.Append(nil, uint32(r.body)))
		a := Authority{Hash: r.hash, Domain: gpuai.ClusterID(m.strs.Get(r.domain)), RetireAt: r.until, Since: r.since}
		a.Certificate, a.Cross, a.Key = rd.Blob(), rd.Blob(), rd.Blob()
		if out = append(out, a); r.until == 0 {
			out[0], out[len(out)-1] = out[len(out)-1], out[0]
		}
	}
	return out
}

// HasAuthority reports whether the region has one: whether who comes must prove
// who it is.
func (m *Machine) HasAuthority() bool { return m.authoritySlots.Len() > 0 }

// activeAuthority returns the slot of the authority that issues.
func (m *Machine) activeAuthority() (uint32, bool) {
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		if m.authorities.Get(s).until == 0 {
			return s, true
		}
	}
	return 0, false
}

func (m *Machine) authoritySlot(hash gpuai.SubjectHash) (uint32, bool) {
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		if m.authorities.Get(s).hash == hash {
			return s, true
		}
	}
	return 0, false
}

func (m *Machine) dropAuthority(slot uint32) {
	m.blobs.Free(uint32(m.authorities.Get(slot).body))
	*m.authorities.Mut(slot) = authorityRec{}
	m.authoritySlots.Free(slot)
}

// setAuthorityBody stores what an authority consists of, in place of what it
// consisted of before.
func (m *Machine) setAuthorityBody(slot uint32, cert, cross, key []byte) {
	body := wire.AppendBytes(wire.AppendBytes(wire.AppendBytes(nil, cert), cross), key)
	r := m.authorities.Mut(slot)
	if r.body != 0 {
		m.blobs.Free(uint32(r.body))
	}
	r.sum, r.body = hashOf(body), ref(m.blobs.Put(body))
}

// stamp returns the stamp of the entry that is being applied.
func (m *Machine) stamp() gpuai.Stamp { return gpuai.StampOf(m.Epoch(), m.now.index) }

// Stamp returns the stamp of the newest entry that was applied: of a certificate
// that is issued now.
func (m *Machine) Stamp() gpuai.Stamp { return gpuai.StampOf(m.Epoch(), m.Index()) }

func (m *Machine) writeAuthorities(f *frameWriter) {
	if m.authoritySlots.Len() > 0 {
		f.begin(secAuthorities)
		for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
			r := m.authorities.Get(s)
			f.buf = le.AppendUint32(f.buf, s)
			f.buf = r.put(f.buf)
			f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.body)))
			f.added()
		}
		f.end()
	}
	if m.joinTokenSlots.Len() > 0 {
		writeTable(f, secJoinTokens, m.joinTokens, m.joinTokenSlots)
	}
	if m.identitySlots.Len() > 0 {
		writeTable(f, secIdentities, m.identities, m.identitySlots)
	}
	if m.regionKeySlots.Len() > 0 {
		writeTable(f, secRegionKeys, m.regionKeys, m.regionKeySlots)
	}
}

func (m *Machine) restoreAuthority(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= MaxAuthorities || m.authoritySlots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.authoritySlots.Take(slot)
	m.authorities.Grow(slot + 1)
	r := m.authorities.Mut(slot)
	r.get(rd)
	body := rd.Blob()
	if r.body = ref(m.blobs.Put(body)); hashOf(body) != r.sum {
		rd.Fail("an authority is another one than its hash says")
	}
}

// rebuildAuthorities makes the indexes of tokens and identities anew.
func (m *Machine) rebuildAuthorities() {
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		m.indexJoinToken(s)
	}
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		m.identityByName.Insert(hashIdentity(m.identities.Get(s).identity()), s)
		m.forgetIdentity(s)
	}
}

// checkAuthorities verifies that one authority issues where there are some, and
// that tokens and identities are found and have names.
func (m *Machine) checkAuthorities() error {
	active := 0
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		r := m.authorities.Get(s)
		if r.until == 0 {
			active++
		}
		if at, ok := m.authoritySlot(r.hash); !ok || at != s || r.domain == 0 || r.domain >= m.strs.Len() {
			return fmt.Errorf("authority %d is there twice, or has no domain", s)
		}
		if body := m.blobs.Append(nil, uint32(r.body)); hashOf(body) != r.sum {
			return fmt.Errorf("authority %d is not what it was", s)
		}
	}
	if n := m.authoritySlots.Len(); n > MaxAuthorities || n > 0 && active != 1 {
		return fmt.Errorf("%d of %d authorities are active", active, n)
	}
	used := uint32(0)
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		r := m.joinTokens.Get(s)
		if at, ok := m.joinTokenSlot(&r.hash); !ok || at != s || !r.kind.Valid() || r.contributor >= m.strs.Len() {
			return fmt.Errorf("join token %d is not found, or of no kind", s)
		}
		if r.used != (gpuai.SubjectHash{}) {
			used++
		}
	}
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		r := m.identities.Get(s)
		if at, ok := m.identitySlot(r.identity()); !ok || at != s || !r.identity().Valid() || r.contributor >= m.strs.Len() {
			return fmt.Errorf("identity %d is not found, or has no name", s)
		}
	}
	if n := *m.usedJoins.n.Get(); n != used || m.unusedJoinTokens() > MaxJoinTokens || used > MaxUsedJoinTokens || m.identitySlots.Len() > MaxIdentities {
		return fmt.Errorf("%d join tokens, %d of them used, recorded %d, and %d identities", m.joinTokenSlots.Len(), used, n, m.identitySlots.Len())
	}
	return m.checkHeap(m.usedJoins)
}

// forgetJoins is what a restore does: tokens may have been used since the backup
// was made, and every server of the region joins it anew.
func (m *Machine) forgetJoins() {
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		m.dropJoinToken(s)
	}
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		if m.identities.Get(s).kind == gpuai.IdentityServer {
			m.dropIdentity(s)
		}
	}
}

func hashJoinToken(hash *[32]byte) uint64 { return le.Uint64(hash[:]) }

func hashIdentity(id gpuai.Identity) uint64 { return mem.HashString(uint64(id.Kind), id.Name) }
