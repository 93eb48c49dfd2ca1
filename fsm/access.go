package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// A tokenRec is an access token, from LevelTenants on. It holds the SHA-256 of the
// token's whole text, never the text.
type tokenRec struct {
	id          gpuai.AccessTokenID
	hash        [32]byte
	login       [32]byte // who logged in; zero: it was made
	tenant      uint32   // string number; 0 is none
	contributor uint32   // the same
	scopes      gpuai.Scopes
	revoked     bool
	created     gpuai.Instant
	wall        gpuai.WallTime
	expires     gpuai.Instant
	used        gpuai.Instant // to within minutes; 0 is never
	ended       gpuai.Instant // when it was revoked
	textHash    uint64
	text        ref    // blob of description and user; its hash stands for it
	timer       uint32 // place in the heap of what is forgotten + 1; derived
}

func (r *tokenRec) put(b []byte) []byte {
	b = append(b, r.id[:]...)
	b = append(append(b, r.hash[:]...), r.login[:]...)
	b = le.AppendUint32(b, r.tenant)
	b = le.AppendUint32(b, r.contributor)
	b = append(b, uint8(r.scopes), bool8(r.revoked))
	b = put64(b, int64(r.created))
	b = put64(b, int64(r.wall))
	b = put64(b, int64(r.expires))
	b = put64(b, int64(r.used))
	b = put64(b, int64(r.ended))
	return le.AppendUint64(b, r.textHash)
}

func (r *tokenRec) get(rd *wire.Reader) {
	copy(r.id[:], rd.Bytes(len(r.id)))
	copy(r.hash[:], rd.Bytes(len(r.hash)))
	copy(r.login[:], rd.Bytes(len(r.login)))
	r.tenant = rd.U32()
	r.contributor = rd.U32()
	r.scopes = gpuai.Scopes(rd.U8())
	r.revoked = rd.U8() == 1
	r.created = gpuai.Instant(rd.I64())
	r.wall = gpuai.WallTime(rd.I64())
	r.expires = gpuai.Instant(rd.I64())
	r.used = gpuai.Instant(rd.I64())
	r.ended = gpuai.Instant(rd.I64())
	r.textHash = rd.U64()
}

// An accessRec is what the region knows of its access as a whole.
type accessRec struct {
	bootstrapped bool // the first operator's token was made
}

func (r *accessRec) put(b []byte) []byte { return append(b, bool8(r.bootstrapped)) }

func (r *accessRec) get(rd *wire.Reader) { r.bootstrapped = rd.U8() == 1 }

// tokensKept is how long tokens are known that are over, so that their holders are
// told why they are refused.
const tokensKept = gpuai.Day

func hashTokenID(id *gpuai.AccessTokenID) uint64 { return mem.HashBytes(38, id[:]) }

func (m *Machine) accessTokenSlot(id gpuai.AccessTokenID) (uint32, bool) {
	return m.tokenByID.Find(hashTokenID(&id), func(s uint32) bool { return m.tokens.Get(s).id == id })
}

// tokensBy counts the tokens of a tenant.
func (m *Machine) tokensBy(tenant uint32) *uint32 {
	m.tokensOf.Grow(tenant + 1)
	return m.tokensOf.Mut(tenant)
}

// tokenTexts are the texts of a token in its blob.
func tokenTexts(description, user string) []byte {
	return wire.AppendStr(wire.AppendStr(nil, description), user)
}

func (m *Machine) addToken(r tokenRec, texts []byte) {
	r.text, r.textHash = ref(m.blobs.Put(texts)), hashOf(texts)
	slot, _ := m.tokenSlots.Alloc()
	m.tokens.Put(slot, r)
	m.indexToken(slot)
}

// indexToken has a token be found by its ID, counted, and forgotten in its time.
func (m *Machine) indexToken(slot uint32) {
	r := m.tokens.Get(slot)
	m.tokenByID.Insert(hashTokenID(&r.id), slot)
	*m.tokensBy(r.tenant)++
	m.logins.add(r)
	m.forgetToken(slot)
}

// forgetToken has a token be forgotten when it has long been over.
func (m *Machine) forgetToken(slot uint32) {
	since, _ := m.tokens.Get(slot).over(m.Time())
	m.forgetAt(since.Add(tokensKept), timerToken, slot)
}

func (m *Machine) dropToken(slot uint32) {
	r := m.tokens.Mut(slot)
	m.expiries.clear(&r.timer)
	m.logins.remove(r)
	*m.tokensBy(r.tenant)--
	m.tokenByID.Delete(hashTokenID(&r.id), slot)
	m.blobs.Free(uint32(r.text))
	*r = tokenRec{}
	m.tokenSlots.Free(slot)
}

// over reports since when a token is no longer good; false while it is.
func (r *tokenRec) over(now gpuai.Instant) (since gpuai.Instant, over bool) {
	if r.revoked {
		return min(r.ended, r.expires), true
	}
	return r.expires, now >= r.expires
}

// Bootstrapped reports whether the region's first operator token was made.
func (m *Machine) Bootstrapped() bool { return m.access.Get().bootstrapped }

// A HeldToken is all that is needed to judge who shows a token.
type HeldToken struct {
	gpuai.AccessToken
	Hash    [32]byte
	Allows  gpuai.Scopes
	Expires gpuai.Instant // region time
}

