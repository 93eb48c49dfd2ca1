package fsm

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// An auditKind is what the audit has of commands of a type. A record says what the
// command is about (a node, a tenant, a token's ID …) and, in short, what it makes
// of that. Both are read here and nowhere else: what no function takes from a body
// is not in the audit.
type auditKind struct {
	silent bool // not in the audit: servers and agents do it by themselves
	// about reads what a command names and what it says of it; ok: it was done. The
	// bytes may be anything. nil: it is about its job alone.
	about func(m *Machine, body []byte, ok bool) (subject, change string)
	// state returns the settings that a command replaces, before and after it: the
	// record says which of them are others now.
	state func(m *Machine, body []byte) []auditValue
}

// auditKinds is the audit's table of commands, by type.
var auditKinds = [numTypes]auditKind{
	typeUpdateDevices: {silent: true}, typeExpireLeases: {silent: true}, typeReportLease: {silent: true},
	typeConfirmBeats: {silent: true}, typeTick: {silent: true}, typeCheckpoint: {silent: true},
	typeRetireJobs: {silent: true}, typePublishCheckpoint: {silent: true},
	typeAuditNote: {silent: true}, // its notes are records of their own

	typeSubmitJob: {}, typeStopJob: {},

	typeRegisterNode:       {about: aboutName}, // of one that only comes back nothing is recorded
	typeSetNodeEligibility: {about: aboutName, state: drainOf},
	typeSetNodeOwner:       {about: aboutName, state: ownerOf},
	typeSetNodePrice:       {about: aboutName, state: nodePriceOf},
	typeSetNodeAsk:         {about: aboutName, state: nodeAskOf},
	typeSetNodeSchedule:    {about: aboutName, state: hoursOf},
	typeRetireServer:       {about: aboutName},
	typeMoveServer:         {about: aboutName, state: addressOf},

	typeSetPolicy:       {about: aboutRegion, state: policyOf},
	typeSetFeatureLevel: {about: aboutRegion, state: levelsOf},
	typeSetDemand:       {about: aboutDemand},
	typeSetPrices:       {about: aboutRegion, state: pricesOf},

	typePutAuthority:    {about: aboutAuthority},
	typeRetireAuthority: {about: aboutRetired},
	typeCreateJoinToken: {about: aboutJoinToken},
	typeJoin:            {about: aboutJoin},
	typeRevokeIdentity:  {about: aboutIdentity},

	typeCreateTenant:    {about: aboutName},
	typeSetTenantWeight: {about: aboutName, state: weightOf},
	typeSetQuota:        {about: aboutName, state: quotaValues},
	typeSetBudget:       {about: aboutName, state: budgetOf},
	typeCreateToken:     {about: aboutNewToken},
	typeRevokeToken:     {about: aboutToken},
	typeTouchTokens:     {about: aboutTouched},
	typeSetRole:         {about: aboutRole, state: roleScopes},

	typePutSecret:    {about: aboutSecret},
	typeDeleteSecret: {about: aboutSecret},
	typeGiveSecrets:  {about: aboutGiven},
	typeSetRegionKey: {about: aboutRegionKey},
}

// regionSubject is the subject of what holds for the region as a whole.
const regionSubject = "region"

func aboutRegion(*Machine, []byte, bool) (subject, change string) { return regionSubject, "" }

// aboutName is of bodies that begin with the name of a node, tenant or server.
func aboutName(_ *Machine, body []byte, _ bool) (subject, change string) {
	if name := wire.NewReader(body).Str(); gpuai.ValidName(name) {
		subject = name
	}
	return subject, ""
}

func aboutDemand(_ *Machine, body []byte, _ bool) (subject, change string) {
	r := wire.NewReader(body)
	fixed, n := r.U8(), r.U16()
	if change = strconv.Itoa(int(n)) + " kinds of tasks"; fixed == 1 {
		change += ", fixed"
	}
	return regionSubject, change
}

// aboutAuthority tells authorities by the hashes of their public keys, as
// "gpuai operator ca show" does.
func aboutAuthority(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readPutAuthority(wire.NewReader(body))
	if !ok {
		return "", ""
	}
	if c.Replaces != (gpuai.SubjectHash{}) {
		change = "replaces " + hexText(c.Replaces[:])[:16] + ", which is trusted for " + c.Retire.String()
	}
	return hexText(c.Hash[:]), change
}

func aboutRetired(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readRetireAuthority(wire.NewReader(body))
	if !ok {
		return "", ""
	}
	if c.Now {
		change = "at once"
	}
	return hexText(c.Hash[:]), change
}

// joinTokenName is by what the audit tells join tokens from one another: the
// beginning of a hash, from which nobody finds the token.
func joinTokenName(hash *[32]byte) string { return "join token " + hexText(hash[:6]) }

