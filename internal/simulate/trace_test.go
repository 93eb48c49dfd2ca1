package simulate

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

const philly = "timestamp,duration,num_gpus\n"

// swf returns a line of the Standard Workload Format.
func swf(job, submit, run, procs any) string {
	return fmt.Sprint(job, " ", submit, " 0 ", run, " ", procs, " -1 -1 ", procs, " -1 2048 1 1 1 1 1 1 -1 -1\n")
}

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFormatsAreFoundOut(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, "; Version: 2.2\n", swf(1, 0, 60, 12))
	z.Close()
	for name, c := range map[string]struct {
		file, text string
		format     Format
		job        TraceJob
	}{
		"philly": {"a.csv", "num_gpus,timestamp,duration,class\n16,2017-10-03 07:20:00,60.5,training\n", FormatPhilly,
			TraceJob{Name: "line-2", Line: 2, GPUs: 8, GPUMilli: 1000, Tasks: 2, Class: gpuai.ClassTraining, Timed: true, Arrive: 1507015200000, Run: 60500}},
		"byte-order mark": {"a.csv", "\ufeff" + philly + "5,1,1\r\n", FormatPhilly,
			TraceJob{Name: "line-2", Line: 2, GPUs: 1, GPUMilli: 1000, Tasks: 1, Timed: true, Arrive: 5000, Run: 1000}},
		"swf by its comment": {"log.txt", "; Version: 2.2\n\n" + swf(7, 3, 60, 13), FormatSWF,
			TraceJob{Name: "job-7", Line: 3, GPUs: 1, GPUMilli: 1000, Tasks: 13, Memory: 2, Timed: true, Arrive: 3000, Run: 60000}},
		"swf by its line": {"log", swf(7, 3, 60, 8), FormatSWF,
			TraceJob{Name: "job-7", Line: 1, GPUs: 8, GPUMilli: 1000, Tasks: 1, Memory: 16, Timed: true, Arrive: 3000, Run: 60000}},
		"swf packed": {"log.swf.gz", packed.String(), FormatSWF,
			TraceJob{Name: "job-1", Line: 2, GPUs: 6, GPUMilli: 1000, Tasks: 2, Memory: 12, Timed: true, Run: 60000}},
		"openb": {"b.csv", "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time,scheduled_time\np,1000,2,1,250,A|B,5,70,10.0\n", FormatOpenb,
			TraceJob{Name: "p", Line: 2, CPU: 1000, Memory: 2, GPUs: 1, GPUMilli: 250, Spec: "A|B", Timed: true, Arrive: 5000, Run: 60000}},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := LoadTrace(t.Context(), write(t, c.file, c.text), LoadConfig{GPUsPerNode: 8})
			if err != nil || tr.Format != c.format || len(tr.Jobs) != 1 {
				t.Fatalf("%+v, %v", tr, err)
			}
			if got, want := fmt.Sprintf("%+v", tr.Jobs[0]), fmt.Sprintf("%+v", c.job); got != want {
				t.Fatalf("got\n%s, want\n%s", got, want)
			}
		})
	}
}

