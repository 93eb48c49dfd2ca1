package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A Runtime is an OCI runtime of this host.
type Runtime struct {
	Name string // "runc"
	Path string
	// Version is what the runtime says, Package the version of the
	// distribution's package that it is of, "" when it is of none.
	Version, Package string
	// Stray says that the distribution's package of this name is installed, and
	// that the runtime in PATH is another's.
	Stray bool
}

// Runtimes are the runtimes that are known by name.
var Runtimes = []string{"runc", "crun", "runsc", "kata-runtime"}

// Find looks a runtime up by its name, in PATH.
func Find(ctx context.Context, name string) (*Runtime, error) {
	if !slices.Contains(Runtimes, name) {
		return nil, fmt.Errorf("the OCI runtime is one of %s, not %q", strings.Join(Runtimes, ", "), name)
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the OCI runtime %s is not in PATH: install it (apt-get install %s)", name, name)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	r := &Runtime{Name: name, Path: path, Version: parseVersion(string(out))}
	if r.Version == "" {
		return nil, fmt.Errorf("%s --version says %q, which is not known to be a version", path, clip(string(out)))
	}
	if r.Package, err = packageOf(ctx, name); err != nil {
		return nil, err
	}
	if r.Package != "" && !owns(ctx, name, path) {
		r.Package, r.Stray = "", true
	}
	return r, nil
}

// Identity names this runtime's file on this boot of the host: another version, file
// or kernel has another. "" is not known.
func (r *Runtime) Identity() string {
	st, err := os.Stat(r.Path)
	boot, err2 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || err2 != nil {
		return ""
	}
	return fmt.Sprintf("%s %s %s %d %d %s", r.Path, r.Version, r.Package, st.Size(), st.ModTime().UnixNano(), boot)
}

// packageOf returns the version of a Debian package that is installed, "" for
// none and on other distributions.
func packageOf(ctx context.Context, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name).Output()
	if err != nil {
		return "", ctx.Err()
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "installed ")
	if !ok {
		return "", nil // removed, and its settings are left
	}
	return version, nil
}

// owns reports whether a Debian package has the file behind path. Where /sbin
// is a link to /usr/sbin the package may name either.
func owns(ctx context.Context, name, path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	for _, p := range []string{real, strings.TrimPrefix(real, "/usr"), filepath.Join("/usr", real)} {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-S", p).Output()
		if err == nil && ownedBy(string(out), name, p) {
			return true
		}
	}
	return false
}

// ownedBy reads what dpkg-query -S says: "runc: /usr/sbin/runc", or more
// packages with commas, each perhaps with its architecture as in "runc:amd64".
// A diversion is another's file.
func ownedBy(out, name, path string) bool {
	for line := range strings.Lines(out) {
		owners, file, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || file != path || strings.HasPrefix(owners, "diversion by ") {
			continue
		}
		for owner := range strings.SplitSeq(owners, ", ") {
			if owner, _, _ = strings.Cut(owner, ":"); owner == name {
				return true
			}
		}
	}
	return false
}

// parseVersion reads "runc version 1.1.5+ds1", of the first line.
func parseVersion(out string) string {
	first, _, _ := strings.Cut(out, "\n")
	for f := range strings.FieldsSeq(first) {
		f = strings.TrimPrefix(strings.TrimPrefix(f, "release-"), "v")
		if len(numbers(f)) > 1 {
			return f
		}
	}
	return ""
}

// numbers are those at the front of a version: 1.1.5+ds1 has 1, 1, 5.
func numbers(v string) (out []int) {
	for part := range strings.SplitSeq(v, ".") {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(part)
		}
		n, err := strconv.Atoi(part[:digits])
		if err != nil {
			return out
		}
		if out = append(out, n); digits < len(part) {
			return out
		}
	}
	return out
}

// A flaw is a known way out of a runtime.
type flaw struct {
	id      string
	runtime string
	// fixed are the first versions without it, one for each line of releases:
	// {1, 1, 12} is for 1.1 and, if it is the last, for all that is newer.
	fixed [][]int
	// debian are versions of Debian's package that have the fix beside an older
	// version of the runtime.
	debian []string
}

// flaws are those that a sandbox's specification does not keep out of reach.
// Debian 12's package has three later ones, which it does:
//   - CVE-2025-31133, masked paths: the runtime binds /dev/null over files, and
//     needs a process of the tenant at the same time that puts a link in its
//     place. There is none before the task's first instruction, no sandbox
//     joins another's namespaces, and the root with its /dev is a mount of
//     this sandbox alone.
//   - CVE-2025-52565, /dev/console: only with a terminal.
//   - CVE-2025-52881, redirected writes to /proc: those of LSM labels and of
//     sysctls, and there are neither.
//
// TestSpecKeepsFlawsOutOfReach holds the specification to that.
var flaws = []flaw{
	{id: "CVE-2019-5736", runtime: "runc", fixed: [][]int{{1, 0, 0}}},
	{id: "CVE-2024-21626", runtime: "runc", fixed: [][]int{{1, 1, 12}}, debian: []string{"1.1.5+ds1-1+deb12u1"}},
}

