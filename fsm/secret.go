package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// Sections and seeds of secrets.
const (
	secSecrets       uint8 = 53
	secGiven         uint8 = 54
	seedSecret             = 53
	seedGivenSecrets       = 54
)

// Sizes of what a secret consists of. The machine knows them as bytes only.
const (
	MaxSecretKey = 256                       // of a data key, sealed under the keyring
	MaxSecretBox = gpuai.MaxSecretBytes + 64 // of a value, sealed under its data key
)

// A SecretKeyID names the region key under which a data key is sealed.
type SecretKeyID [4]byte

// secretName is a name within its bounds, zeros behind it.
type secretName [gpuai.MaxNameLen + 1]byte

func (n *secretName) String() string {
	i := 0
	for i < len(n) && n[i] != 0 {
		i++
	}
	return string(n[:i])
}

// A secretRec is a secret of a tenant: its newest value, sealed.
type secretRec struct {
	name     secretName
	tenant   uint32 // string number
	version  uint32
	bytes    uint32 // of the box
	key      SecretKeyID
	sum      uint64 // of its body
	wall     gpuai.WallTime
	modified uint64
	body     ref // blob: sealed data key, box; its sum stands for it
}

func (r *secretRec) put(b []byte) []byte {
	b = append(b, r.name[:]...)
	b = le.AppendUint32(b, r.tenant)
	b = le.AppendUint32(b, r.version)
	b = le.AppendUint32(b, r.bytes)
	b = append(b, r.key[:]...)
	b = le.AppendUint64(b, r.sum)
	b = put64(b, int64(r.wall))
	return le.AppendUint64(b, r.modified)
}

func (r *secretRec) get(rd *wire.Reader) {
	copy(r.name[:], rd.Bytes(len(r.name)))
	r.tenant = rd.U32()
	r.version = rd.U32()
	r.bytes = rd.U32()
	copy(r.key[:], rd.Bytes(len(r.key)))
	r.sum = rd.U64()
	r.wall = gpuai.WallTime(rd.I64())
	r.modified = rd.U64()
}

// A givenRec says which versions of its secrets a lease's task was given, in the
// order of the spec.
type givenRec struct {
	lease    ref
	versions [gpuai.MaxTaskSecrets]uint32 // zeros behind the last
}

func (r *givenRec) put(b []byte) []byte {
	b = r.lease.put(b)
	for _, v := range r.versions {
		b = le.AppendUint32(b, v)
	}
	return b
}

func (r *givenRec) get(rd *wire.Reader) {
	r.lease = ref(rd.U32())
	for i := range r.versions {
		r.versions[i] = rd.U32()
	}
}

// secretTables are the secrets, and what was given of them.
type secretTables struct {
	recs    *mem.Table[secretRec]
	slots   *mem.Slots
	byName  *mem.Hash
	given   *mem.Table[givenRec]
	giving  *mem.Slots // of given
	byLease *mem.Hash
	of      *mem.Table[secretTally] // by string number of the tenant; of all at 0; derived
}

type secretTally struct {
	count uint32
	bytes uint64
}

// applySecrets applies a command about secrets.
func (m *Machine) applySecrets(kind uint8, r *wire.Reader) Result {
	switch kind {
	case typePutSecret:
		return m.applyPutSecret(r)
	case typeDeleteSecret:
		return m.applyDeleteSecret(r)
	case typeSetRegionKey:
		return m.applySetRegionKey(r)
	default:
		return m.applyGiveSecrets(r)
	}
}

func newSecretTables(s *mem.Space) secretTables {
	return secretTables{
		recs: mem.NewHashed(s, 4, hasher[secretRec](seedSecret)), slots: mem.NewSlots(s), byName: mem.NewHash(s),
		given: mem.NewHashed(s, 5, hasher[givenRec](seedGivenSecrets)), giving: mem.NewSlots(s), byLease: mem.NewHash(s),
		of: mem.NewTable[secretTally](s, 8),
	}
}

func (t *secretTables) fork(s *mem.Space) secretTables {
	return secretTables{
		recs: t.recs.Fork(s), slots: t.slots.Fork(s), byName: t.byName.Fork(s),
		given: t.given.Fork(s), giving: t.giving.Fork(s), byLease: t.byLease.Fork(s), of: t.of.Fork(s),
	}
}

