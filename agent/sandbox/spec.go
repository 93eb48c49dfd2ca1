package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gpuai/gpuai"
)

// A Task is what a sandbox is made of.
type Task struct {
	// Root is where the runtime finds the image's root, mounted read-only with
	// its users mapped.
	Root string
	// Args[0] is looked up in Env's PATH unless it has a slash; Env is NAME=value.
	Args, Env []string
	// Cwd is absolute, in the sandbox; "" is WorkDir.
	Cwd string
	// User and Group are the sandbox's, Groups its further groups.
	User, Group uint32
	Groups      []uint32
	Hostname    string
	// UserNS and NetNS are where the runtime finds the task's user namespace,
	// with the users of IDs, and the network namespace that belongs to it; "" has
	// it make them, with nothing but loopback in the latter. One without the
	// other is refused: the task could not mount /sys.
	UserNS, NetNS string
	// HostNet has the task be in the host's network namespace, in place of NetNS.
	HostNet bool
	// IDs are the host's users that the sandbox has.
	IDs Range

	Memory gpuai.Bytes // 0 sets no limit
	Shm    gpuai.Bytes // bounds /dev/shm; 0 is half of Memory
	// Scratch is the host's directory of the task's room on the disk, with an
	// entry for WorkDir and one for TmpDir; "" has them in memory.
	Scratch string
	PIDs    int64
	NoFile  uint64

	Devices []Device // of its lease
	// DeviceFiles is the host's directory with the file of the i-th device as
	// its entry i. The task's are of its own users, whatever the host's are.
	DeviceFiles string
	Mounts      []Mount // of its lease's drivers, and never of its tenant
	// Files are the host's files that it sees read-only, by their path in it.
	Files map[string]string
	// Init is the host's program that is the sandbox's first process, with
	// InitArgs before Args; "" makes the task's program the first.
	Init     string
	InitArgs []string
}

// A Device is a device file of the host that the task may open.
type Device struct {
	Path         string // in the sandbox
	Block        bool
	Major, Minor uint32
	Permissions  string // of "rwm"; "" permits nothing
}

// A Mount is a path of the host that the task sees.
type Mount struct {
	Path, HostPath string
	Writable       bool
	// Options are what a driver asks for beside; those of mountOptions are
	// known, and every mount has them.
	Options []string
}

// mountOptions are the options that a driver's mount may have: all of them have
// them, but for noexec.
var mountOptions = []string{"ro", "bind", "nosuid", "nodev", "private", noExec}

const noExec = "noexec"

// Directories of a sandbox that its task may write to. They are in memory, and
// count against the task's memory.
const (
	WorkDir = "/work" // GPUAI_TASK_DIR and HOME
	TmpDir  = "/tmp"
	RunDir  = "/run"
	ShmDir  = "/dev/shm" // shared memory
)

// defaultScratch bounds each writable directory of a task without a memory
// limit; with one, each may take half of it.
const defaultScratch = 1 << 30

// specVersion is the version that the specification keeps to: crun before 1.9, as
// Debian 12 has it, takes no later one.
const specVersion = "1.0.2"

// Spec returns the specification for the runtime.
func Spec(t *Task) (*specs.Spec, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  specVersion,
		Hostname: cmp.Or(t.Hostname, "task"),
		Root:     &specs.Root{Path: t.Root, Readonly: true},
		Process:  t.process(),
		Mounts:   t.mounts(),
		Linux: &specs.Linux{
			UIDMappings: t.IDs.mapping(), GIDMappings: t.IDs.mapping(),
			Namespaces:    t.namespaces(),
			MaskedPaths:   slices.Clone(maskedPaths),
			ReadonlyPaths: slices.Clone(readonlyPaths),
			Resources:     t.resources(),
			CgroupsPath:   cgroup,
			// The task sees how many CPUs it has, not the host's other groups.
			RootfsPropagation: "private",
		},
	}
	var err error
	if s.Linux.Seccomp, err = systemCalls(s); err != nil {
		return nil, fmt.Errorf("the filter of system calls: %w", err)
	}
	return s, nil
}

// InitPath is where a sandbox has its first program. The task may read and run
// it, as it may everything that is its own.
const InitPath = "/.gpuai/init"

// initPIDs is room for the threads of the first process.
const initPIDs = 16

// cgroup is the runtime's group, relative to its own.
const cgroup = "box"

func (t *Task) check() error {
	switch {
	case len(t.Args) == 0 || t.Args[0] == "":
		return errors.New("there is no program to run: the image names none, give command or args")
	case t.Cwd != "" && !path.IsAbs(t.Cwd):
		return fmt.Errorf("the working directory %q is not absolute", t.Cwd)
	case t.IDs.Size == 0 || t.IDs.First == 0:
		return errors.New("a sandbox needs a range of users of its own")
	case (t.UserNS == "") != (t.NetNS == "") || t.HostNet && t.NetNS != "":
		return errors.New("a sandbox's network namespace belongs to its user namespace, or is the host's")
	case t.User >= t.IDs.Size || t.Group >= t.IDs.Size:
		return fmt.Errorf("user %d or group %d is outside of the sandbox's %d", t.User, t.Group, t.IDs.Size)
	}
	if err := t.checkGrants(); err != nil {
		return err
	}
	for _, s := range slices.Concat(t.Args, t.Env, []string{t.Cwd}) {
		if strings.ContainsRune(s, 0) {
			return errors.New("an argument or a variable has a NUL byte")
		}
	}
	return nil
}

