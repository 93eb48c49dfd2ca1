package fsm

import (
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
	name        shortName // of the only one that may join, or that has; none: any new one
	contributor uint32    // string number; 0: none
	kind        gpuai.IdentityKind
	timer       uint32 // place in the heap of what is forgotten + 1; derived
	usedAt      uint32 // the same in that of the used ones; derived
}

func (r *joinTokenRec) put(b []byte) []byte {
	b = append(append(b, r.hash[:]...), r.used[:]...)
	b = put64(b, int64(r.expires))
	b = wire.AppendStr(b, r.name.String())
	b = le.AppendUint32(b, r.contributor)
	return append(b, uint8(r.kind))
}

func (r *joinTokenRec) get(rd *wire.Reader) {
	copy(r.hash[:], rd.Bytes(len(r.hash)))
	copy(r.used[:], rd.Bytes(len(r.used)))
	r.expires = gpuai.Instant(rd.I64())
	r.name = readShort(rd)
	r.contributor = rd.U32()
	r.kind = gpuai.IdentityKind(rd.U8())
}

// A shortName is a name in the record itself: names of those who join come and go,
// and the numbered strings only grow.
type shortName struct {
	n    uint8
	text [gpuai.MaxNameLen]byte
}

// short returns a valid name as one.
func short(s string) (x shortName) {
	x.n = uint8(copy(x.text[:], s))
	return x
}

func (x *shortName) String() string { return string(x.text[:x.n]) }

func readShort(rd *wire.Reader) shortName {
	s := rd.Str()
	if len(s) > gpuai.MaxNameLen {
		rd.Fail("a name is too long")
		return shortName{}
	}
	return short(s)
}

func (m *Machine) joinTokenSlot(hash *[32]byte) (uint32, bool) {
	return m.joinTokenByHash.Find(hashJoinToken(hash), func(s uint32) bool { return m.joinTokens.Get(s).hash == *hash })
}

// indexJoinToken has a token be found by its hash, counted where it was used, and
// forgotten in its time.
func (m *Machine) indexJoinToken(slot uint32) {
	r := m.joinTokens.Get(slot)
	m.joinTokenByHash.Insert(hashJoinToken(&r.hash), slot)
	m.forgetAt(r.expires, timerJoinToken, slot)
	if r.used != (gpuai.SubjectHash{}) {
		m.usedJoins.set(r.expires, timerUsedJoin, slot)
	}
}

func (m *Machine) dropJoinToken(slot uint32) {
	r := m.joinTokens.Mut(slot)
	m.joinTokenByHash.Delete(hashJoinToken(&r.hash), slot)
	m.expiries.clear(&r.timer)
	m.usedJoins.clear(&r.usedAt)
	*r = joinTokenRec{}
	m.joinTokenSlots.Free(slot)
}

// unusedJoinTokens returns how many have not been used.
func (m *Machine) unusedJoinTokens() uint32 { return m.joinTokenSlots.Len() - *m.usedJoins.n.Get() }

// useJoinToken notes who has joined with a token, and forgets another used one
// where one more was used than are remembered. Nobody can join with that: it is
// not known.
func (m *Machine) useJoinToken(slot uint32, c *Join) {
	r := m.joinTokens.Mut(slot)
	r.used, r.name = c.Key, short(c.Identity.Name)
	m.usedJoins.set(r.expires, timerUsedJoin, slot)
	if *m.usedJoins.n.Get() > MaxUsedJoinTokens {
		first, _ := m.usedJoins.next()
		m.dropJoinToken(first.slot)
	}
}

// IdentityKept is how long an identity is known after it joined, or was revoked,
// that matters to nobody: twice as long as its last certificate can be good.
const IdentityKept = 2 * gpuai.CertificateTTL

// An identityRec is a node or a server that has joined, or was revoked.
type identityRec struct {
	before      gpuai.Stamp   // certificates issued before it are void
	since       gpuai.Instant // when it joined or was revoked, what was later
	token       [32]byte      // hash of the one with which it joined last
	name        shortName
	contributor uint32 // string number; 0: none
	kind        gpuai.IdentityKind
	revoked     bool   // no certificate is good
	timer       uint32 // place in the heap of what is forgotten + 1; derived
}

func (r *identityRec) put(b []byte) []byte {
	b = le.AppendUint64(b, uint64(r.before))
	b = put64(b, int64(r.since))
	b = append(b, r.token[:]...)
	b = wire.AppendStr(b, r.name.String())
	b = le.AppendUint32(b, r.contributor)
	return append(b, uint8(r.kind), bool8(r.revoked))
}

func (r *identityRec) get(rd *wire.Reader) {
	r.before = gpuai.Stamp(rd.U64())
	r.since = gpuai.Instant(rd.I64())
	copy(r.token[:], rd.Bytes(len(r.token)))
	r.name = readShort(rd)
	r.contributor = rd.U32()
	r.kind, r.revoked = gpuai.IdentityKind(rd.U8()), rd.U8() != 0
}

