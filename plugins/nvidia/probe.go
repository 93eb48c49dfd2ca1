//go:build cgo

package nvidia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// probeKey is set in the environment of the child that tries the library.
const probeKey = "GPUAI_NVIDIA_PROBE"

// ProbeIfAsked tries the library and exits when this process is the child that is
// to do so; main calls it first. The child may die of it, which tells the parent
// what would become of itself.
func ProbeIfAsked() {
	if path, ok := os.LookupEnv(probeKey); ok {
		os.Exit(probe(path))
	}
}

// probe reads all that the driver reads, once.
func probe(path string) int {
	l, err := openLibrary(path)
	if err == nil {
		var s scan
		if s, err = l.scan(); err == nil {
			for i := range s.gpus {
				l.stats(&s.gpus[i])
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// try runs the library in a child process and says what is wrong with it. It
// returns when limit is over even if the child cannot be killed.
func try(path string, limit time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("trying NVML: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), probeKey+"="+path)
	var stderr bytes.Buffer // some lines: the child ends at its first error
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	select {
	case err = <-ended:
	case <-time.After(limit + 2*time.Second): // stuck in the kernel
		return fmt.Errorf("NVML does not answer within %s and cannot be killed: boot the host", limit)
	}
	var exit *exec.ExitError
	words := strings.TrimSpace(stderr.String())
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("NVML does not answer within %s: see the kernel's log (dmesg) for Xid errors", limit)
	case errors.As(err, &exit) && exit.ExitCode() == 1 && words != "":
		return errors.New(words)
	case words == "":
		return fmt.Errorf("NVML ends the process that calls it: %w", err)
	}
	return fmt.Errorf("NVML ends the process that calls it: %w: %s", err, lastLine(words))
}

// lastLine is the last line of a text, or the one that says how a process crashed.
func lastLine(s string) string {
	lines := strings.Split(s, "\n")
	for _, line := range lines {
		if strings.Contains(line, "symbol lookup error") || strings.HasPrefix(line, "SIG") || strings.HasPrefix(line, "fatal error") {
			return line
		}
	}
	return lines[len(lines)-1]
}
