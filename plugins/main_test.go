package plugins_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/sim"
)

// TestMain makes the test binary a driver when it is run under a driver's name:
// every fault below happens in a real process.
func TestMain(m *testing.M) {
	mode, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "driver-")
	if !ok {
		os.Exit(m.Run())
	}
	os.Exit(misbehave(mode))
}

// driverBinary returns a path that runs the test binary as the driver of mode.
func driverBinary(t testing.TB, mode string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "driver-"+mode)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// misbehave is the main function of a driver process.
func misbehave(mode string) int {
	good := sim.New(plugins.Logger())
	switch mode {
	case "sim":
		return plugins.Serve(good)
	case "crash-at-start":
		fmt.Fprintln(os.Stderr, "cannot open /dev/nvidiactl: no such device")
		return 7
	case "silent":
		hang()
	case "garbage":
		fmt.Println("Welcome to the vendor's tool, version 5!")
		hang()
	case "long-garbage":
		for {
			fmt.Print(strings.Repeat("x", 4096))
		}
	case "other-version":
		return serveVersion(99)
	case "plain":
		fmt.Println("1|1|unix|./sock|grpc|")
		hang()
	case "elsewhere":
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc|" + strings.Repeat("QUJD", 40))
		hang()
	case "host":
		return hostProcess()
	}
	return plugins.Serve(&twisted{Driver: good, mode: mode})
}

// serveVersion serves the plugin protocol with another contract version.
func serveVersion(version int) int {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			MagicCookieKey: "GPUAI_DRIVER_PLUGIN", MagicCookieValue: os.Getenv("GPUAI_DRIVER_PLUGIN"),
		},
		VersionedPlugins: map[int]plugin.PluginSet{version: {"driver": nothing{}}},
		GRPCServer:       func(o []grpc.ServerOption) *grpc.Server { return grpc.NewServer(o...) },
	})
	return 0
}

type nothing struct{ plugin.NetRPCUnsupportedPlugin }

func (nothing) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }
func (nothing) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("not a client")
}

// hostProcess is an agent with one sim driver, to be killed: it prints the pid
// of its driver and waits.
func hostProcess() int {
	h, err := plugins.Start(context.Background(), plugins.HostConfig{
		Name: "sim", Path: os.Getenv("TEST_DRIVER"), Config: []byte(twoDevices),
		SocketDir: os.Getenv("TEST_DIR"), Logger: plugins.Logger(),
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	devices := h.Inventory().Devices
	_, err = h.Reserve(context.Background(), plugins.Reservation{ID: "left", Devices: []gpuai.DeviceID{devices[0].ID}, Incarnation: 1})
	fmt.Println(h.Inventory().PID, err)
	hang()
	return 0
}

// A twisted driver is the sim driver with one thing wrong.
type twisted struct {
	plugins.Driver
	mode  string
	state string // StateDir
}

// once reports whether this is the first time, over all processes.
func (d *twisted) once() bool {
	f, err := os.OpenFile(filepath.Join(d.state, "once"), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func (d *twisted) Info() plugins.Info {
	i := d.Driver.Info()
	switch {
	case d.mode == "nameless" && os.Getenv("GPUAI_DRIVER_PLUGIN") != "":
		i.Name = ""
	case d.mode == "stops-in-info":
		stop()
	}
	return i
}

// stop stops the process. The signal may take effect a little later than the
// call returns; the caller must not answer meanwhile.
func stop() {
	syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	hang()
}

func (d *twisted) Configure(ctx context.Context, c plugins.Config) error {
	d.state = c.StateDir
	switch d.mode {
	case "forks":
		d.fork(false)
		d.fork(true)
	case "babbles":
		go func() {
			for {
				syscall.Write(1, []byte(strings.Repeat("so much to say ", 10)+"\n"))
				syscall.Write(2, []byte(strings.Repeat("y", 100_000)+"\n"))
				fmt.Println("and more of it")
			}
		}()
	case "panics-in-configure":
		panic("libvendor.so: symbol not found")
	case "forgets":
		os.Remove(filepath.Join(c.StateDir, "reservations.json"))
	case "env":
		env := strings.Join(os.Environ(), "\n")
		if err := os.WriteFile(filepath.Join(c.StateDir, "env"), []byte(env), 0o600); err != nil {
			return err
		}
	}
	return d.Driver.Configure(ctx, c)
}

// fork leaves a process behind that holds the driver's output open.
func (d *twisted) fork(session bool) {
	cmd := exec.Command("sleep", "600")
	cmd.Stdout, cmd.Stderr = os.NewFile(1, "stdout"), os.NewFile(2, "stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: session}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	f, err := os.OpenFile(filepath.Join(d.state, "children"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(f, cmd.Process.Pid)
	f.Close()
}

func (d *twisted) Fingerprint(ctx context.Context, send func(plugins.Inventory) error) error {
	return d.Driver.Fingerprint(ctx, func(v plugins.Inventory) error {
		switch d.mode {
		case "twins":
			v.Devices[1].ID = v.Devices[0].ID
		case "twins-later":
			if err := send(v); err != nil {
				return err
			}
			for _, err := os.Stat(filepath.Join(d.state, "go")); err != nil && ctx.Err() == nil; {
				_, err = os.Stat(filepath.Join(d.state, "go"))
			}
			v.Devices[1].ID = v.Devices[0].ID
		case "too-many":
			for len(v.Devices) <= gpuai.MaxGPUs {
				more := v.Devices[0]
				more.ID = gpuai.DeviceID(fmt.Sprint("more-", len(v.Devices)))
				v.Devices = append(v.Devices, more)
			}
		case "no-inventory":
			<-ctx.Done()
		case "ends-stream":
			return errors.New("that is all")
		case "broken":
			v = plugins.Inventory{Simulated: true, Err: "libvendor.so.1 not found"}
		}
		return send(v)
	})
}

func (d *twisted) Reserve(ctx context.Context, r plugins.Reservation) (plugins.Grant, error) {
	switch {
	case d.mode == "crashes-in-reserve" && d.once():
		fmt.Fprintln(os.NewFile(2, "stderr"), "segmentation violation")
		os.Exit(139)
	case d.mode == "deaf":
		<-make(chan struct{})
	case d.mode == "stops-in-reserve" && d.once():
		stop()
	}
	return d.Driver.Reserve(ctx, r)
}

// hang waits for ever. A process without cgo in which all goroutines only wait is
// ended by the runtime, unless one of them waits for signals.
func hang() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR2)
	<-c
}
