package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// An accountRec is what an operator said of a tenant when it created it, from
// LevelTenants on. It has the slot of the tenant's tenantRec; a tenant that was
// never created has the zero record.
type accountRec struct {
	at       gpuai.Instant
	wall     gpuai.WallTime
	nameHash uint64
	name     ref // blob; its hash stands for it
	created  bool
}

func (r *accountRec) put(b []byte) []byte {
	b = put64(b, int64(r.at))
	b = put64(b, int64(r.wall))
	b = le.AppendUint64(b, r.nameHash)
	return append(b, bool8(r.created))
}

func (r *accountRec) get(rd *wire.Reader) {
	r.at = gpuai.Instant(rd.I64())
	r.wall = gpuai.WallTime(rd.I64())
	r.nameHash = rd.U64()
	r.created = rd.U8() == 1
}

// tenantExists reports whether a tenant was created.
func (m *Machine) tenantExists(name []byte) bool {
	n, ok := m.strs.FindBytes(name)
	return ok && m.accountOf(n) != nil
}

// accountOf returns the account of a tenant by its string number; nil where it
// was not created.
func (m *Machine) accountOf(tenant uint32) *accountRec {
	if tenant >= m.tenantOf.Len() || *m.tenantOf.Get(tenant) == 0 {
		return nil
	}
	if slot := m.tenantOf.Get(tenant).slot(); slot < m.accounts.Len() && m.accounts.Get(slot).created {
		return m.accounts.Get(slot)
	}
	return nil
}

// HasTenant reports whether a tenant was created.
func (m *Machine) HasTenant(id gpuai.TenantID) bool { return m.tenantExists([]byte(id)) }

// openAccount creates a tenant that was not created.
func (m *Machine) openAccount(tenant, name string) Result {
	if m.strs.Len() >= MaxStrings {
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	if !m.blobs.Room(len(name), MaxBlocks) {
		return rejected(gpuai.RateLimited, "the region's memory for texts is full: retry later")
	}
	slot, ok := m.tenantFor(m.strs.Intern(tenant))
	if !ok {
		return rejected(gpuai.TooLarge, "the region knows its maximum of tenants")
	}
	m.accounts.Put(slot, accountRec{
		at: m.now.time, wall: m.now.wall, created: true,
		name: ref(m.blobs.Put([]byte(name))), nameHash: hashOf([]byte(name)),
	})
	return Result{}
}

func (m *Machine) writeAccounts(f *frameWriter) {
	if m.accounts.Len() == 0 {
		return
	}
	f.begin(secAccounts)
	for s := range m.accounts.Len() {
		r := m.accounts.Get(s)
		f.buf = r.put(f.buf)
		f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.name)))
		f.added()
	}
	f.end()
}

func (m *Machine) restoreAccount(rd *wire.Reader) {
	var r accountRec
	r.get(rd)
	name := rd.Blob()
	if rd.Err() != nil || r.created && hashOf(name) != r.nameHash || !r.created && (r != accountRec{} || len(name) > 0) {
		rd.Fail("a tenant's account is malformed")
		return
	}
	if r.created {
		r.name = ref(m.blobs.Put(name))
	}
	m.accounts.Append(r)
}

// checkAccounts verifies that what was created is a tenant.
func (m *Machine) checkAccounts() error {
	if m.accounts.Len() > m.tenants.Len() {
		return fmt.Errorf("%d tenants have accounts, of %d", m.accounts.Len(), m.tenants.Len())
	}
	for s := range m.accounts.Len() {
		if r := m.accounts.Get(s); r.created && hashOf(m.blobs.Append(nil, uint32(r.name))) != r.nameHash {
			return fmt.Errorf("the name of tenant %q is another one than its hash says", m.strs.Get(m.tenants.Get(s).name))
		}
	}
	return nil
}
