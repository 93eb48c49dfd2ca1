// Package nvidiatest makes hosts with NVIDIA GPUs for tests of the driver: a
// libnvidia-ml.so.1 in C, built against NVIDIA's header, that says what a file
// beside it says, and a root with the driver's files and device files. The driver
// loads it as it would NVIDIA's.
package nvidiatest

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

//go:embed testdata/nvml.c
var source []byte

// Library is the name of NVML's library.
const Library = "libnvidia-ml.so.1"

// Versions are the lines of a host's versions.
const Versions = "driver 550.54.15\ncuda 12040"

// Build builds the library at path, without some symbols. It needs gcc, and the go
// command to find NVIDIA's header.
func Build(path string, without ...string) error {
	header, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		return fmt.Errorf("finding nvml.h: %w", err)
	}
	script := "{ local: none; };"
	if len(without) > 0 {
		script = "{ local: " + strings.Join(without, "; ") + "; };"
	}
	for name, text := range map[string][]byte{path + ".map": []byte(script), path + ".c": source} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
	}
	out, err := exec.Command("gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", "-Wno-deprecated-declarations", "-Wl,-z,lazy",
		"-Wl,--version-script="+path+".map", "-I"+filepath.Join(strings.TrimSpace(string(header)), "pkg", "nvml"),
		"-o", path, path+".c").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// A Machine is a host with made-up GPUs: a directory with a library of its own.
type Machine struct {
	t      testing.TB
	dir    string
	Config map[string]any // of its driver
}

// New returns a host with these lines of nvml.conf, and a library that Build has
// made; "" for none.
func New(t testing.TB, library string, lines ...string) *Machine {
	t.Helper()
	m := &Machine{t: t, dir: t.TempDir()}
	m.Config = map[string]any{
		"library_path": m.Path(Library), "scan_ms": 100, "hang_after_ms": 20000, "release_wait_ms": 200,
		"cdi_dirs": []string{m.Path("etc-cdi")}, "driver_root": m.Path("root"), "dev_root": m.Path("root"),
		"mps_pipe_directory": m.Path("mps"),
	}
	if library != "" {
		src, err := os.ReadFile(library)
		if err != nil {
			t.Fatal(err)
		}
		m.Write(Library, string(src)) // a copy: the loader takes equal files for one
	}
	m.Set(lines...)
	return m
}

// Path is the path of a file of the machine's directory.
func (m *Machine) Path(name string) string { return filepath.Join(m.dir, name) }

// Write puts a file into the machine's directory, at once.
func (m *Machine) Write(name, text string) {
	m.t.Helper()
	path := m.Path(name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new", []byte(text), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// Set replaces what the library says.
func (m *Machine) Set(lines ...string) { m.Write("nvml.conf", strings.Join(lines, "\n")+"\n") }

// JSON is the driver's configuration.
func (m *Machine) JSON() []byte {
	m.t.Helper()
	src, err := json.Marshal(m.Config)
	if err != nil {
		m.t.Fatal(err)
	}
	return src
}

// UUID is the ID of made-up GPU i.
func UUID(i int) string { return fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i) }

// Line is the line of made-up GPU i, with more keys.
func Line(i int, more string) string {
	return fmt.Sprintf("gpu %d uuid=%s name=NVIDIA_H100_80GB_HBM3 minor=%d memory=85520809984 pci=0000:%02x:00 serial=165%d numa=%d mig=0 %s",
		i, UUID(i), i, 16*(i+1), i, i/2, more)
}

// Install puts the driver's files and device files of n GPUs into the machine's
// root. It skips the test where it may not make device files.
func (m *Machine) Install(n int) {
	m.t.Helper()
	nodes := map[string]uint64{"nvidiactl": unix.Mkdev(195, 255), "nvidia-uvm": unix.Mkdev(195, 1), "nvidia-uvm-tools": unix.Mkdev(195, 2)}
	for i := range n {
		nodes[fmt.Sprintf("nvidia%d", i)] = unix.Mkdev(195, uint32(i))
	}
	m.InstallNodes(nodes)
}

// InstallNodes is Install with device files of other numbers: those of devices
// that this host has, so that a task can open them.
func (m *Machine) InstallNodes(nodes map[string]uint64) {
	m.t.Helper()
	const lib = "root/usr/lib/x86_64-linux-gnu/"
	for _, name := range []string{"libcuda.so.550.54.15", "libnvidia-ml.so.550.54.15", "libnvidia-ptxjitcompiler.so.550.54.15"} {
		m.Write(lib+name, "")
	}
	if err := os.Symlink("libcuda.so.550.54.15", m.Path(lib+"libcuda.so.1")); err != nil {
		m.t.Fatal(err)
	}
	m.Write("root/usr/bin/nvidia-smi", "")
	if err := os.Chmod(m.Path("root/usr/bin/nvidia-smi"), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.MkdirAll(m.Path("root/dev"), 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, number := range nodes {
		err := unix.Mknod(m.Path("root/dev/"+name), unix.S_IFCHR|0o600, int(number))
		if err == unix.EPERM {
			m.t.Skip("making device files needs root")
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
}
