package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The network: a bridge in the host's namespace, where the server listens, and a
// namespace for each host that an agent runs on. Each has a name of its own, as
// hosts do, and knows those of the others.
const (
	bridge = "gpuai-torch"
	prefix = "10.97.46."
)

// A host is what an agent and its tasks run on.
type host struct {
	name string // of the host, its namespace and its node
	ip   string
	gpus int
}

func newHosts() []*host {
	return []*host{
		{"gpuai-torch-a", prefix + "2", 2}, {"gpuai-torch-b", prefix + "3", 2},
		{"gpuai-torch-c", prefix + "4", 2}, // the spare
	}
}

// run runs a program and returns its output, or says what it wrote.
func run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// ip runs ip(8) commands, one a line.
func ip(ctx context.Context, script string) error {
	for line := range strings.Lines(script) {
		if _, err := run(ctx, "ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the network.
func connect(ctx context.Context, hosts []*host) error {
	err := ip(ctx, fmt.Sprintf("link add %s type bridge\naddr add %s1/24 dev %s\nlink set %s up", bridge, prefix, bridge, bridge))
	if err != nil {
		return err
	}
	names := "127.0.0.1 localhost\n"
	for _, h := range hosts {
		names += h.ip + " " + h.name + "\n"
	}
	for i, h := range hosts {
		if err := os.MkdirAll(h.etc(), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.etc(), "hosts"), []byte(names), 0o644); err != nil {
			return err
		}
		cable := "gpuait" + strconv.Itoa(i)
		if err := ip(ctx, fmt.Sprintf("netns add %s\nlink add %s type veth peer name eth0 netns %s\nlink set %s master %s up\n"+
			"-n %s addr add %s/24 dev eth0\n-n %s link set eth0 up\n-n %s link set lo up",
			h.name, cable, h.name, cable, bridge, h.name, h.ip, h.name, h.name)); err != nil {
			return err
		}
	}
	return nil
}

// etc is where a host's own files of /etc are.
func (h *host) etc() string { return filepath.Join("/etc/netns", h.name) }

// disconnect takes away what is there of the network, and all that runs in it.
func disconnect(hosts []*host) {
	ctx := context.Background()
	for _, h := range hosts {
		_ = h.kill(ctx)
		_, _ = run(ctx, "ip", "netns", "del", h.name) // it may not be there
		_ = os.RemoveAll(h.etc())
	}
	_, _ = run(ctx, "ip", "link", "del", bridge)
}

// in is a command in the host's namespaces. What it mounts is gone with the host.
func (h *host) in(args ...string) *exec.Cmd {
	const settle = `hostname "$0" && mount --bind "/etc/netns/$0/hosts" /etc/hosts && exec "$@"`
	line := append([]string{"--net=/run/netns/" + h.name, "unshare", "--mount", "--uts", "sh", "-c", settle, h.name}, args...)
	cmd := exec.Command("nsenter", line...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	return cmd
}

// pids are the processes of the host: those in its network, and those that they
// have started, such as tasks in sandboxes, whose network is their gang's.
func (h *host) pids(ctx context.Context) (out []int, err error) {
	list, err := run(ctx, "ip", "netns", "pids", h.name)
	if err != nil {
		return nil, err
	}
	for f := range strings.FieldsSeq(list) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("ip netns pids: %w", err)
		}
		out = append(out, pid)
	}
	return withChildren(out), nil
}

// withChildren adds what the processes have started, and those in turn.
func withChildren(pids []int) []int {
	children := map[int][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, file := range files {
		text, _ := os.ReadFile(file) // "" of one that has ended
		_, rest, _ := strings.Cut(string(text), ") ")
		var state string
		var parent int
		if n, _ := fmt.Sscan(rest, &state, &parent); n == 2 {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			children[parent] = append(children[parent], pid)
		}
	}
	for i := 0; i < len(pids); i++ {
		for _, c := range children[pids[i]] {
			if !slices.Contains(pids, c) {
				pids = append(pids, c)
			}
		}
	}
	return pids
}

// kill kills the host: every process of it, at once.
func (h *host) kill(ctx context.Context) error {
	for {
		pids, err := h.pids(ctx)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
		}
	}
}

// worker returns a process of the training script that torchrun started here.
func (h *host) worker(ctx context.Context) (int, error) {
	pids, err := h.pids(ctx)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err == nil && strings.Contains("\x00"+string(env), "\x00LOCAL_RANK=") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of torchrun is on %s", h.name)
}
