package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/nursery"
)

// What is trained: the same steps over the same samples, however many ranks
// share them.
var trainArgs = []string{"-steps", "40", "-samples", "16384", "-hidden", "96", "-report-every", "40"}

// trainRounds is how often each number of ranks is measured, in turns: what
// else the machine does hits all alike.
const trainRounds = 5

// trainForReal trains the data-parallel example with one and with two ranks,
// each pinned to a core of its own, and measures wall-clock time.
func (x *experiment) trainForReal() error {
	if runtime.NumCPU() < 2 {
		return errors.New("the real training needs two cores")
	}
	dir, err := os.MkdirTemp("", "promise-splitting-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "dataparallel")
	if out, err := exec.CommandContext(x.ctx, "go", "build", "-o", bin, "./examples/dataparallel").CombinedOutput(); err != nil {
		return fmt.Errorf("build the example: %w: %s", err, out)
	}
	took, busy := map[int][]float64{}, map[int][]float64{}
	losses := map[int]string{}
	rounds := trainRounds
	if x.o.only == "real" {
		rounds = x.orElse(rounds)
	}
	for i := range rounds {
		for _, ranks := range []int{1, 2} {
			x.stage = fmt.Sprintf("real training, %d ranks", ranks)
			x.progress(i, rounds)
			t, err := x.trainOnce(bin, ranks)
			if err != nil {
				return err
			}
			took[ranks], busy[ranks] = append(took[ranks], t.wall), append(busy[ranks], t.cpu)
			losses[ranks] = t.last
		}
	}
	x.row(true, "tasks, one pinned core each", "wall-clock time, best", "median", "worst", "change of the best", "busiest task's CPU time, median", "change", "ends with")
	for _, ranks := range []int{1, 2} {
		v, b := took[ranks], busy[ranks]
		slices.Sort(v)
		slices.Sort(b)
		x.row(false, fmt.Sprint(ranks), fmt.Sprintf("%.2f s", v[0]), fmt.Sprintf("%.2f s", v[len(v)/2]), fmt.Sprintf("%.2f s", v[len(v)-1]),
			fmt.Sprintf("%+.1f %%", 100*(v[0]/took[1][0]-1)), fmt.Sprintf("%.2f s", b[len(b)/2]), fmt.Sprintf("%+.1f %%", 100*(b[len(b)/2]/busy[1][len(b)/2]-1)), losses[ranks])
	}
	return nil
}

// A trained training.
type trained struct {
	wall float64 // s from the start of the first rank to the end of the last
	cpu  float64 // s of the rank that used most: what others on the machine do not lengthen
	last string  // what rank 0 said
}

// trainOnce trains to the end.
func (x *experiment) trainOnce(bin string, ranks int) (t trained, err error) {
	port, err := nursery.FreePorts(1)
	if err != nil {
		return t, err
	}
	cmds := make([]*exec.Cmd, ranks)
	outs := make([]bytes.Buffer, ranks)
	begun := time.Now()
	for r := range cmds {
		c := exec.CommandContext(x.ctx, "taskset", append([]string{"-c", strconv.Itoa(r), bin}, trainArgs...)...)
		c.Env = append(os.Environ(), "GOMAXPROCS=1",
			gpuai.EnvNodeRank+"="+strconv.Itoa(r), gpuai.EnvNodes+"="+strconv.Itoa(ranks),
			gpuai.EnvMasterAddr+"=127.0.0.1", gpuai.EnvMasterPort+"="+strconv.Itoa(port))
		c.Stdout, c.Stderr = &outs[r], &outs[r]
		if err = c.Start(); err != nil {
			break
		}
		cmds[r] = c
	}
	for r, c := range cmds {
		if c == nil {
			continue
		}
		if err != nil {
			_ = c.Process.Kill() // a rank that did not start would be waited for
		}
		if waitErr := c.Wait(); waitErr != nil {
			err = errors.Join(err, fmt.Errorf("rank %d of %d: %w: %s", r, ranks, waitErr, outs[r].String()))
			continue
		}
		t.cpu = max(t.cpu, (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds())
	}
	t.wall, t.last = time.Since(begun).Seconds(), lastLine(outs[0].String())
	return t, err
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
