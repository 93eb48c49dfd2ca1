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

	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/nvidia/nvidiatest"
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
func buildOnce(t *testing.T, what string, make func(path string) error) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if built[what] == "" {
		path := filepath.Join(buildIn, fmt.Sprint(len(built)))
		if err := make(path); err != nil {
			t.Fatalf("building %s: %v", what, err)
		}
		built[what] = path
	}
	return built[what]
}

// driverBinary is the binary that is shipped.
func driverBinary(t *testing.T) string {
	return buildOnce(t, "the driver", func(path string) error {
		out, err := exec.Command("go", "build", "-o", path, "../../cmd/gpuai-driver-nvidia").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// fakeLibrary is the library that the tests' machines have, without some symbols.
func fakeLibrary(t *testing.T, without ...string) string {
	return buildOnce(t, "libnvidia-ml.so.1 without "+strings.Join(without, " "), func(path string) error {
		return nvidiatest.Build(path, without...)
	})
}

// A machine is a host with made-up GPUs.
type machine struct {
	t *testing.T
	*nvidiatest.Machine
}

// newMachine returns a host with these lines of nvml.conf.
func newMachine(t *testing.T, library string, lines ...string) *machine {
	t.Helper()
	return &machine{t, nvidiatest.New(t, library, lines...)}
}

func (m *machine) hostConfig() plugins.HostConfig {
	return plugins.HostConfig{
		Name: "nvidia", Path: driverBinary(m.t), Config: m.JSON(), SocketDir: m.Path("sockets"),
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

func uuid(i int) string { return nvidiatest.UUID(i) }

func line(i int, more string) string { return nvidiatest.Line(i, more) }

const versions = nvidiatest.Versions
