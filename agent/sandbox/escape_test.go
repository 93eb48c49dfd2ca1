package sandbox_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/probe"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// The binaries of this module that the tests run.
var watchdogPath, probePath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sandbox")
	watchdogPath, probePath = filepath.Join(dir, "gpuai-watchdog"), filepath.Join(dir, "gpuai-probe")
	for _, path := range []string{watchdogPath, probePath} {
		if err == nil {
			cmd := exec.Command("go", "build", "-o", path, "github.com/gpuai/gpuai/cmd/"+filepath.Base(path))
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			var out []byte
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

const incarnation gpuai.Incarnation = 3

// A bench is a node: a watchdog, a runtime, and an image with gpuai-probe. Where
// there can be none the test is skipped, or fails with GPUAI_NEED_SANDBOX=1.
type bench struct {
	t       testing.TB
	dir     string
	run     string // where everybody may look
	image   string
	runtime *sandbox.Runtime
	ranges  *sandbox.Ranges
	c       *watchdog.Client
	change  func(*specs.Spec) // weakens it
	pins    map[string]string // of the next task
}

func newBench(t testing.TB) *bench {
	t.Helper()
	skip := t.Skip
	if os.Getenv("GPUAI_NEED_SANDBOX") == "1" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("a sandbox is made by root")
	}
	r, err := sandbox.Find(t.Context(), "runc")
	if err != nil {
		skip("there is no runtime to test with: ", err)
	}
	b := &bench{t: t, dir: t.TempDir(), runtime: r}
	if b.run, err = os.MkdirTemp("/run", "gpuai-test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(b.run)
		if b.ranges != nil {
			_ = b.ranges.Return(func(string) bool { return false }) // else at the next boot
		}
	})
	b.image = filepath.Join(b.dir, "image")
	for _, d := range []string{"image/bin", "image/etc", "run"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(probePath)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.image, "bin/gpuai-probe"), raw, 0o755)
	}
	if err == nil {
		err = os.Chmod(b.run, 0o711)
	}
	if err == nil {
		b.ranges, err = sandbox.OpenRanges("/run/gpuai/ranges", b.dir)
	}
	if err == nil {
		b.c, err = watchdog.Launch(t.Context(), watchdogPath, b.dir)
	}
	if err == nil {
		_, _, err = b.c.Hello(incarnation)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.end)
	return b
}

