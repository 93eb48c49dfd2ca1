package fsm

import "github.com/gpuai/gpuai"

// An Envelope goes in front of every command.
type Envelope struct {
	Tenant gpuai.TenantID // whose command it is; "" is the region's own
	Actor  string         // who asked, for the audit
	Key    string         // idempotency key; "" remembers no result
}

// A Command can be encoded for the log. Commands are used by pointer.
type Command interface {
	// Append appends the encoded command to dst.
	Append(dst []byte, env Envelope) []byte
}

// A NodeRef names one life of a node.
type NodeRef struct {
	Node        gpuai.NodeID
	Incarnation gpuai.Incarnation
}

// A Result is the outcome of one command.
type Result struct {
	Code        gpuai.Code
	Kind        CommandKind       // of the command
	Repeated    bool              // answered from the result cache
	Job         gpuai.JobID       // SubmitJob, StopJob
	Incarnation gpuai.Incarnation // RegisterNode: the current one, also on Conflict
	Tasks       uint32            // SubmitJob: how many the job has
	Leased      uint32            // SubmitJob: how many of them got a lease at once
	Index       uint64            // of the first answer when Repeated, else of this entry
	// EventsFrom and EventsTo bound the command's events in Output.Events.
	EventsFrom, EventsTo uint32
	// Detail is one constant sentence for a person; "" on success. It is no
	// part of the digest.
	Detail string
}

// An Output is what one entry did.
type Output struct {
	Index uint64
	// Prev is the index of the entry applied before; 0 before the first. A
	// consumer that has not seen Prev has missed outputs.
	Prev    uint64
	Time    gpuai.Instant
	Results []Result
	Events  []gpuai.Event
	// Retired are the jobs that this entry took out, whole: what is not kept of
	// them now is gone.
	Retired []gpuai.RetiredJob
	// Audit is the entry's link of the audit, as ReadAudit reads it; nil when it
	// recorded nothing.
	Audit []byte
	// Diverged is set when a Checkpoint of this entry named a digest other
	// than ours at its index: this replica or the leader is damaged.
	Diverged bool
	// DivergedAt is that index, and Theirs the digest that was named for it.
	DivergedAt uint64
	Theirs     Digest
	// Servers says that what Machine.Servers returns has changed.
	Servers bool
	// Trust says that what Machine.Authorities or Machine.Standing returns has
	// changed.
	Trust bool
	// Panics counts commands of this entry that were taken back because they
	// panicked; Panic is the first one's text.
	Panics uint32
	Panic  string
	// GPUMilli is what live leases hold of all devices after the entry, in
	// thousandths of a device.
	GPUMilli uint64
}

// Options are what a machine is made with.
type Options struct {
	Region gpuai.RegionID // all replicas must agree on it
	// MaxLevel is the newest feature level that this machine takes part in; 0
	// is the newest that this build knows. A machine never behaves otherwise
	// for it: it stops before the level is passed.
	MaxLevel uint32
	// FirstFit places by first fit instead of the region's policy. It is a
	// baseline for simulations: no region is opened with it.
	FirstFit bool
	// Simulated is set for a machine of a simulation only: it takes packing
	// policies that are references to measure against. All replicas must agree.
	Simulated bool
}

func (o *Options) maxLevel() uint32 {
	if o.MaxLevel == 0 {
		return MaxLevel
	}
	return min(o.MaxLevel, MaxLevel)
}

// A Digest sums up a machine: the chain over all commands and results, and the
// hash of all records.
type Digest [16]byte

// String returns the digest in 32 hexadecimal digits.
func (d Digest) String() string {
	const hex = "0123456789abcdef"
	var out [32]byte
	for i, b := range d {
		out[2*i], out[2*i+1] = hex[b>>4], hex[b&15]
	}
	return string(out[:])
}

// Counts are the machine's totals.
type Counts struct {
	Jobs         uint32 // kept, ended ones too
	JobsPending  uint32 // not ended, without a lease
	JobsRunning  uint32
	TasksPending uint64
	Leases       uint32 // live
	Revoking     uint32
	Nodes        [4]uint32 // by gpuai.NodeState
	Drained      uint32
	GPUs         uint32 // devices of all nodes
	GPUMilliUsed uint64 // held by live leases
	Results      uint32 // in the result cache
	Shapes       uint32
	QueueGPUs    uint64
	OldestWait   gpuai.Duration
}

// A SnapshotInfo describes a snapshot without restoring it.
type SnapshotInfo struct {
	Format    uint32         `json:"format"`
	Level     uint32         `json:"feature_level"`
	Region    gpuai.RegionID `json:"region"`
	Index     uint64         `json:"index"`
	Term      uint64         `json:"term"`
	Time      gpuai.Instant  `json:"region_time_ms"`
	Wall      gpuai.WallTime `json:"wall_time_unix_ms"`
	Epoch     uint8          `json:"epoch"`
	RestoreID string         `json:"restore_id"`
	// QuietUntil is the region time before which nothing is granted; 0 when no
	// backup was restored.
	QuietUntil gpuai.Instant `json:"quiet_until_ms"`
	Digest     string        `json:"digest"`
	Nodes      uint32        `json:"nodes"`
	Jobs       uint32        `json:"jobs"`
	Leases     uint32        `json:"leases"`
	Bytes      uint64        `json:"bytes"`
}