// checkGrants refuses what a driver grants and a sandbox would not have so.
func (t *Task) checkGrants() error {
	for _, d := range t.Devices {
		if path.Clean(d.Path) != d.Path || !path.IsAbs(d.Path) || d.Path == "/" {
			return fmt.Errorf("the device %q has no absolute path in the sandbox", clip(d.Path))
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			return fmt.Errorf("the device %s has the permissions %q: they are of r, w and m", clip(d.Path), clip(d.Permissions))
		}
	}
	for _, m := range t.Mounts {
		for _, o := range m.Options {
			if !slices.Contains(mountOptions, o) {
				return fmt.Errorf("the mount of %s has the option %q: the sandbox knows %s", clip(m.Path), clip(o), strings.Join(mountOptions, ", "))
			}
		}
	}
	return nil
}

func (t *Task) process() *specs.Process {
	score := 0
	args := t.Args
	if t.Init != "" {
		args = slices.Concat([]string{InitPath}, t.InitArgs, t.Args)
	}
	return &specs.Process{
		User: specs.User{UID: t.User, GID: t.Group, AdditionalGids: t.Groups},
		Args: args, Env: t.Env, Cwd: cmp.Or(t.Cwd, WorkDir),
		Capabilities:    &specs.LinuxCapabilities{}, // none, in any set
		NoNewPrivileges: true,
		OOMScoreAdj:     &score,
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Hard: t.NoFile, Soft: t.NoFile},
			{Type: "RLIMIT_CORE"},
		},
	}
}

func (t *Task) namespaces() []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.UserNamespace, Path: t.UserNS}}
	if !t.HostNet {
		out = append(out, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: t.NetNS})
	}
	for _, n := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	} {
		out = append(out, specs.LinuxNamespace{Type: n})
	}
	return out
}

// sys is the kernel's devices, with those of the task's network. Who is not in a
// network namespace of its own may not mount them, and has the host's.
func (t *Task) sys() specs.Mount {
	options := []string{"nosuid", "noexec", "nodev", "ro"}
	if t.HostNet {
		return specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: append(options, "rbind", "rro", "rprivate")}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: options}
}

// maskedPaths are empty in a sandbox: they tell of the host, or change it.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kmsg", "/proc/sysrq-trigger",
	"/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/bpf",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysvipc"}

// mounts are the sandbox's file systems over its image.
func (t *Task) mounts() []specs.Mount {
	scratch := int64(defaultScratch)
	if t.Memory > 0 {
		scratch = int64(t.Memory) / 2
	}
	tmpfs := func(at, mode string, more ...string) specs.Mount {
		return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "nodev", "mode=" + mode}, more...)}
	}
	size := "size=" + strconv.FormatInt(scratch, 10)
	shm := "size=" + strconv.FormatInt(cmp.Or(int64(t.Shm), scratch), 10)
	own := []string{size, "uid=" + strconv.FormatUint(uint64(t.User), 10), "gid=" + strconv.FormatUint(uint64(t.Group), 10)}
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", "755", "noexec", "strictatime", "size=65536k"),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		tmpfs(ShmDir, "1777", "noexec", shm),
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		t.sys(),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		tmpfs(RunDir, "755", "noexec", size),
	}
	if t.Scratch != "" {
		out = append(out, bind(WorkDir, t.Scratch+WorkDir, true), bind(TmpDir, t.Scratch+TmpDir, true))
	} else {
		out = append(out, tmpfs(TmpDir, "1777", size), tmpfs(WorkDir, "700", own...))
	}
	for i, d := range t.Devices {
		out = append(out, specs.Mount{
			Destination: d.Path, Type: "bind", Source: path.Join(t.DeviceFiles, strconv.Itoa(i)),
			Options: []string{"bind", "nosuid", noExec, "private"},
		})
	}
	for _, m := range t.Mounts {
		b := bind(m.Path, m.HostPath, m.Writable)
		if slices.Contains(m.Options, noExec) {
			b.Options = append(b.Options, noExec)
		}
		out = append(out, b)
	}
	if t.Init != "" {
		out = append(out, bind(InitPath, t.Init, false))
	}
	for _, at := range slices.Sorted(maps.Keys(t.Files)) {
		out = append(out, bind(at, t.Files[at], false))
	}
	return out
}

func bind(at, host string, writable bool) specs.Mount {
	o := []string{"bind", "nosuid", "nodev", "private"}
	if !writable {
		o = append(o, "ro")
	}
	return specs.Mount{Destination: at, Type: "bind", Source: host, Options: o}
}

func (t *Task) resources() *specs.LinuxResources {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if t.Memory > 0 {
		limit := int64(t.Memory)
		r.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit} // together: no swap
	}
	if t.PIDs > 0 {
		limit := t.PIDs
		if t.Init != "" {
			limit += initPIDs
		}
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	for _, d := range t.Devices {
		if d.Permissions != "" {
			major, minor := int64(d.Major), int64(d.Minor)
			r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.kind(), Major: &major, Minor: &minor, Access: d.Permissions})
		}
	}
	return r
}

func (d *Device) kind() string {
	if d.Block {
		return "b"
	}
	return "c"
}