func hashSecret(tenant uint32, name []byte) uint64 { return mem.HashBytes(uint64(tenant), name) }

func hashGiven(lease ref) uint64 { return mem.Mix(uint64(lease), seedGivenSecrets) }

// secretSlot returns the slot of a tenant's secret.
func (m *Machine) secretSlot(tenant uint32, name []byte) (uint32, bool) {
	if tenant == 0 || len(name) == 0 || len(name) > gpuai.MaxNameLen {
		return 0, false
	}
	var n secretName
	copy(n[:], name)
	return m.secrets.byName.Find(hashSecret(tenant, name), func(s uint32) bool {
		r := m.secrets.recs.Get(s)
		return r.tenant == tenant && r.name == n
	})
}

// tally counts a secret for its tenant and for all.
func (m *Machine) tallySecret(tenant uint32, count int32, bytes int64) {
	m.secrets.of.Grow(tenant + 1)
	for _, at := range [2]uint32{0, tenant} {
		t := m.secrets.of.Mut(at)
		t.count += uint32(count)
		t.bytes += uint64(bytes)
	}
}

func (m *Machine) secretsOf(tenant uint32) secretTally {
	if tenant >= m.secrets.of.Len() {
		return secretTally{}
	}
	return *m.secrets.of.Get(tenant)
}

// setSecretBody stores what a secret consists of, in place of what it consisted
// of before.
func (m *Machine) setSecretBody(slot uint32, key, box []byte) {
	body := wire.AppendBytes(wire.AppendBytes(nil, key), box)
	r := m.secrets.recs.Mut(slot)
	if r.body != 0 {
		m.blobs.Free(uint32(r.body))
	}
	r.sum, r.bytes, r.body = hashOf(body), uint32(len(box)), ref(m.blobs.Put(body))
}

// knownSecrets refuses a job that wants a secret that its tenant does not have.
func (m *Machine) knownSecrets(v *wire.JobView) Result {
	tenant, _ := m.strs.FindBytes(v.Tenant)
	for i := range v.Groups[:v.NumGroups] {
		list := v.Groups[i].Secrets
		if list == nil {
			continue
		}
		missing := ""
		wire.SecretNames(list, func(name []byte) bool {
			m.now.work -= workLook
			if _, ok := m.secretSlot(tenant, name); !ok {
				missing = string(name)
			}
			return missing == ""
		})
		if missing != "" {
			return rejected(gpuai.InvalidSpec, noSecret(missing))
		}
	}
	return Result{}
}

// wantsSecrets reports whether a group of a job has secrets.
func wantsSecrets(v *wire.JobView) bool {
	for i := range v.Groups[:v.NumGroups] {
		if v.Groups[i].Secrets != nil {
			return true
		}
	}
	return false
}

// noSecret says that a secret is not there, and what to do.
func noSecret(name string) string {
	return "the secret " + name + " does not exist in the job's tenant: set it with gpuai secret put " + name
}

// A SealedSecret is a secret as the machine keeps it.
type SealedSecret struct {
	gpuai.SecretInfo
	// Seal is the data key, sealed under the region's keyring, and Box the value,
	// sealed under the data key.
	Seal, Box []byte
}

// Secrets returns a page of the secrets of a tenant, or of all with "", from a
// slot on, without what is sealed, and where the next page begins; 0 when there
// is none. It looks at up to n slots.
func (m *Machine) Secrets(from uint32, n int, tenant gpuai.TenantID) (page []gpuai.SecretInfo, next uint32) {
	for s, ok := m.secrets.slots.Next(from); ok; s, ok = m.secrets.slots.Next(s + 1) {
		if n--; n < 0 {
			return page, s
		}
		if i := m.secretInfo(s); tenant == "" || i.Tenant == tenant {
			page = append(page, i)
		}
	}
	return page, 0
}

