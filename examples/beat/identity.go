package beat

import (
	"fmt"
	"strconv"

	"github.com/gpuai/gpuai"
)

// An Identity says which task a process runs, and under which lease.
type Identity struct {
	Token gpuai.Token
	Job   string
	Group string
	Task  uint32 // the task's place in its group
}

// FromEnv reads the identity that the agent puts into every task's environment.
// The error names the variable that is missing or malformed.
func FromEnv(getenv func(string) string) (Identity, error) {
	id := Identity{Job: getenv(gpuai.EnvJob), Group: getenv(gpuai.EnvTaskGroup)}
	if err := id.Token.UnmarshalText([]byte(getenv(gpuai.EnvToken))); err != nil {
		return Identity{}, fmt.Errorf("%s is %q: %w; is this started as a task?", gpuai.EnvToken, getenv(gpuai.EnvToken), err)
	}
	task, err := strconv.ParseUint(getenv(gpuai.EnvTaskIndex), 10, 32)
	if err != nil {
		return Identity{}, fmt.Errorf("%s is %q, and must be the task's place in its group", gpuai.EnvTaskIndex, getenv(gpuai.EnvTaskIndex))
	}
	id.Task = uint32(task)
	for name, v := range map[string]string{gpuai.EnvJob: id.Job, gpuai.EnvTaskGroup: id.Group} {
		if !plain(v) {
			return Identity{}, fmt.Errorf("%s is %q, and must be a word", name, v)
		}
	}
	return id, nil
}

// plain reports whether s can be a field of a line.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}
