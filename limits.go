package gpuai

// Limits of what a user may say. Those of the machine are in fsm/limits.go.
const (
	MaxNameLen        = 63                // characters of a name
	MaxTextLen        = 256               // characters of a model, label value, device ID, address
	MaxGroups         = 16                // groups of a job
	MaxTasks          = 100_000           // tasks of a group; also the size of an array
	MaxGangTasks      = 4_096             // tasks of a gang
	MaxGPUs           = 64                // GPUs of a task, and devices of a node
	MaxAlternatives   = 8                 // GPU alternatives of a group
	MaxConstraints    = 20                // constraints of a group, with those that its sandbox implies
	MaxOwnConstraints = 16                // constraints of a group beside those that its sandbox implies
	MaxValues         = 32                // values of an in or not_in constraint
	MaxLabels         = 32                // labels of a node
	MaxCommand        = 1_024             // arguments of a task
	MaxEnv            = 1_024             // environment variables of a task
	MaxImageLen       = 512               // bytes of an image's name
	MaxSpecBytes      = 128 << 10         // a job spec in the log
	MaxCPU            = MilliCPU(1 << 31) // of a node or task, exclusive
	MaxMemory         = Bytes(1 << 50)    // of a node, device or task, exclusive
	MaxAttempts       = 1_000             // restarts of a task
	MaxAfter          = 16                // jobs that a job waits for
	MaxPorts          = 64                // ports that a node lends to gangs
	MaxBatchJobs      = 1_000             // jobs of one jobs:batch
	MaxKeyLen         = 128               // characters of an idempotency key
	MaxReasonLen      = 512               // characters of a report's reason
	MaxDemand         = 1_024             // kinds of tasks of a demand
	MaxDemandTasks    = 1 << 40           // tasks of one kind of a demand

	// MaxDuration bounds every duration a user may give.
	MaxDuration = 3650 * Day
	// MaxWallTime bounds every time of day a user may give: in the year 2262.
	MaxWallTime WallTime = 1<<63/1_000_000 - 1
	// MaxLeaseTTL bounds a lease's time to live. A region that was restored
	// from a backup grants nothing for MaxLeaseTTL and the grace after it.
	MaxLeaseTTL = Hour
	// MinLeaseTTL is the floor of the floor: policy may ask for more. It is
	// 10 s and five Raft heartbeats of at least 1 s in all, see Policy.
	MinLeaseTTL = 15 * Second
)
