package gpuai

// ReasonCode says why a task is pending. Its text is stable.
type ReasonCode uint8

// The reasons. Those of capabilities that are not built yet keep their place.
const (
	ReasonNone ReasonCode = iota
	QueueOrder
	InsufficientGPUs
	Fragmented
	ConstraintFiltered
	NoSuchDevice
	TopologyUnsatisfied
	GangIncomplete
	QuotaExhausted
	BudgetExhausted
	PriceAboveLimit
	NodesUnhealthy
	NoNodes
	Dependency
	BeginTime
	Held
	ImagePull
	Preempted
	RegionUnreachable
	// InsufficientCPU and what follows it are ours beside the published list.
	InsufficientCPU
	InsufficientMemory
	BackOff
	// Quiet is the time behind a restore in which runners from before it may
	// still hold their devices.
	Quiet
	// ArrayThrottled is an array that has as many leases as it may at a time.
	ArrayThrottled
	// GangNotReady is a gang, or groups that start together, whose tasks have
	// their leases and wait until all are ready to start.
	GangNotReady
	// InsufficientScratch is too little scratch space that is not lent.
	InsufficientScratch
	// OutsideSchedule is nodes that may not be used now, or not for so long, by the
	// hours that their contributors give.
	OutsideSchedule
	// NoRendezvousPort is a gang that has room, but no port where its rank 0 would be.
	NoRendezvousPort
	// DiskFull is nodes whose agents take no new task since their disk is full, and
	// NodeRefuses those that take none for another reason.
	DiskFull
	NodeRefuses
	numReasons
)

// NumReasons is the size of a table indexed by ReasonCode.
const NumReasons = int(numReasons)

var reasonNames = [numReasons]string{
	"", "QueueOrder", "InsufficientGPUs", "Fragmented", "ConstraintFiltered",
	"NoSuchDevice", "TopologyUnsatisfied", "GangIncomplete", "QuotaExceeded",
	"BudgetExceeded", "PriceAboveLimit", "NodesUnhealthy", "NoNodes", "Dependency",
	"BeginTime", "Held", "ImagePull", "Preempted", "RegionUnreachable",
	"InsufficientCPU", "InsufficientMemory", "BackOff", "Quiet",
	"ArrayThrottled", "GangNotReady", "InsufficientScratch", "OutsideSchedule",
	"NoRendezvousPort", "DiskFull", "NodeRefuses",
}

// String returns the reason's text.
func (r ReasonCode) String() string { return enumName(reasonNames[:], uint8(r)) }

// MarshalText writes the reason's text.
func (r ReasonCode) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a reason's text.
func (r *ReasonCode) UnmarshalText(b []byte) error {
	return enumParse(reasonNames[:], "reason", b, (*uint8)(r))
}

// A Reason says why something waits or cannot be, with counts.
type Reason struct {
	Code    ReasonCode `json:"code"`
	Message string     `json:"message"`
	Nodes   uint32     `json:"nodes,omitzero"` // that the reason holds for
	GPUs    uint32     `json:"gpus,omitzero"`  // of those nodes
	Fix     string     `json:"fix,omitzero"`   // what would help
}

// A Rule is one row of an explanation: how many nodes fail it.
type Rule struct {
	Name  string     `json:"name"` // "gpu.memory", "gpu.count", "cpu", "label.x", …
	Code  ReasonCode `json:"code"`
	Nodes uint32     `json:"nodes"` // that fail the rule
	Alone uint32     `json:"alone"` // that fail only this rule
}

// An Explanation says why a job's tasks wait, or where they run, at an index.
type Explanation struct {
	Job        JobID      `json:"job"`
	Name       string     `json:"name"`
	Status     JobStatus  `json:"status"`
	Index      uint64     `json:"index"`
	PendingFor Duration   `json:"pending_for_ms,omitzero"`
	Position   uint32     `json:"queue_position,omitzero"` // 1 = next
	QueueLen   uint32     `json:"queue_length,omitzero"`   // jobs
	AheadJobs  uint32     `json:"ahead_jobs,omitzero"`
	AheadGPUs  uint32     `json:"ahead_gpus,omitzero"`
	Groups     []GroupWhy `json:"groups,omitempty"`
	Tasks      []Task     `json:"tasks,omitempty"` // the first ones, at most 100
	Reasons    []Reason   `json:"reasons,omitempty"`
	// Share is where the job's tenant stands, while the job waits and tenants have
	// shares (from feature level 3 on).
	Share *FairShare `json:"fair_share,omitempty"`
	Helps []Helpful  `json:"helps,omitempty"`
	// Ahead are the first in the queue before the job, at most 5, each with why
	// it is preferred.
	Ahead []Preferred `json:"ahead,omitempty"`
	// Estimate is when a task starts, when one waits.
	Estimate *StartEstimate `json:"start_estimate,omitempty"`
	// Places say why tasks run where they do, the first ones, at most 5.
	Places []PlacedWhy `json:"places,omitempty"`
}

// A Preferred is a job before another in the queue.
type Preferred struct {
	QueueEntry
	Why string `json:"why"`
}

// A PlacedWhy says why a task got the place that it has.
type PlacedWhy struct {
	TaskRef
	Lease  Token    `json:"lease"`
	Node   NodeID   `json:"node"`
	Index  uint64   `json:"index"`     // of the grant
	Waited Duration `json:"waited_ms"` // from the job's submit
	// Nodes is how many were registered then, Fits how many would have taken
	// the task, and Steps how the order of the index came to one of them.
	Nodes uint32      `json:"nodes,omitzero"`
	Fits  uint32      `json:"fits,omitzero"`
	Steps []PlaceStep `json:"steps,omitempty"`
	// Note says what is to be known beside it: that the past is no longer kept,
	// or that another policy than best fit chose.
	Note string `json:"note,omitzero"`
}

// A PlaceStep is one rule of the order by which a place is chosen.
type PlaceStep struct {
	Rule  string `json:"rule"`
	Value string `json:"value"` // of the place chosen
	Nodes uint32 `json:"nodes"` // that are still as good
}

// A GroupWhy explains one group of a job.
type GroupWhy struct {
	Group     string    `json:"group"`
	Pending   uint32    `json:"pending"` // tasks
	Needs     Resources `json:"needs"`
	Nodes     uint32    `json:"nodes"`    // judged
	Feasible  uint32    `json:"feasible"` // nodes that would take one task now
	Rules     []Rule    `json:"rules,omitempty"`
	FreeGPUs  uint32    `json:"free_gpus"`     // whole ones on matching nodes
	LargestOn uint32    `json:"largest_block"` // most free GPUs on one matching node
}

// A Helpful is one thing that would let a pending task start.
type Helpful struct {
	Change string `json:"change"` // "gpu.memory 24GiB..", "wait"
	Effect string `json:"effect"` // "starts now on gpu-c11"
}
