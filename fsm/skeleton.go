package fsm

import (
	"io"

	"github.com/gpuai/gpuai"
)

// This file is scaffolding: signatures whose bodies are being written.

const notYet = "being written"

func AppendEntry(dst []byte, h Header, cmds ...[]byte) []byte { panic(notYet) }
func CheckEntry(data []byte) error                            { panic(notYet) }

const (
	MaxCommands     = 1000
	MaxEntryBytes   = 256 << 10
	MaxCommandBytes = 160 << 10
)

type Header struct {
	Time gpuai.Instant
	Wall gpuai.WallTime
	Term uint64
}

func (c *SubmitJob) Append(dst []byte, env Envelope) []byte          { panic(notYet) }
func (c *StopJob) Append(dst []byte, env Envelope) []byte            { panic(notYet) }
func (c *RegisterNode) Append(dst []byte, env Envelope) []byte       { panic(notYet) }
func (c *UpdateDevices) Append(dst []byte, env Envelope) []byte      { panic(notYet) }
func (c *SetNodeEligibility) Append(dst []byte, env Envelope) []byte { panic(notYet) }
func (c *ExpireLeases) Append(dst []byte, env Envelope) []byte       { panic(notYet) }
func (c *ReportLease) Append(dst []byte, env Envelope) []byte        { panic(notYet) }
func (c *ConfirmBeats) Append(dst []byte, env Envelope) []byte       { panic(notYet) }
func (c *Tick) Append(dst []byte, env Envelope) []byte               { panic(notYet) }
func (c *SetPolicy) Append(dst []byte, env Envelope) []byte          { panic(notYet) }
func (c *SetFeatureLevel) Append(dst []byte, env Envelope) []byte    { panic(notYet) }
func (c *Checkpoint) Append(dst []byte, env Envelope) []byte         { panic(notYet) }
func (c *RetireJobs) Append(dst []byte, env Envelope) []byte         { panic(notYet) }

type Machine struct{}

func New(o Options) *Machine                                                      { return &Machine{} }
func Restore(r io.Reader, o Options) (*Machine, error)                            { panic(notYet) }
func InspectSnapshot(r io.Reader) (SnapshotInfo, error)                           { panic(notYet) }
func (m *Machine) Apply(index, term uint64, data []byte, out *Output) error       { panic(notYet) }
func (m *Machine) Index() uint64                                                  { panic(notYet) }
func (m *Machine) Term() uint64                                                   { panic(notYet) }
func (m *Machine) Time() gpuai.Instant                                            { panic(notYet) }
func (m *Machine) Epoch() uint8                                                   { panic(notYet) }
func (m *Machine) RestoreID() string                                              { panic(notYet) }
func (m *Machine) Level() uint32                                                  { panic(notYet) }
func (m *Machine) Policy() gpuai.Policy                                           { panic(notYet) }
func (m *Machine) NextDeadline() gpuai.Instant                                    { panic(notYet) }
func (m *Machine) Digest() Digest                                                 { panic(notYet) }
func (m *Machine) DigestAt(index uint64) (Digest, bool)                           { panic(notYet) }
func (m *Machine) Fork() *Machine                                                 { panic(notYet) }
func (m *Machine) WriteSnapshot(w io.Writer) error                                { panic(notYet) }
func (m *Machine) Check() error                                                   { panic(notYet) }
func (m *Machine) Job(id gpuai.JobID, withSpec bool) (gpuai.Job, bool)            { panic(notYet) }
func (m *Machine) FindJob(ref string) (gpuai.JobID, error)                        { panic(notYet) }
func (m *Machine) Tasks(id gpuai.JobID, from uint32, limit int) []gpuai.Task      { panic(notYet) }
func (m *Machine) Lease(t gpuai.Token) (gpuai.Lease, bool)                        { panic(notYet) }
func (m *Machine) LeasesOfNode(n gpuai.NodeID, limit int) []gpuai.Lease           { panic(notYet) }
func (m *Machine) Leases(from uint32, limit int, liveOnly bool) (page []gpuai.Lease, next uint32) { panic(notYet) }
func (m *Machine) SupersededLeases(n gpuai.NodeID, f func(inc gpuai.Incarnation, minEnd gpuai.Duration)) { panic(notYet) }
func (m *Machine) Assignments(n gpuai.NodeID) []gpuai.Assignment                  { panic(notYet) }
func (m *Machine) Assignment(t gpuai.Token) (gpuai.Assignment, bool)              { panic(notYet) }
func (m *Machine) AppendTokens(dst []gpuai.Token, n gpuai.NodeID) []gpuai.Token   { panic(notYet) }
func (m *Machine) Node(n gpuai.NodeID) (gpuai.Node, bool)                         { panic(notYet) }
func (m *Machine) Nodes(after gpuai.NodeID, limit int) []gpuai.Node               { panic(notYet) }
func (m *Machine) Queue() gpuai.QueueStatus                                       { panic(notYet) }
func (m *Machine) QueueEntries(after, limit int) []gpuai.QueueEntry               { panic(notYet) }
func (m *Machine) Explain(id gpuai.JobID) (gpuai.Explanation, bool)               { panic(notYet) }
func (m *Machine) Counts() Counts                                                 { panic(notYet) }
func (m *Machine) LeasesOfJob(id gpuai.JobID, after gpuai.Token, limit int) []gpuai.Lease {
	panic(notYet)
}
func (m *Machine) Jobs(after gpuai.JobID, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last gpuai.JobID) {
	panic(notYet)
}
func (m *Machine) NodeLive(n gpuai.NodeID) (inc gpuai.Incarnation, state gpuai.NodeState, ok bool) {
	panic(notYet)
}
func (m *Machine) LeaseTTLs(n gpuai.NodeID, inc gpuai.Incarnation) (minEnd gpuai.Duration, live int) {
	panic(notYet)
}
func (m *Machine) EachNode(from uint32, f func(slot uint32, id gpuai.NodeID, inc gpuai.Incarnation, state gpuai.NodeState, live uint32) bool) uint32 {
	panic(notYet)
}
