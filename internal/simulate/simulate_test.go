package simulate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openb returns the folder of the published trace, which is not shipped.
func openb(t testing.TB) string {
	dir := os.Getenv("GPUAI_OPENB")
	if dir == "" {
		t.Skip("set GPUAI_OPENB to the folder of the openb trace (docs/simulator.md says where it is published)")
	}
	return dir
}

func load(t testing.TB, dir, nodes, jobs string) Config {
	t.Helper()
	n, err := LoadNodes(filepath.Join(dir, nodes))
	if err != nil {
		t.Fatal(err)
	}
	j, err := LoadJobs(filepath.Join(dir, jobs))
	if err != nil {
		t.Fatal(err)
	}
	return Config{Nodes: n, Jobs: j, Inflate: 1.3, Load: 0.9, Seed: 42}
}

// The arrivals are those of FGD's own simulator, number by number.
func TestArrivalsOfPublishedTrace(t *testing.T) {
	dir := openb(t)
	for _, c := range []struct {
		file        string
		seed        int64
		jobs        int
		milli       int64
		jobs64, n64 uint64
	}{
		{"default", 42, 10866, 8075080, 0x8d36491a303c7265, 0xff5f0b94478687e7},
		{"default", 43, 10793, 8074900, 0x29f2e350107f1a4f, 0x6cc0f19a72ba957b},
		{"gpushare60", 42, 13316, 8075180, 0xcf45a39b376be92e, 0x00cc3da082f008d5},
		{"multigpu30", 42, 8496, 8074990, 0x80324964ce2ba946, 0x95c2fbe529ee93bf},
	} {
		cfg := load(t, dir, "openb_node_list_gpu_node.csv", "openb_pod_list_"+c.file+".csv")
		a := NewArrivals(cfg.Nodes, cfg.Jobs, 1.3, c.seed)
		j, n, milli := a.Checks()
		if len(a.Jobs) != c.jobs || milli != c.milli || j != c.jobs64 || n != c.n64 {
			t.Errorf("%s, seed %d: %d jobs, %d milli, %016x %016x; want %d, %d, %016x %016x",
				c.file, c.seed, len(a.Jobs), milli, j, n, c.jobs, c.milli, c.jobs64, c.n64)
		}
	}
}

func fixture(t testing.TB) Config { return load(t, "testdata", "nodes.csv", "jobs.csv") }

func TestFillIsRepeatable(t *testing.T) {
	a, err := Fill(context.Background(), fixture(t))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Fill(context.Background(), fixture(t))
	if a.Digest != b.Digest || a.Placed != b.Placed {
		t.Fatalf("one seed gave two runs: %+v and %+v", a, b)
	}
	if a.Allocation < 0.8 || a.Allocation > 1 || a.FirstReject < 20 || a.Placed >= a.Jobs {
		t.Fatalf("%+v", a)
	}
	c := fixture(t)
	c.Seed = 7
	if other, _ := Fill(context.Background(), c); other.Digest == a.Digest {
		t.Fatal("two seeds gave one digest")
	}
}

func TestTimedOffersTheLoad(t *testing.T) {
	c := fixture(t)
	c.Load = 0.3
	low, err := Timed(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.Load = 3
	high, err := Timed(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if low.WaitSeconds["p50"] != 0 || high.WaitSeconds["p90"] == 0 || high.Allocation <= low.Allocation {
		t.Fatalf("low %+v\nhigh %+v", low, high)
	}
	if again, _ := Timed(context.Background(), c); again.Digest != high.Digest {
		t.Fatal("one load gave two runs")
	}
}

func TestBadTraces(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"header":   {"a,b\n1,2\n", "the header must name"},
		"number":   {"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,x,1,1,1000,\n", ":2: column cpu_milli: must be a whole number"},
		"negative": {"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,-1,1,1,1000,\n", "must be a whole number"},
		"share":    {"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1,1,2,500,\n", "a share needs num_gpu 1"},
		"short":    {"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1\n", "wrong number of fields"},
		"empty":    {"name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n", "has no jobs"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "jobs.csv")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadJobs(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
		})
	}
	c := fixture(t)
	c.Jobs[3].Timed = false
	if _, err := Timed(context.Background(), c); !errors.Is(err, ErrUntimed) {
		t.Fatal(err)
	}
}

func FuzzRows(f *testing.F) {
	f.Add("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,1,1,1,500,A|B\n")
	f.Fuzz(func(t *testing.T, s string) {
		_ = readRows(strings.NewReader(s), "fuzz", jobColumns, func(r *row) {
			r.number("cpu_milli")
			r.text("gpu_spec")
		})
	})
}

func BenchmarkFillOpenb(b *testing.B) {
	cfg := load(b, openb(b), "openb_node_list_gpu_node.csv", "openb_pod_list_default.csv")
	for b.Loop() {
		r, err := Fill(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(r.Decisions, "decisions/s")
		b.ReportMetric(r.AllocAt["130"], "alloc@130")
	}
}

func ExampleReport() {
	r := Report{Mode: "fill", Policy: "bestfit"}
	fmt.Println(r.Mode, r.Policy)
	// Output: fill bestfit
}