// Every nonsense names its file and line.
func TestNonsenseTraces(t *testing.T) {
	const openb = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                 {"", ":1: this is no trace"},
		"some other file":         {"a,b\n1,2\n", ":1: this is no trace"},
		"philly without jobs":     {philly, "has no jobs"},
		"philly negative size":    {philly + "1,1,1\n1,1,-3\n", ":3: column num_gpus: must be a whole number, not \"-3\""},
		"philly NaN":              {philly + "1,NaN,1\n", ":2: column duration: must be a number of seconds"},
		"philly infinite":         {philly + "1,+Inf,1\n", ":2: column duration: must be a number of seconds"},
		"philly huge duration":    {philly + "1,99999999999,1\n", ":2: column duration: must be at most 3650d"},
		"philly huge number":      {philly + "1,1e300,1\n", ":2: column duration: must be a number of seconds"},
		"philly huge size":        {philly + "1,1,99999999999999999999\n", ":2: column num_gpus: must be a whole number"},
		"philly large size":       {philly + "1,1,5000\n", ":2: column num_gpus: must be at most 4096, not 5000"},
		"philly time":             {philly + "yesterday,1,1\n", ":2: column timestamp: must be seconds or a time"},
		"philly class":            {"timestamp,duration,num_gpus,class\n1,1,1,urgent\n", ":2: column class: "},
		"philly short row":        {philly + "1,1\n", ":2: wrong number of fields"},
		"philly quote":            {philly + "1,1,\"1\n", ":2: extraneous"},
		"swf fields":              {swf(1, 0, 1, 1) + "1 2 3\n", ":2: has 3 fields"},
		"swf text":                {swf(1, 0, 1, 1) + swf(2, "x", 1, 1), ":2: column submit time: (field 2) must be a number"},
		"swf negative":            {swf(1, 0, 1, 1) + swf(2, 0, -7, 1), ":2: column run time: (field 4) must be a number"},
		"swf NaN":                 {swf(1, 0, 1, 1) + swf(2, 0, 1, "nan"), ":2: column allocated processors: "},
		"swf huge":                {swf(1, 0, 1, 1) + swf(2, 0, 1e9, 1), ":2: column run time: must be at most 3650d"},
		"swf processors":          {swf(1, 0, 1, 1) + swf(2, 0, 1, 1e6), ":2: column processors: must be at most 4096"},
		"swf of those cancelled":  {swf(1, 0, -1, 1) + swf(2, 0, 9, 0), "has no jobs: 2 jobs were left out"},
		"openb share of none":     {openb + "p,1,1,1,0\n", ":2: column gpu_milli: must be above 0"},
		"openb huge CPU":          {openb + "p,9999999999999,1,1,1000\n", ":2: column cpu_milli: must be below"},
		"openb huge memory":       {openb + "p,1,9999999999999,1,1000\n", ":2: column memory_mib: must be below"},
		"openb overflow":          {openb + "p,1,99999999999999999999,1,1000\n", ":2: column memory_mib: must be a whole number"},
		"openb devices":           {openb + "p,1,1,65,1000\n", ":2: column num_gpu: must be at most 64"},
		"export that is none":     {"{\"kind\":\"job\"}\n", ":1: this is no export"},
		"export broken line":      {"{\"kind\":\"begin\",\"index\":0}\n{\"kind\"\n", ":2: no line of an export"},
		"export of a bad job":     {"{\"kind\":\"begin\",\"index\":0}\n{\"kind\":\"job\",\"index\":1,\"job\":{\"id\":\"01JD000000000000000000000A\",\"spec\":{\"name\":\"\",\"groups\":[]}}}\n", ":2: "},
		"export without any jobs": {"{\"kind\":\"begin\",\"index\":0}\n", "has no jobs: the export is not whole"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, "trace", c.text)
			_, err := LoadTrace(t.Context(), path, LoadConfig{GPUsPerNode: 8})
			if err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v\nwant %q", err, path+c.want)
			}
		})
	}
}

func TestSkippedLinesAreCounted(t *testing.T) {
	path := write(t, "a.csv", philly+"1,1,1\n1,NaN,1\n2,1,x\n\"\n")
	tr, err := LoadTrace(t.Context(), path, LoadConfig{Skip: true, GPUsPerNode: 8})
	if err != nil || len(tr.Jobs) != 1 || len(tr.Notes) != 1 || !strings.Contains(tr.Notes[0], "3 lines were left out, the first: "+path+":3: column duration") {
		t.Fatalf("%+v, %v", tr, err)
	}
}