// end kills what is left and waits until the watchdog is gone.
func (b *bench) end() {
	tasks, err := b.c.List()
	if err != nil {
		return
	}
	for _, t := range tasks {
		b.c.Kill(t.Lease, gpuai.Second)
	}
	for b.c.Quit() == nil || len(tasks) > 0 {
		select {
		case <-b.c.Done():
			return
		case <-b.c.News():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// task is a sandbox that runs the probe.
func (b *bench) task(lease gpuai.Token, args ...string) *sandbox.Task {
	b.t.Helper()
	ids, err := b.ranges.Lend(lease.String())
	if err != nil {
		b.t.Fatal(err)
	}
	return &sandbox.Task{
		Root: filepath.Join(b.run, watchdog.RootDir), Args: append([]string{"gpuai-probe"}, args...), Env: []string{"PATH=/bin"},
		DeviceFiles: filepath.Join(b.run, watchdog.NodesDir),
		IDs:         ids, Memory: 64 << 20, PIDs: 64, NoFile: 1024, Init: watchdogPath, InitArgs: []string{watchdog.InitArg},
	}
}

// start starts t under the watchdog.
func (b *bench) start(lease gpuai.Token, t *sandbox.Task) watchdog.Task {
	b.t.Helper()
	dir := filepath.Join(b.dir, "tasks", lease.String())
	s, err := sandbox.Spec(t)
	if b.change != nil {
		b.change(s)
	}
	if err == nil {
		err = sandbox.WriteBundle(filepath.Join(dir, "bundle"), s)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	state := filepath.Join(b.run, "state-"+lease.String())
	var nodes []watchdog.Node
	for _, d := range t.Devices {
		nodes = append(nodes, watchdog.Node{Block: d.Block, Major: d.Major, Minor: d.Minor})
	}
	got, err := b.c.Start(&watchdog.Spec{
		Lease: lease, Incarnation: incarnation, Deadline: watchdog.Boottime() + int64(time.Minute), KillBudget: int64(5 * time.Second),
		Argv: b.runtime.Argv(filepath.Join(dir, "bundle"), state, lease.String()), Env: []string{"PATH=" + os.Getenv("PATH")},
		Cwd: dir, LogDir: dir, LogBytes: 1 << 20, CPU: 2000, Memory: t.Memory + 32<<20, PIDs: t.PIDs + 64,
		Box: &watchdog.Box{Root: b.image, Target: b.run, Base: t.IDs.First, Size: t.IDs.Size, Nodes: nodes, Pins: b.pins},
	})
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.log(lease, "stderr"))
	}
	return got
}

// ended waits for the end of the lease's task.
func (b *bench) ended(lease gpuai.Token) watchdog.Task {
	b.t.Helper()
	give := time.After(30 * time.Second)
	for {
		select {
		case n := <-b.c.News():
			if n.Lease == lease && n.State == watchdog.Exited {
				return n
			}
		case <-give:
			b.t.Fatalf("the task does not end\n%s%s", b.log(lease, "stdout"), b.log(lease, "stderr"))
		}
	}
}

func (b *bench) log(lease gpuai.Token, stream string) string {
	data, _, _, err := watchdog.ReadLog(filepath.Join(b.dir, "tasks", lease.String()), stream, 0, 1<<20)
	if err != nil {
		b.t.Log(err)
	}
	return string(data)
}

// Case 35: every attempt of the probe ends as docs/isolation.md says.
func TestCase35EscapesAreDenied(t *testing.T) {
	b := newBench(t)
	task := b.task(1)
	task.Devices = []sandbox.Device{{Path: probe.OtherDevice, Major: 10, Minor: 229}} // the file without the right
	b.start(1, task)
	end := b.ended(1)
	table, seen := closed(t, b.log(1, "stdout"))
	checkTable(t, "probes", table)
	if want := len(probe.All()); seen != want || end.Code != 0 {
		t.Errorf("%d of %d probes, exit code %d (%s)\n%s%s", seen, want, end.Code, end.Reason, b.log(1, "stderr"), sandbox.Failure(filepath.Join(b.dir, "tasks/1/bundle")))
	}
}

// closed checks that nothing is open, and returns the table of what was seen, and
// of how many probes it is.
func closed(t *testing.T, out string) (string, int) {
	t.Helper()
	seen := 0
	var table strings.Builder
	for line := range strings.Lines(out) {
		var r probe.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		seen++
		if r.Open {
			t.Errorf("%s: %s is open: got %s, not %s", r.Control, r.Name, r.Got, strings.Join(r.Want, " or "))
		}
		fmt.Fprintf(&table, "| %s | %s | `%s` | `%s` |\n", r.Control, r.Name, strings.Join(r.Want, "` or `"), r.Got)
	}
	return table.String(), seen
}

var rewrite = flag.Bool("rewrite", false, "write the table of docs/isolation.md anew")

// checkTable compares the table of docs/isolation.md with what was seen. What a
// probe may get on another host is in the table's third column, so only that it
// has every probe is asked for, unless it is written anew.
func checkTable(t *testing.T, name, table string) {
	t.Helper()
	const path = "../../docs/isolation.md"
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table of probes", path)
	}
	if *rewrite {
		title := "| control | attempt | closed | seen |\n|---|---|---|---|\n"
		if err := os.WriteFile(path, []byte(head+begin+title+table+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for line := range strings.Lines(table) {
		if cells := strings.SplitN(line, "|", 5); !strings.Contains(old, strings.Join(cells[:4], "|")) {
			t.Errorf("%s lacks %s: run with -rewrite", path, strings.TrimSpace(line))
		}
	}
}

// The file of a device is of the task's own users, and the control groups say
// whether it may be opened: so none is opened by another way, such as a file that
// a program was handed.
func TestCase35DevicesOfAnotherTaskAreDenied(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("this host has no such device to give: ", err)
	}
	b := newBench(t)
	// Those of /dev/fuse and /dev/loop-control.
	own, other := sandbox.Device{Path: "/dev/own", Major: 10, Minor: 229, Permissions: "rw"}, sandbox.Device{Path: "/dev/other", Major: 10, Minor: 237}
	for i, c := range []struct {
		devices []sandbox.Device
		want    string
	}{
		{[]sandbox.Device{own, other}, "/dev/own open\n/dev/other EPERM\n/dev/null open\n"},
		{[]sandbox.Device{{Path: "/dev/own", Major: 10, Minor: 237, Permissions: "rw"}}, "/dev/own open\n/dev/other ENOENT\n/dev/null open\n"},
		{[]sandbox.Device{{Path: "/dev/own", Major: 10, Minor: 229, Permissions: "r"}}, "/dev/own EPERM\n/dev/other ENOENT\n/dev/null open\n"},
	} {
		lease := gpuai.Token(60 + i)
		task := b.task(lease, "open", "/dev/own", "/dev/other", "/dev/null")
		task.Devices, task.User, task.Group = c.devices, 7, 8
		b.start(lease, task)
		if end := b.ended(lease); b.log(lease, "stdout") != c.want {
			t.Errorf("%d: %+v\n%s%s", i, end, b.log(lease, "stdout"), b.log(lease, "stderr"))
		}
	}
}

// The suite must be able to fail: without a control its probes are open.
func TestCase35ProbesSeeAWeakSandbox(t *testing.T) {
	cases := []struct {
		name   string
		weaken func(*specs.Spec)
		open   []string
	}{
		{"NoFilter", func(s *specs.Spec) { s.Linux.Seccomp = nil },
			[]string{"keyctl", "io_uring", "userfaultfd", "netlink socket", "tipc socket pair", "seccomp", "clone into a user namespace"}},
		{"Writable", func(s *specs.Spec) { s.Root.Readonly = false }, []string{"write to the root"}},
		{"Privileges", func(s *specs.Spec) {
			all := []string{"CAP_SYS_CHROOT", "CAP_SETUID", "CAP_SETGID", "CAP_NET_RAW", "CAP_NET_ADMIN"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
			s.Process.NoNewPrivileges = false
		}, []string{"capabilities", "no_new_privs", "become another user", "raw IPv4 socket", "take a link down"}},
		{"HostNetwork", func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "sysfs" || m.Type == "cgroup" })
		}, []string{"the network's interfaces"}},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.change = c.weaken
			lease := gpuai.Token(20 + i)
			b.start(lease, b.task(lease))
			end := b.ended(lease)
			var open []string
			for line := range strings.Lines(b.log(lease, "stdout")) {
				var r probe.Result
				if err := json.Unmarshal([]byte(line), &r); err == nil && r.Open {
					open = append(open, r.Name)
				}
			}
			for _, want := range c.open {
				if !slices.Contains(open, want) {
					t.Errorf("%q is not seen to be open, only %q (%s)\n%s", want, open, end.Reason, b.log(lease, "stderr"))
				}
			}
		})
	}
}

