package gpuai

// LeaseState is the state of a lease.
type LeaseState uint8

// The states. A granted lease has not been reported running yet; a revoking
// one still holds its devices until the agent reports the end or the node's
// silence ends it.
const (
	LeaseGranted LeaseState = iota
	LeaseRunning
	LeaseRevoking
	LeaseEnded
	numLeaseStates
)

var leaseStateNames = [numLeaseStates]string{"granted", "running", "revoking", "ended"}

// String returns the state's text.
func (s LeaseState) String() string { return enumName(leaseStateNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s LeaseState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *LeaseState) UnmarshalText(b []byte) error {
	return enumParse(leaseStateNames[:], "lease state", b, (*uint8)(s))
}

// LeaseCause is why a lease ended, or is being revoked.
type LeaseCause uint8

// The causes.
const (
	CauseNone LeaseCause = iota
	CauseDone
	CauseFailed
	CauseStopped
	CausePreempted
	CauseDrained
	CauseExpired
	CauseFenced
	CauseNodeRestarted
	// CauseGPU is a device that failed under the task.
	CauseGPU
	// CauseGang is the loss of another member of the gang.
	CauseGang
	// CauseRunTime is the end of the job's run-time limit.
	CauseRunTime
	// CauseRestored is the restore of the region from a backup, to which every
	// lease is void.
	CauseRestored
	// CauseNotReady is a member of a gang that was not ready to start in time.
	CauseNotReady
	numLeaseCauses
)

var leaseCauseNames = [numLeaseCauses]string{
	"", "done", "failed", "stopped", "preempted", "drained", "expired", "fenced",
	"node_restarted", "gpu_error", "gang", "run_time", "restored", "not_ready",
}

// String returns the cause's text.
func (c LeaseCause) String() string { return enumName(leaseCauseNames[:], uint8(c)) }

// MarshalText writes the cause's text.
func (c LeaseCause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a cause's text.
func (c *LeaseCause) UnmarshalText(b []byte) error {
	return enumParse(leaseCauseNames[:], "lease cause", b, (*uint8)(c))
}

// A Lease is the right of one task to use given devices of one node until it
// ends. TTL and Grace are fixed when it is granted.
type Lease struct {
	ID Token `json:"id"`
	TaskRef
	Tenant      TenantID    `json:"tenant"`
	Node        NodeID      `json:"node"`
	Incarnation Incarnation `json:"incarnation"` // of the node that holds it
	State       LeaseState  `json:"state"`
	Cause       LeaseCause  `json:"cause,omitzero"`
	Devices     []DeviceID  `json:"devices,omitempty"`
	Share       Milli       `json:"share_milli,omitzero"` // 0: whole devices
	CPU         MilliCPU    `json:"cpu_milli"`
	Memory      Bytes       `json:"memory_bytes"`
	TTL         Duration    `json:"ttl_ms"`
	Grace       Duration    `json:"grace_ms"`
	Price       Micros      `json:"price_micros_per_gpu_hour,omitzero"`
	// Held is what the lease may yet cost, Billed what it was billed so far, fees
	// included; only while it lives.
	Held   Micros `json:"held_micros,omitzero"`
	Billed Micros `json:"billed_micros,omitzero"`

	GrantedAt   Instant `json:"granted_at_ms"`
	StartedAt   Instant `json:"started_at_ms,omitzero"`
	EndedAt     Instant `json:"ended_at_ms,omitzero"`
	ExitCode    int32   `json:"exit_code,omitzero"`
	ModifyIndex uint64  `json:"modify_index"`
	// PreemptedBy is the job that the lease had to make room for.
	PreemptedBy JobID `json:"preempted_by,omitzero"`
	// Checkpoint is the newest that the lease's task has published, under this
	// lease or an earlier one.
	Checkpoint *PublishedCheckpoint `json:"checkpoint,omitzero"`
	// Prepared: its task was ready to start before its gang was.
	Prepared bool `json:"prepared,omitzero"`
	// Secrets are those that its task was given.
	Secrets []LeaseSecret `json:"secrets,omitempty"`
}

// An Assignment is a lease with all that an agent needs to run its task.
type Assignment struct {
	Lease   Lease  `json:"lease"`
	JobName string `json:"job_name"`
	// GroupName is the name of the task's group.
	GroupName string   `json:"group_name"`
	Task      TaskSpec `json:"task"`
	// Scratch and Shm are as in Resources.
	Scratch Bytes `json:"scratch_bytes,omitzero"`
	Shm     Bytes `json:"shm_bytes,omitzero"`
	// Image is the digest that the group's image was resolved to; "" while
	// none of its tasks has told one.
	Image   string    `json:"image_digest,omitzero"`
	Network Network   `json:"network,omitzero"` // of a task with an image
	Attempt uint32    `json:"attempt,omitzero"`
	Array   uint32    `json:"array_size,omitzero"` // 0: not an array
	Gang    *GangInfo `json:"gang,omitzero"`
	// Hold is GangInfo.Hold for a task that is in no gang: the groups of its job
	// start together.
	Hold bool `json:"hold,omitzero"`
	// Resume are the checkpoints that the task may go on from, the newest first:
	// its own, or those of the gang's rank 0 when it has none.
	Resume []PublishedCheckpoint `json:"resume,omitempty"`
	// ResumeSeq is the Seq of the one of Resume to begin with, where that is not
	// the first: the members of a gang go on from one step that all of them saved.
	ResumeSeq uint64 `json:"resume_seq,omitzero"`
}

// Held reports whether the task is to be made ready and not started yet.
func (a *Assignment) Held() bool { return a.Hold || a.Gang != nil && a.Gang.Hold }

// A GangInfo tells a gang's member of the others.
type GangInfo struct {
	Rank       uint32 `json:"rank"`
	Size       uint32 `json:"size"` // members that hold a lease now
	Min        uint32 `json:"min"`  // it goes on with no fewer
	Max        uint32 `json:"max"`
	MasterAddr string `json:"master_addr"`
	// Lead is the lease of rank 0: a gang that restarts has another.
	Lead       Token    `json:"lead,omitzero"`
	MasterPort uint16   `json:"master_port"`
	NodeIPs    []string `json:"node_ips"` // by rank
	// Ranks are those of NodeIPs, absent where they are 0, 1, …: an elastic gang
	// may have lost one in between.
	Ranks []uint32 `json:"ranks,omitempty"`
	// Hold: the task is to be made ready, reported so and not started before a
	// set says so without it.
	Hold bool `json:"hold,omitzero"`
	// Spread: its members are on more than one node.
	Spread bool `json:"spread,omitzero"`
	// Peers are the members on other nodes that are reached by a mesh, by their first
	// ranks; none while Hold.
	Peers []MeshPeer `json:"peers,omitempty"`
}