func TestClusterDescriptions(t *testing.T) {
	n, err := LoadCluster("2x8:H100,1x0::4:16,1x4:A100:96:1024")
	if err != nil || len(n) != 4 {
		t.Fatalf("%+v, %v", n, err)
	}
	want := []TraceNode{
		{Name: "node-000001", CPU: 128000, Memory: 1 << 20, GPUs: 8, Model: "H100"}, {Name: "node-000002", CPU: 128000, Memory: 1 << 20, GPUs: 8, Model: "H100"},
		{Name: "node-000003", CPU: 4000, Memory: 16 << 10, Model: "GPU"}, {Name: "node-000004", CPU: 96000, Memory: 1 << 20, GPUs: 4, Model: "A100"},
	}
	if !slices.Equal(n, want) || LargestNode(n) != 8 {
		t.Fatalf("%+v", n)
	}
	for text, want := range map[string]string{
		"0x8":                        "1 to 262144 nodes",
		"999999999x8":                "1 to 262144 nodes",
		"99999999999999999999x8":     "1 to 262144 nodes",
		"1x65":                       "at most 64 devices",
		"1x8,y":                      "no description of nodes",
		"1x8:H100:0":                 "from 1 to",
		"1x8:H100:99999999999999999": "from 1 to",
		"nodes-that-are-not-there":   "no such file",
	} {
		if _, err := LoadCluster(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestBadNodes(t *testing.T) {
	const head = "sn,cpu_milli,memory_mib,gpu,model\n"
	for name, c := range map[string]struct{ text, want string }{
		"twice":    {head + "a,1,1,1,X\nA,1,1,1,X\n", ":3: column sn: A is also the node of line 2"},
		"name":     {head + "a b,1,1,1,X\n", ":2: column sn: must be a name"},
		"devices":  {head + "a,1,1,65,X\n", ":2: column gpu: must be at most 64"},
		"negative": {head + "a,1,-1,1,X\n", ":2: column memory_mib: must be a whole number"},
		"no model": {head + "a,1,1,1,\n", ":2: a node with devices names their model"},
		"CPU":      {head + "a,9999999999,1,1,X\n", ":2: a node has less than"},
		"none":     {head, "has no nodes"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := LoadNodes(write(t, "nodes.csv", c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
		})
	}
}

// What the nodes could never run is found before the run, with its line.
func TestJobsThatNoNodeCouldRun(t *testing.T) {
	nodes, err := LoadCluster("2x8:H100")
	if err != nil {
		t.Fatal(err)
	}
	const openb = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\nok,1,1,1,1000,\n"
	for name, c := range map[string]struct{ text, want string }{
		"gang larger than the region": {philly + "1,1,16\n1,1,17\n", ":3: job line-3: these nodes could never run it"},
		"unknown model":               {openb + "p,1,1,1,1000,H100|H200\n", `:3: job p: gpu_spec names model "H200", and no node has it: the nodes have H100`},
		"too much memory":             {openb + "p,1,99999999,1,1000,\n", ":3: job p: these nodes could never run it"},
		"too many models":             {openb + "p,1,1,1,1000," + strings.Repeat("H100|", 40) + "H100\n", ":3: job p: no region would take it"},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := LoadTrace(t.Context(), write(t, "trace", c.text), LoadConfig{GPUsPerNode: 8})
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.Fit(nodes, false); err == nil || !strings.HasPrefix(err.Error(), tr.Path) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if err := tr.Fit(nodes, true); err != nil || len(tr.Jobs) != 1 || !strings.Contains(strings.Join(tr.Notes, " "), "1 jobs were left out") {
				t.Fatalf("%+v, %v", tr, err)
			}
		})
	}
}

// A trace with gangs, classes and waits runs to its end under each policy.
func TestPhillyUnderSeveralPolicies(t *testing.T) {
	nodes, err := LoadCluster("2x8:H100")
	if err != nil {
		t.Fatal(err)
	}
	text := "timestamp,duration,num_gpus,class\n0,100,9,training\n1,100,16,training\n2,10,1,inference\n300,1,0,batch\n"
	tr, err := LoadTrace(t.Context(), write(t, "trace", text), LoadConfig{GPUsPerNode: 8})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := ParsePolicies("fifo,bestfit,fifo")
	if err != nil || len(ps) != 2 {
		t.Fatal(ps, err)
	}
	rs, err := Run(t.Context(), "time", Config{Nodes: nodes, Jobs: tr.Jobs, TimedConfig: TimedConfig{Arrivals: ArrivalsTrace}}, ps)
	if err != nil || len(rs) != 2 {
		t.Fatal(rs, err)
	}
	// The gang of 16 waits for that of 9 to end at 100 s. The short job behind
	// it waits for both only where none passes another.
	if w := rs[0].Classes["inference"].WaitSeconds["max"]; w != 198 {
		t.Errorf("fifo: the short job waited %v s", w)
	}
	if w := rs[1].Classes["inference"].WaitSeconds["max"]; w != 0 {
		t.Errorf("bestfit: the short job waited %v s", w)
	}
	for _, r := range rs {
		if r.Classes["training"].WaitSeconds["max"] != 99 || r.Waiting != 0 || r.Measured != 4 {
			t.Errorf("%s: %+v", r.Policy, r.Classes)
		}
		// 9 × 100 s, 16 × 100 s, and 1 × 10 s, of 16 devices in 300 s.
		if want := (900 + 1600 + 10) / (16 * 300.0); r.Allocation < want-1e-9 || r.Allocation > want+1e-9 {
			t.Errorf("%s: allocation %v, want %v", r.Policy, r.Allocation, want)
		}
	}
	if _, err := Run(t.Context(), "time", Config{}, ps); err == nil {
		t.Error("a run of no jobs was no error")
	}
	if _, err := ParsePolicies("fifo,slurm"); err == nil || !strings.Contains(err.Error(), `no policy "slurm"; there are fifo, bestfit`) {
		t.Error(err)
	}
}

// The load is what is asked for, and what does not fit waits.
func TestDrawnArrivalsOfferTheLoad(t *testing.T) {
	c := fixture(t)
	c.TimedConfig = TimedConfig{Arrivals: ArrivalsPoisson, Count: 3000, ClipMin: gpuai.Minute, ClipMax: 20 * gpuai.Minute, WarmUp: 1.0 / 3}
	for _, load := range []float64{0.5, 1.4} {
		c.Load = load
		r, err := Timed(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Offered < load-1e-3 || r.Offered > load+1e-3 || r.Measured != 2000 || len(r.Series.Seconds) < points {
			t.Errorf("load %v: offered %v, %d measured", load, r.Offered, r.Measured)
		}
		if load < 1 && (r.Allocation < 0.45 || r.Allocation > 0.55) {
			t.Errorf("load %v: allocation %v", load, r.Allocation)
		}
		if load > 1 && (r.Allocation < 0.85 || r.Waiting == 0 || r.WaitSeconds["mean"] == 0) {
			t.Errorf("load %v: allocation %v, %d waiting", load, r.Allocation, r.Waiting)
		}
		if again, err := Timed(context.Background(), c); err != nil || again.Digest != r.Digest {
			t.Errorf("one seed gave two runs, %v", err)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range [][4]int{{0, 8, 1, 0}, {1, 8, 1, 1}, {8, 8, 1, 8}, {12, 8, 2, 6}, {13, 8, 13, 1}, {16, 0, 16, 1}, {128, 64, 2, 64}} {
		if tasks, gpus := split(c[0], c[1]); tasks != c[2] || gpus != c[3] {
			t.Errorf("%d devices on nodes of %d are %d tasks of %d", c[0], c[1], tasks, gpus)
		}
	}
}

// fuzzTrace checks that what is read can be run, or is an error.
func fuzzTrace(t *testing.T, f Format, text string) {
	tr := Trace{Path: "fuzz", Format: f}
	if err := tr.read(strings.NewReader(text), &LoadConfig{GPUsPerNode: 8}); err != nil {
		if !strings.HasPrefix(err.Error(), "fuzz") {
			t.Fatalf("an error that does not say where: %v", err)
		}
		return
	}
	for i := range tr.Jobs {
		j := &tr.Jobs[i]
		if j.Run < 0 || j.Run > gpuai.MaxDuration || j.Arrive < 0 || j.Milli() < 0 || j.work() < 0 || j.GPUs > gpuai.MaxGPUs {
			t.Fatalf("%+v", j)
		}
	}
	nodes, err := LoadCluster("4x8:A")
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Jobs) == 0 || len(tr.Jobs) > 50 || tr.Fit(nodes, true) != nil || slices.ContainsFunc(tr.Jobs, func(j TraceJob) bool { return !j.Timed }) {
		return
	}
	if _, err := Timed(t.Context(), Config{Nodes: nodes, Jobs: tr.Jobs, TimedConfig: TimedConfig{Arrivals: ArrivalsTrace}}); err != nil {
		t.Fatal(err)
	}
}

func FuzzOpenb(f *testing.F) {
	f.Add("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time,scheduled_time\np,1,1,1,500,A|B,1,2,\n")
	f.Fuzz(func(t *testing.T, s string) { fuzzTrace(t, FormatOpenb, s) })
}

func FuzzPhilly(f *testing.F) {
	f.Add("timestamp,duration,num_gpus,name,class\n2017-10-03 07:20:00,1.5,12,a,training\n1,2,3,,\n")
	f.Fuzz(func(t *testing.T, s string) { fuzzTrace(t, FormatPhilly, s) })
}

func FuzzSWF(f *testing.F) {
	f.Add("; x\n" + swf(1, 0, 1, 8) + swf(2, 0.5, -1, 8))
	f.Fuzz(func(t *testing.T, s string) { fuzzTrace(t, FormatSWF, s) })
}

func FuzzExport(f *testing.F) {
	f.Add("{\"kind\":\"begin\",\"index\":0}\n{\"kind\":\"end\",\"index\":0}\n")
	f.Fuzz(func(t *testing.T, s string) { fuzzTrace(t, FormatExport, s) })
}

func FuzzNodes(f *testing.F) {
	f.Add("sn,cpu_milli,memory_mib,gpu,model\na,1000,1000,8,X\n")
	f.Fuzz(func(t *testing.T, s string) {
		nodes, err := readNodes(strings.NewReader(s), "fuzz")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz") {
				t.Fatalf("an error that does not say where: %v", err)
			}
			return
		}
		if err := newWorld(Policy{}).register(nodes, sequence(len(nodes))); err != nil {
			t.Fatalf("nodes that were read are refused: %v", err)
		}
	})
}