func aboutJoinToken(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readCreateJoinToken(wire.NewReader(body))
	if !ok || !c.Kind.Valid() {
		return "", ""
	}
	if subject = "any new " + c.Kind.String(); gpuai.ValidName(c.For) {
		subject = gpuai.Identity{Kind: c.Kind, Name: c.For}.String()
	}
	change = joinTokenName(&c.Hash) + ", ttl " + c.TTL.String()
	if gpuai.ValidName(string(c.Contributor)) {
		change += ", contributor " + string(c.Contributor)
	}
	return subject, change
}

func aboutJoin(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readJoin(wire.NewReader(body))
	if !ok || !c.Identity.Valid() {
		return "", ""
	}
	return c.Identity.String(), joinTokenName(&c.Token)
}

func aboutIdentity(_ *Machine, body []byte, _ bool) (subject, change string) {
	r := wire.NewReader(body)
	id := gpuai.Identity{Kind: gpuai.IdentityKind(r.U8()), Name: r.Str()}
	if id.Valid() {
		subject = id.String()
	}
	return subject, ""
}

// aboutNewToken says what a token allows. Its description stays out: it is its
// maker's own.
func aboutNewToken(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readCreateToken(wire.NewReader(body))
	if !ok {
		return "", ""
	}
	change = "scopes " + scopesText(c.Scopes)
	for _, of := range [...]struct{ what, name string }{{"tenant ", string(c.Tenant)}, {"contributor ", string(c.Contributor)}} {
		if gpuai.ValidName(of.name) {
			change = of.what + of.name + ", " + change
		}
	}
	if change += ", ttl " + c.TTL.String(); c.First {
		change += ", the region's first"
	}
	return c.ID.String(), change
}

func scopesText(s gpuai.Scopes) string {
	var out []string
	for _, x := range s.List() {
		out = append(out, x.String())
	}
	return strings.Join(out, "+")
}

func aboutToken(m *Machine, body []byte, ok bool) (subject, change string) {
	var id gpuai.AccessTokenID
	r := wire.NewReader(body)
	copy(id[:], r.Bytes(len(id)))
	if r.Err() != nil {
		return "", ""
	}
	if slot, there := m.accessTokenSlot(id); there && ok { // a refused one may be another tenant's
		t := m.tokens.Get(slot)
		if change = "scopes " + scopesText(t.scopes); t.tenant != 0 {
			change = "tenant " + m.text(t.tenant) + ", " + change
		}
	}
	return id.String(), change
}

func aboutTouched(_ *Machine, body []byte, _ bool) (subject, change string) {
	return strconv.Itoa(len(body)/len(gpuai.AccessTokenID{})) + " tokens", ""
}

func aboutRole(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readSetRole(wire.NewReader(body))
	x := &c.Mapping
	if !ok || len(x.Validate()) > 0 {
		return "", ""
	}
	switch {
	case x.Tenant != "":
		change = "tenant " + string(x.Tenant)
	case x.Contributor != "":
		change = "contributor " + string(x.Contributor)
	}
	return x.Claim + "=" + x.Value, change
}

// aboutSecret names a secret, and the version that it has now.
func aboutSecret(m *Machine, body []byte, ok bool) (subject, change string) {
	r := wire.NewReader(body)
	name, tenant := r.Blob(), r.Blob()
	if !gpuai.ValidName(string(name)) {
		return "", ""
	}
	number, _ := m.strs.FindBytes(tenant)
	if slot, there := m.secretSlot(number, name); there && ok {
		return string(name) + "@" + strconv.FormatUint(uint64(m.secrets.recs.Get(slot).version), 10), ""
	}
	return string(name), ""
}

// aboutGiven names what a lease's task was given, as far as there is room, and
// the lease.
func aboutGiven(m *Machine, body []byte, ok bool) (subject, change string) {
	c, whole := readGiveSecrets(wire.NewReader(body))
	if !whole {
		return "", ""
	}
	change = "lease " + c.Lease.String()
	if gpuai.ValidName(string(c.Node)) {
		change += ", node " + string(c.Node)
	}
	slot, there := m.leaseSlot(c.Lease)
	if !there || !ok {
		return "lease " + c.Lease.String(), ""
	}
	var b []byte
	for _, s := range m.secretsGiven(slot) {
		one := s.Name + "@" + strconv.FormatUint(uint64(s.Version), 10)
		if len(b)+len(one)+1 > gpuai.MaxAuditText {
			break
		}
		if len(b) > 0 {
			b = append(b, ' ')
		}
		b = append(b, one...)
	}
	return string(b), change
}

func aboutRegionKey(_ *Machine, body []byte, _ bool) (subject, change string) {
	c, ok := readSetRegionKey(wire.NewReader(body))
	if !ok {
		return "", ""
	}
	return c.Key.Text(), c.State.String()
}

// auditPart is a text of a record: printable, valid, within its bound.
func auditPart(s string) []byte {
	clean := func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}
	return []byte(cutText(strings.Map(clean, s), gpuai.MaxAuditText))
}

// cutText returns s in at most n bytes, of whole characters.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n -= len("…"); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + "…"
}
