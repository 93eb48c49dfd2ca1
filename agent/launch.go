package agent

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// torchPort is where torchrun's c10d backend listens unless it is told.
const torchPort = "29400"

// launchEnv is what the task's launcher, and its gang's network, have all its
// processes find.
func launchEnv(a *gpuai.Assignment, at taskPlace) map[string]string {
	env := map[string]string{}
	if a.Gang != nil && at.ifname != "" {
		env[gpuai.EnvNCCLInterface], env[gpuai.EnvGlooInterface] = at.ifname, at.ifname
	}
	switch a.Task.Launcher.Kind {
	case gpuai.LauncherTorchrun:
		maps.Copy(env, torchEnv(a, at))
	case gpuai.LauncherEnv:
		maps.Copy(env, worldEnv(a))
	}
	return env
}

// torchEnv are torchrun's options. The world of a task without a gang is itself.
func torchEnv(a *gpuai.Assignment, at taskPlace) map[string]string {
	l, g := a.Task.Launcher, a.Gang
	env := map[string]string{
		gpuai.EnvTorchNodes:       "1",
		gpuai.EnvTorchProcs:       strconv.Itoa(l.Procs(len(a.Lease.Devices))),
		gpuai.EnvTorchBackend:     "c10d",
		gpuai.EnvTorchEndpoint:    "localhost:0", // any port that is free
		gpuai.EnvTorchConf:        "is_host=1",
		gpuai.EnvTorchID:          a.Lease.ID.String(),
		gpuai.EnvTorchNodeRank:    "0",
		gpuai.EnvTorchMaxRestarts: strconv.FormatUint(uint64(l.MaxRestarts), 10),
	}
	if g == nil {
		return env
	}
	least, most := cmp.Or(g.Min, g.Size), cmp.Or(g.Max, g.Size)
	if env[gpuai.EnvTorchNodes] = strconv.FormatUint(uint64(most), 10); least != most {
		env[gpuai.EnvTorchNodes] = strconv.FormatUint(uint64(least), 10) + ":" + env[gpuai.EnvTorchNodes]
	}
	port := torchPort // of a node that lends none
	if g.MasterPort != 0 {
		port = strconv.Itoa(int(g.MasterPort))
	}
	env[gpuai.EnvTorchEndpoint] = net.JoinHostPort(g.MasterAddr, port)
	// Rank 0 listens, whatever the host's name resolves to.
	if g.Rank != 0 {
		env[gpuai.EnvTorchConf] = "is_host=0"
	}
	env[gpuai.EnvTorchID] = gangStart(a)
	env[gpuai.EnvTorchNodeRank] = strconv.FormatUint(uint64(g.Rank), 10)
	if at.address != "" {
		env[gpuai.EnvTorchLocalAddr] = at.address
	}
	return env
}

// gangStart names one start of a gang: its members have it, and nobody that was
// left from an earlier one. Rank 0's lease is new with each.
func gangStart(a *gpuai.Assignment) string {
	start := a.Lease.Job.String() + "-" + strconv.FormatUint(uint64(a.Lease.Group), 10) + "-"
	if a.Gang.Lead != 0 {
		return start + a.Gang.Lead.String()
	}
	return start + strconv.FormatUint(uint64(a.Attempt), 10) // of a server that does not tell
}

// worldEnv is what all processes of the launcher "env" find.
func worldEnv(a *gpuai.Assignment) map[string]string {
	procs, nodes := a.Task.Launcher.Procs(len(a.Lease.Devices)), 1
	env := map[string]string{}
	if g := a.Gang; g != nil {
		nodes = int(g.Size)
	} else {
		env[gpuai.EnvMasterAddr], env[gpuai.EnvMasterPort] = "127.0.0.1", strconv.Itoa(freePort())
	}
	env[gpuai.EnvWorldSize] = strconv.Itoa(nodes * procs)
	env[gpuai.EnvLocalWorldSize] = strconv.Itoa(procs)
	return env
}

