package plugins_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Case 29 of the fault cases: a driver that crashes, hangs, talks garbage, is
// not the one configured, speaks another version or forks children. Every test
// runs a real process. The sentence that the operator sees is part of it.

func TestCase29BadBinary(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "none"), "there is no file " + dir + "/none: install it"},
		{"no path", "", "has no path"},
		{"directory", dir, "is not a file"},
		{"not executable", write("data", "x", 0o600), "is not executable: run chmod +x"},
		{"no program", write("text", "hello", 0o700), "exec format error: it must be a program for this machine"},
		{"no interpreter", write("script", "#!/no/such/shell\n", 0o700), "cannot be started"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t, "sim")
			cfg.Path = c.path
			_, err := plugins.StartQuick(t.Context(), cfg)
			if !errors.Is(err, plugins.ErrBinary) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestCase29WrongChecksum(t *testing.T) {
	cfg := config(t, "sim")
	src, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(src)
	right := hex.EncodeToString(sum[:])
	cfg.SHA256 = strings.Repeat("0", 64)
	_, err = plugins.StartQuick(t.Context(), cfg)
	if !errors.Is(err, plugins.ErrBinary) || !strings.Contains(err.Error(), "has the SHA-256 "+right) {
		t.Errorf("wrong checksum: %v", err)
	}
	cfg.SHA256 = strings.ToUpper(right)
	begin(t, cfg)
}

func TestCase29BadStart(t *testing.T) {
	for _, c := range []struct {
		mode string
		is   error
		want string
	}{
		{"crash-at-start", plugins.ErrDown, `ended at its start with exit status 7; its last words: "cannot open /dev/nvidiactl: no such device"`},
		{"panics-in-configure", plugins.ErrDown, "libvendor.so: symbol not found"},
		{"silent", plugins.ErrTimeout, "did not serve within 3s and was killed"},
		{"stops-in-info", plugins.ErrTimeout, "hung at its start and was killed"},
		{"garbage", plugins.ErrProtocol, `printed "Welcome to the vendor's tool, version 5!" instead of the plugin handshake`},
		{"long-garbage", plugins.ErrProtocol, "instead of the plugin handshake"},
		{"other-version", plugins.ErrProtocol, `speaks version "99" of the contract, this agent speaks 1`},
		{"plain", plugins.ErrProtocol, "serves without TLS"},
		{"elsewhere", plugins.ErrGarbage, "not in its socket directory"},
		{"nameless", plugins.ErrGarbage, "does not say its name"},
		{"twins", plugins.ErrGarbage, "reports a device twice"},
		{"too-many", plugins.ErrGarbage, "reports 65 devices, a node has at most 64"},
		{"no-inventory", plugins.ErrTimeout, "sent no inventory with the health of its devices within 2s"},
		{"ends-stream", nil, "that is all"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, c.mode)
			began := time.Now()
			h, err := plugins.StartQuick(t.Context(), cfg)
			if err == nil {
				h.Close()
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant %q", err, c.want)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			expectNobody(t, cfg)
		})
	}
}

func TestCase29BadConfiguration(t *testing.T) {
	cfg := config(t, "sim")
	cfg.Config = []byte(`{"seed":"test","devices":[],"colour":"red"}`)
	_, err := plugins.StartQuick(t.Context(), cfg)
	if !errors.Is(err, plugins.ErrInvalid) || !strings.Contains(err.Error(), "colour") || !strings.Contains(err.Error(), "refuses its configuration") {
		t.Error(err)
	}
}

