package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// Join uses a join token up: Identity may be given a certificate for the key
// whose hash is Key, with the stamp of the result's index. Who has joined before
// joins again only with a token that names it, and its older certificates are
// void from then on: a token for any node must not be good for the name of
// another's.
//
// From its first use on a token is bound to that key and name. Asked again with
// them, it is answered again, for the answer may have been lost, while the token
// is remembered (MaxUsedJoinTokens) and no other was used for that name.
//
// Rejected: Unauthenticated for a token that is unknown, expired, was used, or beside which another was,
// Forbidden for another kind or name than the token's, Conflict for who has
// joined before, InvalidSpec, also below LevelTenants, TooLarge at MaxIdentities.
// The contributor of the token owns the node.
type Join struct {
	Token    [32]byte // SHA-256 of its text
	Identity gpuai.Identity
	Key      gpuai.SubjectHash
}

// Append appends the encoded command to dst.
func (c *Join) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeJoin, env, func(b []byte) []byte {
		b = append(append(b, c.Token[:]...), c.Key[:]...)
		return wire.AppendStr(append(b, uint8(c.Identity.Kind)), c.Identity.Name)
	})
}

func readJoin(r *wire.Reader) (c Join, ok bool) {
	copy(c.Token[:], r.Bytes(len(c.Token)))
	copy(c.Key[:], r.Bytes(len(c.Key)))
	c.Identity.Kind = gpuai.IdentityKind(r.U8())
	c.Identity.Name = r.Str()
	return c, r.Done() == nil
}

func (m *Machine) applyJoin(r *wire.Reader) Result {
	c, ok := readJoin(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case !c.Identity.Valid() || c.Key == gpuai.SubjectHash{}:
		return rejected(gpuai.InvalidSpec, "who joins needs a key, and a name of 1 to 63 of a-z, 0-9 and '-'")
	}
	slot, bad := m.mayJoin(&c, m.now.time)
	if bad.Code != gpuai.OK {
		return bad
	}
	t := *m.joinTokens.Get(slot)
	again := t.used == c.Key
	at, bad := m.identityFor(c.Identity)
	if bad.Code != gpuai.OK {
		return bad
	}
	m.out.Trust = true
	if again {
		return Result{}
	}
	m.useJoinToken(slot, &c)
	i := m.identities.Mut(at)
	i.before, i.since, i.revoked = m.stamp(), m.now.time, false
	i.token, i.contributor = c.Token, t.contributor
	m.forgetIdentity(at)
	if node, ok := m.nodeSlot(gpuai.NodeID(c.Identity.Name)); ok && c.Identity.Kind == gpuai.IdentityNode && t.contributor != 0 {
		return m.giveNode(node, t.contributor)
	}
	return Result{}
}

// MayJoin returns what a Join would be rejected with now, by what is known of its
// token and its identity. It changes nothing.
func (m *Machine) MayJoin(c *Join) Result {
	_, bad := m.mayJoin(c, m.Time())
	return bad
}

func (m *Machine) mayJoin(c *Join, now gpuai.Instant) (slot uint32, bad Result) {
	slot, known := m.joinTokenSlot(&c.Token)
	if !known {
		return 0, rejected(gpuai.Unauthenticated, "the join token is not known, or has expired: ask for a new one, which 'gpuai token create --join' makes")
	}
	return slot, m.judgeJoin(m.joinTokens.Get(slot), c, now)
}

// judgeJoin judges who comes with a token that is known.
func (m *Machine) judgeJoin(t *joinTokenRec, c *Join, now gpuai.Instant) Result {
	again := t.used == c.Key
	switch {
	case t.expires <= now:
		return rejected(gpuai.Unauthenticated, "the join token has expired: ask for a new one, which 'gpuai token create --join' makes")
	case t.used != gpuai.SubjectHash{} && !again:
		return rejected(gpuai.Unauthenticated, "the join token was used already, and is good for one host only: ask for a new one, which 'gpuai token create --join' makes")
	case t.kind != c.Identity.Kind && t.kind == gpuai.IdentityNode:
		return rejected(gpuai.Forbidden, "the join token is for a node, and not for a server")
	case t.kind != c.Identity.Kind:
		return rejected(gpuai.Forbidden, "the join token is for a server, and not for a node")
	case t.name.n != 0 && t.name.String() != c.Identity.Name:
		return rejected(gpuai.Forbidden, "the join token is for another name")
	}
	standing := m.Standing(c.Identity)
	switch {
	case standing.Removed:
		return rejected(gpuai.Forbidden, "this server was removed from the region, and its ID is never used again: join under another")
	case again && (standing.Revoked || !standing.Known):
		return rejected(gpuai.Forbidden, "who joined with this token was revoked")
	case again && standing.Token != c.Token:
		return rejected(gpuai.Unauthenticated, "another join token was used for this name since: ask for a new one, which 'gpuai token create --join' makes with --name")
	case !again && t.name.n == 0 && (standing.Known || m.anothersNode(&c.Identity, t.contributor)):
		return rejected(gpuai.Conflict, "one of this name has joined before: use another name, or a token that names it, which 'gpuai token create --join' makes with --name")
	}
	return Result{}
}

// anothersNode reports whether a node of this name has registered that is not a
// contributor's; 0 is the region's own.
func (m *Machine) anothersNode(id *gpuai.Identity, contributor uint32) bool {
	slot, ok := m.nodeSlot(gpuai.NodeID(id.Name))
	return ok && id.Kind == gpuai.IdentityNode && m.nodes.Get(slot).owner != contributor
}
