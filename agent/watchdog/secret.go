package watchdog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Secret is a file of a box that is in memory only.
type Secret struct {
	Value []byte `json:"value"`
	Mode  uint32 `json:"mode"`
	// User and Group are the host's.
	User  uint32 `json:"user"`
	Group uint32 `json:"group"`
}

// SecretsDir is the directory of secrets below a box's target.
const SecretsDir = "secrets"

// SecretPath is where the i-th secret of a box is, below its target.
func SecretPath(i int) string { return filepath.Join(SecretsDir, strconv.Itoa(i)) }

// secretRoom is the room for secrets beside their bytes.
const secretRoom = 1 << 20

// makeSecrets makes the box's secrets in a file system of their own, which is gone
// with the box's mounts and cannot be written to.
func (b *Box) makeSecrets() error {
	if len(b.Secrets) == 0 {
		return nil
	}
	dir := filepath.Join(b.Target, SecretsDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	size := secretRoom
	for i := range b.Secrets {
		size += len(b.Secrets[i].Value)
	}
	// Not MS_NOEXEC: the runtime binds files without it, and may not take it away.
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	options := "mode=711,size=" + strconv.Itoa(size)
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mount a tmpfs for secrets: %w", err)
	}
	for i := range b.Secrets {
		s, at := &b.Secrets[i], filepath.Join(b.Target, SecretPath(i))
		err := os.WriteFile(at, s.Value, 0o600)
		if err == nil {
			err = errors.Join(os.Chown(at, int(s.User), int(s.Group)), os.Chmod(at, os.FileMode(s.Mode)))
		}
		if err != nil {
			return fmt.Errorf("write a secret: %w", err)
		}
	}
	if err := unix.Mount("", dir, "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, options); err != nil {
		return fmt.Errorf("make secrets read-only: %w", err)
	}
	return nil
}

// EnvArg behind InitArg has the init set the variables of a file, NAME=value with a
// NUL behind each, before it runs the program. In InitArg's place it becomes the
// program: so a command beside a task has them, and its arguments have not.
const EnvArg = "--env-file"

// readEnv sets the variables of a file, and returns what stands behind EnvArg.
func readEnv(argv []string) ([]string, error) {
	if len(argv) < 3 || argv[0] != EnvArg {
		return argv, nil
	}
	b, err := os.ReadFile(argv[1])
	if err != nil {
		return nil, fmt.Errorf("read the task's secrets: %w", err)
	}
	for v := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		name, value, _ := strings.Cut(string(v), "=")
		if err := os.Setenv(name, value); err != nil {
			return nil, errors.New("a secret cannot be a variable of the task")
		}
	}
	return argv[2:], nil
}

// runWithEnv becomes the program behind EnvArg and its file, with what is in it; it
// returns the exit code of a program that cannot be run.
func runWithEnv(argv []string) int {
	argv, err := readEnv(argv)
	if err == nil && argv[0] == EnvArg {
		err = errors.New("there is no program to run")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpuai:", err)
		return exitNotRunnable
	}
	path, err := lookPath(argv[0], os.Environ())
	if err == nil {
		err = syscall.Exec(path, argv, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "gpuai: run %s: %v\n", argv[0], err)
	if path == "" || errors.Is(err, syscall.ENOENT) {
		return exitNotFound
	}
	return exitNotRunnable
}
