package probe

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Controls, as docs/isolation.md names them.
const (
	userNamespace = "user namespace"
	namespaces    = "namespaces"
	privileges    = "privileges"
	systemCalls   = "system calls"
	files         = "files"
	limits        = "limits"
	devices       = "devices"
	network       = "network"
)

// no is what a filter or a missing capability answers.
var no = []string{"EPERM"}

// All returns every probe.
func All() []Probe {
	var all []Probe
	for _, some := range [][]Probe{nesting(), privileged(), kernel(), sockets(), filesystem(), deviceNodes(), facts()} {
		all = append(all, some...)
	}
	return all
}

// sys makes a system call.
func sys(nr uintptr, args ...uintptr) func() (string, error) {
	var a [6]uintptr
	copy(a[:], args)
	return func() (string, error) {
		_, _, e := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		return "", result(e)
	}
}

func result(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func str(s string) uintptr {
	p, err := syscall.BytePtrFromString(s)
	if err != nil {
		return 0
	}
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// kept keeps what system calls point to.
var kept []*byte

func nesting() []Probe {
	fork := func(flags uintptr) func() (string, error) {
		return func() (string, error) {
			_, err := syscall.ForkExec("/proc/self/exe", []string{"gpuai-probe", "none"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: flags}})
			return "", err
		}
	}
	enter := func(ns string, kind uintptr) func() (string, error) {
		return func() (string, error) {
			fd, err := unix.Open("/proc/self/ns/"+ns, unix.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			return sys(unix.SYS_SETNS, uintptr(fd), kind)()
		}
	}
	return []Probe{
		{"unshare a user namespace", systemCalls, no, sys(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
		{"clone into a user namespace", systemCalls, no, fork(unix.CLONE_NEWUSER)},
		{"clone3 into a user namespace", systemCalls, []string{"ENOSYS"}, sys(unix.SYS_CLONE3, 0, 0)},
		{"unshare a mount namespace", namespaces, no, sys(unix.SYS_UNSHARE, unix.CLONE_NEWNS)},
		{"clone into a network namespace", namespaces, no, fork(unix.CLONE_NEWNET)},
		{"enter a network namespace", namespaces, no, enter("net", unix.CLONE_NEWNET)},
		{"enter a user namespace", namespaces, no, enter("user", unix.CLONE_NEWUSER)},
	}
}

func privileged() []Probe {
	return []Probe{
		{"chroot", privileges, no, sys(unix.SYS_CHROOT, str("/none"))},
		{"give a file away", privileges, no, func() (string, error) {
			defer os.Remove("/tmp/gpuai-own")
			return "", errors.Join(os.WriteFile("/tmp/gpuai-own", nil, 0o600), os.Chown("/tmp/gpuai-own", 1234, 1234))
		}},
		{"change the host name", privileges, no, sys(unix.SYS_SETHOSTNAME, str("x"), 1000)},
		{"set the clock", privileges, no, sys(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&unix.Timespec{Sec: 1, Nsec: -1})))},
		{"raise a hard limit", privileges, no, func() (string, error) {
			return "", syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20})
		}},
		{"raise the own priority", privileges, []string{"EACCES", "EPERM"}, sys(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, ^uintptr(0)-9)},
		{"reboot", privileges, no, sys(unix.SYS_REBOOT, 0, 0, 0)},
		{"use an I/O port", privileges, no, ioPort},
		{"swap to a file", privileges, no, sys(unix.SYS_SWAPON, str("/none"), 0)},
		{"account processes", privileges, no, sys(unix.SYS_ACCT, str("/none"))},
	}
}

func kernel() []Probe {
	return []Probe{
		{"keyctl", systemCalls, no, sys(unix.SYS_KEYCTL, 0, 0)},
		{"add_key", systemCalls, no, sys(unix.SYS_ADD_KEY, 0, 0)},
		{"io_uring", systemCalls, no, sys(unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&[120]byte{})))},
		{"bpf", systemCalls, no, sys(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&[128]byte{})), 128)},
		{"perf_event_open", systemCalls, no, sys(unix.SYS_PERF_EVENT_OPEN, 0)},
		{"userfaultfd", systemCalls, no, sys(unix.SYS_USERFAULTFD, 1)},
		{"open by handle", systemCalls, no, sys(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), 0, 0)},
		{"load a module", systemCalls, no, sys(unix.SYS_INIT_MODULE, 0, 0, 0)},
		{"load a kernel", systemCalls, no, sys(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0xffff)},
		{"read the kernel's log", systemCalls, no, sys(unix.SYS_SYSLOG, 3, uintptr(unsafe.Pointer(&[64]byte{})), 64)},
		{"mount", systemCalls, no, sys(unix.SYS_MOUNT, str("none"), str("/none"), str("tmpfs"), 0, 0)},
		{"make a mount writable", systemCalls, no, sys(unix.SYS_MOUNT, str(""), str("/none"), 0, unix.MS_REMOUNT|unix.MS_BIND, 0)},
		{"unmount /proc/sys", systemCalls, no, sys(unix.SYS_UMOUNT2, str("/proc/sys"), unix.MNT_DETACH)},
		{"pivot the root", systemCalls, no, sys(unix.SYS_PIVOT_ROOT, str("/tmp"), str("/tmp"))},
		{"open a mount tree", systemCalls, no, sys(unix.SYS_OPEN_TREE, ^uintptr(0), str("/"), unix.OPEN_TREE_CLONE)},
		{"open a file system", systemCalls, no, sys(unix.SYS_FSOPEN, str("tmpfs"), 0)},
		{"trace the first process", namespaces, no, sys(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0)},
		{"signal every process", namespaces, []string{"ESRCH"}, sys(unix.SYS_KILL, ^uintptr(0), 0)},
	}
}

