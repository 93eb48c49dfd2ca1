package gpuai

// This file holds the bodies of the HTTP API that are no noun of their own.

// A Submitted answers a submit: 201 when every task has its lease, 202 when
// some have not.
type Submitted struct {
	Job    Job     `json:"job"`
	Leases []Lease `json:"leases"` // at most MaxSubmitLeases; see GET leases
	// Reasons and QueuePosition say why tasks wait; absent when none does.
	Reasons       []Reason `json:"reasons,omitempty"`
	QueuePosition uint32   `json:"queue_position,omitzero"`
	// Cost is what the job would cost; of a plan only, from feature level 4 on.
	Cost  *PlannedCost `json:"cost,omitempty"`
	Index uint64       `json:"index"`
}

// MaxSubmitLeases bounds the leases in the answer to a submit.
const MaxSubmitLeases = 1_000

// A BatchRequest is the body of jobs:batch.
type BatchRequest struct {
	Jobs []JobSpec `json:"jobs"`
}

// A BatchResult is the outcome of one job of a batch, in the order given.
type BatchResult struct {
	Job    JobID  `json:"job,omitzero"`
	Code   Code   `json:"code"`
	Detail string `json:"detail,omitzero"`
	Tasks  uint32 `json:"tasks,omitzero"`
	Leased uint32 `json:"leased,omitzero"` // tasks that have their lease
	Index  uint64 `json:"index,omitzero"`
}

// A QueueStatus sums up the queue.
type QueueStatus struct {
	Jobs      uint32       `json:"jobs"`  // with a pending task
	Tasks     uint64       `json:"tasks"` // pending
	GPUs      uint64       `json:"gpus"`  // that they ask for
	OldestAge Duration     `json:"oldest_age_ms"`
	Shapes    []QueueShape `json:"shapes"` // in queue order, at most 100
	Index     uint64       `json:"index"`
}

// A QueueShape is the waiting jobs of one shape and priority.
type QueueShape struct {
	Priority Priority   `json:"priority"`
	Needs    Resources  `json:"needs"`
	Gang     uint32     `json:"gang_tasks,omitzero"` // 0: not a gang
	Jobs     uint32     `json:"jobs"`
	Tasks    uint64     `json:"tasks"`
	Oldest   JobID      `json:"oldest"`
	Reason   ReasonCode `json:"reason"`
}

// A QueueEntry is one pending job in queue order.
type QueueEntry struct {
	Position uint32   `json:"position"`
	Job      JobID    `json:"job"`
	Name     string   `json:"name"`
	Tenant   TenantID `json:"tenant"`
	Priority Priority `json:"priority"`
	Pending  uint32   `json:"pending"` // tasks
	GPUs     uint32   `json:"gpus"`    // that the pending tasks ask for
	Waiting  Duration `json:"waiting_ms"`
}

// A RaftStatus is one server's view of its Raft group.
type RaftStatus struct {
	Server       ServerID  `json:"server"`
	Cluster      ClusterID `json:"cluster"`
	Region       RegionID  `json:"region"`
	State        string    `json:"state"` // "leader", "follower", "candidate", "shutdown"
	Term         uint64    `json:"term"`
	Leader       ServerID  `json:"leader,omitzero"`
	CommitIndex  uint64    `json:"commit_index"`
	AppliedIndex uint64    `json:"applied_index"`
	LastIndex    uint64    `json:"last_index"`
	FirstIndex   uint64    `json:"first_index"`
	SnapshotAt   uint64    `json:"snapshot_index"`
	LastContact  Duration  `json:"last_contact_ms"` // of a follower with its leader
	RegionTime   Instant   `json:"region_time_ms"`
	FeatureLevel uint32    `json:"feature_level"`
	// MaxFeatureLevel is the newest level that this server takes part in.
	MaxFeatureLevel uint32 `json:"max_feature_level"`
	Epoch           uint8  `json:"epoch"`
	RestoreID       string `json:"restore_id,omitzero"` // of the restore that began the epoch
	// QuietUntil is the region time before which nothing is granted, since the
	// region was restored from a backup.
	QuietUntil Instant `json:"quiet_until_ms,omitzero"`
	// Quarantined says why the server serves nothing; "" when it does.
	Quarantined string       `json:"quarantined,omitzero"`
	Disk        DiskUse      `json:"disk"`
	Members     []RaftMember `json:"members"`
}

// A RaftMember is one member of a Raft group.
type RaftMember struct {
	Server  ServerID `json:"server"`
	Address string   `json:"address"` // of its Raft port
	Voter   bool     `json:"voter"`
	Leader  bool     `json:"leader,omitzero"`
}

// A DigestAt is the state's digest after one index.
type DigestAt struct {
	Index  uint64 `json:"index"`
	Digest string `json:"digest"` // 32 hexadecimal digits
}

// Version names a build.
const Version = "0.1.0-dev"
