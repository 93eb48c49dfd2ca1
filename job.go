package gpuai

// JobType is what a job is. Services and functions are not built yet and are
// refused by Validate.
type JobType uint8

// The types.
const (
	Batch JobType = iota
	Train
	numJobTypes
)

var jobTypeNames = [numJobTypes]string{"batch", "train"}

// String returns the type's text.
func (t JobType) String() string { return enumName(jobTypeNames[:], uint8(t)) }

// MarshalText writes the type's text.
func (t JobType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a type's text.
func (t *JobType) UnmarshalText(b []byte) error {
	return enumParse(jobTypeNames[:], "type", b, (*uint8)(t))
}

// Class groups jobs that policy treats alike: default priority and lease TTL.
type Class uint8

// The classes. ClassUnset stands for the default of the job's type.
const (
	ClassUnset Class = iota
	ClassInference
	ClassTraining
	ClassFinetune
	ClassBatch
	numClasses
)

// NumClasses is the size of a table indexed by Class.
const NumClasses = int(numClasses)

var classNames = [numClasses]string{"", "inference", "training", "finetune", "batch"}

// String returns the class's text.
func (c Class) String() string { return enumName(classNames[:], uint8(c)) }

// MarshalText writes the class's text.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a class's text.
func (c *Class) UnmarshalText(b []byte) error {
	return enumParse(classNames[:], "class", b, (*uint8)(c))
}

// Priority orders jobs: 1 … 100, the higher first. 0 stands for the default of
// the class in the region's policy.
type Priority uint8

// MaxPriority is the highest priority.
const MaxPriority Priority = 100

// A JobSpec is what a user submits, in its wire form. Every field with a
// default may be absent: Defaults fills it. Validate says what is wrong.
type JobSpec struct {
	Name     string   `json:"name"`
	Tenant   TenantID `json:"tenant,omitzero"`
	Type     JobType  `json:"type"`
	Class    Class    `json:"class,omitzero"`
	Priority Priority `json:"priority,omitzero"`
	Limits   Limits   `json:"limits,omitzero"`
	// Begin is the wall time before which no task is placed, by the region's
	// clock at the submit. 0 means at once.
	Begin WallTime `json:"begin_unix_ms,omitzero"`
	// After lists what must have happened to other jobs of the tenant before a
	// task is placed: all of it. The region must know the jobs.
	After []JobDependency `json:"after,omitempty"`
	// Array makes the only group's count the array's size: each task is one
	// element, told its index by GPUAI_ARRAY_INDEX.
	Array Array `json:"array,omitzero"`
	// Preemptible says whether jobs of higher priority may take the room of this
	// one's tasks. Absent means as the region's policy says of the class, when
	// the job is submitted.
	Preemptible *bool    `json:"preemptible,omitzero"`
	LeaseTTL    Duration `json:"lease_ttl_ms,omitzero"` // lengthens the class's; 0 means the class's
	// Placement says how close together the tasks of gangs run.
	Placement Placement `json:"placement,omitzero"`
	// Together starts the tasks of all groups in one step, or none. A group
	// that is lost later is placed again by itself.
	Together bool    `json:"together,omitzero"`
	Groups   []Group `json:"groups"`
}

// An Array says how many elements a job has; zero size means it is none.
type Array struct {
	Size uint32 `json:"size,omitzero"`
	// MaxParallel bounds how many elements hold a lease at a time; 0 does not.
	MaxParallel uint32 `json:"max_parallel,omitzero"`
}

// A JobDependency is what a job waits for of another. One that can no longer come
// about ends the job that waits for it.
type JobDependency struct {
	Job JobID `json:"job"`
	On  Stage `json:"on,omitzero"`
}

// A Stage is a point in a job's life that another may wait for.
type Stage uint8

// The stages.
const (
	StageSucceeded Stage = iota // it ended well
	StageEnded                  // it ended, whatever its outcome
	StageStarted                // a task of it has had its first lease
	StageFailed                 // it ended otherwise than by success
	numStages
)

// NumStages bounds the stages there are.
const NumStages = int(numStages)

var stageNames = [numStages]string{"succeeded", "ended", "started", "failed"}

// String returns the stage's text.
func (s Stage) String() string { return enumName(stageNames[:], uint8(s)) }

// MarshalText writes the stage's text.
func (s Stage) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a stage's text.
func (s *Stage) UnmarshalText(b []byte) error {
	return enumParse(stageNames[:], "after.on", b, (*uint8)(s))
}

// Limits bound a job's time. Zero means no bound.
type Limits struct {
	// QueueTime ends a job that has not started within it after the submit.
	QueueTime Duration `json:"queue_time_ms,omitzero"`
	// RunTime ends a task that runs longer, counted from its lease's start.
	RunTime Duration `json:"run_time_ms,omitzero"`
}

// A Group is count equal tasks.
type Group struct {
	Name  string `json:"name,omitzero"`
	Count uint32 `json:"count,omitzero"`
	// Gang starts all tasks of the group or none, and stops all when one is
	// lost.
	Gang bool `json:"gang,omitzero"`
	// MinCount makes a gang elastic: it starts with as many tasks as there is
	// room for, at least this many, grows up to Count, and goes on when it loses
	// tasks but for its first one, as long as this many are left. 0 means Count.
	MinCount    uint32       `json:"min_count,omitzero"`
	Constraints []Constraint `json:"constraints,omitempty"`
	Resources   Resources    `json:"resources"`
	Restart     Restart      `json:"restart,omitzero"`
	Task        TaskSpec     `json:"task"`
}

// RestartOn is a set of causes after which a task is placed again.
type RestartOn uint8

// The causes. Lost stands for a lease that expired, was fenced, or whose node
// started anew. A drained task is always placed again, and counts no attempt.
const (
	OnFailure RestartOn = 1 << iota
	OnNodeLost
	OnGPUError
)

// A RestartCause is one member of RestartOn in its text form.
type RestartCause uint8

var restartCauseNames = [...]string{"failure", "node_lost", "gpu_error"}

// Restart says when and how often a task is placed again.
type Restart struct {
	// Attempts is how many times; 0 means the default of 3; an empty On means none.
	Attempts uint32 `json:"attempts,omitzero"`
	// Backoff is the wait before the first attempt; it doubles with each one
	// up to MaxBackoff. 0 means the default of 1 s.
	Backoff Duration `json:"backoff_ms,omitzero"`
	// On lists the causes; absent means node_lost and gpu_error, an empty
	// list means none.
	On []RestartCause `json:"on,omitzero"`
}

// Causes of RestartCause, in the order of their bits in RestartOn.
const (
	CauseFailure RestartCause = iota
	CauseNodeLost
	CauseGPUError
)

// String returns the cause's text.
func (c RestartCause) String() string { return enumName(restartCauseNames[:], uint8(c)) }

// MarshalText writes the cause's text.
func (c RestartCause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a cause's text.
func (c *RestartCause) UnmarshalText(b []byte) error {
	return enumParse(restartCauseNames[:], "restart.on", b, (*uint8)(c))
}

// Set returns the causes as a bit set.
func (r Restart) Set() RestartOn {
	var s RestartOn
	for _, c := range r.On {
		s |= 1 << c
	}
	return s
}

// MaxBackoff is the longest wait between two attempts.
const MaxBackoff = 10 * Minute

// A TaskSpec says what a task runs: Command, Script or, with an Image, what the
// image says. Command and Script exclude each other.
type TaskSpec struct {
	// Runtime is how the task is isolated: "oci" in a sandbox with an image,
	// which is the default for a task that has one; "process" not at all, as a
	// plain process on nodes whose operator allows it.
	Runtime string `json:"runtime,omitzero"`
	// Image is the container image, such as "debian:12" or
	// "registry.example.com/team/app@sha256:…".
	Image string `json:"image,omitzero"`
	// Args are the arguments behind Command, behind Script, or in place of the
	// image's behind its entrypoint. They are replaced as Command's are.
	Args []string `json:"args,omitempty"`
	// Command is the program and its arguments, not expanded by a shell;
	// "$NAME" and "${NAME}" are replaced from the task's environment.
	Command []string `json:"command,omitempty"`
	// Script is run by /bin/sh.
	Script string `json:"script,omitzero"`
	// Env is added to the environment; it wins over all but GPUAI_*.
	Env map[string]string `json:"env,omitempty"`
	// Secrets are those of the tenant that the task is given: from feature level
	// 4 on.
	Secrets []TaskSecret `json:"secrets,omitempty"`
	// Cwd is the absolute working directory; empty means the task's own.
	Cwd string `json:"cwd,omitzero"`
	// StopGrace is the time between SIGTERM and SIGKILL on a planned stop.
	// It is cut short by the lease's deadline. 0 means the default of 5 s.
	StopGrace Duration `json:"stop_grace_ms,omitzero"`
	// Checkpoint gives a task that is preempted or drained the time to save
	// its work.
	Checkpoint Checkpoint `json:"checkpoint,omitzero"`
	// Launcher prepares the task for distributed training.
	Launcher Launcher `json:"launcher,omitzero"`
}

// A Checkpoint is what a task is told before it must give its place up: Signal
// goes to its first process, and only when that is still there after Grace the
// task is stopped as by any planned stop. What ends after the signal, with
// whatever exit code, counts as stopped and is placed again: the work is not
// taken for done. Zero means that the task is stopped at once.
type Checkpoint struct {
	Signal Signal `json:"signal,omitzero"`
	// Grace is bounded by the region's policy and by the lease's deadline. 0
	// means the default of 30 s.
	Grace Duration `json:"grace_ms,omitzero"`
	// Keep is how many published checkpoints of the task are kept, the newest, up
	// to MaxCheckpointKeep; 0 means DefaultCheckpointKeep.
	Keep uint32 `json:"keep,omitzero"`
}

// Kept is how many published checkpoints are kept.
func (c *Checkpoint) Kept() uint32 {
	if c.Keep == 0 {
		return DefaultCheckpointKeep
	}
	return c.Keep
}

// Signal is a signal that a task may ask for.
type Signal uint8

// The signals.
const (
	SignalNone Signal = iota
	SIGUSR1
	SIGUSR2
	SIGHUP
	SIGINT
	SIGTERM
	numSignals
)

var signalNames = [numSignals]string{"", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGTERM"}

// NumSignals is one more than the highest signal.
const NumSignals = int(numSignals)

// String returns the signal's name.
func (s Signal) String() string { return enumName(signalNames[:], uint8(s)) }

// MarshalText writes the signal's name.
func (s Signal) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a signal's name.
func (s *Signal) UnmarshalText(b []byte) error {
	return enumParse(signalNames[:], "signal", b, (*uint8)(s))
}

// The runtimes.
const (
	RuntimeProcess = "process" // a plain process
	RuntimeOCI     = "oci"     // a sandbox with an image
)

// LabelOCI is the label, with the value LabelYes, of nodes that run images: a
// constraint on it is part of every group whose task has one.
const (
	LabelOCI = "runtime.oci"
	LabelYes = "yes"
)

// LabelScratch is the label, a number of bytes, of nodes that lend scratch space:
// a constraint that it is at least what a task asks for is part of every group
// that asks for some.
const LabelScratch = "scratch.bytes"

// JobStatus is the state of a job.
type JobStatus uint8

// The states of a job. A job runs while a task has a lease.
const (
	JobPending JobStatus = iota
	JobRunning
	JobSucceeded
	JobFailed
	JobStopped
	numJobStatus
)

var jobStatusNames = [numJobStatus]string{"pending", "running", "succeeded", "failed", "stopped"}

// String returns the state's text.
func (s JobStatus) String() string { return enumName(jobStatusNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s JobStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *JobStatus) UnmarshalText(b []byte) error {
	return enumParse(jobStatusNames[:], "job status", b, (*uint8)(s))
}

// Final reports whether the job has ended.
func (s JobStatus) Final() bool { return s >= JobSucceeded }

// TaskStatus is the state of a task.
type TaskStatus uint8

// The states of a task. Lost is final: the restarts are used up.
const (
	TaskPending TaskStatus = iota
	TaskLeased
	TaskRunning
	TaskSucceeded
	TaskFailed
	TaskLost
	TaskStopped
	numTaskStatus
)

// NumTaskStatus is the size of a table indexed by TaskStatus.
const NumTaskStatus = int(numTaskStatus)

var taskStatusNames = [numTaskStatus]string{"pending", "leased", "running", "succeeded", "failed", "lost", "stopped"}

// String returns the state's text.
func (s TaskStatus) String() string { return enumName(taskStatusNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s TaskStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *TaskStatus) UnmarshalText(b []byte) error {
	return enumParse(taskStatusNames[:], "task status", b, (*uint8)(s))
}

// TaskCounts counts a job's tasks by state.
type TaskCounts struct {
	Pending   uint32 `json:"pending,omitzero"`
	Leased    uint32 `json:"leased,omitzero"`
	Running   uint32 `json:"running,omitzero"`
	Succeeded uint32 `json:"succeeded,omitzero"`
	Failed    uint32 `json:"failed,omitzero"`
	Lost      uint32 `json:"lost,omitzero"`
	Stopped   uint32 `json:"stopped,omitzero"`
}

// A Job is a submitted job as the region knows it.
type Job struct {
	ID          JobID      `json:"id"`
	Name        string     `json:"name"`
	Tenant      TenantID   `json:"tenant"`
	Region      RegionID   `json:"region"` // home region, owner of the record
	Status      JobStatus  `json:"status"`
	Reason      string     `json:"reason,omitzero"` // why it ended, when not by success
	Type        JobType    `json:"type"`
	Class       Class      `json:"class"`
	Priority    Priority   `json:"priority"`
	Tasks       uint32     `json:"tasks"`
	Counts      TaskCounts `json:"counts"`
	Restarts    uint32     `json:"restarts,omitzero"`
	SubmitIndex uint64     `json:"submit_index"`
	ModifyIndex uint64     `json:"modify_index"`
	SubmittedAt Instant    `json:"submitted_at_ms"`
	SubmitTime  WallTime   `json:"submit_time_unix_ms"`
	StartedAt   Instant    `json:"started_at_ms,omitzero"` // first lease; 0 = not yet
	EndedAt     Instant    `json:"ended_at_ms,omitzero"`
	// Images are the digests that the images of its groups were resolved to.
	Images []GroupImage `json:"images,omitempty"`
	// Cost is what it has cost and may yet cost; absent in lists.
	Cost     *JobCost `json:"cost,omitempty"`
	Archived bool     `json:"archived,omitzero"` // it has left the machine for the history archive
	Spec     *JobSpec `json:"spec,omitzero"`     // absent in lists
}

// A Task is one task of a job.
type Task struct {
	TaskRef
	Status   TaskStatus `json:"status"`
	Attempts uint32     `json:"attempts,omitzero"` // restarts used
	Lease    Token      `json:"lease,omitzero"`    // latest; 0 = never leased
	Node     NodeID     `json:"node,omitzero"`     // of the latest lease
	ExitCode int32      `json:"exit_code,omitzero"`
	RetryAt  Instant    `json:"retry_at_ms,omitzero"` // end of the back-off
	// LastEnd is how it last ended, where its agent said something of it.
	LastEnd *TaskEnd `json:"last_end,omitzero"`
	// Checkpoint is the newest that the task has published.
	Checkpoint *PublishedCheckpoint `json:"checkpoint,omitzero"`
}