// freePort returns a port for processes that meet on this host. Another program
// may take it before they do; the task then fails.
func freePort() int {
	const usual = 29500
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return usual
	}
	defer l.Close()
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return usual
}

// launched returns the arguments behind the watchdog's binary that start argv
// with the launcher "env", and whether that is the task's. The variables that
// each process has of its own leave env.
func launched(a *gpuai.Assignment, argv []string, env map[string]string) (args []string, is bool, err error) {
	if a.Task.Launcher.Kind != gpuai.LauncherEnv || len(argv) == 0 {
		return argv, false, nil
	}
	n := a.Task.Launcher.Procs(len(a.Lease.Devices))
	first := 0
	if a.Gang != nil {
		first = int(a.Gang.Rank) * n
	}
	p := watchdog.Procs{Vars: deviceShares(a, n, env), Grace: a.Task.StopGrace}
	for i := range n {
		p.Vars[gpuai.EnvRank] = append(p.Vars[gpuai.EnvRank], strconv.Itoa(first+i))
		p.Vars[gpuai.EnvLocalRank] = append(p.Vars[gpuai.EnvLocalRank], strconv.Itoa(i))
	}
	for k := range p.Vars {
		delete(env, k)
	}
	args, err = p.Args(argv)
	return args, true, err
}

// visible are the variables by which programs are told their devices.
var visible = []string{gpuai.EnvCUDADevices, gpuai.EnvROCRDevices, gpuai.EnvSimDevices}

// deviceShares deals a task's devices out to its n processes: what its drivers
// say of them or, where they say nothing and the task sees only its own, their
// numbers. What its user says of them stays.
func deviceShares(a *gpuai.Assignment, n int, env map[string]string) map[string][]string {
	out := map[string][]string{}
	all := len(a.Lease.Devices)
	if n < 2 || all < n || all%n != 0 {
		return out
	}
	told := false
	for _, k := range visible {
		_, users := a.Task.Env[k]
		list := strings.Split(env[k], ",")
		told = told || users || env[k] != ""
		if !users && len(list) == all {
			out[k] = deal(list, n)
		}
	}
	if !told {
		var numbers []string
		for i := range all {
			numbers = append(numbers, strconv.Itoa(i))
		}
		out[gpuai.EnvCUDADevices] = deal(numbers, n) // ROCm's HIP reads it too
	}
	return out
}

// deal splits list into n equal runs.
func deal(list []string, n int) (out []string) {
	for run := range slices.Chunk(list, len(list)/n) {
		out = append(out, strings.Join(run, ","))
	}
	return out
}

// torch returns argv behind torchrun, where that is to run it.
func torch(t *gpuai.TaskSpec, argv []string) []string {
	if t.Launcher.RunsTorch(argv) {
		return append([]string{"torchrun"}, argv...)
	}
	return argv
}

// interfaceOf returns the network interface that has a host's address; "" when
// none does.
func interfaceOf(address string) string {
	ips, err := net.LookupIP(address)
	if err != nil {
		return ""
	}
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range all {
		addrs, _ := i.Addrs() // one that went away meanwhile has none
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && slices.ContainsFunc(ips, n.IP.Equal) {
				return i.Name
			}
		}
	}
	return ""
}

// boxPlace is where a sandboxed task runs. Of a gang's own network boxEnv knows
// the interface; on the host's it is the node's.
func (w *worker) boxPlace(granted map[string]string) taskPlace {
	at := taskPlace{region: w.region, dir: sandbox.WorkDir, granted: granted}
	if w.assign.Network == gpuai.NetworkHost {
		at.address, at.ifname = w.a.cfg.Address, w.a.cfg.Interface
	} else if g := gangOf(&w.assign); g != nil {
		at.address = g.Addr(w.assign.Gang.Rank).String()
	}
	return at
}
