package gpuai

// This file is the agent protocol: JSON frames over one WebSocket
// (GET /v1/agent/session, subprotocol SessionProtocol). Every frame is one
// Frame with its kind and the one body of that kind. The agent speaks first,
// with a Hello.

// SessionProtocol is the WebSocket subprotocol of the agent session.
const SessionProtocol = "gpuai.agent.v1"

// MaxFrameBytes bounds a frame in either direction.
const MaxFrameBytes = 4 << 20

// FrameKind says which body a frame has.
type FrameKind uint8

// The kinds. Up is from the agent to the server.
const (
	FrameHello      FrameKind = iota + 1 // up
	FrameBeat                            // up
	FrameReport                          // up
	FrameDevices                         // up
	FrameLog                             // up, answers FrameLogRequest
	FrameWelcome                         // down, answers FrameHello
	FrameLeases                          // down
	FrameAck                             // down, answers FrameBeat
	FrameReported                        // down, answers FrameReport
	FrameLogRequest                      // down
	FrameRefused                         // down, then the server closes
	FramePublish                         // up, to a server whose Welcome names a checkpoint store
	FramePublished                       // down, answers FramePublish
	FrameExec                            // down, to agents with LabelExec
	FrameSecretAsk                       // up, from agents with LabelSecrets
	FrameSecrets                         // down, answers FrameSecretAsk
	numFrameKinds
)

var frameKindNames = [numFrameKinds]string{
	"", "hello", "beat", "report", "devices", "log", "welcome", "leases", "ack",
	"reported", "log_request", "refused", "publish", "published", "exec", "secret_ask", "secrets",
}

// String returns the kind's text.
func (k FrameKind) String() string { return enumName(frameKindNames[:], uint8(k)) }