func sockets() []Probe {
	socket := func(domain, kind uintptr) func() (string, error) { return sys(unix.SYS_SOCKET, domain, kind, 0) }
	away := []string{"ENETUNREACH"}
	return []Probe{
		{"packet socket", systemCalls, no, socket(unix.AF_PACKET, unix.SOCK_RAW)},
		{"netlink socket", systemCalls, no, sys(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC)},
		{"take a link down", privileges, no, linkDown},
		{"vsock socket", systemCalls, no, socket(unix.AF_VSOCK, unix.SOCK_STREAM)},
		{"alg socket", systemCalls, no, socket(unix.AF_ALG, unix.SOCK_SEQPACKET)},
		{"tipc socket pair", systemCalls, no, sys(unix.SYS_SOCKETPAIR, unix.AF_TIPC, unix.SOCK_SEQPACKET, 0, uintptr(unsafe.Pointer(&[2]int32{})))},
		{"raw IPv4 socket", privileges, no, sys(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"raw IPv6 socket", privileges, no, sys(unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)},
		{"bind a low port", privileges, []string{"EACCES"}, func() (string, error) {
			l, err := net.Listen("tcp", "127.0.0.1:80")
			if err == nil {
				l.Close()
			}
			return "", err
		}},
		{"the cloud's metadata", network, away, reach("169.254.169.254:80")},
		{"the internet", network, away, reach("192.0.2.1:443")},
		{"the host's network", network, away, reach("10.0.0.1:22")},
		{"the cloud's metadata by IPv6", network, away, reach("[fd00:ec2::254]:80")},
		{"the network's interfaces", network, []string{"lo"}, interfaces},
	}
}

func filesystem() []Probe {
	write := func(path string, flags int) func() (string, error) {
		return func() (string, error) {
			f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o600)
			if err == nil {
				f.Close()
			}
			return "", err
		}
	}
	empty := func(path string) func() (string, error) {
		return func() (string, error) {
			f, err := os.Open(path)
			if err != nil {
				return "", err
			}
			defer f.Close()
			n, err := f.Read(make([]byte, 16))
			if n == 0 {
				return "empty", nil
			}
			return fmt.Sprintf("%d bytes", n), err
		}
	}
	readOnly := []string{"EROFS"}
	return []Probe{
		{"write to the root", files, readOnly, func() (string, error) {
			defer os.Remove("/gpuai-probe")
			return write("/gpuai-probe", os.O_CREATE)()
		}},
		{"write a kernel setting", files, []string{"EROFS", "EACCES"}, write("/proc/sys/kernel/core_pattern", 0)},
		{"write to sysfs", files, []string{"EROFS", "EACCES", "ENOENT"}, write("/sys/kernel/mm/transparent_hugepage/enabled", 0)},
		{"write to a control group", files, []string{"EROFS", "EACCES", "ENOENT"}, controlGroup(func(dir string) error {
			_, err := write(dir+"/cgroup.procs", 0)()
			return err
		})},
		{"make a control group", files, readOnly, controlGroup(func(dir string) error {
			defer os.Remove(dir + "/gpuai-probe")
			return os.Mkdir(dir+"/gpuai-probe", 0o755)
		})},
		{"read the kernel's memory", files, []string{"empty", "ENOENT"}, empty("/proc/kcore")},
		{"read the kernel's keys", files, []string{"empty", "ENOENT"}, empty("/proc/keys")},
		{"read the firmware", files, []string{"empty", "ENOENT", "EISDIR"}, func() (string, error) {
			d, err := os.ReadDir("/sys/firmware")
			if err == nil && len(d) == 0 {
				return "empty", nil
			}
			return "", err
		}},
		{"run from shared memory", files, []string{"EACCES"}, func() (string, error) {
			defer os.Remove("/dev/shm/gpuai-run")
			if err := os.WriteFile("/dev/shm/gpuai-run", []byte("#!/none\n"), 0o755); err != nil {
				return "", err
			}
			return "", syscall.Exec("/dev/shm/gpuai-run", []string{"run"}, nil)
		}},
		{"the host's root through a process", files, []string{"ENOENT", "EACCES"}, func() (string, error) {
			_, err := os.Stat("/proc/1/root/proc/1/cwd/../../../../var/lib/dpkg")
			return "", err
		}},
	}
}

