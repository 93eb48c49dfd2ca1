package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestVersionsAndFlaws(t *testing.T) {
	cases := []struct {
		out, pack, version, flaw string
	}{
		{"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n", "1.1.5+ds1-1+deb12u1", "1.1.5+ds1", ""},
		{"runc version 1.1.5+ds1\n", "1.1.5+ds1-1+deb12u7", "1.1.5+ds1", ""},
		{"runc version 1.1.5+ds1\n", "1.1.5+ds1-1", "1.1.5+ds1", "CVE-2024-21626"},
		{"runc version 1.1.5+ds1\n", "", "1.1.5+ds1", "CVE-2024-21626"}, // built by hand
		{"runc version 1.1.11\n", "", "1.1.11", "CVE-2024-21626"},
		{"runc version 1.1.12\n", "", "1.1.12", ""},
		{"runc version 1.3.0\n", "", "1.3.0", ""},
		{"runc version 1.0.0-rc5\n", "", "1.0.0-rc5", "CVE-2024-21626"},
		{"runc version 1.0.0~rc93+ds1\n", "1.0.0~rc93+ds1-5+deb11u3", "1.0.0~rc93+ds1", "CVE-2024-21626"}, // it has no run --keep
		{"runc version 0.1.1\n", "", "0.1.1", "CVE-2019-5736"},
		{"runsc version release-20250210.0\nspec: 1.1.0\n", "", "20250210.0", ""},
		{"something else\n", "", "", ""},
	}
	for _, c := range cases {
		name, _, _ := strings.Cut(c.out, " ")
		r := Runtime{Name: name, Version: parseVersion(c.out), Package: c.pack}
		if r.Version != c.version || r.Flaw() != c.flaw {
			t.Errorf("%q of package %q: version %q, flaw %q", c.out, c.pack, r.Version, r.Flaw())
		}
	}
}

func TestOwnerOfARuntime(t *testing.T) {
	const path = "/usr/sbin/runc"
	for out, want := range map[string]bool{
		"runc: /usr/sbin/runc\n":                         true,
		"runc:amd64: /usr/sbin/runc\n":                   true,
		"other, runc: /usr/sbin/runc\n":                  true,
		"containerd.io: /usr/sbin/runc\n":                false,
		"runc: /usr/sbin/runc.old\n":                     false,
		"diversion by runc from: /usr/sbin/runc\n":       false,
		"dpkg-query: no path found matching pattern x\n": false,
	} {
		if got := ownedBy(out, "runc", path); got != want {
			t.Errorf("%q: %v", out, got)
		}
	}
}

