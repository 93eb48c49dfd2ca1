package loadgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server"
)

// This test program is also the processes that the package starts: the variable
// says which one.
const roleVar = "GPUAI_LOADGEN_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := play(ctx, role, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// play is one process of the package, or what becomes of one that goes wrong.
func play(ctx context.Context, role string, args []string) error {
	switch role {
	case "agents": // ADDRS FROM TO
		from, _ := strconv.Atoi(args[1])
		to, _ := strconv.Atoi(args[2])
		cfg := FleetConfig{Addrs: strings.Split(args[0], ","), From: from, To: to, GPUs: 8, TaskTime: 20 * time.Millisecond}
		return ServeFleet(ctx, cfg, os.Stdin, os.Stdout)
	case "keeper": // DIR SERVERS ROLE-OF-THE-SERVERS
		n, _ := strconv.Atoi(args[1])
		cfg := KeepConfig{Dir: args[0], Servers: n, Server: func(m Member, all []Member) *exec.Cmd {
			argv := []string{m.ID, m.Data, m.HTTP, m.Raft}
			for _, p := range all {
				argv = append(argv, p.ID+"="+p.Raft)
			}
			return self(args[2], argv...)
		}}
		return KeepRegion(ctx, cfg, os.Stdin, os.Stdout)
	case "measurer": // DIR: starts a region and prints its servers, then waits for ever
		r, err := StartRegion(ctx, func(dir string) *exec.Cmd { return self("keeper", dir, "3", "server") })
		if err != nil {
			return err
		}
		fmt.Println(strings.Join(r.Addrs, " "))
		select {}
	case "server": // ID DATA HTTP RAFT PEERS…
		return serve(ctx, args)
	case "laden": // its nodes hold a lease already
		fmt.Printf("%s 7\nready\n", job(1))
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	case "babbler":
		fmt.Println("ready\nthis is no lease")
		<-ctx.Done()
		return nil
	}
	return errors.New("I was told to fail")
}

func serve(ctx context.Context, args []string) error {
	cfg := server.Config{
		ID: gpuai.ServerID(args[0]), DataDir: args[1], HTTPAddr: args[2], RaftAddr: args[3], Bootstrap: true,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	for _, p := range args[4:] {
		id, addr, _ := strings.Cut(p, "=")
		cfg.Peers = append(cfg.Peers, raft.Peer{ID: gpuai.ServerID(id), Addr: addr})
	}
	s, err := server.Open(cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// self is a command of this test program in a role.
func self(role string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := exec.Command(exe, args...)
	c.Env = append(os.Environ(), roleVar+"="+role)
	c.Stderr = os.Stderr
	return c
}

// patience bounds every wait of these tests; the machine may be busy.
const patience = 60 * time.Second

// eventually polls until ok, and fails the test with what was awaited.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("after %s: no %s", patience, what)
		}
	}
}

// leftovers returns the processes whose command names dir, and the files in it.
func leftovers(dir string) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), dir) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	return append(found, files...)
}
