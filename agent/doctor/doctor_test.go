package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/probe"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/store"
)

var binaries string

func TestMain(m *testing.M) {
	if binaries = os.Getenv(binariesIn); binaries != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "doctor")
	if err == nil {
		cmd := exec.Command("go", "build", "-o", dir+"/", "github.com/gpuai/gpuai/cmd/gpuai-watchdog", "github.com/gpuai/gpuai/cmd/gpuai-probe", "github.com/gpuai/gpuai/cmd/gpuai-driver-sim")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaries = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func binary(name string) string { return filepath.Join(binaries, name) }

// region is a server that answers as one does.
func region(t *testing.T, ready bool) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" && !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"code":"no_leader","detail":"server s-2 is not ready: no leader"}`)
			return
		}
		fmt.Fprint(w, `{"status":"ok","server":"s-1"}`)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func hostConfig(t *testing.T, data string) *Config {
	return &Config{
		Agent: agent.Config{
			DataDir: data, Servers: []string{region(t, true), region(t, false)}, Watchdog: binary("gpuai-watchdog"),
			Sandbox: &agent.SandboxConfig{Runtime: "runc", Optional: true, CDIDirs: []string{filepath.Join(data, "cdi")}},
			Drivers: []plugins.HostConfig{{
				Name: "sim", Path: binary("gpuai-driver-sim"),
				Config: []byte(`{"seed": "doctor", "devices": [{"vendor": "nvidia", "model": "H100", "memory_bytes": 1073741824, "count": 2}]}`),
			}, {Name: "gone", Path: binary("nothing")}},
		},
		Metrics: "127.0.0.1:1", Patience: 20 * time.Second, Logger: slog.New(slog.DiscardHandler),
	}
}