func TestCase29Crash(t *testing.T) {
	t.Parallel()
	h := begin(t, config(t, "crashes-in-reserve"))
	before := h.Inventory()
	// The call survives the crash under it: the same request goes to the next
	// process.
	if _, err := h.Reserve(t.Context(), reservation(before, "1", 0)); err != nil {
		t.Fatal(err)
	}
	after := await(t, h, "the driver to be back", func(s plugins.Snapshot) bool { return s.Up })
	if after.PID == before.PID || after.Restarts != 1 || after.Generation <= before.Generation {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if healths(after) != "healthy, healthy" {
		t.Errorf("one crash made the devices %s", healths(after))
	}
}

func TestCase29CrashKeepsReservations(t *testing.T) {
	for _, mode := range []string{"sim", "forgets"} {
		t.Run(mode, func(t *testing.T) {
			h := begin(t, config(t, mode))
			s := h.Inventory()
			held := reservation(s, "held", 0)
			held.Incarnation = 3
			if _, err := h.Reserve(t.Context(), held); err != nil {
				t.Fatal(err)
			}
			killAndAwait(t, h)
			other := reservation(s, "other", 0)
			other.Incarnation = 3
			if _, err := h.Reserve(t.Context(), other); !errors.Is(err, plugins.ErrHeld) {
				t.Errorf("another reservation of the device: %v", err)
			}
			if _, err := h.Reserve(t.Context(), held); err != nil {
				t.Errorf("the same again: %v", err)
			}
		})
	}
}

// killAndAwait kills the driver's process and waits for the next.
func killAndAwait(t *testing.T, h *plugins.Host) plugins.Snapshot {
	t.Helper()
	old := h.Inventory().PID
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return await(t, h, "a new process", func(s plugins.Snapshot) bool { return s.Up && s.PID != old && s.PID != 0 })
}

func TestCase29FiveCrashesMakeDevicesUnhealthy(t *testing.T) {
	t.Parallel()
	h := begin(t, config(t, "sim"))
	s := h.Inventory()
	if _, err := h.Reserve(t.Context(), reservation(s, "running", 0)); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		s = killAndAwait(t, h)
		if healths(s) != "healthy, healthy" {
			t.Fatalf("after %d deaths the devices are %s", s.Restarts, healths(s))
		}
	}
	s = killAndAwait(t, h)
	if healths(s) != "unhealthy driver:unstable, unhealthy driver:unstable" || !strings.Contains(s.Err, "died 5 times") {
		t.Fatalf("after 5 deaths: %s; %s", healths(s), s.Err)
	}
	// What runs goes on: its reservation can be read and released.
	if known, _, err := h.Recover(t.Context(), []string{"running"}); err != nil || len(known) != 1 {
		t.Errorf("recovered %v, %v", known, err)
	}
	if _, _, err := h.Release(t.Context(), "running", false); err != nil {
		t.Error(err)
	}
	s = await(t, h, "the breaker to close", func(s plugins.Snapshot) bool { return healths(s) == "healthy, healthy" })
	if s.Err != "" || !s.Up {
		t.Errorf("when it is steady: %+v", s)
	}
}

