package fsm

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// DefaultWeight is the weight of a tenant to whom none was given.
const DefaultWeight = 100

const (
	// decaySteps is in how many steps usage falls by half, and decay what it is
	// multiplied by in each, in units of 2^-32: the 32nd root of one half.
	decaySteps = 32
	decay      = 4_202_935_003
	// chargedAhead is what a tenant is charged ahead for each device that it holds,
	// as if it had held it for so much longer: without it, all that is granted
	// at one instant would go to one tenant.
	chargedAhead = gpuai.Minute
)

// A tenantRec is what the region knows of a tenant's share, from LevelPlacement
// on. Usage is what its leases held of devices, in thousandths of a device
// times milliseconds, and falls by half in each half-life of the policy: at each
// step of region time (a multiple of half-life / decaySteps) it is multiplied by
// decay and rounded down. It is brought up to date when held changes only; what
// it is at any other instant follows.
type tenantRec struct {
	name   uint32 // string number
	weight uint32
	usage  uint64 // at the instant at
	held   uint64 // milli-devices of its live leases, those from before the level aside
	at     gpuai.Instant
	// What follows is zero below LevelTenants: device time held in all, and at the
	// beginning of the day and of the month.
	total, day, month uint64
}

// tenantTotals is set in a tenant's weight: the totals follow.
const tenantTotals = 1 << 31

func (r *tenantRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.name)
	totals := r.total|r.day|r.month != 0
	b = le.AppendUint32(b, r.weight|uint32(bool8(totals))*tenantTotals)
	b = le.AppendUint64(b, r.usage)
	b = le.AppendUint64(b, r.held)
	b = put64(b, int64(r.at))
	if totals {
		b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, r.total), r.day), r.month)
	}
	return b
}

func (r *tenantRec) get(rd *wire.Reader) {
	r.name = rd.U32()
	weight := rd.U32()
	r.weight = weight &^ tenantTotals
	r.usage = rd.U64()
	r.held = rd.U64()
	r.at = gpuai.Instant(rd.I64())
	if weight&tenantTotals != 0 {
		r.total, r.day, r.month = rd.U64(), rd.U64(), rd.U64()
	}
}

// addSat and mulSat stop at the greatest number.
func addSat(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return s
}