// A run on this host beside an agent: its journal is locked, its driver runs. It
// sees both, and changes nothing.
func TestDoctorBesideAnAgent(t *testing.T) {
	data := t.TempDir()
	j, err := store.OpenJournal(filepath.Join(data, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	c := hostConfig(t, data)
	d := c.Agent.Drivers[0]
	d.SocketDir, d.Logger = filepath.Join(data, "drivers"), c.Logger
	h, err := plugins.Start(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	before, pid := tree(t, data), h.Inventory().PID

	r := Run(t.Context(), c)

	if after := tree(t, data); after != before {
		t.Errorf("the data directory was\n%s\nand is\n%s", before, after)
	}
	if now := h.Inventory(); now.PID != pid || now.Restarts != 0 || !now.Up {
		t.Errorf("the agent's driver was process %d and is %d, up %v", pid, now.PID, now.Up)
	}
	checkCodes(t, r.Checks)
	for want, found := range map[string]bool{
		fmt.Sprintf("data-dir ok process %d has it", os.Getpid()): false,
		"driver ok sim: 2 H100, simulated":                        false,
		"driver fail gone: ":                                      false,
		"server ok s-1 serves":                                    false,
		"server warn no leader":                                   false,
		"metrics-port ok 127.0.0.1:1 is free":                     false,
		"clock-offset ok ":                                        false,
		"watchdog ok ":                                            false,
	} {
		f := strings.SplitN(want, " ", 3)
		for _, c := range r.Checks {
			found = found || c.Code == f[0] && string(c.Status) == f[1] && strings.Contains(c.Detail, f[2])
		}
		if !found {
			t.Errorf("no check %q in %+v", want, r.Checks)
		}
	}
	checkShape(t, r)
}

// checkShape holds the report's JSON to what is documented.
func checkShape(t *testing.T, r *Report) {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string][]map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || len(got["checks"]) == 0 || got["probes"] == nil {
		t.Fatalf("%s", b)
	}
	for _, c := range got["checks"] {
		for _, key := range []string{"code", "status", "detail", "fix", "effect"} {
			if _, ok := c[key].(string); !ok || len(c) != 5 {
				t.Fatalf("%v", c)
			}
		}
	}
}

// tree lists a directory with the times of its files.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err == nil {
			fmt.Fprintln(&b, path, st.Size(), st.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// probeConfig is for this host; its sandbox is changed by change, and its range of
// users is put into the other answer.
func probeConfig(t *testing.T, change func(*sandbox.Task)) (*ProbeConfig, *sandbox.Range) {
	t.Helper()
	skip := t.Skip
	if os.Getenv("GPUAI_NEED_SANDBOX") == "1" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("a sandbox is made by root")
	}
	if _, err := sandbox.Find(t.Context(), "runc"); err != nil {
		skip("there is no runtime to test with: ", err)
	}
	lent := &sandbox.Range{}
	return &ProbeConfig{
		Watchdog: binary("gpuai-watchdog"), Probe: binary("gpuai-probe"), Runtime: "runc", DataDir: t.TempDir(),
		change: func(task *sandbox.Task) {
			*lent = task.IDs
			change(task)
		},
	}, lent
}

// Case 35: the probes of doctor are those of the tests, closed, and leave nothing.
func TestCase35DoctorProbesThisHost(t *testing.T) {
	c, lent := probeConfig(t, func(*sandbox.Task) {})
	got, err := Probe(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(probe.All()) || len(got) < 20 {
		t.Errorf("%d probes of %d", len(got), len(probe.All()))
	}
	for _, p := range got {
		if p.Open || p.Name == "" || p.Control == "" || p.Expected == "" || p.Got == "" {
			t.Errorf("%+v", p)
		}
	}
	checkGone(t, c, lent)
}

// checkGone reports what a run has left of its own.
func checkGone(t *testing.T, c *ProbeConfig, lent *sandbox.Range) {
	t.Helper()
	left, err := os.ReadDir(c.DataDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v %v", left, err)
	}
	if lent.Size == 0 {
		t.Error("no range was lent")
	}
	path := fmt.Sprintf("/run/gpuai/ranges/%d", (lent.First-sandbox.AllRanges.First)/sandbox.RangeSize)
	if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), owner+" ") {
		t.Errorf("%s is lent to %s", path, b)
	}
	if left, err := os.ReadDir(placeDir); err != nil || len(left) != 1 || left[0].Name() != "lock" {
		t.Errorf("left in %s: %v %v", placeDir, left, err)
	}
}

// The probes of doctor must be able to fail: a device that the sandbox has no
// right to is given to it.
func TestCase35DoctorSeesAWeakSandbox(t *testing.T) {
	c, lent := probeConfig(t, func(task *sandbox.Task) { task.Devices[0].Permissions = "rw" })
	got, err := Probe(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, p := range (&Report{Probes: got}).Open() {
		open = append(open, p.Name)
	}
	if !slices.Equal(open, []string{"open a device without a right to it"}) {
		t.Errorf("open: %q", open)
	}
	checkGone(t, c, lent)
}

// A sandbox that does not come up, or a program that ends early, is no sandbox
// that is closed.
func TestProbesThatAreNotAllTriedAreAnError(t *testing.T) {
	c, lent := probeConfig(t, func(task *sandbox.Task) { task.Args = []string{"none"} })
	if got, err := Probe(t.Context(), c); err == nil || !strings.Contains(err.Error(), "were not tried") || len(got) > 0 {
		t.Errorf("%v %v", got, err)
	}
	checkGone(t, c, lent)
	if got, err := results([]byte("{\"name\":\"chroot\",\"got\":\"EPERM\"}\n")); err == nil || len(got) != 1 {
		t.Errorf("one of all: %v %v", got, err)
	}
	if _, err := results([]byte("Segmentation fault\n")); err == nil {
		t.Error("what is no probe's answer is read as one")
	}
}

func TestFactsOfFiles(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/subuid": "a:100000:65536\nb:268400000:65536\n", "etc/subgid": "c:536870912:65536\nd:536870911:1\nbad\n",
		"etc/passwd": "root:x:0:0::/:/bin/sh\ne:x:268435456:1::/:/bin/sh\n", "etc/group": "f:x:536870912:\n",
		"locks": "1: POSIX  ADVISORY  WRITE 1 00:01:2 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 1 00:01:2 0 EOF\n",
		"tcp":   "  sl  local_address rem_address   st\n   0: 0100007F:1D2E 00000000:0000 0A 0\n   1: 0100007F:1D2F 0100007F:0016 01 0\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := rangeUsers(root); !slices.Equal(got, []string{"/etc/subuid: b", "/etc/subgid: d", "/etc/passwd: e"}) {
		t.Errorf("users of the ranges: %q", got)
	}
	if pid := holder(filepath.Join(root, "tcp"), filepath.Join(root, "locks")); pid != 0 {
		t.Errorf("nobody has it, and it is %d", pid)
	}
	if got, err := listening(filepath.Join(root, "tcp"), filepath.Join(root, "tcp6")); err != nil || !slices.Equal(got, []uint16{7470}) {
		t.Errorf("listening at %v, %v", got, err)
	}
	if r := portRanges("22,29500-29501,x"); !within(r, 22) || !within(r, 29501) || within(r, 23) || within(nil, 1) {
		t.Errorf("ranges %v", r)
	}
	f := &Facts{}
	f.findData(filepath.Join(root, "none/agent"))
	if real, err := filepath.EvalSymlinks(root); err != nil || f.Data.At != real || f.Data.There {
		t.Errorf("%+v", f.Data)
	}
}

// A port at which somebody listens is seen without listening at it.
func TestPortsThatAreTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	got := ports(&Config{Metrics: l.Addr().String(), Agent: agent.Config{PortMin: port, PortCount: 1}})
	if !got.MetricsTaken || !slices.Equal(got.Taken, []uint16{port}) || got.Err != nil {
		t.Errorf("%+v", got)
	}
}

// A server that speaks TLS by a CA of its own is met as such: with the region's trust it
// is asked, without it the host is told to join, over http:// too.
func TestServersOfARegionWithAuthentication(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"status":"ok","server":"s-1"}`)
	}))
	defer srv.Close()
	c := &Config{Agent: agent.Config{Servers: []string{srv.URL, "http" + strings.TrimPrefix(srv.URL, "https")}}, Patience: 20 * time.Second}
	for _, f := range servers(t.Context(), c, nil) {
		if !f.Secure || f.ID != "" {
			t.Errorf("without trust: %+v", f)
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	c.Agent.Servers = c.Agent.Servers[:1]
	if f := servers(t.Context(), c, &tls.Config{RootCAs: pool})[0]; f.Secure || f.Err != nil || f.ID != "s-1" {
		t.Errorf("with trust: %+v", f)
	}
}
