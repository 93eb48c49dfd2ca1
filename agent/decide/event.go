package decide

import "github.com/gpuai/gpuai"

// An Event is something that happened. Events of a session carry its number;
// those of any but the current one are dropped.
type Event interface{ event() }

// Tick says only what time it is. Give one at Core.NextWake or earlier.
type Tick struct{}

// HelloSent opens session Session (each greater than the one before): a Hello
// with Sent as its t_send is on its way.
type HelloSent struct {
	Session uint64
	Sent    int64
}

// Welcomed is the server's answer to the Hello.
type Welcomed struct {
	Session uint64
	Welcome *gpuai.Welcome
}

// Refused ends a session by the server's word.
type Refused struct {
	Session uint64
	Error   *gpuai.SessionError
}

// Disconnected ends a session without one.
type Disconnected struct{ Session uint64 }

// LeasesReceived is a full set or a diff.
type LeasesReceived struct {
	Session uint64
	Set     *gpuai.LeaseSet
}

// AckReceived answers a beat.
type AckReceived struct {
	Session uint64
	Ack     *gpuai.Ack
}

// ReportAnswered answers a report; any code is final.
type ReportAnswered struct {
	Session  uint64
	Reported gpuai.Reported
}

// TaskPrepared says that all that a held Start needs is ready, or one whose gang is to
// know where it is reached, and that nothing runs.
type TaskPrepared struct {
	Lease gpuai.Token
	Mesh  *gpuai.MeshPoint // nil: nobody on another node reaches it
}

// TaskStarted says that a Start, or a Launch, succeeded.
type TaskStarted struct{ Lease gpuai.Token }

// TaskNotStarted says that a Start failed and that nothing runs.
type TaskNotStarted struct {
	Lease  gpuai.Token
	State  gpuai.ReportState // what to report, unless it was fenced or stopped
	Code   int32
	End    gpuai.EndCode
	Reason string
}

// ImageResolved says which digest the image of a task has that is being started,
// and that the start waits for a UseImage.
type ImageResolved struct {
	Lease  gpuai.Token
	Digest string
}

// EndedBy says who ended a task.
type EndedBy uint8

// The enders.
const (
	ByItself   EndedBy = iota
	ByDeadline         // the watchdog, at the deadline
	ByStop             // an order: SIGTERM, or SIGKILL after its grace
	ByKill             // a Kill action
	ByLoss             // it was not there any more after a restart
)

// TaskEnded says that a task and all its processes are gone.
type TaskEnded struct {
	Lease  gpuai.Token
	By     EndedBy
	Code   int32 // 128+n for signal n
	End    gpuai.EndCode
	Reason string
}

// TaskUnkillable says that a task outlived the kill budget. A TaskEnded may
// follow.
type TaskUnkillable struct {
	Lease  gpuai.Token
	Reason string
}

// Released says that a lease's devices were given back to their drivers.
type Released struct {
	Lease   gpuai.Token
	Unclean []gpuai.DeviceID // not to be used again
	Reason  string           // why they are not clean
}

// DiskOverrun says that a task has more on the node's disk than it may.
type DiskOverrun struct {
	Lease  gpuai.Token
	Reason string
}

// NetworkFailed says that the network of a task's gang is gone from under it.
type NetworkFailed struct {
	Lease  gpuai.Token
	Reason string
}

// DeviceFailed says that a device failed under a task and that its driver
// wants the task ended.
type DeviceFailed struct {
	Lease  gpuai.Token
	Reason string
}

// Drain says that the agent can take no new lease, and why.
type Drain struct{ Reason string }

// StopAll ends all tasks with their grace, as for a planned end of the agent.
// No new lease is taken.
type StopAll struct{ Reason string }

func (Tick) event()           {}
func (HelloSent) event()      {}
func (Welcomed) event()       {}
func (Refused) event()        {}
func (Disconnected) event()   {}
func (LeasesReceived) event() {}
func (AckReceived) event()    {}
func (ReportAnswered) event() {}
func (TaskPrepared) event()   {}
func (TaskStarted) event()    {}
func (TaskNotStarted) event() {}
func (ImageResolved) event()  {}
func (TaskEnded) event()      {}
func (TaskUnkillable) event() {}
func (Released) event()       {}
func (DeviceFailed) event()   {}
func (DiskOverrun) event()    {}
func (NetworkFailed) event()  {}
func (Drain) event()          {}
func (StopAll) event()        {}
