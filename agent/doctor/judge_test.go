package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/cdi"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
)

// wellFacts are of a host that lacks nothing.
func wellFacts() *Facts {
	return &Facts{
		Root:    true,
		Sandbox: &agent.SandboxConfig{Runtime: "runc"},
		Data:    DataFacts{Path: "/d", There: true, At: "/d", Kind: "ext4", Mapped: true, Size: 1 << 40, Free: 1 << 39, Inodes: 1 << 24},
		Kernel:  "6.1.0-18-amd64", Seccomp: true, MaxUserNS: 1000, OpenFiles: 1 << 20,
		Cgroups: watchdog.CgroupSurvey{Version: "2", Limits: watchdog.Limits()},
		Runtime: &sandbox.Runtime{Name: "runc", Path: "/usr/sbin/runc", Version: "1.1.5+ds1", Package: "1.1.5+ds1-1+deb12u1"},
		Drivers: []DriverFacts{{Name: "sim", Snap: plugins.Snapshot{Devices: []gpuai.Device{{ID: "G0", Model: "H100"}, {ID: "G1", Model: "H100"}}}}},
		CDI:     []cdi.Found{{Path: "/etc/cdi/a.json", Devices: []string{"a/gpu=0"}}},
		Clock:   ClockFacts{Synced: true, Source: "tsc"},
		Servers: []ServerFacts{{URL: "http://a", ID: "a", Latency: time.Millisecond, Dated: true}, {URL: "http://b", ID: "b", Latency: time.Millisecond, Dated: true}},
		Ports:   PortFacts{Metrics: "127.0.0.1:7480", First: 29500, Count: 16},
	}
}

