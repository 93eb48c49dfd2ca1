package gpuai

// EventKind is what an event tells.
type EventKind uint8

// The kinds.
const (
	JobSubmitted EventKind = iota + 1
	JobEnded
	LeaseGrantedEvent
	LeaseStarted
	LeaseRevokingEvent
	LeaseEndedEvent
	// LeaseAdopted moves a lease to a node's new incarnation.
	LeaseAdopted
	TaskRequeued
	NodeRegistered
	NodeChanged
	PolicySet
	LevelSet
	RegionRestored
	// ImageResolved tells the digest that a group's image was resolved to.
	ImageResolved
	// CheckpointPublished tells of a task's newest checkpoint, CheckpointRefused
	// of one that a runner wanted to publish which has lost its lease, or after
	// another one than the task's newest.
	CheckpointPublished
	CheckpointRefused
	// LeaseReady: all members of the lease's gang are ready, and its task may start.
	LeaseReady
	// LeasePeers: the lease's gang has a member more that it reaches by its mesh. One
	// lease of each node is told of.
	LeasePeers
	// QuotaSet and BudgetSet tell of a tenant's new quota and budget, PricesSet of
	// new prices of models or of a node.
	QuotaSet
	BudgetSet
	PricesSet
	// BudgetWarning: what a tenant has spent, and what is held for it, have reached
	// four fifths of a budget.
	BudgetWarning
	numEventKinds
)

var eventKindNames = [numEventKinds]string{
	"", "job_submitted", "job_ended", "lease_granted", "lease_started", "lease_revoking",
	"lease_ended", "lease_adopted", "task_requeued", "node_registered", "node_changed",
	"policy_set", "level_set", "region_restored", "image_resolved", "checkpoint_published",
	"checkpoint_refused", "lease_ready", "lease_peers", "quota_set", "budget_set", "prices_set", "budget_warning",
}

// String returns the kind's text.
func (k EventKind) String() string { return enumName(eventKindNames[:], uint8(k)) }

// MarshalText writes the kind's text.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's text.
func (k *EventKind) UnmarshalText(b []byte) error {
	return enumParse(eventKindNames[:], "event kind", b, (*uint8)(k))
}

// An Event is one effect of a command. Its place is (Index, Ordinal); fields
// that a kind does not have are zero.
type Event struct {
	Index       uint64      `json:"index"`
	Ordinal     uint32      `json:"ordinal"`
	Kind        EventKind   `json:"kind"`
	At          Instant     `json:"at_ms"`
	Job         JobID       `json:"job,omitzero"`
	Group       uint16      `json:"group,omitzero"`
	Task        uint32      `json:"task,omitzero"`
	Lease       Token       `json:"lease,omitzero"`
	Node        NodeID      `json:"node,omitzero"`
	Incarnation Incarnation `json:"incarnation,omitzero"`
	JobStatus   JobStatus   `json:"job_status,omitzero"`
	NodeState   NodeState   `json:"node_state,omitzero"`
	// Tenant is whose quota or budget it tells of.
	Tenant TenantID `json:"tenant,omitzero"`
	// By is the job that a preempted lease makes room for.
	By       JobID      `json:"by,omitzero"`
	Drained  bool       `json:"drained,omitzero"`
	Cause    LeaseCause `json:"cause,omitzero"`
	ExitCode int32      `json:"exit_code,omitzero"`
	// EndCode and Reason are what an agent said of a lease's end.
	EndCode EndCode `json:"end_code,omitzero"`
	Reason  string  `json:"reason,omitzero"`
	// Image is a digest.
	Image string `json:"image,omitzero"`
	// Checkpoint is the number of a published checkpoint.
	Checkpoint uint64 `json:"checkpoint,omitzero"`
}
