package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A roleRec maps a claim's value to scopes, from LevelTenants on. Of each claim,
// value, tenant and contributor there is one.
type roleRec struct {
	tenant      uint32 // string number; 0 is none
	contributor uint32 // the same
	scopes      gpuai.Scopes
	textHash    uint64
	text        ref // blob of claim and value; its hash stands for it
}

func (r *roleRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.tenant)
	b = le.AppendUint32(b, r.contributor)
	b = append(b, uint8(r.scopes))
	return le.AppendUint64(b, r.textHash)
}

func (r *roleRec) get(rd *wire.Reader) {
	r.tenant = rd.U32()
	r.contributor = rd.U32()
	r.scopes = gpuai.Scopes(rd.U8())
	r.textHash = rd.U64()
}

func roleTexts(claim, value string) []byte {
	return wire.AppendStr(wire.AppendStr(nil, claim), value)
}

// findRole returns the slot of a mapping.
func (m *Machine) findRole(texts []byte, tenant, contributor string) (uint32, bool) {
	h := hashOf(texts)
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		m.now.work -= workLook
		r := m.roles.Get(s)
		if r.textHash == h && m.text(r.tenant) == tenant && m.text(r.contributor) == contributor &&
			string(m.blobs.Append(nil, uint32(r.text))) == string(texts) {
			return s, true
		}
	}
	return 0, false
}

// RoleMappings returns every mapping there is, at most MaxRoles.
func (m *Machine) RoleMappings() (out []gpuai.RoleMapping) {
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		r := m.roles.Get(s)
		rd := wire.NewReader(m.blobs.Append(nil, uint32(r.text)))
		out = append(out, gpuai.RoleMapping{
			Claim: rd.Str(), Value: rd.Str(), Tenant: gpuai.TenantID(m.text(r.tenant)),
			Contributor: gpuai.ContributorID(m.text(r.contributor)), Scopes: r.scopes.List(),
		})
	}
	return out
}

func (m *Machine) writeRoles(f *frameWriter) {
	if m.roleSlots.Len() == 0 {
		return
	}
	f.begin(secRoles)
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		r := m.roles.Get(s)
		f.buf = le.AppendUint32(f.buf, s)
		f.buf = r.put(f.buf)
		f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.text)))
		f.added()
	}
	f.end()
}

func (m *Machine) restoreRole(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= MaxRoles || m.roleSlots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.roleSlots.Take(slot)
	m.roles.Grow(slot + 1)
	r := m.roles.Mut(slot)
	r.get(rd)
	text := rd.Blob()
	if r.text = ref(m.blobs.Put(text)); hashOf(text) != r.textHash || r.tenant >= m.strs.Len() || r.contributor >= m.strs.Len() {
		rd.Fail("a role mapping is malformed")
	}
}

func (m *Machine) checkRoles() error {
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		r := m.roles.Get(s)
		text := m.blobs.Append(nil, uint32(r.text))
		if hashOf(text) != r.textHash || r.scopes == 0 || !r.scopes.Within(gpuai.AllScopes) || r.tenant != 0 && m.accountOf(r.tenant) == nil {
			return fmt.Errorf("role mapping %d gives %v in tenant %q, or its texts are others than their hash says", s, r.scopes.List(), m.text(r.tenant))
		}
	}
	if m.roleSlots.Len() > MaxRoles {
		return fmt.Errorf("%d role mappings are kept, more than %d", m.roleSlots.Len(), MaxRoles)
	}
	return nil
}
