//go:build cgo

package nvidia

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai/plugins"
)

// What is built once for all tests.
var (
	builds  sync.Mutex
	built   = map[string]string{} // by what it is
	buildIn string
)

func TestMain(m *testing.M) {
	var err error
	if buildIn, err = os.MkdirTemp("", "gpuai-nvidia-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(buildIn); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// buildOnce returns the path of what make makes.
func buildOnce(t *testing.T, what string, make func(path string) *exec.Cmd) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if built[what] == "" {
		path := filepath.Join(buildIn, fmt.Sprint(len(built)))
		if out, err := make(path).CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", what, err, out)
		}
		built[what] = path
	}
	return built[what]
}

// driverBinary is the binary that is shipped.
func driverBinary(t *testing.T) string {
	return buildOnce(t, "the driver", func(path string) *exec.Cmd {
		return exec.Command("go", "build", "-o", path, "../../cmd/gpuai-driver-nvidia")
	})
}

// fakeLibrary is testdata/nvml.c without some symbols.
func fakeLibrary(t *testing.T, without ...string) string {
	return buildOnce(t, "libnvidia-ml.so.1 without "+strings.Join(without, " "), func(path string) *exec.Cmd {
		header, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
		if err != nil {
			t.Fatalf("finding nvml.h: %v", err)
		}
		script := "{ local: none; };"
		if len(without) > 0 {
			script = "{ local: " + strings.Join(without, "; ") + "; };"
		}
		if err := os.WriteFile(path+".map", []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command("gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", "-Wno-deprecated-declarations", "-Wl,-z,lazy",
			"-Wl,--version-script="+path+".map", "-I"+filepath.Join(strings.TrimSpace(string(header)), "pkg", "nvml"),
			"-o", path, "testdata/nvml.c")
	})
}

// A machine is a host with made-up GPUs: a directory with a library of its own.
type machine struct {
	t      *testing.T
	dir    string
	config map[string]any
}

// newMachine returns a host with these lines of nvml.conf.
func newMachine(t *testing.T, library string, lines ...string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	m.config = map[string]any{
		"library_path": filepath.Join(m.dir, defaultLibrary), "scan_ms": 100, "hang_after_ms": 20000, "release_wait_ms": 200,
		"cdi_dirs": []string{m.path("etc-cdi")}, "driver_root": m.path("root"), "dev_root": m.path("root"),
		"mps_pipe_directory": m.path("mps"),
	}
	if library != "" {
		src, err := os.ReadFile(library)
		if err != nil {
			t.Fatal(err)
		}
		m.write(defaultLibrary, string(src)) // a copy: the loader takes equal files for one
	}
	m.set(lines...)
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// write puts a file into the machine's directory, at once.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := m.path(name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = plugins.ReplaceFile(path, []byte(text))
	}
	if err == nil {
		err = os.Chmod(path, 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// set replaces what the library says.
func (m *machine) set(lines ...string) { m.write("nvml.conf", strings.Join(lines, "\n")+"\n") }

func (m *machine) json() []byte {
	m.t.Helper()
	src, err := json.Marshal(m.config)
	if err != nil {
		m.t.Fatal(err)
	}
	return src
}

func (m *machine) hostConfig() plugins.HostConfig {
	return plugins.HostConfig{
		Name: "nvidia", Path: driverBinary(m.t), Config: m.json(), SocketDir: m.path("sockets"),
		Logger: slog.New(slog.NewTextHandler(m.t.Output(), nil)),
	}
}

// start runs the driver under a host until the test ends.
func (m *machine) start() *plugins.Host {
	m.t.Helper()
	h, err := plugins.Start(m.t.Context(), m.hostConfig())
	if err != nil {
		m.t.Fatalf("the host does not start: %v", err)
	}
	m.t.Cleanup(func() { h.Close() })
	return h
}

// uuid is the ID of made-up GPU i.
func uuid(i int) string { return fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i) }

// line is the line of made-up GPU i, with more keys.
func line(i int, more string) string {
	return fmt.Sprintf("gpu %d uuid=%s name=NVIDIA_H100_80GB_HBM3 minor=%d memory=85520809984 pci=0000:%02x:00 serial=165%d numa=%d mig=0 %s",
		i, uuid(i), i, 16*(i+1), i, i/2, more)
}

// versions are those of a machine.
const versions = "driver 550.54.15\ncuda 12040"
