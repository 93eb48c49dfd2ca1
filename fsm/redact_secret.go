package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// taskSecrets gives the secrets of a task other names, and other places to be at.
func (x *Redaction) taskSecrets(list []gpuai.TaskSecret) {
	for i := range list {
		t := &list[i]
		t.Name = x.name("s", t.Name)
		if t.Env != "" {
			t.Env = x.name("E", t.Env)
		}
		if t.Path != "" && t.Path[0] == '/' {
			t.Path = "/" + x.name("f", t.Path)
		} else if t.Path != "" {
			t.Path = x.name("f", t.Path)
		}
	}
}

// secrets redacts the names of secrets, and what is sealed.
func (x *Redaction) secrets(m *Machine) {
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		r := m.secrets.recs.Mut(s)
		m.secrets.byName.Delete(hashSecret(r.tenant, []byte(r.name.String())), s)
		name := x.name("s", r.name.String())
		r.name = secretName{}
		copy(r.name[:], name)
		rd := wire.NewReader(m.blobs.Append(nil, uint32(r.body)))
		m.setSecretBody(s, blankBytes(rd.Blob()), blankBytes(rd.Blob()))
		m.secrets.byName.Insert(hashSecret(r.tenant, []byte(name)), s)
	}
}

// secretBody redacts the body of a command that is about secrets.
func (x *Redaction) secretBody(c *wire.Command) ([]byte, bool) {
	r := wire.NewReader(c.Body)
	if c.Type == typePutSecret {
		u, ok := readPutSecret(r)
		u.Name = x.name("s", u.Name)
		u.Seal, u.Box = blankBytes(u.Seal), blankBytes(u.Box)
		return bodyOf(&u), ok
	}
	u, ok := readDeleteSecret(r)
	u.Name = x.name("s", u.Name)
	return bodyOf(&u), ok
}

// keepNamesOfSecrets marks the names of who has secrets.
func keepNamesOfSecrets(m *Machine, name []bool) {
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		name[m.secrets.recs.Get(s).tenant] = true
	}
}
