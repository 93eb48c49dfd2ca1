package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// Judge says what the facts mean for the node: the checks in the order of Codes.
// It is a function of the facts alone.
func Judge(f *Facts) []Check {
	out := []Check{f.judgeConfig(), f.judgeRoot(), f.judgeData(), f.judgeMapping(), f.judgeDisk()}
	if f.Sandbox != nil {
		out = append(out, f.judgeCache(), f.judgeDirs(), f.judgeCredentials())
	}
	out = append(out, f.judgeScratch(), f.judgeKernel(), f.judgeSeccomp(), f.judgeUserNS(), f.judgeRanges(), f.judgeCgroups(), f.judgeFiles(),
		f.judgeWatchdog(), f.judgeRuntime())
	if f.Sandbox != nil {
		out = append(out, f.judgeGangs(), f.judgeMesh(), f.judgeEgress(), f.judgeHostNet())
	}
	out = append(out, f.judgeProcess(), f.judgeStore())
	out = append(out, f.judgeDrivers()...)
	out = append(out, f.judgeCDI()...)
	out = append(out, f.judgeBoottime(), f.judgeSync(), f.judgeOffset())
	out = append(out, f.judgeJoined())
	out = append(out, f.judgeServers()...)
	return append(out, f.judgeMetrics(), f.judgePorts())
}

