package fsm

import (
	"bytes"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A joinTokenRec lets one host become a node or a server, once. It is kept until
// it expires, so that whoever comes with it again is told why it is refused; of
// used ones the first to expire is forgotten sooner where there are too many.
type joinTokenRec struct {
	hash        [32]byte          // of the token's text
	used        gpuai.SubjectHash // of who joined with it; zero: nobody
	expires     gpuai.Instant
	name        uint32 // string number of the only one that may join, or that has; 0: any new one
	contributor uint32 // string number; 0: none
	kind        gpuai.IdentityKind
}

func (r *joinTokenRec) put(b []byte) []byte {
	b = append(append(b, r.hash[:]...), r.used[:]...)
	b = put64(b, int64(r.expires))
	b = le.AppendUint32(le.AppendUint32(b, r.name), r.contributor)
	return append(b, uint8(r.kind))
}

func (r *joinTokenRec) get(rd *wire.Reader) {
	copy(r.hash[:], rd.Bytes(len(r.hash)))
	copy(r.used[:], rd.Bytes(len(r.used)))
	r.expires = gpuai.Instant(rd.I64())
	r.name, r.contributor = rd.U32(), rd.U32()
	r.kind = gpuai.IdentityKind(rd.U8())
}

func (m *Machine) joinTokenSlot(hash *[32]byte) (uint32, bool) {
	return m.joinTokenByHash.Find(hashJoinToken(hash), func(s uint32) bool { return m.joinTokens.Get(s).hash == *hash })
}

func (m *Machine) dropJoinToken(slot uint32) {
	m.joinTokenByHash.Delete(hashJoinToken(&m.joinTokens.Get(slot).hash), slot)
	*m.joinTokens.Mut(slot) = joinTokenRec{}
	m.joinTokenSlots.Free(slot)
}

// expireJoinTokens forgets the tokens whose time is over.
func (m *Machine) expireJoinTokens() {
	m.now.work -= workLook * int64(m.joinTokenSlots.Len())
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		if m.joinTokens.Get(s).expires <= m.now.time {
			m.dropJoinToken(s)
		}
	}
}

// unusedJoinTokens returns how many have not been used, and of those that have the
// slot of the one that expires first.
func (m *Machine) unusedJoinTokens() (unused, first uint32) {
	var old *joinTokenRec
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		r := m.joinTokens.Get(s)
		switch {
		case r.used == gpuai.SubjectHash{}:
			unused++
		case old == nil || r.expires < old.expires || r.expires == old.expires && bytes.Compare(r.hash[:], old.hash[:]) < 0:
			old, first = r, s
		}
	}
	return unused, first
}

// boundUsedJoinTokens forgets a used token where one more was used than are
// remembered. Nobody can join with it: it is not known.
func (m *Machine) boundUsedJoinTokens() {
	all := uint32(m.joinTokenSlots.Len())
	if all <= MaxUsedJoinTokens {
		return
	}
	m.now.work -= workLook * int64(all)
	if unused, first := m.unusedJoinTokens(); all-unused > MaxUsedJoinTokens {
		m.dropJoinToken(first)
	}
}

// An identityRec is a node or a server that has joined, or was revoked.
type identityRec struct {
	before      gpuai.Stamp // certificates issued before it are void
	joined      gpuai.Instant
	name        uint32 // string number
	contributor uint32 // string number; 0: none
	kind        gpuai.IdentityKind
	revoked     bool // no certificate is good
}

func (r *identityRec) put(b []byte) []byte {
	b = le.AppendUint64(b, uint64(r.before))
	b = put64(b, int64(r.joined))
	b = le.AppendUint32(le.AppendUint32(b, r.name), r.contributor)
	return append(b, uint8(r.kind), bool8(r.revoked))
}

func (r *identityRec) get(rd *wire.Reader) {
	r.before = gpuai.Stamp(rd.U64())
	r.joined = gpuai.Instant(rd.I64())
	r.name, r.contributor = rd.U32(), rd.U32()
	r.kind, r.revoked = gpuai.IdentityKind(rd.U8()), rd.U8() != 0
}

func (m *Machine) identitySlot(kind gpuai.IdentityKind, name uint32) (uint32, bool) {
	return m.identityByName.Find(hashIdentity(kind, name), func(s uint32) bool {
		r := m.identities.Get(s)
		return r.kind == kind && r.name == name
	})
}

// contributorOf returns the string number of whose an identity is; 0 for nobody.
func (m *Machine) contributorOf(kind gpuai.IdentityKind, name uint32) uint32 {
	if slot, ok := m.identitySlot(kind, name); ok {
		return m.identities.Get(slot).contributor
	}
	return 0
}

// identityFor returns the record of an identity, a new one where there is none,
// or why there can be none.
func (m *Machine) identityFor(id gpuai.Identity) (slot uint32, bad Result) {
	name, known := m.strs.Find(id.Name)
	if known {
		if s, ok := m.identitySlot(id.Kind, name); ok {
			return s, Result{}
		}
	}
	if m.identitySlots.Len() >= MaxIdentities || !known && m.strs.Len() >= MaxStrings {
		return 0, rejected(gpuai.TooLarge, "the region knows as many nodes and servers as it can")
	}
	slot, _ = m.identitySlots.Alloc()
	name = m.strs.Intern(id.Name)
	m.identities.Put(slot, identityRec{kind: id.Kind, name: name})
	m.identityByName.Insert(hashIdentity(id.Kind, name), slot)
	return slot, Result{}
}

// A Standing is what the region says of certificates of one identity.
type Standing struct {
	Known   bool // it has joined, or was revoked
	Revoked bool // none of its certificates is good …
	// Removed says that it is a server that was removed from the region.
	Removed bool
	// Before is the stamp before which its certificates were issued that are
	// void.
	Before      gpuai.Stamp
	Contributor gpuai.ContributorID // whose node it is; "" is nobody's
}

// Good reports whether a certificate that was issued at a stamp is to be
// trusted, once its signature is.
func (s *Standing) Good(at gpuai.Stamp) bool { return !s.Revoked && !s.Removed && at >= s.Before }

// Standing returns what is known of an identity. Of one that is not known, who
// joined behind a backup that was restored, certificates are good; of servers
// none from before it.
func (m *Machine) Standing(id gpuai.Identity) (out Standing) {
	if id.Kind == gpuai.IdentityServer {
		out.Before = gpuai.StampOf(m.Epoch(), 0)
		for _, s := range m.Servers() {
			out.Removed = out.Removed || s.Retired && string(s.ID) == id.Name
		}
	}
	name, ok := m.strs.Find(id.Name)
	if !ok {
		return out
	}
	if slot, ok := m.identitySlot(id.Kind, name); ok {
		r := m.identities.Get(slot)
		out.Known, out.Revoked, out.Before = true, r.revoked, max(out.Before, r.before)
		if r.contributor != 0 {
			out.Contributor = gpuai.ContributorID(m.strs.Get(r.contributor))
		}
	}
	return out
}