// Secret returns a secret, sealed.
func (m *Machine) Secret(tenant gpuai.TenantID, name string) (SealedSecret, bool) {
	n, _ := m.strs.Find(string(tenant))
	slot, ok := m.secretSlot(n, []byte(name))
	if !ok {
		return SealedSecret{}, false
	}
	rd := wire.NewReader(m.blobs.Append(nil, uint32(m.secrets.recs.Get(slot).body)))
	return SealedSecret{SecretInfo: m.secretInfo(slot), Seal: rd.Blob(), Box: rd.Blob()}, true
}

// NextSecretUnder returns the next secret from a slot on that is sealed under
// another key than key, and its slot.
func (m *Machine) NextSecretUnder(from uint32, key SecretKeyID) (s SealedSecret, slot uint32, ok bool) {
	for at, ok := m.secrets.slots.Next(from); ok; at, ok = m.secrets.slots.Next(at + 1) {
		if m.secrets.recs.Get(at).key != key {
			i := m.secretInfo(at)
			s, _ = m.Secret(i.Tenant, i.Name)
			return s, at, true
		}
	}
	return s, 0, false
}

func (m *Machine) secretInfo(slot uint32) gpuai.SecretInfo {
	r := m.secrets.recs.Get(slot)
	const overhead = 12 + 16 // of a box; see identity.Keyring
	return gpuai.SecretInfo{
		Name: r.name.String(), Tenant: gpuai.TenantID(m.strs.Get(r.tenant)), Version: r.version,
		Bytes: r.bytes - min(r.bytes, overhead), Set: r.wall, Key: fmt.Sprintf("%x", r.key), ModifyIndex: r.modified,
	}
}

// givenTo returns which versions a lease's task was given; nil for none.
func (m *Machine) givenTo(lease uint32) *givenRec {
	if m.secrets.giving.Len() == 0 {
		return nil
	}
	slot, ok := m.secrets.byLease.Find(hashGiven(refTo(lease)), func(s uint32) bool { return m.secrets.given.Get(s).lease == refTo(lease) })
	if !ok {
		return nil
	}
	return m.secrets.given.Get(slot)
}

// secretsGiven returns the same with names.
func (m *Machine) secretsGiven(lease uint32) (out []gpuai.LeaseSecret) {
	given := m.givenTo(lease)
	if given == nil {
		return nil
	}
	var v wire.JobView
	g := m.viewOfLease(lease, &v)
	if g == nil {
		return nil
	}
	i := 0
	wire.SecretNames(g.Secrets, func(name []byte) bool {
		out = append(out, gpuai.LeaseSecret{Name: string(name), Version: given.versions[i]})
		i++
		return i < len(given.versions)
	})
	return out
}

// viewOfLease reads the spec of a lease's job, and returns its group.
func (m *Machine) viewOfLease(lease uint32, v *wire.JobView) *wire.GroupView {
	g := m.groups.Get(m.tasks.Get(m.leases.Get(lease).task.slot()).group.slot())
	if wire.ReadJobView(m.blobs.Append(nil, uint32(m.jobs.Get(g.job.slot()).spec)), v) != nil || g.idx >= v.NumGroups {
		return nil // written by us: cannot be
	}
	return &v.Groups[g.idx]
}

// setGiven notes what a lease's task is given; false when there is no room.
func (m *Machine) setGiven(lease uint32, versions *[gpuai.MaxTaskSecrets]uint32) bool {
	h := hashGiven(refTo(lease))
	slot, ok := m.secrets.byLease.Find(h, func(s uint32) bool { return m.secrets.given.Get(s).lease == refTo(lease) })
	if !ok {
		if m.secrets.giving.Len() >= MaxGivenSecrets {
			return false
		}
		slot, _ = m.secrets.giving.Alloc()
		m.secrets.byLease.Insert(h, slot)
	}
	m.secrets.given.Put(slot, givenRec{lease: refTo(lease), versions: *versions})
	return true
}

// forgetGiven forgets what a lease's task was given.
func (m *Machine) forgetGiven(lease ref) {
	if m.secrets.giving.Len() == 0 {
		return
	}
	h := hashGiven(lease)
	if slot, ok := m.secrets.byLease.Find(h, func(s uint32) bool { return m.secrets.given.Get(s).lease == lease }); ok {
		m.secrets.byLease.Delete(h, slot)
		*m.secrets.given.Mut(slot) = givenRec{}
		m.secrets.giving.Free(slot)
	}
}

