package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// PutAuthority makes a CA the one that issues the region's certificates. The
// one that it replaces is trusted for Retire longer, until the certificates that
// it has issued have ended. An authority that is known already only gets its key
// sealed anew; one that was replaced is known by Replaces being Hash.
//
// It is compare-and-set: Replaces is the authority that issues now, zero where
// there is none, from when on the region asks everybody who they are.
//
// Rejected: Conflict when another authority issues, InvalidSpec for sizes and
// times out of bounds and below LevelTenants, TooLarge when MaxAuthorities are
// trusted. A repeated one changes nothing.
type PutAuthority struct {
	Hash, Replaces gpuai.SubjectHash
	Domain         gpuai.ClusterID // in the names of its certificates; that of the first stays
	Certificate    []byte          // DER
	Cross          []byte          // DER, of the same key by the replaced one; empty for the first
	Key            []byte          // sealed under the keyring
	Retire         gpuai.Duration
}

// Append appends the encoded command to dst.
func (c *PutAuthority) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typePutAuthority, env, func(b []byte) []byte {
		b = append(append(b, c.Hash[:]...), c.Replaces[:]...)
		b = wire.AppendStr(b, string(c.Domain))
		b = wire.AppendBytes(wire.AppendBytes(wire.AppendBytes(b, c.Certificate), c.Cross), c.Key)
		return put64(b, int64(c.Retire))
	})
}

func readPutAuthority(r *wire.Reader) (c PutAuthority, ok bool) {
	copy(c.Hash[:], r.Bytes(len(c.Hash)))
	copy(c.Replaces[:], r.Bytes(len(c.Replaces)))
	c.Domain = gpuai.ClusterID(r.Str())
	c.Certificate, c.Cross, c.Key = r.Blob(), r.Blob(), r.Blob()
	c.Retire = gpuai.Duration(r.I64())
	return c, r.Done() == nil
}

// valid reports whether the parts of c are within their bounds.
func (c *PutAuthority) valid() bool {
	return c.Hash != gpuai.SubjectHash{} && gpuai.ValidName(string(c.Domain)) &&
		len(c.Certificate) > 0 && len(c.Certificate) <= MaxCertificate && len(c.Cross) <= MaxCertificate &&
		len(c.Key) > 0 && len(c.Key) <= MaxSealedKey &&
		c.Retire >= MinAuthorityRetire && c.Retire <= MaxAuthorityRetire
}

func (m *Machine) applyPutAuthority(r *wire.Reader) Result {
	c, ok := readPutAuthority(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case !c.valid():
		return rejected(gpuai.InvalidSpec, "an authority needs a hash, a domain, a certificate and a sealed key within their bounds, and is retired within a second to 30 days")
	}
	m.now.work -= workLook * MaxAuthorities
	active, some := m.activeAuthority()
	if slot, known := m.authoritySlot(c.Hash); known {
		if slot != active && c.Replaces != c.Hash {
			return rejected(gpuai.Conflict, "this authority was replaced by another: make a new one")
		}
		m.setAuthorityBody(slot, c.Certificate, c.Cross, c.Key)
		m.out.Trust = true
		return Result{}
	}
	if !some && c.Replaces != (gpuai.SubjectHash{}) || some && m.authorities.Get(active).hash != c.Replaces {
		return rejected(gpuai.Conflict, "another authority issues the region's certificates now: look again with 'gpuai operator ca show'")
	}
	m.retireDue()
	if m.authoritySlots.Len() >= MaxAuthorities || !m.blobs.Room(len(c.Certificate)+len(c.Cross)+len(c.Key)+16, MaxBlocks) ||
		!some && m.strs.Len() >= MaxStrings {
		return rejected(gpuai.TooLarge, "the region trusts as many authorities as it can: wait until one is retired, or retire it at once")
	}
	next := authorityRec{hash: c.Hash, since: m.stamp()}
	if some {
		old := m.authorities.Mut(active)
		old.until, next.domain = m.now.time.Add(c.Retire), old.domain
	} else {
		next.domain = m.strs.Intern(string(c.Domain))
	}
	slot, _ := m.authoritySlots.Alloc()
	m.authorities.Put(slot, next)
	m.setAuthorityBody(slot, c.Certificate, c.Cross, c.Key)
	m.out.Trust = true
	return Result{}
}

// retireDue forgets the authorities whose time is over.
func (m *Machine) retireDue() {
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		if at := m.authorities.Get(s).until; at != 0 && at <= m.now.time {
			m.dropAuthority(s)
			m.out.Trust = true
		}
	}
}
