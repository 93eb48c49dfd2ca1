package fsm

import (
	"bytes"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// hash returns the stand-in of a hash; that of none is none.
func (x *Redaction) hash(h [32]byte) [32]byte {
	if h == [32]byte{} {
		return h
	}
	return x.blob(h)
}

// authorities redacts certificates, sealed keys, and the hashes by which
// authorities and join tokens are found. Names of nodes, servers and contributors stay.
func (x *Redaction) authorities(m *Machine) {
	for s, ok := m.authoritySlots.Next(0); ok; s, ok = m.authoritySlots.Next(s + 1) {
		a := m.authorities.Mut(s)
		a.hash = x.hash(a.hash)
		rd := wire.NewReader(m.blobs.Append(nil, uint32(a.body)))
		m.setAuthorityBody(s, blankBytes(rd.Blob()), blankBytes(rd.Blob()), blankSeal(rd.Blob()))
	}
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		t := m.joinTokens.Mut(s)
		m.joinTokenByHash.Delete(hashJoinToken(&t.hash), s)
		t.hash, t.used = x.hash(t.hash), x.hash(t.used)
		m.joinTokenByHash.Insert(hashJoinToken(&t.hash), s)
	}
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		i := m.identities.Mut(s)
		i.token = x.hash(i.token)
	}
}

func blankBytes(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) }

// blankSeal keeps of a seal which region key it is under: a decision needs it.
func blankSeal(b []byte) []byte {
	out := blankBytes(b)
	if id := sealedUnder(b); id != (SecretKeyID{}) {
		copy(out[1:], id[:])
	}
	return out
}

// keepNamesOfJoins marks the names of the contributors whose nodes have joined or
// may.
func keepNamesOfJoins(m *Machine, name []bool) {
	for s, ok := m.identitySlots.Next(0); ok; s, ok = m.identitySlots.Next(s + 1) {
		name[m.identities.Get(s).contributor] = true
	}
	for s, ok := m.joinTokenSlots.Next(0); ok; s, ok = m.joinTokenSlots.Next(s + 1) {
		name[m.joinTokens.Get(s).contributor] = true
	}
}

// authorityBody redacts the body of a command that is about authorities. That of
// any other stays.
func (x *Redaction) authorityBody(c *wire.Command) ([]byte, bool) {
	r := wire.NewReader(c.Body)
	switch c.Type {
	case typePutAuthority:
		u, ok := readPutAuthority(r)
		u.Hash, u.Replaces = x.hash(u.Hash), x.hash(u.Replaces)
		u.Certificate, u.Cross, u.Key = blankBytes(u.Certificate), blankBytes(u.Cross), blankSeal(u.Key)
		u.Domain = gpuai.ClusterID(x.name("a", string(u.Domain)))
		return bodyOf(&u), ok
	case typeCreateJoinToken:
		u, ok := readCreateJoinToken(r)
		u.Hash = x.hash(u.Hash)
		return bodyOf(&u), ok
	case typeJoin:
		u, ok := readJoin(r)
		u.Token, u.Key = x.hash(u.Token), x.hash(u.Key)
		return bodyOf(&u), ok
	case typeRetireAuthority:
		u, ok := readRetireAuthority(r)
		u.Hash = x.hash(u.Hash)
		return bodyOf(&u), ok
	}
	return c.Body, true
}
