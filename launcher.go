package gpuai

import (
	"strconv"
	"strings"
)

// A Launcher has a task prepared for distributed training: its gang is the
// world, or the task alone when it is in none. Zero means that the task's
// program is started once and told only what every task is.
type Launcher struct {
	Kind LauncherKind `json:"kind,omitzero"`
	// ProcsPerNode is how many processes each task has; 0 means one for each of
	// its GPUs, or one without any.
	ProcsPerNode uint32 `json:"procs_per_node,omitzero"`
	// MaxRestarts is how often torchrun restarts its processes by itself, in the
	// same leases, when one fails. Restarts of the gang are Group.Restart's.
	MaxRestarts uint32 `json:"max_restarts,omitzero"`
}

// LauncherKind is who starts a task's processes.
type LauncherKind uint8

// The kinds.
const (
	LauncherNone LauncherKind = iota
	// LauncherTorchrun: the task's program is torchrun, or is run by it, and
	// finds its options in PET_ variables.
	LauncherTorchrun
	// LauncherEnv: the agent starts the program once for each process, with
	// RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and its share of the GPUs.
	LauncherEnv
	numLauncherKinds
)

// NumLauncherKinds is one more than the highest kind.
const NumLauncherKinds = int(numLauncherKinds)

// Limits of a launcher.
const (
	MaxProcs       = 256
	MaxProcRestart = 10_000
)

var launcherNames = [numLauncherKinds]string{"", "torchrun", "env"}

// String returns the kind's name.
func (k LauncherKind) String() string { return enumName(launcherNames[:], uint8(k)) }

// MarshalText writes the kind's name.
func (k LauncherKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *LauncherKind) UnmarshalText(b []byte) error {
	return enumParse(launcherNames[:], "launcher", b, (*uint8)(k))
}

// Procs is how many processes a task with this many devices has.
func (l Launcher) Procs(devices int) int {
	if l.ProcsPerNode > 0 {
		return int(l.ProcsPerNode)
	}
	return max(1, devices)
}

// perRank are the variables that differ between the processes of a task.
var perRank = []string{EnvRank, EnvLocalRank}

// validateLauncher says what is wrong with how the group's tasks are launched.
func (g *Group) validateLauncher(v *fieldErrors, at string) {
	l, at := g.Task.Launcher, at+"/task/launcher"
	v.check(l.Kind < numLauncherKinds, at+"/kind", "is not a known launcher")
	v.check(l.Kind != LauncherNone || l == Launcher{}, at+"/kind", "is needed: torchrun or env")
	v.check(l.ProcsPerNode <= MaxProcs, at+"/procs_per_node", "must be at most "+strconv.Itoa(MaxProcs))
	v.check(l.MaxRestarts <= MaxProcRestart, at+"/max_restarts", "must be at most "+strconv.Itoa(MaxProcRestart))
	if l.Kind != LauncherEnv {
		return
	}
	v.check(l.MaxRestarts == 0, at+"/max_restarts", "is torchrun's: with env a task fails with its first process, and restart says what then")
	v.check(g.MinCount == 0, at+"/kind", "cannot be env in an elastic gang, whose WORLD_SIZE changes: use torchrun")
	n := g.Resources.GPU.Count
	v.check(l.ProcsPerNode == 0 || n%l.ProcsPerNode == 0 || n == 1, at+"/procs_per_node", "must divide the "+strconv.FormatUint(uint64(n), 10)+" GPUs of a task, so that each process has as many")
	for _, k := range perRank {
		if _, ok := g.Task.Env[k]; ok {
			v.add(at[:len(at)-len("launcher")]+"env/"+k, "is each process's own with the launcher env")
		}
	}
}

// RunsTorch reports whether a program is one that torchrun is to run: the name
// of a Python file rather than of a program.
func (l Launcher) RunsTorch(argv []string) bool {
	return l.Kind == LauncherTorchrun && len(argv) > 0 && strings.HasSuffix(argv[0], ".py")
}