func TestCase29Hang(t *testing.T) {
	t.Parallel()
	h := begin(t, config(t, "sim"))
	before := h.Inventory()
	if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	// Waiting for its answer, seeing the silence, killing, starting anew: all
	// of it in seconds, where go-plugin's Kill alone takes 34.
	s := await(t, h, "a new process", func(s plugins.Snapshot) bool { return s.Up && s.PID != before.PID && s.PID != 0 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if syscall.Kill(before.PID, 0) != syscall.ESRCH {
		t.Error("the stopped process is still there")
	}
	if _, err := h.Reserve(t.Context(), reservation(s, "1", 0)); err != nil {
		t.Error(err)
	}
}

func TestCase29HangDuringCall(t *testing.T) {
	t.Parallel()
	h := begin(t, config(t, "stops-in-reserve"))
	s := h.Inventory()
	began := time.Now()
	_, err := h.Reserve(t.Context(), reservation(s, "1", 0))
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("a call of 1.5 s took %s", took)
	}
	if err != nil && !errors.Is(err, plugins.ErrTimeout) && !errors.Is(err, plugins.ErrDown) {
		t.Error(err)
	}
	await(t, h, "a new process", func(n plugins.Snapshot) bool { return n.Up && n.PID != s.PID && n.PID != 0 })
	if _, err := h.Reserve(t.Context(), reservation(s, "1", 0)); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

// A driver can hang with one call while its inventory still comes.
func TestCase29UnansweredCalls(t *testing.T) {
	t.Parallel()
	h := begin(t, config(t, "deaf"))
	s := h.Inventory()
	for range 2 {
		if _, err := h.Reserve(t.Context(), reservation(s, "1", 0)); !errors.Is(err, plugins.ErrTimeout) {
			t.Fatalf("call of a deaf driver: %v", err)
		}
	}
	await(t, h, "a new process", func(n plugins.Snapshot) bool { return n.Up && n.PID != s.PID && n.PID != 0 })
}

func TestCase29CloseOfStoppedDriver(t *testing.T) {
	t.Parallel()
	h, err := plugins.StartQuick(t.Context(), config(t, "sim"))
	if err != nil {
		t.Fatal(err)
	}
	pid := h.Inventory().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if syscall.Kill(pid, 0) != syscall.ESRCH {
		t.Error("the stopped process is still there")
	}
}

func TestCase29GarbageLater(t *testing.T) {
	t.Parallel()
	cfg := config(t, "twins-later")
	h := begin(t, cfg)
	if err := os.WriteFile(filepath.Join(cfg.SocketDir, "sim", "state", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := await(t, h, "the breaker to open", func(s plugins.Snapshot) bool {
		return strings.HasPrefix(healths(s), "unhealthy driver:unstable")
	})
	if len(s.Devices) != 2 {
		t.Errorf("devices are %+v", s.Devices)
	}
}

func TestCase29Babble(t *testing.T) {
	cfg := config(t, "babbles")
	h := begin(t, cfg)
	s := h.Inventory()
	for i := range 20 {
		id := strconv.Itoa(i)
		if _, err := h.Reserve(t.Context(), reservation(s, id, 0)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := h.Release(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
	}
	if s := h.Inventory(); s.Restarts != 0 {
		t.Errorf("it was restarted: %s", s.Err)
	}
}

func TestCase29ForksChildren(t *testing.T) {
	t.Parallel()
	cfg := config(t, "forks")
	h, err := plugins.StartQuick(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := children(t, cfg)
	if len(first) != 2 {
		t.Fatalf("the driver forked %v", first)
	}
	killAndAwait(t, h)
	expectGone(t, first) // after a crash, though they held its pipes open
	all := children(t, cfg)
	if len(all) != 4 {
		t.Fatalf("the next driver forked %v", all)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	expectGone(t, all) // and after an orderly end
	expectNobody(t, cfg)
}

func children(t *testing.T, cfg plugins.HostConfig) []int {
	t.Helper()
	src, err := os.ReadFile(filepath.Join(cfg.SocketDir, cfg.Name, "state", "children"))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(string(src)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func expectGone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
}

// alive is false for a zombie: whoever inherited it may reap it late.
func alive(pid int) bool {
	src, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(src), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// expectNobody fails when a process of the driver's directory is left.
func expectNobody(t *testing.T, cfg plugins.HostConfig) {
	t.Helper()
	marker := "GPUAI_DRIVER_DIR=" + filepath.Join(cfg.SocketDir, cfg.Name) + "@"
	envs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range envs {
		if env, err := os.ReadFile(path); err == nil && strings.Contains(string(env), marker) {
			t.Errorf("%s is still there", filepath.Dir(path))
		}
	}
}

// An agent that is killed takes its drivers along, and the next one finds what
// they had reserved.
func TestHostKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), driverBinary(t, "host"))
	cmd.Env = append(os.Environ(), "TEST_DRIVER="+driverBinary(t, "sim"), "TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(line, "%d <nil>", &pid); err != nil {
		t.Fatalf("the host says %q", line)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	until(t, "the driver to die with its host", func() bool { return !alive(pid) })

	cfg := config(t, "sim")
	cfg.SocketDir = dir
	h := begin(t, cfg)
	known, orphaned, err := h.Recover(t.Context(), nil)
	if err != nil || len(known) != 0 || len(orphaned) != 1 || orphaned[0] != "left" {
		t.Fatalf("recovered %v, %v, %v", known, orphaned, err)
	}
	run, err := os.ReadDir(filepath.Join(dir, "sim", "run"))
	if err != nil || len(run) != 1 {
		t.Errorf("sockets: %v, %v; want those of one driver", run, err)
	}
	if _, _, err := h.Release(t.Context(), "left", true); err != nil {
		t.Error(err)
	}
	free := plugins.Reservation{ID: "next", Devices: []gpuai.DeviceID{h.Inventory().Devices[0].ID}, Incarnation: 2}
	if _, err := h.Reserve(t.Context(), free); err != nil {
		t.Error(err)
	}
}

// A host that was killed may have left processes that no Pdeathsig reaches.
func TestHostKillsStraysOfTheLastOne(t *testing.T) {
	cfg := config(t, "sim")
	dir := filepath.Join(cfg.SocketDir, "sim")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mark, err := plugins.Marker(dir)
	if err != nil {
		t.Fatal(err)
	}
	stray := exec.Command("sleep", "600")
	stray.Env = []string{mark}
	other := exec.Command("sleep", "600") // of a directory of the same name elsewhere
	other.Env = []string{mark + "0"}
	for _, c := range []*exec.Cmd{stray, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer c.Wait()
		defer c.Process.Kill()
	}
	until(t, "the strays to run", func() bool {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", other.Process.Pid))
		return strings.Contains(string(env), mark+"0")
	})
	begin(t, cfg)
	if alive(stray.Process.Pid) || !alive(other.Process.Pid) {
		t.Errorf("the stray lives: %t, another driver's process lives: %t", alive(stray.Process.Pid), alive(other.Process.Pid))
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s", what)
		}
	}
}
