package fsm

import "github.com/gpuai/gpuai/fsm/wire"

// accessBody redacts the body of a command about who may do what.
func (x *Redaction) accessBody(c *wire.Command) ([]byte, bool) {
	r := wire.NewReader(c.Body)
	switch c.Type {
	case typeCreateToken:
		u, ok := readCreateToken(r)
		u.Hash, u.Login, u.Description, u.User = x.hash(u.Hash), x.hash(u.Login), blank(u.Description), blank(u.User)
		return bodyOf(&u), ok
	case typeSetRole:
		u, ok := readSetRole(r)
		u.Mapping.Claim, u.Mapping.Value = x.name("c", u.Mapping.Claim), x.name("c", u.Mapping.Value)
		return bodyOf(&u), ok
	default:
		tenant, name := r.Str(), r.Str()
		return wire.AppendStr(wire.AppendStr(nil, tenant), blank(name)), r.Done() == nil
	}
}

// access redacts the state of who may do what.
func (x *Redaction) access(m *Machine) {
	for s := range m.accounts.Len() {
		if r := m.accounts.Mut(s); r.created {
			name := []byte(blank(string(m.blobs.Append(nil, uint32(r.name)))))
			m.blobs.Free(uint32(r.name))
			r.name, r.nameHash = ref(m.blobs.Put(name)), hashOf(name)
		}
	}
	for s, ok := m.tokenSlots.Next(0); ok; s, ok = m.tokenSlots.Next(s + 1) {
		h := m.heldToken(s)
		texts := tokenTexts(blank(h.Description), blank(h.User))
		r := m.tokens.Mut(s)
		m.logins.remove(r)
		r.login = x.hash(r.login)
		m.logins.add(r)
		m.blobs.Free(uint32(r.text))
		r.hash, r.text, r.textHash = x.hash(r.hash), ref(m.blobs.Put(texts)), hashOf(texts)
	}
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		r := m.roles.Mut(s)
		rd := wire.NewReader(m.blobs.Append(nil, uint32(r.text)))
		texts := roleTexts(x.name("c", rd.Str()), x.name("c", rd.Str()))
		m.blobs.Free(uint32(r.text))
		r.text, r.textHash = ref(m.blobs.Put(texts)), hashOf(texts)
	}
}