func ok(code, format string, args ...any) Check {
	return Check{Code: code, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

// A cure is what a check that is not well says beside its detail.
type cure struct{ fix, effect string }

func warn(code string, c cure, format string, args ...any) Check {
	return Check{Code: code, Status: Warn, Detail: fmt.Sprintf(format, args...), Fix: c.fix, Effect: c.effect}
}

func fail(code string, c cure, format string, args ...any) Check {
	return Check{Code: code, Status: Fail, Detail: fmt.Sprintf(format, args...), Fix: c.fix, Effect: c.effect}
}

// images is what a lack that keeps images away means: with --oci-runtime auto
// the node goes without, named by the operator the agent does not start.
func (f *Facts) images() string {
	if f.Sandbox != nil && !f.Sandbox.Optional {
		return noStart + ", since --oci-runtime names a runtime"
	}
	return noImages
}

func (f *Facts) judgeConfig() Check {
	const code = "config"
	if f.Wrong == nil {
		return ok(code, "the flags are valid")
	}
	lines := strings.ReplaceAll(f.Wrong.Error(), "\n", "; ")
	return fail(code, cure{"correct the flags that are named", noStart}, "%s", lines)
}

func (f *Facts) judgeRoot() Check {
	const code = "root"
	if f.Root {
		return ok(code, "root")
	}
	return fail(code, cure{"run the agent, and doctor, as root", f.images() + "; with control groups that another user may not make, tasks are not limited"},
		"not root: sandboxes are made by root, and what needs it was not looked at")
}

func (f *Facts) judgeData() Check {
	const code = "data-dir"
	d := &f.Data
	switch {
	case d.Err != nil:
		return fail(code, cure{"give --data a directory that this user may write to", noStart}, "%v", d.Err)
	case d.Holder != 0:
		return ok(code, "%s: the agent of process %d has it", d.Path, d.Holder)
	case !d.There:
		return ok(code, "%s is made in %s when the agent starts", d.Path, d.At)
	}
	return ok(code, "%s: no agent has it now", d.Path)
}

func (f *Facts) judgeMapping() Check {
	const code = "id-mapping"
	d := &f.Data
	switch {
	case !d.Mapped:
		return warn(code, cure{"see root, watchdog and user-namespaces", "not known"}, "%s: not tried", d.Kind)
	case d.MapErr != nil:
		return fail(code, cure{"put --data on ext4, xfs or btrfs, with Linux 5.19 or later", "takes images, and every task with one fails"}, "%s: %v", d.Kind, d.MapErr)
	}
	return ok(code, "%s at %s maps users", d.Kind, d.At)
}

// lowDisk is room that a few images take.
const lowDisk = 20 << 30

func (f *Facts) judgeDisk() Check {
	const code = "disk"
	d := &f.Data
	switch {
	case d.Free <= image.DefaultKeepFree:
		return fail(code, cure{"free some, or put --data on another disk", "no image is unpacked that is not in the cache: such tasks are lost and placed elsewhere"},
			"%s free of %s, of which %s stay free", size(d.Free), size(d.Size), size(image.DefaultKeepFree))
	case d.Free < lowDisk:
		return warn(code, cure{"free some, or put --data on another disk", "large images do not fit: their tasks are lost and placed elsewhere"},
			"%s free of %s, of which %s stay free", size(d.Free), size(d.Size), size(image.DefaultKeepFree))
	case d.Inodes < 200_000:
		return warn(code, cure{"free some, or put --data on another disk", "images of many files do not fit: their tasks are lost and placed elsewhere"},
			"room for %d files, and an image may have 1,000,000", d.Inodes)
	}
	return ok(code, "%s free of %s, of which %s stay free", size(d.Free), size(d.Size), size(image.DefaultKeepFree))
}

func (f *Facts) judgeCache() Check {
	const code = "image-cache"
	most := gpuai.Bytes(f.Sandbox.Images.MaxBytes)
	if most == 0 {
		most = image.DefaultMaxBytes
	}
	if most > max(0, f.Data.Size-image.DefaultKeepFree) {
		return warn(code, cure{"set --image-cache to what the disk can spare", "the disk is full before the cache is; images are evicted then, too"},
			"--image-cache is %s, and the disk has %s", size(most), size(f.Data.Size))
	}
	return ok(code, "up to %s", size(most))
}

func (f *Facts) judgeDirs() Check {
	const code = "image-dirs"
	if len(f.ImageDirs) > 0 {
		var all []string
		for _, err := range f.ImageDirs {
			all = append(all, err.Error())
		}
		return warn(code, cure{"make the directory, or leave it out of --image-dir", "tasks that name an image below it fail"}, "%s", strings.Join(all, "; "))
	}
	return ok(code, "%d", len(f.Sandbox.Images.Files))
}

func (f *Facts) judgeCredentials() Check {
	const code = "registry-credentials"
	switch {
	case f.Credentials != nil:
		return fail(code, cure{"correct the file, or leave --registry-credentials out", f.images()}, "%v", f.Credentials)
	case f.Sandbox.Images.Credentials == "":
		return ok(code, "none: images that anybody may have")
	}
	return ok(code, "%s", f.Sandbox.Images.Credentials)
}

func (f *Facts) judgeScratch() Check {
	const code = "scratch"
	wanted := gpuai.Bytes(0)
	if f.Sandbox != nil {
		wanted = f.Sandbox.Scratch
	}
	effect := noScratch
	if wanted > 0 {
		effect = noStart + ", since --scratch asks for some"
	}
	switch {
	case f.ScratchErr != nil && wanted > 0:
		return fail(code, cure{"install e2fsprogs; load the module loop", effect}, "%v", f.ScratchErr)
	case f.ScratchErr != nil:
		return warn(code, cure{"install e2fsprogs; load the module loop", effect}, "%v", f.ScratchErr)
	case wanted > f.Data.Free:
		return warn(code, cure{"lend less by --scratch, or free some", "tasks with resources.scratch come and are lost for want of room"},
			"--scratch is %s, and %s are free", size(wanted), size(f.Data.Free))
	case wanted == 0 && f.Data.Free < 2<<30:
		return warn(code, cure{"free some, or put --data on another disk", noScratch}, "half of the %s that are free is less than 1 GiB", size(f.Data.Free))
	}
	return ok(code, "mkfs.ext4 and loop devices are there")
}

func (f *Facts) judgeKernel() Check {
	const code = "kernel"
	switch {
	case before(f.Kernel, 5, 8):
		return fail(code, cure{"install Linux 5.19 or later", noImages + " that works, and no scratch space"}, "Linux %s", f.Kernel)
	case before(f.Kernel, 5, 19):
		return fail(code, cure{"install Linux 5.19 or later", "takes images, and every task with one fails: an overlay of ID-mapped mounts needs 5.19"}, "Linux %s", f.Kernel)
	}
	return ok(code, "Linux %s", f.Kernel)
}

// before reports whether a kernel's release is older than major.minor. One that
// cannot be read is not.
func before(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a < major || a == major && b < minor
}

func (f *Facts) judgeSeccomp() Check {
	const code = "seccomp"
	if f.Seccomp {
		return ok(code, "the kernel filters system calls")
	}
	return fail(code, cure{"use a kernel with CONFIG_SECCOMP_FILTER", "takes images, and every task with one fails"}, "the kernel filters no system calls")
}

func (f *Facts) judgeUserNS() Check {
	const code = "user-namespaces"
	broken := "takes images, and every task with one fails"
	switch {
	case f.MaxUserNS == 0:
		return fail(code, cure{"sysctl user.max_user_namespaces=15000, and see /etc/sysctl.d", broken}, "the host allows none: user.max_user_namespaces is 0")
	case f.UserNS != nil:
		return fail(code, cure{"see user.max_user_namespaces, and a container's or a security module's rules for this agent", broken}, "%v", f.UserNS)
	case !f.Root || f.Watchdog != nil:
		return warn(code, cure{"see root and watchdog", "not known"}, "not tried")
	}
	return ok(code, "one of %d users from %d on was made; %d of %d ranges are lent",
		sandbox.RangeSize, sandbox.AllRanges.First, f.RangesLent, sandbox.AllRanges.Size/sandbox.RangeSize)
}

func (f *Facts) judgeRanges() Check {
	const code = "user-ranges"
	lo := sandbox.AllRanges.First
	hi := lo + (sandbox.AllRanges.Size - 1)
	if len(f.RangeUsers) > 0 {
		return warn(code, cure{"give them other numbers", "none; a task that gets out of its sandbox may be one of them"},
			"%s: within the tasks' users, %d to %d", strings.Join(f.RangeUsers[:min(3, len(f.RangeUsers))], ", "), lo, hi)
	}
	return ok(code, "%d to %d are the tasks' alone, by /etc/passwd, group, subuid and subgid", lo, hi)
}

func (f *Facts) judgeCgroups() Check {
	const code = "cgroups"
	if f.CgroupsErr != nil {
		return fail(code, cure{"mount the control groups (cgroup2 at /sys/fs/cgroup)", "no sandbox starts, and plain tasks run without limits"}, "%v", f.CgroupsErr)
	}
	var missing []string
	for _, l := range watchdog.Limits() {
		if !slices.Contains(f.Cgroups.Limits, l) {
			missing = append(missing, l)
		}
	}
	detail := "version " + f.Cgroups.Version + ", limits: " + strings.Join(f.Cgroups.Limits, ", ")
	if len(missing) == 0 {
		return ok(code, "%s", detail)
	}
	return fail(code, cure{"turn the controllers on (cgroup_enable=memory on the kernel's command line); in a container, let it write to them",
		"no sandbox starts, and plain tasks run without these limits"},
		"%s; not: %s%s", detail, strings.Join(missing, ", "), because(f.Cgroups.Why))
}

func because(why []string) string {
	if len(why) == 0 {
		return ""
	}
	return " (" + strings.Join(why, "; ") + ")"
}

func (f *Facts) judgeFiles() Check {
	const code = "open-files"
	if f.OpenFiles < 65536 {
		return warn(code, cure{"raise the agent's hard limit to 65536 (LimitNOFILE=65536 in its unit)", "tasks may open fewer files"}, "%d for each task, where 65536 are usual", f.OpenFiles)
	}
	return ok(code, "65536 for each task")
}

func (f *Facts) judgeWatchdog() Check {
	const code = "watchdog"
	if f.Watchdog != nil {
		return fail(code, cure{"build it with make build, and name it with --watchdog", "without one " + noStart + "; with one that is not static it " + noImages}, "%v", f.Watchdog)
	}
	return ok(code, "it is there, and static")
}

func (f *Facts) judgeRuntime() Check {
	const code = "oci-runtime"
	switch {
	case f.Sandbox == nil:
		return warn(code, cure{"leave --oci-runtime none out, if tasks with images are to come", noImages}, "none is wanted")
	case f.RuntimeErr != nil:
		return fail(code, cure{"install it, or name another with --oci-runtime", f.images()}, "%v", f.RuntimeErr)
	}
	r := f.Runtime
	version := r.Path + " " + r.Version
	if r.Package != "" {
		version += ", package " + r.Package
	}
	flaw := r.Refusal()
	switch {
	case errors.Is(f.Trial, agent.ErrTrialUndecided):
		return warn(code, cure{"run doctor again; see that no other runs", "not known"}, "%s: %v", version, f.Trial)
	case f.Trial != nil:
		return fail(code, cure{"use runc, which is tested (--oci-runtime runc, apt-get install runc), or mend what it says", f.images()}, "%v", f.Trial)
	case flaw != nil && !f.Sandbox.AcceptFlaw:
		return fail(code, cure{"install a version with the fix; --accept-runtime-flaw takes it all the same", f.images()}, "%v", flaw)
	case flaw != nil:
		return warn(code, cure{"install a version with the fix", "none: --accept-runtime-flaw takes it; who gets out is nobody on this host"}, "%s, with %s", version, r.Flaw())
	}
	return ok(code, "%s, without a known flaw", version)
}

func (f *Facts) judgeProcess() Check {
	const code = "process-runtime"
	if f.Process {
		return warn(code, cure{"leave --allow-process-runtime out, unless every tenant is trusted", "none; a task without an image has the rights of this user"},
			"on: tasks without an image run without isolation")
	}
	return ok(code, "off: the node takes no tasks without an image")
}

func size(n gpuai.Bytes) string {
	const gib = 1 << 30
	if n >= gib {
		return fmt.Sprintf("%d.%d GiB", n/gib, n%gib*10/gib)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