func TestJudgeOfAWellHost(t *testing.T) {
	for _, c := range Judge(wellFacts()) {
		if c.Status != OK || c.Fix != "" || c.Effect != "" || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
}

var errNo = errors.New("no such thing")

// lacks are hosts that lack one thing.
var lacks = map[string]struct {
	harm func(*Facts)
	want string // "code status part of the detail or the effect"
}{
	"Flags":            {func(f *Facts) { f.Wrong = errors.Join(errNo, errNo) }, "config fail no such thing; no such thing"},
	"NotRoot":          {func(f *Facts) { f.Root = false }, "root fail not start"},
	"NotRootAuto":      {func(f *Facts) { f.Root, f.Sandbox.Optional = false, true }, "root fail takes no tasks with images"},
	"DataReadOnly":     {func(f *Facts) { f.Data.Err = errNo }, "data-dir fail not start"},
	"NoMapping":        {func(f *Facts) { f.Data.MapErr = errNo }, "id-mapping fail every task"},
	"DiskFull":         {func(f *Facts) { f.Data.Free, f.Sandbox.Scratch = 1<<30, 1<<29 }, "disk fail no image is unpacked"},
	"DiskLow":          {func(f *Facts) { f.Data.Free = 10 << 30 }, "disk warn 10.0 GiB free"},
	"FewInodes":        {func(f *Facts) { f.Data.Inodes = 9 }, "disk warn room for 9 files"},
	"CacheTooLarge":    {func(f *Facts) { f.Sandbox.Images.MaxBytes = 1 << 40 }, "image-cache warn 1024.0 GiB"},
	"NoImageDir":       {func(f *Facts) { f.ImageDirs = []error{errNo} }, "image-dirs warn no such thing"},
	"Credentials":      {func(f *Facts) { f.Credentials = errNo }, "registry-credentials fail not start"},
	"NoMkfs":           {func(f *Facts) { f.ScratchErr = errNo }, "scratch warn label scratch.bytes"},
	"NoMkfsWanted":     {func(f *Facts) { f.ScratchErr, f.Sandbox.Scratch = errNo, 1<<30 }, "scratch fail not start"},
	"ScratchTooLarge":  {func(f *Facts) { f.Sandbox.Scratch = 1 << 40 }, "scratch warn lost for want of room"},
	"OldKernel":        {func(f *Facts) { f.Kernel = "5.10.0-28-amd64" }, "kernel fail 5.19"},
	"AncientKernel":    {func(f *Facts) { f.Kernel = "4.19.0" }, "kernel fail no scratch space"},
	"NoSeccomp":        {func(f *Facts) { f.Seccomp = false }, "seccomp fail"},
	"NoUserNamespaces": {func(f *Facts) { f.MaxUserNS, f.UserNS, f.Data.Mapped = 0, errNo, true }, "user-namespaces fail is 0"},
	"UserNSDenied":     {func(f *Facts) { f.UserNS = errNo }, "user-namespaces fail no such thing"},
	"RangeTaken":       {func(f *Facts) { f.RangeUsers = []string{"/etc/subuid: eve"} }, "user-ranges warn eve"},
	"NoCgroups":        {func(f *Facts) { f.CgroupsErr = errNo }, "cgroups fail without limits"},
	"NoMemoryLimit": {func(f *Facts) {
		f.Cgroups = watchdog.CgroupSurvey{Version: "1", Limits: []string{"cpu", "pids"}, Why: []string{"read-only"}}
	}, "cgroups fail not: memory (read-only)"},
	"FewFiles":          {func(f *Facts) { f.OpenFiles = 1024 }, "open-files warn 1024"},
	"NoWatchdog":        {func(f *Facts) { f.Watchdog = errNo }, "watchdog fail not start"},
	"NoRuntime":         {func(f *Facts) { f.RuntimeErr, f.Runtime = errNo, nil }, "oci-runtime fail not start"},
	"FlawedRuntime":     {func(f *Facts) { f.Runtime.Package = "1.1.5+ds1-1" }, "oci-runtime fail CVE-2024-21626"},
	"RuntimeStartsNone": {func(f *Facts) { f.Trial = errNo }, "oci-runtime fail no such thing"},
	"RuntimeNoneAuto":   {func(f *Facts) { f.Trial, f.Sandbox.Optional = errNo, true }, "oci-runtime fail takes no tasks with images"},
	"RuntimeUntried":    {func(f *Facts) { f.Trial = agent.ErrTrialUndecided }, "oci-runtime warn could not be tried"},
	"StrayRuntime":      {func(f *Facts) { f.Runtime.Package, f.Runtime.Stray = "", true }, "oci-runtime fail remove one of them"},
	"AcceptedRuntime":   {func(f *Facts) { f.Runtime.Package, f.Sandbox.AcceptFlaw = "", true }, "oci-runtime warn CVE-2024-21626"},
	"NoGangs":           {func(f *Facts) { f.GangNet = errNo }, "gang-network fail label network.gang"},
	"NoTUN":             {func(f *Facts) { f.Sandbox.Network.Mesh.Program, f.Mesh = "/m", errNo }, "mesh fail label network.mesh"},
	"NoMeshPorts":       {func(f *Facts) { f.Sandbox.Network.Mesh.Program = "/m" }, "mesh fail no UDP port of"},
	"NoEgress":          {func(f *Facts) { f.Sandbox.Network.Egress.Internet, f.Egress = true, errNo }, "network-egress fail label network.egress"},
	"HostNetwork":       {func(f *Facts) { f.Sandbox.Network.Host = true }, "network-host warn own network"},
	"StoreKeys":         {func(f *Facts) { f.StoreCredentials = []string{"AWS_PROFILE"} }, "store warn AWS_PROFILE"},
	"StoreDirect":       {func(f *Facts) { f.Store, f.StoreCredentials = agent.StoreDirect, []string{"AWS_PROFILE"} }, "store warn all tenants"},
	"StoreDirectNoKeys": {func(f *Facts) { f.Store = agent.StoreDirect }, "store warn no credentials"},
	"Process":           {func(f *Facts) { f.Process = true }, "process-runtime warn without isolation"},
	"DriverFails":       {func(f *Facts) { f.Drivers[0].Err = errNo }, "driver fail sim: no such thing"},
	"NoDevices":         {func(f *Facts) { f.Drivers[0].Snap = plugins.Snapshot{Err: "no library"} }, "driver fail no devices: no library"},
	"SickDevice": {func(f *Facts) {
		f.Drivers[0].Snap.Devices[1].Health, f.Drivers[0].Snap.Devices[1].HealthCode = gpuai.DeviceUnhealthy, "xid:79"
	}, "driver warn G1 unhealthy xid:79"},
	"NoDriver":          {func(f *Facts) { f.Drivers = nil }, "driver warn takes no tasks that ask for GPUs"},
	"UnusedGPUs":        {func(f *Facts) { f.Present = []string{"amd"} }, "driver warn amd: this host has GPUs"},
	"RefusedCDI":        {func(f *Facts) { f.CDI[0].Refused = errNo }, "cdi fail /etc/cdi/a.json: no such thing"},
	"CDIUnread":         {func(f *Facts) { f.CDIErr = errNo }, "cdi fail no such thing"},
	"Suspended":         {func(f *Facts) { f.Clock.Suspended = time.Hour }, "clock-boottime warn 1h0m0s"},
	"NotSynchronised":   {func(f *Facts) { f.Clock.Synced = false }, "clock-sync warn"},
	"SyncUnknown":       {func(f *Facts) { f.Clock.SyncErr = errNo }, "clock-sync warn not known"},
	"WrongClock":        {func(f *Facts) { f.Servers[1].Offset = -time.Minute }, "clock-offset warn -60.0 s to http://b"},
	"ServerGone":        {func(f *Facts) { f.Servers[1].Err = errNo }, "server warn none while another"},
	"ServerNotReady":    {func(f *Facts) { f.Servers[0].Unready = "no leader" }, "server warn does not serve: no leader"},
	"CertificateEnded":  {func(f *Facts) { f.Joined.Err = errNo }, "identity fail not start"},
	"MetricsPort":       {func(f *Facts) { f.Ports.MetricsTaken = true }, "metrics-port fail not start"},
	"GangPortTaken":     {func(f *Facts) { f.Ports.Taken = []uint16{29500, 29503} }, "gang-ports warn 29500 29503"},
	"GangPortEphemeral": {func(f *Facts) { f.Ports.Exposed = 16 }, "gang-ports warn 16 of them"},
}

// Each lack is seen by its own check and by no other, with what to do and what
// it means.
func TestJudgeSeesEachLack(t *testing.T) {
	for name, c := range lacks {
		t.Run(name, func(t *testing.T) {
			f := wellFacts()
			c.harm(f)
			code, rest, _ := strings.Cut(c.want, " ")
			status, part, _ := strings.Cut(rest, " ")
			found := false
			for _, got := range Judge(f) {
				switch {
				case got.Status == OK, strings.HasPrefix(name, "NotRoot") && (got.Code == "user-namespaces" || got.Code == "gang-network" || got.Code == "mesh"),
					name == "NoWatchdog" && got.Code == "user-namespaces": // what was not tried is said
					continue
				case got.Code != code || string(got.Status) != status:
					t.Errorf("beside it: %+v", got)
				case !strings.Contains(got.Detail+" "+got.Effect+" "+got.Fix, part) || got.Detail == "" || got.Effect == "" || got.Fix == "":
					t.Errorf("%+v, want %s", got, c.want)
				}
				found = found || got.Code == code
			}
			if !found {
				t.Errorf("no %s %s", code, status)
			}
		})
	}
}

// A region with authentication, and a host that has not joined it.
func TestJudgeOfAHostThatHasNotJoined(t *testing.T) {
	f := wellFacts()
	for i := range f.Servers {
		f.Servers[i].Secure = true
	}
	found := map[string]int{}
	for _, c := range Judge(f) {
		if c.Status == Fail && strings.Contains(c.Fix, "gpuai agent join") {
			found[c.Code]++
		}
	}
	if found["identity"] != 1 || found["server"] != 2 {
		t.Errorf("%v say to join", found)
	}
}

// With no server left each of them is a failure; what an agent itself holds is none.
func TestJudgeOfTheWhole(t *testing.T) {
	f := wellFacts()
	f.Servers[0].Err, f.Servers[1].Unready = errors.New("refused"), "no leader"
	for _, c := range Judge(f) {
		if (c.Status == Fail) != (c.Code == "server") {
			t.Errorf("%+v", c)
		}
	}
	f = wellFacts()
	f.Data.Holder, f.Ports.MetricsTaken, f.Ports.Taken = 17, true, []uint16{29500}
	for _, c := range Judge(f) {
		if c.Status != OK {
			t.Errorf("an agent's own: %+v", c)
		}
	}
}

// The codes are stable: those of the code, their order, and docs/doctor.md's
// table are the same.
func TestCodesAreDocumented(t *testing.T) {
	var want strings.Builder
	for _, c := range Codes {
		fmt.Fprintf(&want, "| `%s` | %s |", c.Name, c.What)
	}
	b, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "<!-- codes -->\n")
	table, _, ok := strings.Cut(rest, "<!-- end of codes -->")
	if !ok {
		t.Fatal("docs/doctor.md has no table of codes")
	}
	var got strings.Builder
	for line := range strings.Lines(table) {
		if cells := strings.SplitN(strings.TrimSpace(line), "|", 4); len(cells) == 4 && strings.HasPrefix(cells[1], " `") {
			got.WriteString(strings.Join(cells[:3], "|") + "|")
		}
	}
	if got.String() != want.String() {
		t.Errorf("docs/doctor.md has\n%s\nand the code\n%s", got.String(), want.String())
	}
	checkCodes(t, Judge(wellFacts()))
}

// checkCodes reports codes that are not in Codes, or not in their order, and
// codes without a check.
func checkCodes(t *testing.T, checks []Check) {
	t.Helper()
	var got, want []string
	for _, c := range checks {
		got = append(got, c.Code)
	}
	for _, c := range Codes {
		want = append(want, c.Name)
	}
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("checks %q, want %q", got, want)
	}
}
