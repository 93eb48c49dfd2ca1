package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// CreateJoinToken lets one host join the region, until TTL of region time has
// passed. The machine knows only the token's hash.
//
// Rejected: InvalidSpec, also below LevelTenants; Conflict for a hash that is
// known, RateLimited when there are MaxJoinTokens that were not used, PreconditionFailed in a region
// without an authority, which asks nobody for a token.
type CreateJoinToken struct {
	Hash        [32]byte // SHA-256 of its text
	Kind        gpuai.IdentityKind
	TTL         gpuai.Duration
	For         string // the only one that may join, whether or not it has before; "" any new one
	Contributor gpuai.ContributorID
}

// Append appends the encoded command to dst.
func (c *CreateJoinToken) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeCreateJoinToken, env, func(b []byte) []byte {
		b = append(append(b, c.Hash[:]...), uint8(c.Kind))
		b = put64(b, int64(c.TTL))
		return wire.AppendStr(wire.AppendStr(b, c.For), string(c.Contributor))
	})
}

func readCreateJoinToken(r *wire.Reader) (c CreateJoinToken, ok bool) {
	copy(c.Hash[:], r.Bytes(len(c.Hash)))
	c.Kind = gpuai.IdentityKind(r.U8())
	c.TTL = gpuai.Duration(r.I64())
	c.For, c.Contributor = r.Str(), gpuai.ContributorID(r.Str())
	return c, r.Done() == nil
}

func (m *Machine) applyCreateJoinToken(r *wire.Reader) Result {
	c, ok := readCreateJoinToken(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case !m.HasAuthority():
		return rejected(gpuai.PreconditionFailed, "this region has no authority: it asks nobody who they are, and there is nothing to join with a token")
	case !c.Kind.Valid() || c.For != "" && !gpuai.ValidName(c.For) || c.Contributor != "" && !gpuai.ValidName(string(c.Contributor)):
		return rejected(gpuai.InvalidSpec, "a join token is for a node or a server; names are 1 to 63 of a-z, 0-9 and '-'")
	case c.Contributor != "" && c.Kind != gpuai.IdentityNode:
		return rejected(gpuai.InvalidSpec, "only nodes have a contributor")
	case c.TTL < gpuai.Second || c.TTL > gpuai.MaxJoinTTL:
		return rejected(gpuai.InvalidSpec, "a join token is good for a second to an hour")
	}
	if _, known := m.joinTokenSlot(&c.Hash); known {
		return rejected(gpuai.Conflict, "this join token is there already")
	}
	switch {
	case m.unusedJoinTokens() >= MaxJoinTokens:
		return rejected(gpuai.RateLimited, "the region holds as many join tokens as it can: wait until some have been used or have expired")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	slot, _ := m.joinTokenSlots.Alloc()
	m.joinTokens.Put(slot, joinTokenRec{
		hash: c.Hash, kind: c.Kind, expires: m.now.time.Add(c.TTL),
		name: short(c.For), contributor: m.number(string(c.Contributor)),
	})
	m.indexJoinToken(slot)
	return Result{}
}