// OtherDevice is where a probe looks for a device file that the sandbox has, and
// may not open.
const OtherDevice = "/dev/gpuai-other"

func deviceNodes() []Probe {
	node := func(kind uint32, major, minor uint32) func() (string, error) {
		return func() (string, error) {
			defer os.Remove("/tmp/gpuai-node")
			return "", unix.Mknod("/tmp/gpuai-node", kind|0o600, int(unix.Mkdev(major, minor)))
		}
	}
	open := func(path string) func() (string, error) {
		return func() (string, error) {
			fd, err := unix.Open(path, unix.O_RDWR, 0)
			if err == nil {
				unix.Close(fd)
			}
			return "", err
		}
	}
	gone := []string{"ENOENT"}
	return []Probe{
		{"make the memory's device", devices, no, node(unix.S_IFCHR, 1, 1)},
		{"make a disk's device", devices, no, node(unix.S_IFBLK, 8, 0)},
		{"open /dev/mem", devices, gone, open("/dev/mem")},
		{"open /dev/kmsg", devices, gone, open("/dev/kmsg")},
		{"open /dev/fuse", devices, gone, open("/dev/fuse")},
		{"open /dev/net/tun", devices, gone, open("/dev/net/tun")},
		{"open a disk", devices, gone, open("/dev/vda")},
		{"open a GPU", devices, gone, open("/dev/nvidia0")},
		{"open a device without a right to it", devices, []string{"EPERM", "ENOENT"}, open(OtherDevice)},
	}
}

func facts() []Probe {
	status := func(field string) func() (string, error) {
		return func() (string, error) { return statusOf(field) }
	}
	zero := []string{"0000000000000000"}
	return []Probe{
		{"capabilities", privileges, zero, status("CapEff")},
		{"capabilities that a program may get", privileges, zero, status("CapBnd")},
		{"no_new_privs", privileges, []string{"1"}, status("NoNewPrivs")},
		{"seccomp", systemCalls, []string{"2"}, status("Seccomp")},
		{"core dumps", limits, []string{"0"}, func() (string, error) {
			var l syscall.Rlimit
			err := syscall.Getrlimit(syscall.RLIMIT_CORE, &l)
			return strconv.FormatUint(l.Max, 10), err
		}},
		{"users of the host", userNamespace, []string{"65536 from above 268435455"}, func() (string, error) {
			b, err := os.ReadFile("/proc/self/uid_map")
			f := strings.Fields(string(b))
			if err != nil || len(f) != 3 {
				return string(b), err
			}
			if host, err := strconv.Atoi(f[1]); f[0] != "0" || err != nil || host < 1<<28 {
				return string(b), err
			}
			return f[2] + " from above 268435455", nil
		}},
		{"processes of others", namespaces, []string{"0"}, func() (string, error) {
			d, err := os.ReadDir("/proc")
			n := 0
			for _, e := range d {
				if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && pid != 1 {
					n++
				}
			}
			return strconv.Itoa(n), err
		}},
		// At the end: they change what the others could do.
		{"become another group", privileges, no, sys(unix.SYS_SETRESGID, 1234, 1234, 1234)},
		{"become another user", privileges, no, sys(unix.SYS_SETRESUID, 1234, 1234, 1234)},
	}
}

func statusOf(field string) (string, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), field+":"); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", errors.New("no such field")
}

// linkDown takes loopback down by the one netlink socket that a task may have.
func linkDown() (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("no socket to ask by: %w", err)
	}
	defer unix.Close(fd)
	// A header of 16 bytes, and which link, its flags, and which of them change.
	m := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint16(m[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(m[20:], 1)
	binary.NativeEndian.PutUint32(m[28:], unix.IFF_UP)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return "", err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return "", errors.New("the kernel's answer is none")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return "", unix.Errno(-code)
	}
	return "", nil
}

// interfaces names the network's interfaces, as programs find them.
func interfaces() (string, error) {
	all, err := net.Interfaces()
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " "), err
}

// controlGroup tries f in the first directory of control groups.
func controlGroup(f func(dir string) error) func() (string, error) {
	return func() (string, error) {
		for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
			if _, err := os.Stat(dir); err == nil {
				return "", f(dir)
			}
		}
		return "", unix.ENOENT
	}
}
