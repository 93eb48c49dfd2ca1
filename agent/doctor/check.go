package doctor

// A Status says how a check ended.
type Status string

// The statuses. Fail is for what ends the agent's start, or keeps a kind of task
// from this node; Warn for what works less well than it could.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// A Check is what was found of one thing. Code is of Codes; some codes have a
// check for each driver, specification or server. Fix and Effect are "" when all
// is well.
type Check struct {
	Code   string `json:"code"`
	Status Status `json:"status"`
	Detail string `json:"detail"` // what was found
	Fix    string `json:"fix"`    // what to do
	Effect string `json:"effect"` // what the node does not run or do
}

// A ProbeResult is what came of one attempt to get out of a sandbox.
type ProbeResult struct {
	Name     string `json:"name"`
	Control  string `json:"-"`        // of docs/isolation.md, where the attempt stands
	Expected string `json:"expected"` // what a closed sandbox gives: an errno or a value, or several with " or "
	Got      string `json:"got"`      // "open" if the attempt worked
	Open     bool   `json:"open"`
}

// A Report is what doctor found. Probes is empty when none were asked for.
type Report struct {
	Checks []Check       `json:"checks"`
	Probes []ProbeResult `json:"probes"`
}

// Open returns the probes that got out.
func (r *Report) Open() (out []ProbeResult) {
	for _, p := range r.Probes {
		if p.Open {
			out = append(out, p)
		}
	}
	return out
}

// A Code names a check for good.
type Code struct{ Name, What string }

// Codes are all checks, in the order in which they are reported.
var Codes = []Code{
	{"config", "the flags, as `gpuai agent run` reads them"},
	{"root", "the agent's user"},
	{"data-dir", "the data directory can be made or written to; whose it is"},
	{"id-mapping", "the file system of the data directory maps users, tried on a mount that nobody sees"},
	{"disk", "room on the data directory's disk"},
	{"image-cache", "room for `--image-cache`"},
	{"image-dirs", "each `--image-dir` is there"},
	{"registry-credentials", "the file of `--registry-credentials`"},
	{"scratch", "mkfs.ext4, loop devices and room for `resources.scratch`"},
	{"kernel", "the version of Linux"},
	{"seccomp", "filters of system calls"},
	{"user-namespaces", "a user namespace of a task's range can be made"},
	{"user-ranges", "no other user of the host has a number of the tasks' ranges"},
	{"cgroups", "version of the control groups, and which limits they set"},
	{"open-files", "how many files a task may open"},
	{"watchdog", "the watchdog's binary, and that it is static"},
	{"oci-runtime", "name, version and package of the OCI runtime, its known flaws, and that it starts a sandbox: one is tried"},
	{"gang-network", "a network namespace, for gangs in sandboxes"},
	{"mesh", "`/dev/net/tun` and free UDP ports, for gangs in sandboxes across nodes"},
	{"network-egress", "what the host lacks for `--network-egress`: nft, forwarding, resolvers; the rules are checked, not loaded"},
	{"network-host", "whether tasks may have the node's own network"},
	{"process-runtime", "whether tasks run without isolation"},
	{"store", "`--store`, and whether this host has credentials of an object store: in the environment, or in the user's files; an instance's role is not seen"},
	{"driver", "each driver: it starts, and which devices it has"},
	{"cdi", "each CDI specification: its devices, or why it is refused"},
	{"clock-boottime", "CLOCK_BOOTTIME, by which leases end"},
	{"clock-sync", "whether the wall clock is synchronised"},
	{"clock-offset", "the wall clock against that of a server"},
	{"identity", "the node's certificate, where the region has authentication"},
	{"server", "each server of `--servers`: it answers, and is ready"},
	{"metrics-port", "the address of `--metrics-http` is free, or this node's agent has it"},
	{"gang-ports", "the range of `--ports` is free"},
}

// What the node does not run.
const (
	noImages  = "takes no tasks with images: it has no label runtime.oci"
	noStart   = "the agent does not start"
	noScratch = "takes no tasks with resources.scratch: it has no label scratch.bytes"
)