// UnknownOrigin is the flaw of a runtime that is not of the distribution's
// package of its name: there are two, and nobody knows which is mended.
const UnknownOrigin = "an unknown origin"

// Flaw names a known way out of the runtime, or UnknownOrigin; "" when none is
// known. A package of the distribution is judged by its own version:
// distributions mend old ones.
func (r *Runtime) Flaw() string {
	if r.Stray {
		return UnknownOrigin
	}
	have := numbers(r.Version)
	for _, f := range flaws {
		if f.runtime != r.Name || slices.ContainsFunc(f.fixed, func(v []int) bool { return slices.Compare(have, v) >= 0 }) {
			continue
		}
		if r.Package == "" || !slices.ContainsFunc(f.debian, func(v string) bool { return r.Package == v || patched(r.Package, v) }) {
			return f.id
		}
	}
	return ""
}

// Refusal says why a runtime with a flaw is not used, and what to do; nil when it
// has none.
func (r *Runtime) Refusal() error {
	switch flaw := r.Flaw(); flaw {
	case "":
		return nil
	case UnknownOrigin:
		return fmt.Errorf("%s %s is not of the package %s, which this host has too: remove one of them, or accept it knowing that who gets out is nobody on this host",
			r.Path, r.Version, r.Name)
	default:
		return fmt.Errorf("%s %s (package %q) has %s, a known way out of it: install a version with the fix, or accept it knowing that who gets out is nobody on this host",
			r.Path, r.Version, r.Package, flaw)
	}
}

// patched reports whether a package is a later patch of the same version:
// 1.1.5+ds1-1+deb12u2 of 1.1.5+ds1-1+deb12u1.
func patched(have, fixed string) bool {
	i := strings.LastIndexByte(fixed, 'u') + 1
	min, err := strconv.Atoi(fixed[i:])
	if err != nil || !strings.HasPrefix(have, fixed[:i]) {
		return false
	}
	n, err := strconv.Atoi(have[i:])
	return err == nil && n >= min
}

// Argv runs a bundle until its task ends, with the exit code of the task.
// state is a directory of this run alone, which the caller removes when the
// task is gone.
func (r *Runtime) Argv(bundle, state, id string) []string {
	argv := []string{r.Path, "--root", state, "--log", filepath.Join(bundle, logFile)}
	switch r.Name {
	case "runc":
		// Its groups stay until they were read: who was killed for memory?
		argv = append(argv, "run", "--keep")
	case "crun": // whose text does not tell an error from a warning
		argv = append(argv, "--log-format", "json", "run")
	default:
		argv = append(argv, "run")
	}
	return append(argv, "--bundle", bundle, id)
}

// ExecArgv runs a command in a sandbox that Argv has made, with what its task
// has: user, capabilities, seccomp filter, limits, environment. env is beside
// that. With a terminal its stdin is one.
func (r *Runtime) ExecArgv(state, id string, command, env []string, tty bool) ([]string, error) {
	if r.Name != "runc" && r.Name != "crun" {
		return nil, fmt.Errorf("commands are not run in sandboxes of %s: runc and crun can", r.Name)
	}
	argv := []string{r.Path, "--root", state, "exec"}
	if tty {
		argv = append(argv, "--tty")
	}
	for _, v := range env {
		argv = append(argv, "--env", v)
	}
	return append(append(argv, id), command...), nil
}

// Running reports whether a sandbox that Argv makes runs its task already.
func (r *Runtime) Running(ctx context.Context, state, id string) bool {
	out, err := exec.CommandContext(ctx, r.Path, "--root", state, "state", id).Output()
	var s specs.State
	return err == nil && json.Unmarshal(out, &s) == nil && s.Status == specs.StateRunning
}

const (
	specFile = "config.json"
	logFile  = "runtime.log"
)

// WriteBundle writes the directory that a runtime runs.
func WriteBundle(dir string, s *specs.Spec) error {
	b, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, specFile), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write a sandbox's bundle: %w", err)
	}
	return nil
}

// Failure says why the runtime of a bundle could not start its task, "" when
// it did.
func Failure(bundle string) string {
	b, err := os.ReadFile(filepath.Join(bundle, logFile))
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return ""
	}
	why := ""
	for line := range strings.Lines(string(b)) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" {
			why = strings.TrimSpace(entry.Msg)
			continue
		}
		_, rest, ok := strings.Cut(line, "level=error msg=")
		if !ok {
			continue
		}
		if msg, err := strconv.QuotedPrefix(rest); err == nil {
			rest, _ = strconv.Unquote(msg)
		}
		why = strings.TrimSpace(rest)
	}
	return why // the last: what is before it is of clearing up
}