// MarshalText writes the kind's text.
func (k FrameKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's text.
func (k *FrameKind) UnmarshalText(b []byte) error {
	return enumParse(frameKindNames[:], "frame kind", b, (*uint8)(k))
}

// A Frame is one message of the session. Exactly the body of its kind is set.
type Frame struct {
	Kind       FrameKind     `json:"kind"`
	Hello      *Hello        `json:"hello,omitzero"`
	Beat       *Beat         `json:"beat,omitzero"`
	Report     *Report       `json:"report,omitzero"`
	Devices    []Device      `json:"devices,omitempty"`
	Refuses    *Refusal      `json:"refuses,omitzero"` // goes with Devices: as in NodeSpec
	Log        *LogChunk     `json:"log,omitzero"`
	Welcome    *Welcome      `json:"welcome,omitzero"`
	Leases     *LeaseSet     `json:"leases,omitzero"`
	Ack        *Ack          `json:"ack,omitzero"`
	Reported   *Reported     `json:"reported,omitzero"`
	LogRequest *LogRequest   `json:"log_request,omitzero"`
	Refused    *SessionError `json:"refused,omitzero"`
	Publish    *Publish      `json:"publish,omitzero"`
	Published  *Published    `json:"published,omitzero"`
	Exec       *ExecRequest  `json:"exec,omitzero"`

	SecretAsk *SecretAsk      `json:"secret_ask,omitzero"`
	Secrets   *SecretDelivery `json:"secrets,omitzero"`
}

// A Hello opens a session: it registers the node, compare-and-set on the
// incarnation that it replaces.
type Hello struct {
	Node NodeSpec `json:"node"`
	// BootID is the kernel's, Nonce names this life of the agent's identity:
	// the same pair is the same incarnation. An agent that restarts and keeps
	// its journal keeps its nonce.
	BootID string `json:"boot_id"`
	Nonce  string `json:"nonce"`
	// Replaces is the incarnation that the agent last held; 0 for none.
	Replaces Incarnation `json:"replaces,omitzero"`
	// Epoch and RestoreID are the newest the agent knows; a server with an
	// older epoch, or this one with another restore ID, is refused by the agent.
	Epoch     uint8       `json:"epoch,omitzero"`
	RestoreID string      `json:"restore_id,omitzero"`
	Held      []HeldLease `json:"held,omitempty"`
	// Sent is the agent's CLOCK_BOOTTIME in nanoseconds. A registration is a
	// beat: the Welcome's ack names it.
	Sent int64 `json:"sent_boottime_ns"`
}

// A HeldLease is a lease that the agent still runs, offered for adoption.
type HeldLease struct {
	Lease Token `json:"lease"`
	// BootID is the boot in which its task was started.
	BootID string `json:"boot_id"`
}

// A Welcome accepts a Hello. A full LeaseSet follows it.
type Welcome struct {
	Session     string      `json:"session"` // names the session in logs
	Server      ServerID    `json:"server"`
	Cluster     ClusterID   `json:"cluster"`
	Region      RegionID    `json:"region"`
	Epoch       uint8       `json:"epoch"`
	RestoreID   string      `json:"restore_id"`
	Incarnation Incarnation `json:"incarnation"`
	Index       uint64      `json:"index"`
	Policy      Policy      `json:"policy"`
	Ack         Ack         `json:"ack"`
	// CheckpointStore is the URL of the region's store, of tasks' checkpoints and of
	// the output of attempts that have ended; "" is none.
	CheckpointStore string `json:"checkpoint_store,omitzero"`
}

// A Beat asks for the renewal of every lease of the node.
type Beat struct {
	Seq  uint64 `json:"seq"` // grows by one with each beat of a session
	Sent int64  `json:"sent_boottime_ns"`
}

// An Ack confirms one beat: after the entry at Index the region has the node
// live at Incarnation. Only the leases it names are renewed, counted from Sent.
type Ack struct {
	Seq         uint64      `json:"seq"`
	Sent        int64       `json:"sent_boottime_ns"` // echoed
	Epoch       uint8       `json:"epoch"`
	Incarnation Incarnation `json:"incarnation"`
	Index       uint64      `json:"index"`
	Tokens      []Token     `json:"tokens,omitempty"`
	// Held are those of Tokens that are reported prepared and wait for their gang.
	Held []Token `json:"held,omitempty"`
	// Policy is present when it changed since the session's last ack.
	Policy *Policy `json:"policy,omitzero"`
}

// A LeaseSet tells an agent its leases at an index: all of them (Full), or
// those that changed since the set before. Only leases of the node's current
// incarnation are sent. A lease in state revoking is the order to stop its
// task; a token in Ended is of a lease that the region has ended.
type LeaseSet struct {
	Full        bool         `json:"full,omitzero"`
	Epoch       uint8        `json:"epoch"`
	Incarnation Incarnation  `json:"incarnation"`
	Index       uint64       `json:"index"`
	Leases      []Assignment `json:"leases,omitempty"`
	Ended       []Token      `json:"ended,omitempty"`
}

// ReportState is what an agent says of a lease's task.
type ReportState uint8

// The states. ReportRunning, ReportResolved and ReportPrepared do not end the lease.
const (
	ReportRunning ReportState = iota + 1
	ReportDone
	ReportFailed
	// ReportFenced: the agent killed the task at its deadline.
	ReportFenced
	// ReportStopped: the agent stopped it because the lease was revoking.
	ReportStopped
	// ReportLost: the task was not there any more after an agent restart.
	ReportLost
	// ReportUnkillable: the task outlived the kill budget. The lease ends and
	// its devices are quarantined.
	ReportUnkillable
	// ReportGPUError: a device failed under the task.
	ReportGPUError
	// ReportResolved: the task's image has a digest, and nothing runs yet. The
	// answer says which digest the group's tasks run; the task waits for it.
	ReportResolved
	// ReportPrepared: the task is ready to start, and waits for its gang. It does
	// not end the lease.
	ReportPrepared
	numReportStates
)

// NumReportStates bounds ReportState.
const NumReportStates = int(numReportStates)

var reportStateNames = [numReportStates]string{
	"", "running", "done", "failed", "fenced", "stopped", "lost", "unkillable", "gpu_error", "resolved", "prepared",
}

// String returns the state's text.
func (s ReportState) String() string { return enumName(reportStateNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s ReportState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *ReportState) UnmarshalText(b []byte) error {
	return enumParse(reportStateNames[:], "report state", b, (*uint8)(s))
}

// Ends reports whether the state is an end of the lease.
func (s ReportState) Ends() bool {
	return s != ReportRunning && s != ReportResolved && s != ReportPrepared
}

// A Report says what became of a lease's task. It is idempotent by
// (Lease, Seq); the agent repeats it until it is answered.
type Report struct {
	Lease       Token       `json:"lease"`
	Seq         uint32      `json:"seq"` // grows with each report of the lease
	Incarnation Incarnation `json:"incarnation"`
	State       ReportState `json:"state"`
	ExitCode    int32       `json:"exit_code,omitzero"` // 128+n for signal n
	EndCode     EndCode     `json:"end_code,omitzero"`
	Reason      string      `json:"reason,omitzero"`
	// Image is the digest of ReportResolved.
	Image string `json:"image,omitzero"`
	// Mesh goes with ReportPrepared of a member that others of its gang reach from
	// their nodes.
	Mesh *MeshPoint `json:"mesh,omitzero"`
	// Unclean lists devices that could not be cleaned: they are quarantined.
	Unclean []DeviceID `json:"unclean,omitempty"`
}

// A Reported answers a Report. Any code is final: the agent sends it no more.
type Reported struct {
	Lease Token  `json:"lease"`
	Seq   uint32 `json:"seq"`
	Code  Code   `json:"code"`
	// Image answers ReportResolved: the digest that the group's tasks run. Without
	// one, as with RateLimited, nothing is to be run: the agent tells again later.
	Image string `json:"image,omitzero"`
}

// A LogRequest asks the agent for a task's output.
type LogRequest struct {
	ID     uint64 `json:"id"` // names the request within the session
	Lease  Token  `json:"lease"`
	Stream string `json:"stream"` // "stdout", "stderr" or StreamProgress
	Offset int64  `json:"offset"` // bytes from the start; negative: from the end
	Limit  int64  `json:"limit"`  // bytes at most
	// Wait lets the agent hold the answer until there is something new.
	Wait Duration `json:"wait_ms,omitzero"`
	// Since, and Tail in lines, move Offset on to what was written then or later,
	// and to the last lines; 0 leaves it.
	Since WallTime `json:"since_ms,omitzero"`
	Tail  int64    `json:"tail,omitzero"`
	// Times asks for LogChunk.Times. Older agents leave all three out.
	Times bool `json:"times,omitzero"`
}

// StreamProgress is a text that says how far the start of a task is, such as
// "pulling 40 % of 812 MiB in 9 layers": what it is now, "" for nothing to say.
const StreamProgress = "progress"

// A LogChunk answers a LogRequest.
type LogChunk struct {
	ID     uint64 `json:"id"`
	Offset int64  `json:"offset"` // of the first byte of Data
	Data   []byte `json:"data,omitempty"`
	EOF    bool   `json:"eof,omitzero"` // the task has ended and Data is its last
	Error  string `json:"error,omitzero"`
	// Gone says that the node has no output of the lease, or none any more.
	Gone bool `json:"gone,omitzero"`
	// Times say when Data was written, by the node's clock, in the order of
	// their offsets; the first may be before Data.
	Times []LogTime `json:"times,omitempty"`
}

// A LogTime says when output was written, from its offset to the next one's.
type LogTime struct {
	Offset int64    `json:"offset"`
	At     WallTime `json:"at_ms"`
}

// A SessionError ends a session. Code Conflict with Incarnation tells an agent
// that another holds its identity: it fences and waits for its operator.
type SessionError struct {
	Code        Code        `json:"code"`
	Detail      string      `json:"detail"`
	Incarnation Incarnation `json:"incarnation,omitzero"` // the current one
	// RetryAfter is when the agent may try again, 0 at once at another server.
	RetryAfter Duration `json:"retry_after_ms,omitzero"`
}
