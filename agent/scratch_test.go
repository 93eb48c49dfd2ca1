package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// Scratch space is on the disk, beyond the task's memory, and bounded; nothing of
// it is left.
func TestScratchIsOnTheDiskAndBounded(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	sandboxes := boxed(t, dir)
	f := newFixture(t)
	a := f.run(func(c *Config) {
		sandboxes(c)
		c.Sandbox.Scratch = 256 << 20
	})
	hellos := f.hellos(testNode)
	if got := hellos[len(hellos)-1].Node.Labels[gpuai.LabelScratch]; got != "268435456" {
		t.Errorf("the node says that it lends %q", got)
	}
	for cwd, mib := range map[string]int{"/work": 160, "/tmp": 64} { // the least keeps more of itself back
		lease := f.grant(testNode, func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Task.Command, a.Task.Cwd, a.Scratch = []string{"gpuai-probe", "disk"}, cwd, gpuai.Bytes(mib)<<20
		})
		r := f.last(lease)
		out := string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 10_000}).Data)
		written, _ := strconv.Atoi(strings.SplitN(out, " ", 2)[0]) // MiB
		if r.State != gpuai.ReportFailed || r.ExitCode != 5 || !strings.HasPrefix(r.Reason, fmt.Sprintf("scratch: task 0 filled its %d MiB", mib)) || written < mib*7/8 || written > mib || !strings.Contains(out, "no space left") {
			t.Errorf("%s: reported %+v\n%s%s", cwd, r, out, f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stderr", Limit: 10_000}).Data)
		}
		checkClosed(t, a.Agent, lease)
	}
	for _, size := range []gpuai.Bytes{512 << 20, 1 << 49} {
		r := f.last(f.grant(testNode, func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Scratch = size
		}))
		if r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "task 0: scratch: ") || !strings.Contains(r.Reason, "of 256 MiB that this node lends 0 MiB are taken") {
			t.Errorf("%d: reported %+v", size, r)
		}
	}
	eventually(t, "the loop devices to be free", func() bool {
		backs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(backs, func(file string) bool {
			b, _ := os.ReadFile(file) // one that is freed has none
			return strings.Contains(string(b), a.path(scratchDir))
		})
	})
	if left, err := os.ReadDir(a.path(scratchDir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