// AccessToken returns a token that is kept.
func (m *Machine) AccessToken(id gpuai.AccessTokenID) (HeldToken, bool) {
	slot, ok := m.accessTokenSlot(id)
	if !ok {
		return HeldToken{}, false
	}
	return m.heldToken(slot), true
}

func (m *Machine) heldToken(slot uint32) HeldToken {
	r := m.tokens.Get(slot)
	rd := wire.NewReader(m.blobs.Append(nil, uint32(r.text)))
	description, user := rd.Str(), rd.Str()
	wall := func(at gpuai.Instant) gpuai.WallTime { return r.wall + gpuai.WallTime(at-r.created) }
	h := HeldToken{Hash: r.hash, Allows: r.scopes, Expires: r.expires, AccessToken: gpuai.AccessToken{
		ID: r.id, Tenant: gpuai.TenantID(m.text(r.tenant)), Contributor: gpuai.ContributorID(m.text(r.contributor)),
		Scopes: r.scopes.List(), User: user, Description: description,
		CreatedAt: r.wall, ExpiresAt: wall(r.expires), Expired: m.Time() >= r.expires, Revoked: r.revoked,
	}}
	if r.used != 0 {
		h.UsedAt = wall(r.used)
	}
	return h
}

// text returns a string by its number; "" for 0.
func (m *Machine) text(n uint32) string {
	if n == 0 {
		return ""
	}
	return m.strs.Get(n)
}

// AccessTokens returns tokens in the order of their slots, from the from-th slot
// on, of one tenant or, for "", all: at most limit, of at most MaxScan looked at.
// next is where to go on; 0 at the end.
func (m *Machine) AccessTokens(from uint32, limit int, tenant gpuai.TenantID) (page []gpuai.AccessToken, next uint32) {
	for n := 0; n < MaxScan && len(page) < limit; n++ {
		slot, ok := m.tokenSlots.Next(from)
		if !ok {
			return page, 0
		}
		if tenant == "" || m.text(m.tokens.Get(slot).tenant) == string(tenant) {
			page = append(page, m.heldToken(slot).AccessToken)
		}
		from = slot + 1
	}
	return page, from
}

func (m *Machine) writeAccess(f *frameWriter) {
	if m.tokenSlots.Len() > 0 {
		f.begin(secTokens)
		for s, ok := m.tokenSlots.Next(0); ok; s, ok = m.tokenSlots.Next(s + 1) {
			r := m.tokens.Get(s)
			f.buf = le.AppendUint32(f.buf, s)
			f.buf = r.put(f.buf)
			f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.text)))
			f.added()
		}
		f.end()
	}
	m.writeRoles(f)
	if *m.access.Get() != (accessRec{}) {
		f.begin(secAccess)
		f.buf = m.access.Get().put(f.buf)
		f.added()
		f.end()
	}
}

// restoreAccess reads a frame of who may do what.
func (m *Machine) restoreAccess(section uint8, count uint32, rd *wire.Reader) {
	for range count {
		switch section {
		case secAccounts:
			m.restoreAccount(rd)
		case secTokens:
			m.restoreToken(rd)
		case secRoles:
			m.restoreRole(rd)
		default:
			m.access.Mut().get(rd)
		}
		if rd.Err() != nil {
			return
		}
	}
}

func (m *Machine) restoreToken(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= MaxAccessTokens || m.tokenSlots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.tokenSlots.Take(slot)
	m.tokens.Grow(slot + 1)
	r := m.tokens.Mut(slot)
	r.get(rd)
	text := rd.Blob()
	r.text = ref(m.blobs.Put(text))
	if rd.Err() != nil || hashOf(text) != r.textHash || r.tenant >= m.strs.Len() || r.contributor >= m.strs.Len() {
		rd.Fail("an access token is malformed")
		return
	}
	if _, twice := m.accessTokenSlot(r.id); twice {
		rd.Fail("two access tokens have one ID")
		return
	}
	m.indexToken(slot)
}

// checkAccess verifies that tokens are found by their IDs and counted, that whose
// they are exists, and that the texts are those that were hashed.
func (m *Machine) checkAccess() error {
	counts := make([]uint32, m.tokensOf.Len())
	for s, ok := m.tokenSlots.Next(0); ok; s, ok = m.tokenSlots.Next(s + 1) {
		r := m.tokens.Get(s)
		if at, ok := m.accessTokenSlot(r.id); !ok || at != s {
			return fmt.Errorf("access token %s is not found by its ID", r.id)
		}
		if r.tenant != 0 && m.accountOf(r.tenant) == nil {
			return fmt.Errorf("access token %s is of a tenant that was not created", r.id)
		}
		if r.scopes == 0 || !r.scopes.Within(gpuai.AllScopes) || hashOf(m.blobs.Append(nil, uint32(r.text))) != r.textHash {
			return fmt.Errorf("access token %s allows %v, or its texts are others than their hash says", r.id, r.scopes.List())
		}
		counts[r.tenant]++
	}
	for tenant := range m.tokensOf.Len() {
		if n := *m.tokensOf.Get(tenant); n != counts[tenant] {
			return fmt.Errorf("tenant %d has %d access tokens, recorded %d", tenant, counts[tenant], n)
		}
	}
	if m.tokenSlots.Len() > MaxAccessTokens {
		return fmt.Errorf("%d access tokens are kept, more than %d", m.tokenSlots.Len(), MaxAccessTokens)
	}
	if err := m.checkLogins(); err != nil {
		return err
	}
	return m.checkRoles()
}
