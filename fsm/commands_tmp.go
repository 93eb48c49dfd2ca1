package fsm

import "github.com/gpuai/gpuai"

type SubmitJob struct {
	ID         gpuai.JobID
	Spec       *gpuai.JobSpec
	HoldAnyway bool
}
type StopJob struct{ Job gpuai.JobID }
type RegisterNode struct {
	Spec          gpuai.NodeSpec
	BootID, Nonce string
	Replaces      gpuai.Incarnation
	Held          []gpuai.HeldLease
}
type UpdateDevices struct {
	Node        gpuai.NodeID
	Incarnation gpuai.Incarnation
	Devices     []gpuai.Device
}
type SetNodeEligibility struct {
	Node    gpuai.NodeID
	Drained bool
}
type ExpireLeases struct {
	Node        gpuai.NodeID
	Incarnation gpuai.Incarnation
	SilentFor   gpuai.Duration
	Term        uint64
}
type ReportLease struct {
	Node   gpuai.NodeID
	Report gpuai.Report
}
type ConfirmBeats struct {
	Term           uint64
	Suspect, Ready []NodeRef
}
type Tick struct{}
type SetPolicy struct{ Policy gpuai.Policy }
type SetFeatureLevel struct{ Level uint32 }
type Checkpoint struct {
	Index  uint64
	Digest Digest
}
type RetireJobs struct{ Jobs []gpuai.JobID }