// Everything of a box goes with a kill, whoever is killed, and with a deadline.
func TestKilledBoxLeavesNothing(t *testing.T) {
	b := newBench(t)
	groups := func() (out []string) {
		_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() && (strings.HasSuffix(path, "/31") || strings.HasSuffix(path, "/32") || strings.HasSuffix(path, "/33")) {
				out = append(out, path)
			}
			return nil
		})
		return out
	}
	mounts := func() string {
		m, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		var own strings.Builder // others come and go
		for line := range strings.Lines(string(m)) {
			if strings.Contains(line, b.run) || strings.Contains(line, b.dir) {
				own.WriteString(line)
			}
		}
		return own.String()
	}
	before := mounts()
	for i, end := range []func(watchdog.Task){
		func(task watchdog.Task) {
			if err := b.c.Kill(task.Lease, 5*gpuai.Second); err != nil {
				t.Error(err)
			}
		},
		func(task watchdog.Task) {
			if err := b.c.Stop(task.Lease, 20*gpuai.Second, gpuai.Checkpoint{}); err != nil {
				t.Error(err)
			}
		},
		func(task watchdog.Task) { // the runtime dies by itself
			if err := syscall.Kill(task.PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		},
	} {
		lease := gpuai.Token(31 + i)
		running := b.start(lease, b.task(lease, "family"))
		b.says(lease, "ready")
		if len(groups()) == 0 {
			t.Error("the task has no control groups")
		}
		began := time.Now()
		end(running)
		got := b.ended(lease)
		took := time.Since(began)
		t.Logf("end %d took %v", i, took)
		if took > 5*time.Second {
			t.Error("that is too long")
		}
		if left := inNamespaceOf(b.ids(lease)); len(left) > 0 {
			t.Errorf("end %d (%+v) left processes %v", i, got, left)
		}
		if i == 1 && got.Code != 143 {
			t.Errorf("stopped with %d (%s)", got.Code, got.Reason)
		}
		b.gone("the control groups", func() bool { return len(groups()) == 0 })
		if mounts() != before {
			t.Error("a mount is left")
		}
	}
}

