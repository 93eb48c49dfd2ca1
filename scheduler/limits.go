package scheduler

// Limits of the index. A call that would exceed one changes nothing and
// answers TooLarge.
const (
	// MaxNodes is one more than the highest slot of a node.
	MaxNodes = 1 << 18
	// MaxPools is how many distinct (zone, label set, device kind, price
	// tier, closing minute) there may be at a time. A label that names a single node makes a
	// pool of its own of it, which is what this limit is about.
	MaxPools = 4_096
	// MaxDomains is how many racks there may be at a time, and how many NVLink
	// domains, of all zones; MaxDomainNodes how many nodes one of them has.
	MaxDomains     = 8_192
	MaxDomainNodes = 4_096
	// MaxShapes is how many shapes there may be, idle ones too.
	MaxShapes = 16_384
	// MaxIdleShapes is how many shapes are remembered that no group uses, so
	// that a group that comes again finds its shape. The oldest goes first.
	MaxIdleShapes = 1_024
	// MaxFilters is how many distinct (constraints, alternative) there may be.
	MaxFilters = 16_384
	// maxShapeBlocks and maxPoolBlocks bound the bytes that describe shapes
	// and pools, in blocks of 120 bytes.
	maxShapeBlocks = 1 << 20
	maxPoolBlocks  = 1 << 19
)

// Work is counted in units of about 50 ns. A search costs workSearch of them
// and its ticks, rounded down.
const (
	workSearch   = 2
	ticksPerUnit = 8
	tickTree     = 1  // a tree, or a domain's counts, looked at
	tickNode     = 3  // a node looked at
	tickSeek     = 24 // a tree descended; most of its blocks are not in a cache
)
