package fsm

import (
	"bytes"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// PutSecret gives a tenant's secret a new value, which the server that proposes
// it has sealed, and the next version. With Reseal it has the secret's data key
// sealed under another region key: the value and its version stay, and Box is the
// sealed key that it replaces: it is compare-and-set on that and on the version, which
// a secret that was deleted and made anew may have again.
//
// Rejected: InvalidSpec for what is out of bounds, and below LevelTenants;
// PreconditionFailed for a Reseal when the secret has another version or key; NotFound
// for a Reseal of what is not there; TooLarge or RateLimited at a limit of the
// tenant or of the machine. None changes anything.
type PutSecret struct {
	Name   string
	Tenant gpuai.TenantID
	Reseal uint32 // the version whose data key is sealed anew; 0: a new value
	KeyID  SecretKeyID
	Seal   []byte // the data key, sealed under the region key KeyID
	Box    []byte // the value, sealed under the data key; of a Reseal the old Seal
}

// Append appends the encoded command to dst.
func (c *PutSecret) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typePutSecret, env, func(b []byte) []byte {
		b = wire.AppendStr(wire.AppendStr(b, c.Name), string(c.Tenant))
		b = append(le.AppendUint32(b, c.Reseal), c.KeyID[:]...)
		return wire.AppendBytes(wire.AppendBytes(b, c.Seal), c.Box)
	})
}

func readPutSecret(r *wire.Reader) (c PutSecret, ok bool) {
	c.Name, c.Tenant = r.Str(), gpuai.TenantID(r.Str())
	c.Reseal = r.U32()
	copy(c.KeyID[:], r.Bytes(len(c.KeyID)))
	c.Seal, c.Box = r.Blob(), r.Blob()
	return c, r.Done() == nil
}

func (c *PutSecret) valid() bool {
	most := MaxSecretBox
	if c.Reseal != 0 {
		most = MaxSecretKey
	}
	return gpuai.ValidName(c.Name) && gpuai.ValidName(string(c.Tenant)) && len(c.Seal) > 0 && len(c.Seal) <= MaxSecretKey &&
		len(c.Box) > 0 && len(c.Box) <= most
}

func (m *Machine) applyPutSecret(r *wire.Reader) Result {
	c, ok := readPutSecret(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	case !c.valid():
		return rejected(gpuai.InvalidSpec, "a secret needs a name of a-z, 0-9 and '-', a tenant, and a sealed value within its bounds")
	}
	tenant, _ := m.strs.Find(string(c.Tenant))
	slot, there := m.secretSlot(tenant, []byte(c.Name))
	if c.Reseal != 0 {
		return m.resealSecret(&c, slot, there)
	}
	old := secretRec{}
	if there {
		old = *m.secrets.recs.Get(slot)
	}
	if res := m.roomForSecret(&c, &old); res.Code != gpuai.OK {
		return res
	}
	if !there {
		slot, _ = m.secrets.slots.Alloc()
		rec := secretRec{tenant: m.number(string(c.Tenant))}
		copy(rec.name[:], c.Name)
		m.secrets.recs.Put(slot, rec)
		m.secrets.byName.Insert(hashSecret(rec.tenant, []byte(c.Name)), slot)
		m.tallySecret(rec.tenant, 1, 0)
	}
	m.setSecretBody(slot, c.Seal, c.Box)
	s := m.secrets.recs.Mut(slot)
	s.version, s.key, s.wall, s.modified = s.version+1, c.KeyID, m.now.wall, m.now.index
	m.tallySecret(s.tenant, 0, int64(s.bytes)-int64(old.bytes))
	m.now.work -= int64(len(c.Box) / 120) // a block each
	return Result{}
}

func (m *Machine) resealSecret(c *PutSecret, slot uint32, there bool) Result {
	if !there {
		return rejected(gpuai.NotFound, noSecret(c.Name))
	}
	s := m.secrets.recs.Get(slot)
	rd := wire.NewReader(m.blobs.Append(nil, uint32(s.body)))
	if seal := rd.Blob(); s.version != c.Reseal || !bytes.Equal(seal, c.Box) {
		return rejected(gpuai.PreconditionFailed, "the secret has had another value meanwhile, which is sealed already")
	}
	m.setSecretBody(slot, c.Seal, rd.Blob())
	m.secrets.recs.Mut(slot).key = c.KeyID
	m.now.work -= int64(s.bytes / 120)
	return Result{}
}

// roomForSecret reports whether there is room for a secret in place of old, which
// is zero for a new one.
func (m *Machine) roomForSecret(c *PutSecret, old *secretRec) Result {
	tenant, _ := m.strs.Find(string(c.Tenant))
	all, own := m.secretsOf(0), secretTally{}
	if tenant != 0 {
		own = m.secretsOf(tenant)
	}
	more := uint64(len(c.Box)) - uint64(old.bytes)
	switch {
	case old.version == 1<<32-1:
		return rejected(gpuai.TooLarge, "the secret has had as many versions as there can be: delete it and set it anew")
	case old.version == 0 && own.count >= MaxTenantSecrets:
		return rejected(gpuai.TooLarge, "the tenant has its maximum of secrets: delete some")
	case own.bytes+more > MaxTenantSecretBytes:
		return rejected(gpuai.TooLarge, "the tenant's secrets have their maximum of bytes in all: delete some, or keep large files in an object store")
	case old.version == 0 && all.count >= MaxSecrets || all.bytes+more > MaxAllSecretBytes:
		return rejected(gpuai.RateLimited, "the region keeps its maximum of secrets")
	case tenant == 0 && m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	case !m.blobs.Room(len(c.Seal)+len(c.Box)+16, MaxBlocks):
		return rejected(gpuai.RateLimited, "the region's memory for texts is full: retry later")
	}
	return Result{}
}

// DeleteSecret forgets a tenant's secret. Tasks that have it keep it; one that
// is started later and wants it fails.
//
// Rejected: NotFound; InvalidSpec, also below LevelTenants.
type DeleteSecret struct {
	Name   string
	Tenant gpuai.TenantID
}

// Append appends the encoded command to dst.
func (c *DeleteSecret) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeDeleteSecret, env, func(b []byte) []byte {
		return wire.AppendStr(wire.AppendStr(b, c.Name), string(c.Tenant))
	})
}

func readDeleteSecret(r *wire.Reader) (c DeleteSecret, ok bool) {
	c.Name, c.Tenant = r.Str(), gpuai.TenantID(r.Str())
	return c, r.Done() == nil
}

func (m *Machine) applyDeleteSecret(r *wire.Reader) Result {
	c, ok := readDeleteSecret(r)
	switch {
	case !ok:
		return malformed
	case m.Level() < LevelTenants:
		return belowTenants
	}
	tenant, _ := m.strs.Find(string(c.Tenant))
	slot, there := m.secretSlot(tenant, []byte(c.Name))
	if !there {
		return rejected(gpuai.NotFound, "there is no secret of this name")
	}
	s := m.secrets.recs.Mut(slot)
	m.tallySecret(tenant, -1, -int64(s.bytes))
	m.secrets.byName.Delete(hashSecret(tenant, []byte(c.Name)), slot)
	m.blobs.Free(uint32(s.body))
	*s = secretRec{}
	m.secrets.slots.Free(slot)
	return Result{}
}