func (m *Machine) writeSecrets(f *frameWriter) {
	if m.secrets.slots.Len() > 0 {
		f.begin(secSecrets)
		for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
			r := m.secrets.recs.Get(s)
			f.buf = le.AppendUint32(f.buf, s)
			f.buf = r.put(f.buf)
			f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.body)))
			f.added()
		}
		f.end()
	}
	if m.secrets.giving.Len() > 0 {
		writeTable(f, secGiven, m.secrets.given, m.secrets.giving)
	}
}

// secretFrame reads a frame of secrets; false for another.
func (m *Machine) secretFrame(section uint8, f rows) bool {
	switch section {
	case secSecrets:
		for range f.count {
			m.restoreSecret(f.rd)
		}
	case secGiven:
		readTable(f, m.secrets.given, m.secrets.giving)
	default:
		return false
	}
	return true
}

func (m *Machine) restoreSecret(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= MaxSecrets || m.secrets.slots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.secrets.slots.Take(slot)
	m.secrets.recs.Grow(slot + 1)
	r := m.secrets.recs.Mut(slot)
	r.get(rd)
	body := rd.Blob()
	if r.body = ref(m.blobs.Put(body)); hashOf(body) != r.sum || r.tenant == 0 || r.tenant >= MaxStrings {
		rd.Fail("a secret is another one than its hash says, or nobody's")
	}
}

// rebuildSecrets makes the indexes and tallies anew.
func (m *Machine) rebuildSecrets() {
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		r := m.secrets.recs.Get(s)
		m.secrets.byName.Insert(hashSecret(r.tenant, []byte(r.name.String())), s)
		m.tallySecret(r.tenant, 1, int64(r.bytes))
	}
	for s, ok := m.secrets.giving.Next(0); ok; s, ok = m.secrets.giving.Next(s + 1) {
		m.secrets.byLease.Insert(hashGiven(m.secrets.given.Get(s).lease), s)
	}
}

// checkSecrets verifies that secrets are found and counted, and that what was
// given was given to leases that there are.
func (m *Machine) checkSecrets() error {
	tallies := make([]secretTally, m.strs.Len())
	for s, ok := m.secrets.slots.Next(0); ok; s, ok = m.secrets.slots.Next(s + 1) {
		r := m.secrets.recs.Get(s)
		if r.tenant == 0 || r.tenant >= m.strs.Len() || r.version == 0 || !gpuai.ValidName(r.name.String()) {
			return fmt.Errorf("secret %d has no tenant, name or version", s)
		}
		if at, ok := m.secretSlot(r.tenant, []byte(r.name.String())); !ok || at != s {
			return fmt.Errorf("secret %d is not found", s)
		}
		body := m.blobs.Append(nil, uint32(r.body))
		rd := wire.NewReader(body)
		if rd.Blob(); hashOf(body) != r.sum || uint32(len(rd.Blob())) != r.bytes || rd.Done() != nil {
			return fmt.Errorf("secret %d is not what it was", s)
		}
		for _, at := range [2]uint32{0, r.tenant} {
			tallies[at].count++
			tallies[at].bytes += uint64(r.bytes)
		}
	}
	for i := range max(m.strs.Len(), m.secrets.of.Len()) {
		want := secretTally{}
		if i < m.strs.Len() {
			want = tallies[i]
		}
		if got := m.secretsOf(i); got != want {
			return fmt.Errorf("tenant %d has %d secrets of %d bytes, not %d of %d", i, want.count, want.bytes, got.count, got.bytes)
		}
	}
	for s, ok := m.secrets.giving.Next(0); ok; s, ok = m.secrets.giving.Next(s + 1) {
		r := m.secrets.given.Get(s)
		if r.lease == 0 || !m.leaseSlots.Has(r.lease.slot()) || m.givenTo(r.lease.slot()) != r {
			return fmt.Errorf("secrets were given to lease %d, which is not there", r.lease)
		}
	}
	return nil
}
