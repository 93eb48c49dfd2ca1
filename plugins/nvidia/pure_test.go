package nvidia

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

func TestParseFills(t *testing.T) {
	for _, src := range []string{"", "{}", `{"cdi":"auto","compute_mode":"manage","cdi_dirs":["/etc/cdi","/var/run/cdi"]}`} {
		c, err := parse([]byte(src))
		if err != nil {
			t.Fatal(err)
		}
		want := &Config{
			DriverRoot: "/", DevRoot: "/", CDI: cdiAuto, CDIDirs: []string{"/etc/cdi", "/var/run/cdi"},
			MPSPipe: "/tmp/nvidia-mps", ComputeMode: modeManage, Scan: 5000, HangAfter: 20000, ReleaseWait: 3000,
		}
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s is %+v, want %+v", src, c, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for src, want := range map[string]string{
		`[]`:                              "configuration",
		`{"libary_path":"/x"}`:            "libary_path",
		`{"library_path":"x.so"}`:         "/library_path",
		`{"cdi_dirs":["/etc/cdi","run"]}`: "/cdi_dirs/1",
		`{"mps_pipe_directory":"mps"}`:    "/mps_pipe_directory",
		`{"scrub_command":["scrub"]}`:     "/scrub_command/0",
		`{"scrub_command":[""]}`:          "/scrub_command/0",
		`{"cdi":"hooks"}`:                 "/cdi must be auto or off",
		`{"compute_mode":"exclusive"}`:    "/compute_mode",
		`{"scan_ms":99}`:                  "/scan_ms",
		`{"scan_ms":60001}`:               "/scan_ms",
		`{"hang_after_ms":999}`:           "/hang_after_ms",
		`{"release_wait_ms":-1}`:          "/release_wait_ms",
		`{"ignore_xids":[-1]}`:            "ignore_xids",
	} {
		if _, err := parse([]byte(src)); !errors.Is(err, plugins.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gets %v, want %q", src, err, want)
		}
	}
}

func TestSchemaNamesEveryField(t *testing.T) {
	var s struct {
		Properties map[string]any `json:"properties"`
	}
	if err := json.Unmarshal([]byte(schema), &s); err != nil {
		t.Fatal(err)
	}
	typ := reflect.TypeFor[Config]()
	var names []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	slices.Sort(names)
	if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, names) {
		t.Errorf("the schema has %v, the configuration %v", got, names)
	}
}

