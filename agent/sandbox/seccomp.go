package sandbox

import (
	"maps"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// forbidden are system calls that moby's profile allows in some case and a
// task never gets: they are where kernels were broken, or they see past the
// sandbox. socketcall would pass by the filter of socket, whose arguments it
// hides behind a pointer.
var forbidden = []string{
	"socketcall", "keyctl", "add_key", "request_key",
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"bpf", "perf_event_open", "userfaultfd",
	"unshare", "setns", "mount", "umount", "umount2", "pivot_root",
	"open_by_handle_at", "name_to_handle_at", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
}

// domains are the families of sockets that a task may make.
var domains = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// byDomain are the calls whose first argument is a socket's family, with the
// families that each may have. A pair of sockets is for the unix family only;
// TIPC, the other that has pairs, is another network's worth of kernel.
var byDomain = map[string][]uint64{"socket": domains, "socketpair": {unix.AF_UNIX}}

// routing is the one netlink socket that a task may make: what interfaces and
// addresses there are is asked by it, by getifaddrs of the C library and so by gloo,
// NCCL and MPI. Who has no capability asks by it and changes nothing, and it is of
// the task's own network namespace. The other families of netlink are a kernel's
// worth of parsers that no task needs.
var routing = []specs.LinuxSeccompArg{
	{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
	{Index: 2, Value: unix.NETLINK_ROUTE, Op: specs.OpEqualTo},
}

// systemCalls is moby's profile for a task without capabilities, less what is
// forbidden, for this machine's own calls only: those of 32-bit programs are
// another 400, of which the filter sees less.
func systemCalls(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, err
	}
	p.Architectures = p.Architectures[:min(1, len(p.Architectures))]
	kept := p.Syscalls[:0:0]
	for _, call := range p.Syscalls {
		if call.Action == specs.ActAllow {
			call.Names = slices.DeleteFunc(slices.Clone(call.Names), func(n string) bool {
				return byDomain[n] != nil || slices.Contains(forbidden, n)
			})
		}
		if len(call.Names) > 0 {
			kept = append(kept, call)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byDomain)) {
		for _, d := range byDomain[name] {
			kept = append(kept, specs.LinuxSyscall{
				Names: []string{name}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: d, Op: specs.OpEqualTo}},
			})
		}
	}
	kept = append(kept, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: routing})
	p.Syscalls = kept
	return p, nil
}
