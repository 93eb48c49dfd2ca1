package gpuai

// MaxTenantWeight is the highest weight of a tenant.
const MaxTenantWeight = 10_000

// A TenantRequest creates a tenant.
type TenantRequest struct {
	ID   TenantID `json:"id"`
	Name string   `json:"name,omitzero"` // "" is as its ID
}

// Validate reports everything wrong with a request.
func (r *TenantRequest) Validate() []FieldError {
	var v fieldErrors
	v.check(ValidName(string(r.ID)), "/id", "is 1 to 63 characters of a-z, 0-9 and '-'")
	v.check(ValidNote(r.Name), "/name", "is at most 256 bytes of text on one line")
	return v
}

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
	// Created is when an operator created it; 0: it was not, jobs of it came.
	Created WallTime `json:"created_unix_ms,omitzero"`
	// Name is what people call it; "" is as its ID.
	Name string `json:"name,omitzero"`
}

// A FairShare is where a tenant stands among all, by which the jobs of one priority
// are ordered.
type FairShare struct {
	Tenant TenantID `json:"tenant"`
	Weight uint32   `json:"weight"`
	// UsageMilliHours is as in TenantShare.
	UsageMilliHours uint64 `json:"usage_milli_hours"`
	// SharePermille is the tenant's part of the usage of all tenants, and
	// DuePermille its part of the weights of those that have jobs waiting or
	// running, in thousandths, rounded down.
	SharePermille uint32 `json:"share_permille"`
	DuePermille   uint32 `json:"due_permille"`
	// Place is its place among the Tenants that have jobs of this priority waiting;
	// 1 is placed first.
	Place   uint32 `json:"place"`
	Tenants uint32 `json:"tenants"`
}