// The table's rows that a node's fate hangs on, and every bucket it uses.
func TestXidTable(t *testing.T) {
	for n, want := range map[uint64]fault{
		13:  {"xid:13", "", plugins.HealthOK, plugins.ActionWarn},
		31:  {"xid:31", "", plugins.HealthOK, plugins.ActionWarn},
		48:  {"xid:48", "", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		54:  {"xid:54", "", plugins.HealthUnhealthy, plugins.ActionReplace},
		64:  {"xid:64", "", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		74:  {"xid:74", "", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		79:  {"xid:79", "", plugins.HealthLost, plugins.ActionRebootNode},
		92:  {"xid:92", "", plugins.HealthDegraded, plugins.ActionWarn},
		94:  {"xid:94", "", plugins.HealthDegraded, plugins.ActionRestartTask},
		95:  {"xid:95", "", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		119: {"xid:119", "", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		151: {"xid:151", "", plugins.HealthUnhealthy, plugins.ActionRebootNode},
		9:   {"xid:9", "", plugins.HealthDegraded, plugins.ActionWarn}, // the catalog calls it unused
		999: {"xid:999", "", plugins.HealthDegraded, plugins.ActionWarn},
	} {
		got, ok := lookupXid(n).fault(n)
		if !strings.Contains(got.Message, lookupXid(n).bucket) {
			t.Errorf("Xid %d says %q", n, got.Message)
		}
		if got.Message = ""; !ok || got != want {
			t.Errorf("Xid %d is %+v, want %+v", n, got, want)
		}
	}
	for _, n := range []uint64{43, 45, 63, 154} {
		if f, ok := lookupXid(n).fault(n); ok {
			t.Errorf("Xid %d is %+v, want nothing", n, f)
		}
	}
	used := map[string]bool{}
	for _, x := range xids {
		used[x.bucket] = true
	}
	if len(xids) != 100 || len(used) != len(buckets) {
		t.Errorf("there are %d Xids with %d buckets, of %d that are known", len(xids), len(used), len(buckets))
	}
}

func TestFaultsSurvive(t *testing.T) {
	dir := t.TempDir()
	f, err := openFaults(dir, "boot-1")
	if err != nil {
		t.Fatal(err)
	}
	reset := fault{"xid:95", "m", plugins.HealthUnhealthy, plugins.ActionResetDevice}
	passing94 := fault{"xid:94", "m", plugins.HealthDegraded, plugins.ActionRestartTask}
	for _, one := range []fault{reset, passing94} {
		if err := f.add("a", one); err != nil {
			t.Fatal(err)
		}
	}
	next, err := openFaults(dir, "boot-1")
	if err != nil || !reflect.DeepEqual(next.By, f.By) || len(next.noted) > 0 {
		t.Errorf("read %+v, %v", next, err)
	}
	now := time.Now()
	if f.over("a", passing94, now) || !f.over("a", passing94, now.Add(time.Hour)) || f.over("a", reset, now.Add(time.Hour)) || !next.over("a", passing94, now) {
		t.Error("what passes, passes after 10 minutes, or with the process that noted it; what lasts does not")
	}
	if err := next.drop("a", func(f fault) bool { return !f.lasting() }); err != nil || !slices.Equal(next.of("a"), []fault{reset}) {
		t.Errorf("of those that last there are %+v, %v", next.of("a"), err)
	}
	if after, err := openFaults(dir, "boot-2"); err != nil || len(after.of("a")) > 0 {
		t.Errorf("after a boot there are %+v, %v", after.of("a"), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "faults.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if damaged, err := openFaults(dir, "boot-1"); err == nil || damaged.add("a", reset) != nil {
		t.Errorf("damaged: %v", err)
	}
}

func TestHealthIsTheWorst(t *testing.T) {
	h := health("a", []fault{
		{"b", "two", plugins.HealthDegraded, plugins.ActionWarn},
		{"d", "four", plugins.HealthUnhealthy, plugins.ActionResetDevice},
		{"c", "three", plugins.HealthUnhealthy, plugins.ActionWarn},
	})
	want := plugins.Health{Device: "a", State: plugins.HealthUnhealthy, Code: "d", Message: "four; also c; also b", Action: plugins.ActionResetDevice}
	if h != want {
		t.Errorf("got %+v, want %+v", h, want)
	}
	if h := health("a", nil); h != (plugins.Health{Device: "a", State: plugins.HealthOK}) {
		t.Errorf("without a fault: %+v", h)
	}
}

func TestDeviceNodes(t *testing.T) {
	c := &Config{DevRoot: t.TempDir()}
	for _, name := range []string{"nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap12"} {
		path := filepath.Join(c.DevRoot, "dev", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, n := range c.deviceNodes([]int{3, 5}, []int{12, 13}) {
		if n.HostPath != c.DevRoot+n.ContainerPath || n.Permissions != "rw" {
			t.Errorf("a device file is %+v", n)
		}
		got = append(got, n.ContainerPath)
	}
	if want := []string{"/dev/nvidia3", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap12"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMIGCaps(t *testing.T) {
	file := "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\ngpu0/gi1/ci1/access 14\ngpu1/gi1/access 147\nbroken\ngpu0/gi1/ci0/access x\n"
	if got := migCaps(file, 0, 1, 0); !slices.Equal(got, []int{12, 13}) {
		t.Errorf("got %v", got)
	}
	if got := migCaps("", 0, 1, 0); len(got) > 0 {
		t.Errorf("without MIG %v", got)
	}
}

func TestShareIsRoundedDown(t *testing.T) {
	c := &Config{MPSPipe: "/p"}
	for share, want := range map[gpuai.Milli][2]string{1: {"1", "0=81M"}, 15: {"1", "0=1228M"}, 999: {"99", "0=81838M"}} {
		g := plugins.Grant{Env: environment([]gpuai.DeviceID{"a"})}
		c.addShare(&g, share, 80<<30)
		if g.Env[envMPSThreads] != want[0] || g.Env[envMPSMemory] != want[1] || len(g.Mounts) != 1 {
			t.Errorf("%d/1000 is %+v, want %v", share, g, want)
		}
	}
}

func TestWatch(t *testing.T) {
	ended := make(chan string, 1)
	w := newWatch(time.Hour, func(what string) { ended <- what })
	quick, slow := w.enter("quick"), w.enter("slow")
	quick()
	if got := w.overdue(time.Now().Add(30 * time.Minute)); got != "" {
		t.Errorf("%s is overdue", got)
	}
	if got := w.overdue(time.Now().Add(2 * time.Hour)); got != "slow" {
		t.Errorf("%q is overdue", got)
	}
	slow()
	if got := w.overdue(time.Now().Add(2 * time.Hour)); got != "" {
		t.Errorf("%s is overdue and over", got)
	}
}