// Case 23: the watchdog is killed, and there is no agent to sweep (this test is
// its agent, and does nothing): the sandbox ends by itself.
func TestCase23NothingOutlivesWatchdogAndAgent(t *testing.T) {
	b := newBench(t)
	const lease gpuai.Token = 41
	task := b.start(lease, b.task(lease, "family"))
	b.says(lease, "ready")
	if all := inNamespaceOf(b.ids(lease)); len(all) < 3 {
		t.Fatalf("the family has %d processes", len(all))
	}
	// Its control groups wait for the next agent; so do its processes, should this fail.
	defer func() {
		if !watchdog.Sweep(b.dir, filepath.Join(b.dir, "tasks"), task, 5*gpuai.Second) {
			t.Error("something is left")
		}
	}()
	if err := syscall.Kill(parentOf(t, task.PID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-b.c.Done()
	b.gone("the end of the sandbox", func() bool { return len(inNamespaceOf(b.ids(lease))) == 0 })
}

// parentOf returns the parent of a process.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// ids are the host's users of a lease's sandbox.
func (b *bench) ids(lease gpuai.Token) sandbox.Range {
	b.t.Helper()
	r, err := b.ranges.Lend(lease.String())
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// inNamespaceOf returns the processes of a range of users.
func inNamespaceOf(r sandbox.Range) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		fi, err := os.Stat(p)
		if err != nil {
			continue
		}
		status, err := os.ReadFile(p + "/status")
		if err != nil || strings.Contains(string(status), "\nState:\tZ") { // it is gone, and waits for its parent
			continue
		}
		if uid := fi.Sys().(*syscall.Stat_t).Uid; uid >= r.First && uid-r.First < r.Size {
			pids = append(pids, p+"\n"+string(status))
		}
	}
	return pids
}

// says waits until a task has written a line.
func (b *bench) says(lease gpuai.Token, line string) {
	b.t.Helper()
	b.gone("the line "+line, func() bool { return strings.Contains(b.log(lease, "stdout"), line) })
}

func (b *bench) gone(what string, f func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for give := time.Now().Add(20 * time.Second); !f(); <-tick.C {
		if time.Now().After(give) {
			b.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestCase35LimitsAreNamed(t *testing.T) {
	b := newBench(t)
	cases := []struct {
		load, reason, out string
		code              int32
		limit             watchdog.Limit
	}{
		{"forks", "limit of", "resource temporarily unavailable", 4, watchdog.LimitProcesses},
		{"memory", "out of memory", "", 137, watchdog.LimitMemory},
		{"disk", "exit code 5", "no space left on device", 5, ""},
	}
	for i, c := range cases {
		t.Run(c.load, func(t *testing.T) {
			lease := gpuai.Token(10 + i)
			b.start(lease, b.task(lease, c.load))
			end := b.ended(lease)
			out := b.log(lease, "stdout")
			if end.Limit != c.limit || c.load == "disk" != strings.Contains(b.log(lease, "stderr"), watchdog.FullNote+"/work\n") {
				t.Errorf("limit %q\n%s", end.Limit, b.log(lease, "stderr"))
			}
			if end.Code != c.code || !strings.Contains(end.Reason, c.reason) || !strings.Contains(out, c.out) {
				t.Errorf("code %d, %q\n%s%s", end.Code, end.Reason, out, b.log(lease, "stderr"))
			}
			if c.load == "disk" {
				if n, _ := strconv.Atoi(strings.Fields(out)[0]); n < 16 || n > 33 {
					t.Errorf("%d MiB went in", n)
				}
			}
		})
	}
}

// BenchmarkStart compares the whole life of a task that does nothing, under the
// watchdog, with the runtime run by hand on the same files without a user
// namespace: what is beyond the second is ours.
func BenchmarkStart(b *testing.B) {
	b.Run("watchdog", func(b *testing.B) {
		n := newBench(b)
		lease := gpuai.Token(100)
		for b.Loop() {
			lease++
			n.start(lease, n.task(lease, "none"))
			if end := n.ended(lease); end.Code != 0 {
				b.Fatalf("%+v", end)
			}
			if err := n.ranges.Return(func(string) bool { return false }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		n := newBench(b)
		t := n.task(1, "none")
		t.Root, t.Init = n.image, ""
		s, err := sandbox.Spec(t)
		if err != nil {
			b.Fatal(err)
		}
		s.Linux.UIDMappings, s.Linux.GIDMappings, s.Linux.CgroupsPath = nil, nil, "gpuai-bare"
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
		for i := range s.Mounts { // the host's devices are bound into a user namespace, and made without one
			if s.Mounts[i].Destination == "/dev" {
				s.Mounts[i].Options = slices.DeleteFunc(s.Mounts[i].Options, func(o string) bool { return o == "nodev" })
			}
		}
		bundle := filepath.Join(n.dir, "bare")
		if err := sandbox.WriteBundle(bundle, s); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if out, err := exec.Command(n.runtime.Path, "--root", filepath.Join(n.run, "bare"), "run", "--bundle", bundle, "bare").CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
}
