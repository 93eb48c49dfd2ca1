package gpuai

// MaxTenantWeight is the highest weight of a tenant.
const MaxTenantWeight = 10_000

// A TenantShare is what a tenant has had of the region's devices, and what it
// is to have: among jobs of one priority, those of the tenant with the lowest
// usage for its weight are placed first.
type TenantShare struct {
	ID     TenantID `json:"id"`
	Weight uint32   `json:"weight"`
	// HeldMilli is what its leases hold now, in thousandths of a device.
	HeldMilli uint64 `json:"held_milli"`
	// UsageMilliHours is what they held, in thousandths of a device times
	// hours, rounded down. It falls by half in each half-life of the policy.
	UsageMilliHours uint64 `json:"usage_milli_hours"`
}