// A runtime beside the distribution's is not judged by the distribution's.
func TestRuntimeBesideThePackageIsOfUnknownOrigin(t *testing.T) {
	own, err := Find(t.Context(), "runc")
	if err != nil || own.Package == "" {
		t.Skip("there is no runc of a Debian package: ", err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	find := func() *Runtime {
		t.Helper()
		r, err := Find(t.Context(), "runc")
		if err != nil || r.Path != filepath.Join(dir, "runc") {
			t.Fatal(r, err)
		}
		return r
	}
	if err := os.Symlink(own.Path, filepath.Join(dir, "runc")); err != nil {
		t.Fatal(err)
	}
	if r := find(); r.Stray || r.Package != own.Package {
		t.Errorf("a link to the package's: %+v", r)
	}
	if err := os.Remove(filepath.Join(dir, "runc")); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho runc version 1.1.5\n"
	if err := os.WriteFile(filepath.Join(dir, "runc"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := find(); !r.Stray || r.Package != "" || r.Flaw() != UnknownOrigin {
		t.Errorf("%+v has flaw %q", r, r.Flaw())
	}
}

func TestRangesAreLentOnce(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRanges(dir, "one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := OpenRanges(dir, "two") // another agent of the host
	if err != nil {
		t.Fatal(err)
	}
	lend := func(who string) Range {
		t.Helper()
		got, err := r.Lend(who)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a, b := lend("1"), lend("2")
	if a.First+a.Size > b.First || a.Size != 65_536 || lend("1") != a {
		t.Errorf("%v and %v", a, b)
	}
	other, err := two.Lend("1")
	if err != nil || other == a || other == b {
		t.Errorf("another agent lends %v, %v", other, err)
	}
	if r, err = OpenRanges(dir, "one"); err != nil { // after a restart
		t.Fatal(err)
	}
	if lend("2") != b {
		t.Error("a loan was forgotten")
	}
	if err := r.Return(func(who string) bool { return who == "2" }); err != nil {
		t.Fatal(err)
	}
	if again, err := two.Lend("1"); err != nil || again != other {
		t.Errorf("another agent's loan was taken back: %v, %v", again, err)
	}
	if c := lend("3"); c == a || c == b || c == other { // not at once: files of the old may still be about
		t.Errorf("%v was lent again at once", c)
	}
	r.most = 40
	for i := range r.most {
		if _, err := r.Lend("more" + strings.Repeat("x", i)); err != nil {
			if i < r.most-5 || !strings.Contains(err.Error(), "are lent") {
				t.Errorf("after %d: %v", i, err)
			}
			return
		}
	}
	t.Error("more were lent than there are")
}

func TestLookup(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("passwd", "root:x:0:0:root:/:/bin/sh\nnoise\napp:x:1000:100::/home:/bin/sh\nhuge:x:4294967295:0::/:\n")
	write("group", "users:x:100:\nvideo:x:44:app,other\nweb:x:33:app\n")
	cases := []struct {
		user, want string
		id         Identity
	}{
		{"", "", Identity{}},
		{"root", "", Identity{}},
		{"app", "", Identity{User: 1000, Group: 100, Groups: []uint32{44, 33}}},
		{"1000", "", Identity{User: 1000, Group: 100, Groups: []uint32{44, 33}}},
		{"app:web", "", Identity{User: 1000, Group: 33}},
		{"7:9", "", Identity{User: 7, Group: 9}},
		{"nobody", `user "nobody"`, Identity{}},
		{"huge", `user "huge"`, Identity{}},
		{"app:none", `group "none"`, Identity{}},
		{"70000", `user "70000"`, Identity{}},
	}
	for _, c := range cases {
		got, err := Lookup(root, c.user)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: %v, %v", c.user, got, err)
			}
		} else if err != nil || got.User != c.id.User || got.Group != c.id.Group || !slices.Equal(got.Groups, c.id.Groups) {
			t.Errorf("%q: %v, %v", c.user, got, err)
		}
	}
	// The image's passwd is a link to the host's: it is not followed.
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := Lookup(root, "daemon"); err == nil {
		t.Error("the host's users were read")
	}
}

func task() *Task {
	return &Task{Root: "/r", Args: []string{"x"}, IDs: rangeOf(0), Memory: 1 << 30, PIDs: 10, NoFile: 100}
}

func TestSpecIsRefused(t *testing.T) {
	for want, change := range map[string]func(*Task){
		"no program":      func(t *Task) { t.Args = nil },
		"is not absolute": func(t *Task) { t.Cwd = "../x" },
		"range of users":  func(t *Task) { t.IDs = Range{} },
		"outside of":      func(t *Task) { t.User = 70_000 },
		"NUL byte":        func(t *Task) { t.Env = []string{"A=\x00"} },
		"NUL byte ":       func(t *Task) { t.Args = []string{"x", "\x00"} },
		"no absolute path": func(t *Task) {
			t.Devices = []Device{{Path: "dev/nvidia0", Major: 195, Minor: 7}}
		},
		`the option "rw"`: func(t *Task) {
			t.Mounts = []Mount{{Path: "/a", HostPath: "/b", Options: []string{"ro", "rw"}}}
		},
		"or is the host's":  func(t *Task) { t.NetNS = "/run/net" },
		"or is the host's ": func(t *Task) { t.UserNS, t.NetNS, t.HostNet = "/run/user", "/run/net", true },
		"range of users  ":  func(t *Task) { t.IDs.First = 0 },
	} {
		bad := task()
		change(bad)
		if _, err := Spec(bad); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// Only the lease's devices, by their numbers, and nothing before the denial.
func TestDevicesOfTheLease(t *testing.T) {
	with := task()
	with.DeviceFiles = "/nodes"
	with.Devices = []Device{{Path: "/dev/nvidia0", Major: 195, Permissions: "rw"}}
	s, err := Spec(with)
	if err != nil {
		t.Fatal(err)
	}
	rules := s.Linux.Resources.Devices
	if len(rules) != 2 || rules[0].Allow || rules[0].Access != "rwm" || !rules[1].Allow || *rules[1].Major != 195 || *rules[1].Minor != 0 || rules[1].Access != "rw" {
		t.Errorf("%+v", rules)
	}
	if i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/nvidia0" }); i < 0 || s.Mounts[i].Source != "/nodes/0" || slices.Contains(s.Mounts[i].Options, "nodev") {
		t.Errorf("%+v", s.Mounts)
	}
}

func TestSharedMemoryAndScratch(t *testing.T) {
	with := task()
	with.Memory, with.Shm, with.Scratch = 8<<30, 6<<30, "/run/box/scratch"
	s, err := Spec(with)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]specs.Mount{}
	for _, m := range s.Mounts {
		at[m.Destination] = m
	}
	if m := at["/dev/shm"]; !slices.Contains(m.Options, "size=6442450944") {
		t.Errorf("%+v", m)
	}
	if m := at["/run"]; !slices.Contains(m.Options, "size=4294967296") {
		t.Errorf("%+v", m)
	}
	for _, dir := range []string{"/work", "/tmp"} {
		if m := at[dir]; m.Type != "bind" || m.Source != "/run/box/scratch"+dir || slices.Contains(m.Options, "ro") || !slices.Contains(m.Options, "nodev") {
			t.Errorf("%+v", m)
		}
	}
}

// What the comment at flaws relies on.
func TestSpecKeepsFlawsOutOfReach(t *testing.T) {
	full := task()
	full.Hostname, full.Init, full.InitArgs = "h", "/usr/bin/init", []string{"--init"}
	full.Files = map[string]string{"/etc/hosts": "/data/hosts"}
	full.DeviceFiles = "/nodes"
	full.Devices = []Device{{Path: "/dev/nvidia0", Major: 195, Permissions: "rw"}}
	full.Mounts = []Mount{{Path: "/lib/driver", HostPath: "/usr/lib/driver"}, {Path: "/own", HostPath: "/data/own", Writable: true}}
	s, err := Spec(full)
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.Terminal || s.Process.ConsoleSize != nil {
		t.Error("it has a terminal (CVE-2025-52565)")
	}
	if s.Process.SelinuxLabel != "" || s.Process.ApparmorProfile != "" || s.Linux.MountLabel != "" || len(s.Linux.Sysctl) > 0 {
		t.Error("it has a label or a sysctl (CVE-2025-52881)")
	}
	if !s.Root.Readonly || s.Linux.RootfsPropagation != "private" || s.Hooks != nil {
		t.Errorf("its root is %+v, its hooks %+v", s.Root, s.Hooks)
	}
	for _, m := range s.Mounts {
		own := m.Destination == "/own" || m.Source == "/nodes/0" // which nobody shares
		if m.Type == "bind" && slices.Contains(m.Options, "ro") == own || slices.Contains(m.Options, "shared") || slices.Contains(m.Options, "rshared") {
			t.Errorf("another may change %+v (CVE-2025-31133)", m)
		}
	}
	full.UserNS, full.NetNS = "/run/box/user", "/run/box/net"
	with, err := Spec(full)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Concat(s.Linux.Namespaces, with.Linux.Namespaces) {
		own := n.Path == full.UserNS && n.Type == specs.UserNamespace || n.Path == full.NetNS && n.Type == specs.NetworkNamespace
		if n.Path != "" && !own {
			t.Errorf("it joins the namespace %+v of another (CVE-2025-31133)", n)
		}
	}
	if len(with.Linux.Namespaces) != 7 || len(s.Linux.Namespaces) != 7 {
		t.Errorf("it is in the host's namespaces: %+v", with.Linux.Namespaces)
	}
}

// The filter allows nothing of what is forbidden, whatever moby's profile says
// in its next version.
func TestFilterAllowsNothingForbidden(t *testing.T) {
	s, err := Spec(task())
	if err != nil {
		t.Fatal(err)
	}
	p := s.Linux.Seccomp
	if p.DefaultAction != specs.ActErrno || len(p.Architectures) != 1 {
		t.Errorf("default %s, for %v", p.DefaultAction, p.Architectures)
	}
	ways := map[string]int{}
	for _, call := range p.Syscalls {
		for _, name := range call.Names {
			if call.Action == specs.ActAllow && slices.Contains(forbidden, name) {
				t.Errorf("%s is allowed", name)
			}
			if call.Action == specs.ActAllow && name == "clone" && (len(call.Args) != 1 || call.Args[0].Op != specs.OpMaskedEqual || call.Args[0].Value&0x10000000 == 0) {
				t.Errorf("clone is allowed with %+v", call.Args)
			}
			if name == "socket" || name == "socketpair" {
				ways[name]++
				if name == "socket" && slices.Equal(call.Args, routing) {
					continue
				}
				if len(call.Args) != 1 || call.Args[0].Index != 0 || call.Args[0].Op != specs.OpEqualTo {
					t.Errorf("%s is allowed with %+v", name, call.Args)
				}
			}
		}
	}
	if ways["socket"] != len(domains)+1 || ways["socketpair"] != 1 {
		t.Errorf("sockets are allowed in %v ways", ways)
	}
}

func TestFailureIsRead(t *testing.T) {
	dir := t.TempDir()
	if got := Failure(dir); got != "" {
		t.Errorf("%q of no log", got)
	}
	log := `time="2026-01-01T00:00:00Z" level=warning msg="x"` + "\n" + `time="2026-01-01T00:00:00Z" level=error msg="Failed to remove cgroup"` + "\n" + `time="2026-01-01T00:00:00Z" level=error msg="runc run failed: exec: \"/bin/x\": no such file"` + "\n"
	crun := `{"msg":"x","level":"warning","time":"2026-01-01T00:00:00Z"}` + "\n" + `{"msg":"open executable: \"/bin/x\"","level":"error","time":"2026-01-01T00:00:00Z"}` + "\n"
	for log, want := range map[string]string{log: `runc run failed: exec: "/bin/x": no such file`, crun: `open executable: "/bin/x"`} {
		if err := os.WriteFile(filepath.Join(dir, logFile), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Failure(dir); got != want {
			t.Errorf("%q", got)
		}
	}
}
