package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/agent/sandbox"
)

// startsNothing is a crun that says its version and starts nothing, as Debian 12's
// on hybrid control groups; startsAll one that has runc run the bundle.
const (
	startsNothing = `#!/bin/sh
[ "$1" = --version ] && echo crun version 1.8.1 && exit 0
echo '{"msg":"cgroups in hybrid mode not supported","level":"error","time":"2026-01-01T00:00:00Z"}' > "$4"
exit 1
`
	startsAll = `#!/bin/sh
[ "$1" = --version ] && echo crun version 1.8.2 && exit 0
echo run >> "$(dirname "$0")/runs"
shift 6
exec runc --root "$ROOT_OF_TRIAL" "$@"
`
)

// A runtime that the tests do not run is tried before tasks come to the node, once
// for each version of it.
func TestRuntimeIsTriedOnceForEachVersion(t *testing.T) {
	boxed(t, t.TempDir()) // skips
	bin, run := t.TempDir(), t.TempDir()
	if err := os.Chmod(run, 0o711); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(run); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil { // everybody may pass through
			t.Fatal(err)
		}
	}
	ranges, err := sandbox.OpenRanges(filepath.Join(runDir, rangesDir), filepath.Base(bin))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ranges.Return(func(string) bool { return false }) })
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	a := &Agent{cfg: testConfig(t.TempDir(), "", slog.New(slog.DiscardHandler)), log: slog.New(slog.DiscardHandler)}
	try := func(script string) error {
		t.Helper()
		script = strings.ReplaceAll(script, "$ROOT_OF_TRIAL", filepath.Join(run, trialDir, stateDir))
		if err := os.WriteFile(filepath.Join(bin, "crun"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := sandbox.Find(t.Context(), "crun")
		if err != nil {
			t.Fatal(err)
		}
		err = a.tryRuntime(t.Context(), &boxes{runtime: r, ranges: ranges, run: run})
		for _, left := range []string{a.path(trialDir), filepath.Join(run, trialDir)} {
			if _, err := os.Stat(left); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", left, err)
			}
		}
		return err
	}
	for range 2 { // what failed is tried again
		err := try(startsNothing)
		if err == nil || !strings.Contains(err.Error(), "starts no sandbox on this host") || !strings.Contains(err.Error(), "cgroups in hybrid mode not supported") ||
			!strings.Contains(err.Error(), "--oci-runtime runc") {
			t.Errorf("%v", err)
		}
	}
	if err := try(startsAll); err != nil {
		t.Fatal(err)
	}
	r, err := sandbox.Find(t.Context(), "crun")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.tryRuntime(t.Context(), &boxes{runtime: r, ranges: ranges, run: run}); err != nil {
		t.Error(err)
	}
	if runs, err := os.ReadFile(filepath.Join(bin, "runs")); string(runs) != "run\n" {
		t.Errorf("it was run %q: %v", runs, err)
	}
}
