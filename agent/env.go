package agent

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// inherited are the agent's own variables that tasks get. The rest may hold
// secrets and says nothing about the task.
var inherited = []string{"PATH", "LANG", "TZ", "LD_LIBRARY_PATH"}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hostEnv is what a plain process has of its host.
func hostEnv() map[string]string {
	env := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin"}
	for _, k := range inherited {
		if v, ok := os.LookupEnv(k); ok {
			env[k] = v
		}
	}
	return env
}

// imageEnv is what a sandboxed task has of its image, and nothing of its host.
func imageEnv(list []string) map[string]string {
	env := map[string]string{"PATH": defaultPath}
	for _, v := range list {
		if k, v, ok := strings.Cut(v, "="); ok && k != "" && !strings.HasPrefix(k, "GPUAI_") {
			env[k] = v
		}
	}
	return env
}

// A taskPlace is where a task runs: its region, its own directory as it sees
// it, and what its drivers granted.
type taskPlace struct {
	region  gpuai.RegionID
	dir     string
	granted map[string]string
	// address is where the gang's other members reach it, and ifname the network
	// interface, as it sees it, by which it reaches them; "" is not known.
	address, ifname string
}

// taskEnv is a task's environment: base, of its drivers, of its gang, the
// user's over these, and the region's own names over all.
func taskEnv(a *gpuai.Assignment, base map[string]string, at taskPlace) map[string]string {
	env := map[string]string{"HOME": at.dir}
	maps.Copy(env, base)
	maps.Copy(env, at.granted)
	if g := a.Gang; g != nil {
		env[gpuai.EnvMasterAddr] = g.MasterAddr
		env[gpuai.EnvMasterPort] = strconv.Itoa(int(g.MasterPort))
	}
	maps.Copy(env, launchEnv(a, at))
	maps.Copy(env, a.Task.Env)
	for k, v := range at.granted {
		if strings.HasPrefix(k, "GPUAI_") {
			env[k] = v
		}
	}
	maps.Copy(env, regionEnv(a, at.region, at.dir))
	return env
}

// regionEnv is what only the region may say.
func regionEnv(a *gpuai.Assignment, region gpuai.RegionID, dir string) map[string]string {
	l := &a.Lease
	env := map[string]string{
		gpuai.EnvJob:          l.Job.String(),
		gpuai.EnvLease:        l.ID.String(),
		gpuai.EnvToken:        l.ID.String(),
		gpuai.EnvRegion:       string(region),
		gpuai.EnvRestart:      strconv.FormatUint(uint64(a.Attempt), 10),
		gpuai.EnvGPUs:         strconv.Itoa(len(l.Devices)),
		gpuai.EnvTaskDir:      dir,
		gpuai.EnvTaskGroup:    a.GroupName,
		gpuai.EnvTaskIndex:    strconv.FormatUint(uint64(l.Task), 10),
		gpuai.EnvStopDeadline: strconv.FormatInt(int64(a.Task.StopGrace), 10),
	}
	if a.Array > 0 {
		env[gpuai.EnvArrayIndex] = env[gpuai.EnvTaskIndex]
		env[gpuai.EnvArraySize] = strconv.FormatUint(uint64(a.Array), 10)
	}
	if g := a.Gang; g != nil {
		env[gpuai.EnvNodeRank] = strconv.FormatUint(uint64(g.Rank), 10)
		env[gpuai.EnvNodes] = strconv.FormatUint(uint64(g.Size), 10)
		env[gpuai.EnvNodesMin] = strconv.FormatUint(uint64(cmp.Or(g.Min, g.Size)), 10)
		env[gpuai.EnvNodesMax] = strconv.FormatUint(uint64(cmp.Or(g.Max, g.Size)), 10)
		env[gpuai.EnvNodeIPs] = strings.Join(g.NodeIPs, ",")
	}
	return env
}

// envList is env as exec wants it, in order.
func envList(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// expandAll expands each of list.
func expandAll(list []string, env map[string]string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, env)
	}
	return out
}

// expand replaces $NAME and ${NAME} by variables of env. A name that is not
// there is left as it stands: it may be meant for a shell.
func expand(s string, env map[string]string) string {
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(s[:i])
		name, length := nameAt(s[i+1:])
		if v, ok := env[name]; ok {
			out.WriteString(v)
		} else {
			out.WriteString(s[i : i+1+length])
		}
		s = s[i+1+length:]
	}
}

// nameAt reads the name behind a '$' and how long it is with its braces.
func nameAt(s string) (name string, length int) {
	if rest, ok := strings.CutPrefix(s, "{"); ok {
		if n := nameLen(rest); n > 0 && n < len(rest) && rest[n] == '}' {
			return rest[:n], n + 2
		}
		return "", 0
	}
	n := nameLen(s)
	return s[:n], n
}

func nameLen(s string) int {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}
