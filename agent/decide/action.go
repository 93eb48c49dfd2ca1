package decide

import "github.com/gpuai/gpuai"

// An Action is something that the agent must do. Actions are carried out in
// order; those about one lease never overtake one another.
type Action interface{ action() }

// Start journals a lease, reserves its devices and starts its task, which
// must not run past Deadline. Answer with TaskStarted or TaskNotStarted.
type Start struct {
	Assignment gpuai.Assignment
	Deadline   int64
	KillBudget gpuai.Duration
	// Hold makes all ready and starts nothing: answer with TaskPrepared, and wait
	// for Launch. So does a task that others of its gang reach by a mesh.
	Hold bool
}

// Meet tells a member of a gang where those on other nodes are, as the region has it
// at an index. It goes before the Launch of a task that waits.
type Meet struct {
	Lease gpuai.Token
	Index uint64
	Peers []gpuai.MeshPeer
}

// Launch starts a task that was made ready. Answer as Start.
type Launch struct{ Lease gpuai.Token }

// Extend moves a task's deadline to a later time.
type Extend struct {
	Lease    gpuai.Token
	Deadline int64
}

// UseImage lets a start go on that told of its image: with the digest that the
// region has for the group's; "" when it could not keep one more, and has none:
// what was found must not be run then, and is told again later.
type UseImage struct {
	Lease  gpuai.Token
	Digest string
}

// Stop ends a task with its grace; its deadline stands. Answer with TaskEnded,
// or TaskNotStarted when the start was still under way and came to nothing.
type Stop struct {
	Lease gpuai.Token
	Grace gpuai.Duration
	// Save is the time that the task has before that to save its work, and the
	// signal that tells it to. Its end counts as stopped from then on. Without
	// a signal a Save that is under way is cut short.
	Save gpuai.Checkpoint
}

// Kill ends a task at once: the whole cgroup, verified. Answered as Stop, or
// by TaskUnkillable after Budget.
type Kill struct {
	Lease  gpuai.Token
	Budget gpuai.Duration
	Why    string
}

// Release gives a lease's devices back. Answer with Released.
type Release struct{ Lease gpuai.Token }

// SendBeat sends a beat.
type SendBeat struct {
	Session uint64
	Beat    gpuai.Beat
}

// SendReport journals a report, the first time, and sends it.
type SendReport struct {
	Report gpuai.Report
	First  bool
}

// Forget removes a lease from the journal: its last report was answered.
type Forget struct{ Lease gpuai.Token }

// Remember journals who the region says the agent is, before anything else.
type Remember struct{ Identity Identity }

// Reconnect ends a session; the next Hello goes to another server, not before
// After has passed.
type Reconnect struct {
	Session uint64
	After   gpuai.Duration
	Why     string
}

// Alarm tells the operator of something that is not as it should be.
type Alarm struct{ Text string }

// Halt tells that the agent must not go on: no more sessions. When Core.Idle
// it ends with Err, which says what the operator should do.
type Halt struct{ Err string }

func (Start) action()      {}
func (Launch) action()     {}
func (Meet) action()       {}
func (Extend) action()     {}
func (UseImage) action()   {}
func (Stop) action()       {}
func (Kill) action()       {}
func (Release) action()    {}
func (SendBeat) action()   {}
func (SendReport) action() {}
func (Forget) action()     {}
func (Remember) action()   {}
func (Reconnect) action()  {}
func (Alarm) action()      {}
func (Halt) action()       {}
