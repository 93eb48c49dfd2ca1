package fsm

import "github.com/gpuai/gpuai"

// Limits of the machine. A command that would exceed one is rejected with
// RateLimited or TooLarge and changes nothing.
const (
	MaxNodes       = 1 << 18 // registered nodes
	MaxJobs        = 1 << 22 // jobs kept, ended ones too
	MaxGroupRecs   = 1 << 23 // groups of all jobs
	MaxTaskRecs    = 1 << 23 // tasks that have had a lease
	MaxLeaseRecs   = 1 << 23 // leases kept: the latest of each task
	MaxResults     = 1 << 21 // remembered answers to idempotency keys
	MaxStrings     = 1 << 20 // distinct names of nodes, zones, labels, models
	MaxBuckets     = 1 << 15 // distinct (priority, shape, gang size) that wait
	MaxBlocks      = 1 << 24 // blocks of 120 bytes for specs
	MaxTenantKinds = 1 << 10 // different requests of a tenant that it may have however many others there are
	MaxTenants     = 1 << 14 // tenants that were granted something or given a weight
	MaxEdges       = 1 << 22 // pairs of a job and one that it waits for
	MaxNodeLeases  = 1_024   // live leases of one node
	// MaxAccessTokens is how many access tokens are kept, those that are over for
	// less than a day too, MaxTenantTokens how many of one tenant.
	MaxAccessTokens = 1 << 16
	MaxTenantTokens = 1 << 12
	// OperatorTokens are the last of the region's tokens, which operators may make
	// only; MadeTokens the last of a tenant's, which no login may take.
	OperatorTokens = 1_024
	MadeTokens     = 256
	// MaxUserLogins is how many tokens of one user's logins are kept,
	// MaxContributorLogins those of all users of a contributor, MaxLogins of all.
	MaxUserLogins        = 256
	MaxContributorLogins = 1_024
	MaxLogins            = MaxAccessTokens / 4 * 3
	MaxRoles             = 1 << 10 // mappings of claims to scopes
	MaxTouched           = 256     // tokens of one TouchTokens
	MaxRetire            = 1_000   // jobs of one RetireJobs
	// MaxServers is how many servers are remembered, removed ones above all.
	MaxServers = 4_096
	// MaxAuthorities is how many CAs are trusted at a time, MaxJoinTokens how many
	// join tokens have neither expired nor been used, MaxUsedJoinTokens how many used
	// ones are remembered until they expire, MaxIdentities how many nodes and servers have
	// joined or were revoked.
	MaxAuthorities = 4
	// MaxRegionKeys is how many keys of the servers' keyrings are known, retired
	// ones among them; the first retired are forgotten first.
	MaxRegionKeys     = 32
	MaxJoinTokens     = 4_096
	MaxUsedJoinTokens = 4_096
	MaxIdentities     = MaxNodes + MaxServers

	// MaxSecrets is how many secrets are kept, MaxTenantSecrets of one tenant, and
	// MaxAllSecretBytes and MaxTenantSecretBytes what their values have in all.
	// MaxGivenSecrets is of how many leases it is known what they were given.
	MaxSecrets           = 1 << 14
	MaxTenantSecrets     = 256
	MaxAllSecretBytes    = 256 << 20
	MaxTenantSecretBytes = 4 << 20
	MaxGivenSecrets      = 1 << 20

	// MaxNotes is how many tasks and groups may have one, MaxEndNotes how many
	// there may be for one more of an end to be kept: digests of images come first.
	MaxNotes    = 1 << 20
	MaxEndNotes = MaxNotes / 8 * 7
	// MaxNoteBlocks is how many blocks may be in use for one more note of an end to
	// be kept: specs and digests come first.
	MaxNoteBlocks = MaxBlocks / 2

	// MaxCheckpoints is how many published checkpoints of all tasks are known,
	// MaxTenantCheckpoints of those of one tenant. Jobs that ended are retired
	// sooner before either is reached.
	MaxCheckpoints       = 1 << 22
	MaxTenantCheckpoints = MaxCheckpoints / 4 * 3

	// MaxHolds is for how many tasks room may be kept at a time.
	MaxHolds = 1 << 16

	// MaxLeasesPerEntry is how many tokens one index has.
	MaxLeasesPerEntry = gpuai.MaxTokenOrdinal
	// DigestsKept is how many indexes back DigestAt answers.
	DigestsKept = 8_192
	// WorkPerEntry is the budget of one entry, in units of roughly 50 ns: what
	// is left when it is spent stays as backlog, and NextDeadline is now.
	WorkPerEntry = 200_000
	// expiriesPerEntry bounds how many remembered answers one entry drops.
	expiriesPerEntry = 2_048
)

// Units of work that are charged for what is not counted block by block.
const (
	workCommand = 20
	workPlace   = 20
	workEnd     = 20
	workLook    = 1
)