func (r *identityRec) identity() gpuai.Identity {
	return gpuai.Identity{Kind: r.kind, Name: r.name.String()}
}

func (m *Machine) identitySlot(id gpuai.Identity) (uint32, bool) {
	return m.identityByName.Find(hashIdentity(id), func(s uint32) bool {
		r := m.identities.Get(s)
		return r.kind == id.Kind && string(r.name.text[:r.name.n]) == id.Name
	})
}

// contributorOf returns the string number of whose an identity is; 0 for nobody.
func (m *Machine) contributorOf(id gpuai.Identity) uint32 {
	if slot, ok := m.identitySlot(id); ok {
		return m.identities.Get(slot).contributor
	}
	return 0
}

// identityFor returns the record of an identity, a new one where there is none,
// or why there can be none.
func (m *Machine) identityFor(id gpuai.Identity) (slot uint32, bad Result) {
	if s, ok := m.identitySlot(id); ok {
		return s, Result{}
	}
	if m.identitySlots.Len() >= MaxIdentities {
		return 0, rejected(gpuai.TooLarge, "the region knows as many nodes and servers as it can")
	}
	slot, _ = m.identitySlots.Alloc()
	m.identities.Put(slot, identityRec{kind: id.Kind, name: short(id.Name)})
	m.identityByName.Insert(hashIdentity(id), slot)
	return slot, Result{}
}

func (m *Machine) dropIdentity(slot uint32) {
	r := m.identities.Mut(slot)
	m.identityByName.Delete(hashIdentity(r.identity()), slot)
	m.expiries.clear(&r.timer)
	*r = identityRec{}
	m.identitySlots.Free(slot)
}

// passing reports whether an identity is forgotten some day. That of a node stays
// once the node has registered, as the node does: the two share a bound, and the
// name is that node's. That of a server stays until the server was removed, which
// is remembered without it.
func (m *Machine) passing(slot uint32) bool {
	id := m.identities.Get(slot).identity()
	if id.Kind == gpuai.IdentityServer {
		return m.retiredServer(id.Name)
	}
	_, registered := m.nodeSlot(gpuai.NodeID(id.Name))
	return !registered
}

// forgetIdentity has an identity be forgotten when it matters to nobody.
func (m *Machine) forgetIdentity(slot uint32) {
	if m.passing(slot) {
		m.forgetAt(m.identities.Get(slot).since.Add(IdentityKept), timerIdentity, slot)
	} else {
		m.expiries.clear(&m.identities.Mut(slot).timer)
	}
}

// noteMet notes that somebody has registered, or was removed, who may have joined.
func (m *Machine) noteMet(id gpuai.Identity) {
	if slot, ok := m.identitySlot(id); ok {
		m.forgetIdentity(slot)
	}
}

// A Standing is what the region says of certificates of one identity.
type Standing struct {
	Known   bool // it has joined, or was revoked
	Revoked bool // none of its certificates is good …
	// Removed says that it is a server that was removed from the region.
	Removed bool
	// Before is the stamp before which its certificates were issued that are
	// void.
	Before gpuai.Stamp
	// Stranger is the stamp of this state where it knows no node of this name:
	// whoever got a certificate in this epoch, by then, has been forgotten.
	Stranger    gpuai.Stamp
	Token       [32]byte            // hash of the one with which it joined last
	Contributor gpuai.ContributorID // whose node it is; "" is nobody's
}

// Good reports whether a certificate that was issued at a stamp is to be
// trusted, once its signature is.
func (s *Standing) Good(at gpuai.Stamp) bool {
	if s.Stranger != 0 && at.Epoch() == s.Stranger.Epoch() && at <= s.Stranger {
		return false
	}
	return !s.Revoked && !s.Removed && at >= s.Before
}

// Standing returns what is known of an identity. Of a node that is not known, who
// joined behind a backup that was restored, certificates of that time are good for
// as long as they can be; of servers none from before the restore.
func (m *Machine) Standing(id gpuai.Identity) (out Standing) {
	if id.Kind == gpuai.IdentityServer {
		out.Before, out.Removed = gpuai.StampOf(m.Epoch(), 0), m.retiredServer(id.Name)
	}
	if slot, ok := m.identitySlot(id); ok {
		r := m.identities.Get(slot)
		out.Known, out.Revoked, out.Before, out.Token = true, r.revoked, max(out.Before, r.before), r.token
		out.Contributor = gpuai.ContributorID(m.text(r.contributor))
		return out
	}
	if _, registered := m.nodeSlot(gpuai.NodeID(id.Name)); id.Kind == gpuai.IdentityNode && !registered {
		out.Stranger = m.Stamp()
		if m.Time() >= m.meta.Get().quietUntil.Add(IdentityKept) {
			out.Before = gpuai.StampOf(m.Epoch(), 0)
		}
	}
	return out
}
