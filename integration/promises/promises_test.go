package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

func TestMixedPrintsEachClass(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	if err := run(t.Context(), []string{"mixed", "-count", "4000", "-policy", "bestfit", "-out", dir, "-quiet"}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| bestfit | inference |", "| bestfit | training |", "| bestfit | all |", "seed 42"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "promise-mixed.html")); err != nil {
		t.Error(err)
	}
}

// Each kind has its part of the GPU-time.
func TestMixedLoadHasItsParts(t *testing.T) {
	work := map[gpuai.Class]float64{}
	var sum float64
	for _, j := range mixedJobs(1) {
		w := float64(j.Milli()) * float64(j.Run)
		work[j.Class] += w
		sum += w
	}
	for _, k := range kinds {
		if got := work[k.class] / sum; math.Abs(got-k.part) > 0.05 {
			t.Errorf("%s has %.3f of the work, want %.2f", k.class, got, k.part)
		}
	}
}

func TestSplitFollowsTheCurve(t *testing.T) {
	j := simulate.TraceJob{GPUs: 2, GPUMilli: 1000, Run: 100 * gpuai.Minute, Class: gpuai.ClassTraining}
	curves[0].split(4)(&j)
	if j.Tasks != 4 || j.Run != 1564417 { // ms: 6,000 s × 425 / 1630
		t.Errorf("%+v", j)
	}
	wide := simulate.TraceJob{GPUs: 8, GPUMilli: 1000, Run: 100, Class: gpuai.ClassTraining}
	other := simulate.TraceJob{GPUs: 1, GPUMilli: 500, Run: 100, Class: gpuai.ClassBatch}
	for _, j := range []*simulate.TraceJob{&wide, &other} {
		if curves[0].split(2)(j); j.Tasks != 0 || j.Run != 100 {
			t.Errorf("split although nothing was published for it: %+v", j)
		}
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for want, args := range map[string][]string{
		"usage: promises":     {},
		"name its folder":     {"utilisation", "-openb", "", "-out", t.TempDir()},
		"no such file":        {"splitting", "-openb", "/nonexistent", "-out", t.TempDir()},
		"there is no policy":  {"growth", "-policy", "slurm", "-out", t.TempDir()},
		"let more arrive":     {"mixed", "-count", "3", "-policy", "bestfit", "-out", t.TempDir()},
		"flag provided but n": {"mixed", "-nope"},
	} {
		var out strings.Builder
		if err := run(t.Context(), args, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// An elastic training is as fast as what was published for its devices, and
// evenly between two that were.
func TestElasticFollowsTheCurve(t *testing.T) {
	f := curves[1].elastic(8)
	one := simulate.TraceJob{GPUs: 1, GPUMilli: 1000, Run: 100, Class: gpuai.ClassTraining}
	two := simulate.TraceJob{GPUs: 2, GPUMilli: 1000, Run: 100, Class: gpuai.ClassTraining}
	f(&two)
	f(&one)
	if one.Tasks != 8 || one.Least != 1 || two.Tasks != 4 || two.Least != 1 {
		t.Fatalf("%+v, %+v", one, two)
	}
	for n, want := range map[int]float64{1: 1, 2: 253.0 / 144, 3: (253.0 + 457) / 2 / 144, 4: 457.0 / 144, 6: (457.0 + 690) / 2 / 144, 8: 690.0 / 144} {
		if got := one.Speed(n); math.Abs(got-want) > 1e-9 {
			t.Errorf("with %d tasks it is %v times as fast, want %v", n, got, want)
		}
	}
	if got, want := two.Speed(4), 690.0/253; math.Abs(got-want) > 1e-9 {
		t.Errorf("two devices times four: %v, want %v", got, want)
	}
}