func mulSat(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

// usageAt returns a tenant's usage at an instant not before r.at.
func (r *tenantRec) usageAt(now gpuai.Instant, halfLife gpuai.Duration) uint64 {
	step := max(halfLife/decaySteps, 1)
	if uint64(now-r.at) < uint64(step)-uint64(r.at)%uint64(step) { // within one step
		return addSat(r.usage, mulSat(r.held, uint64(now-r.at)))
	}
	usage, at := r.usage, r.at
	for left := int64(now)/int64(step) - int64(at)/int64(step); left > 0; left-- {
		next := gpuai.Instant((int64(at)/int64(step) + 1) * int64(step))
		whole := addSat(usage, mulSat(r.held, uint64(next-at)))
		hi, lo := bits.Mul64(whole, decay)
		then := hi<<32 | lo>>32
		if then == usage && next-at == gpuai.Instant(step) { // no step changes it any more
			at = gpuai.Instant(int64(now) / int64(step) * int64(step))
			break
		}
		usage, at = then, next
	}
	return addSat(usage, mulSat(r.held, uint64(now-at)))
}

// totalAt returns the device time that a tenant has held up to an instant not before
// r.at.
func (r *tenantRec) totalAt(now gpuai.Instant) uint64 {
	return addSat(r.total, mulSat(r.held, uint64(now-r.at)))
}

// A claim is what a tenant has had, by which the queue orders tenants of one
// priority: the one with the lower usage for its weight is first.
type claim struct {
	usage  uint64
	weight uint32
}

// compare orders claims by usage/weight, exactly: the products have 128 bits.
func (a claim) compare(b claim) int {
	ahi, alo := bits.Mul64(a.usage, uint64(b.weight))
	bhi, blo := bits.Mul64(b.usage, uint64(a.weight))
	switch {
	case ahi != bhi && ahi < bhi, ahi == bhi && alo < blo:
		return -1
	case ahi == bhi && alo == blo:
		return 0
	default:
		return 1
	}
}

// claimOf returns the claim of a tenant by its string number. Below the level,
// and of a tenant that was never granted anything, it is the least.
func (m *Machine) claimOf(tenant uint32) claim {
	if tenant >= m.tenantOf.Len() || *m.tenantOf.Get(tenant) == 0 {
		return claim{weight: DefaultWeight}
	}
	r := m.tenants.Get(m.tenantOf.Get(tenant).slot())
	usage := r.usageAt(max(m.meta.Get().time, r.at), m.policy.Get().HalfLife())
	return claim{addSat(usage, mulSat(r.held, uint64(chargedAhead))), r.weight}
}

// tenantFor returns a tenant's record by its string number; it makes one when
// there is none and room for it.
func (m *Machine) tenantFor(tenant uint32) (slot uint32, ok bool) {
	m.tenantOf.Grow(tenant + 1)
	if at := *m.tenantOf.Get(tenant); at != 0 {
		return at.slot(), true
	}
	if m.tenants.Len() >= MaxTenants {
		return 0, false
	}
	slot = m.tenants.Append(tenantRec{name: tenant, weight: DefaultWeight, at: m.now.time})
	*m.tenantOf.Mut(tenant) = refTo(slot)
	return slot, true
}

// counted reports whether a lease is in its tenant's held: those from before
// the level are not.
func (m *Machine) counted(t gpuai.Token) bool {
	return m.Level() >= LevelPlacement && t >= m.meta.Get().countedFrom
}

// account notes that a tenant holds more of the devices from now on, or less.
func (m *Machine) account(tenant uint32, more, less uint64) {
	slot, ok := m.tenantFor(tenant)
	if !ok {
		return // a tenant beyond the limit has no submits; a lease from before it may be
	}
	r := m.tenants.Mut(slot)
	m.bringUp(r)
	r.held += more
	r.held -= min(less, r.held)
	m.turns.touchTenant(tenant)
}

// bringUp computes a tenant's usage at the present instant.
func (m *Machine) bringUp(r *tenantRec) {
	now := max(m.now.time, r.at)
	if m.Level() >= LevelTenants {
		r.total = r.totalAt(now)
	}
	r.usage, r.at = r.usageAt(now, m.policy.Get().HalfLife()), now
}

// bringUpAll does so for all tenants: the half-life is about to change.
func (m *Machine) bringUpAll() {
	for s := range m.tenants.Len() {
		m.now.work -= workLook
		m.bringUp(m.tenants.Mut(s))
	}
}

// Tenants returns the tenants from a slot on that the region has granted
// something, or given a weight, limit of them, and the slot to go on from; 0 at
// the end.
func (m *Machine) Tenants(from, limit uint32) (out []gpuai.TenantShare, next uint32) {
	for s := from; s < m.tenants.Len(); s++ {
		if s-from == limit {
			return out, s
		}
		out = append(out, m.tenantShare(s))
	}
	return out, 0
}

// Tenant returns what Tenants does of one.
func (m *Machine) Tenant(id gpuai.TenantID) (gpuai.TenantShare, bool) {
	if !m.knownTenant([]byte(id)) {
		return gpuai.TenantShare{}, false
	}
	n, _ := m.strs.Find(string(id))
	return m.tenantShare(m.tenantOf.Get(n).slot()), true
}

func (m *Machine) tenantShare(slot uint32) gpuai.TenantShare {
	r := m.tenants.Get(slot)
	share := gpuai.TenantShare{
		ID: gpuai.TenantID(m.strs.Get(r.name)), Weight: r.weight, HeldMilli: r.held,
		UsageMilliHours: r.usageAt(max(m.Time(), r.at), m.policy.Get().HalfLife()) / uint64(gpuai.Hour),
	}
	if slot < m.accounts.Len() && m.accounts.Get(slot).created {
		share.Created, share.Name = m.accounts.Get(slot).wall, string(m.blobs.Append(nil, uint32(m.accounts.Get(slot).name)))
	}
	return share
}

// tenantOfLease returns the string number of a lease's tenant.
func (m *Machine) tenantOfLease(l *leaseRec) uint32 {
	return m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot()).tenant
}

func (m *Machine) knownTenant(name []byte) bool {
	n, ok := m.strs.FindBytes(name)
	return ok && n < m.tenantOf.Len() && *m.tenantOf.Get(n) != 0
}
