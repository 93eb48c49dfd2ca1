package jobfile

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// golden compares got with the file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (run with -rewrite after a look):\n--- got\n%s\n--- want\n%s", path, got, want)
	}
}

func wire(t *testing.T, s *gpuai.JobSpec) []byte {
	t.Helper()
	b, err := json.Marshal(s, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestFiles compares each accepted example with its wire form, and each refused
// one with what is said of it.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		ext := filepath.Ext(path)
		if ext == ".golden" {
			continue
		}
		t.Run(path, func(t *testing.T) {
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := Parse(filepath.Base(path), src)
			if filepath.Base(filepath.Dir(path)) == "good" {
				if err != nil {
					t.Fatal(err)
				}
				golden(t, path+".golden", wire(t, spec))
				checkWire(t, spec)
				return
			}
			if err == nil {
				t.Fatalf("was accepted as %s", wire(t, spec))
			}
			golden(t, path+".golden", []byte(err.Error()+"\n"))
			checkPlaces(t, err, string(src))
		})
	}
}

// checkWire checks that the wire form is read back as the same, complete spec.
func checkWire(t *testing.T, spec *gpuai.JobSpec) {
	t.Helper()
	first := wire(t, spec)
	var back gpuai.JobSpec
	if err := json.Unmarshal(first, &back, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	back.Defaults()
	if f := back.Validate(); f != nil {
		t.Errorf("the wire form is invalid: %v", f)
	}
	back.Tenant = spec.Tenant // whoever submits it
	if again := wire(t, &back); string(again) != string(first) {
		t.Errorf("the wire form changes when read back:\n%s\n%s", first, again)
	}
}

// checkPlaces checks that every problem has a place inside the file.
func checkPlaces(t *testing.T, err error, src string) {
	t.Helper()
	var es *Errors
	if !errors.As(err, &es) || len(es.List) == 0 || len(es.Fields()) != len(es.List) {
		t.Fatalf("%T %v is not *Errors with problems", err, err)
	}
	lines := strings.Count(src, "\n") + 1
	for _, p := range es.List {
		if p.Line < 1 || int(p.Line) > lines || p.Column < 1 || p.Detail == "" {
			t.Errorf("no place in a file of %d lines: %+v", lines, p)
		}
	}
}

const head = "name: a\ntype: batch\ngroups:\n"

// problems returns what is said of a file.
func problems(t *testing.T, name, src string) []Problem {
	t.Helper()
	_, err := Parse(name, []byte(src))
	if err == nil {
		return nil
	}
	checkPlaces(t, err, src)
	var es *Errors
	errors.As(err, &es)
	return es.List
}

// A problem is one file and the one thing that is said of it.
type problem struct {
	name, src string
	line, col int32
	pointer   string
	has       string
}

const task = "- task: {command: [a]}\n"

var unreadable = []problem{
	{"empty", "", 1, 1, "", "empty"},
	{"comment only", "# nothing\n", 1, 1, "", "empty"},
	{"list", "- a\n", 1, 1, "", "must be an object"},
	{"scalar", "hello\n", 1, 1, "", "not a string"},
	{"two documents", head + task + "---\nname: b\n", 6, 1, "", "second document"},
	{"bad utf8", "name: a\xff\n", 1, 1, "", "UTF-8"},
	{"syntax", "name: [a\ntype: b\n", 2, 1, "", "not YAML"},
	{"tab", "name: a\n\ttype: b\n", 2, 1, "", "not YAML"},
	{"duplicate", head + "- task: {command: [a]}\nname: b\n", 5, 1, "/name", "given twice, first on line 1"},
	{"duplicate in flow", head + "- task: {cwd: /, command: [a], cwd: /b}\n", 4, 32, "/groups/0/task/cwd", "given twice"},
	{"null", head + "- task:\n", 4, 3, "/groups/0/task", "must be an object, not empty"},
	{"huge count", head + "- count: 99999999999999999999\n  task: {command: [a]}\n", 4, 10, "/groups/0/count", "must be a whole number"},
	{"fraction", head + "- count: 1.5\n  task: {command: [a]}\n", 4, 10, "/groups/0/count", "whole number"},
	{"tag", head + "- task: {command: [!!str a]}\n", 4, 20, "/groups/0/task/command/0", "tags are not taken"},
	{"merge", head + "- &g\n  task: {command: [a]}\n- <<: *g\n", 6, 3, "/groups/1", "merge keys"},
	{"tab in a value", head + "- task: {command: [a]}\n  constraints:\n  - {attribute: label.x, op: \"=\", value: a\tb}\n", 6, 42, "/groups/0/constraints/0/value", "double quotes"},
	{"unknown alias", head + "- *g\n", 4, 3, "/groups/0", "names no anchor"},
	{"recursive alias", head + "- &g\n  task: *g\n", 5, 9, "/groups/0/task", "names no anchor"},
	{"not a number", head + task + "priority: .nan\n", 5, 11, "/priority", "finite"},
	{"flow too deep", strings.Repeat("[", 10_000), 1, 33, "", "deeper than 32"},
	{"block too deep", strings.Repeat("- ", 10_000), 1, 257, "", "deeper than 32"},
	{"too large", strings.Repeat("# 34567\n", 1<<16), 1, 1, "", "larger than"},
}

var fieldProblems = []problem{
	{"unknown near", head + "- task: {comand: [a], script: b}\n", 4, 10, "/groups/0/task/comand", "did you mean command?"},
	{"unknown far", head + task + "zebra: 1\n", 5, 1, "/zebra", "known here: after, array, begin, class"},
	{"image of a process", head + "- task: {image: x, runtime: process}\n", 4, 29, "/groups/0/task/runtime", "a plain process has no image"},
	{"image with spaces", head + "- task: {image: \"a b\"}\n", 4, 17, "/groups/0/task/image", "without spaces"},
	{"images of a large gang", head + "- gang: true\n  count: 513\n  task: {image: x}\n", 5, 10, "/groups/0/count", "has at most 512 tasks"},
	{"network", head + "- resources: {network: internet}\n  task: {image: x}\n", 4, 24, "/groups/0/resources/network", "must be one of none, egress, host"},
	{"network of a process", head + "- resources: {network: egress}\n  task: {command: [x]}\n", 4, 24, "/groups/0/resources/network", "is for tasks with an image"},
	{"service type", "name: a\ntype: service\ngroups:\n" + task, 2, 7, "/type", "service is not built yet"},
	{"tenant", head + task + "tenant: Research\n", 5, 9, "/tenant", ""},
	{"no image", head + "- task: {runtime: oci, command: [a]}\n", 4, 9, "/groups/0/task/image", "is needed by the runtime"},
	{"runtime", head + "- task: {runtime: docker, command: [a]}\n", 4, 19, "/groups/0/task/runtime", "oci, process"},
	{"nothing to run", head + "- task: {cwd: /x}\n", 4, 9, "/groups/0/task", "needs an image, a command or a script"},
	{"elastic", head + "- count: {min: 1, max: 2}\n  task: {command: [a]}\n", 4, 16, "/groups/0/count/min", "is for gangs"},
	{"env number", head + "- task: {command: [a], env: {PORT: 80}}\n", 4, 36, "/groups/0/task/env/PORT", `write "80" in quotes`},
	{"env name", head + "- task: {command: [a], env: {GPUAI_X: a}}\n", 4, 39, "/groups/0/task/env/GPUAI_X", "region's own"},
	{"env name form", head + "- task: {command: [a], env: {A-B: a}}\n", 4, 29, "/groups/0/task/env", "letters, digits"},
	{"env secret", head + "- task: {command: [a], env: {T: {secret: A_B}}}\n", 4, 42, "/groups/0/task/env/T/secret", "with no '-' at either end"},
	{"env without a secret", head + "- task: {command: [a], env: {T: {}}}\n", 4, 33, "/groups/0/task/env/T/secret", "is missing"},
	{"secret twice in env", head + "- task: {command: [a], env: {X: y, GPUAI_T: {secret: a}}}\n", 4, 45, "/groups/0/task/env/GPUAI_T", "region's own"},
	{"secret path of a process", head + "- task: {command: [a], env: {T: {secret: a}}, secrets: [{name: b, path: /etc/x}]}\n", 4, 73, "/groups/0/task/secrets/0/path", "must be relative"},
	{"secret path", head + "- task: {command: [a], secrets: [{name: b, path: ../x}]}\n", 4, 50, "/groups/0/task/secrets/0/path", "without . or .."},
	{"secret mode", head + "- task: {command: [a], secrets: [{name: b, mode: \"999\"}]}\n", 4, 50, "/groups/0/task/secrets/0/mode", "octal"},
	{"secret mode number", head + "- task: {command: [a], secrets: [{name: b, mode: 400}]}\n", 4, 50, "/groups/0/task/secrets/0/mode", "octal"},
	{"both", head + "- task: {command: [a], script: b}\n", 4, 9, "/groups/0/task", "not both"},
	{"no group", "name: a\ntype: batch\ngroups: []\n", 3, 9, "/groups", "must not be empty"},
	{"missing type", "name: a\ngroups:\n" + task, 1, 1, "/type", "is missing: one of batch, train"},
	{"name", "name: A_B\ntype: batch\ngroups:\n" + task, 1, 7, "/name", `with no '-' at either end, not "A_B"`},
	{"wire field", head + "- task: {command: [a], stop_grace_ms: 5}\n", 4, 24, "/groups/0/task/stop_grace_ms", "a file says stop_grace: 5s"},
	{"preempted", head + "- restart: {on: [preempted]}\n  task: {command: [a]}\n", 4, 18, "/groups/0/restart/on/0", "placed again in any case"},
}

var valueProblems = []problem{
	{"cpu", head + "- task: {command: [a]}\n  resources: {cpu: 0.0005}\n", 5, 20, "/groups/0/resources/cpu", "three decimals"},
	{"cpu text", head + "- task: {command: [a]}\n  resources: {cpu: \"2\"}\n", 5, 20, "/groups/0/resources/cpu", "must be a number"},
	{"memory GB", head + "- task: {command: [a]}\n  resources: {memory: 900GB}\n", 5, 23, "/groups/0/resources/memory", "KiB, MiB"},
	{"memory huge", head + "- task: {command: [a]}\n  resources: {memory: 99999999999999999TiB}\n", 5, 23, "/groups/0/resources/memory", "TiB"},
	{"range backwards", head + "- task: {command: [a]}\n  resources: {gpu: {count: 1, memory: 80GiB..40GiB}}\n", 5, 39, "/groups/0/resources/gpu/memory", "must not end below"},
	{"share of two", head + "- task: {command: [a]}\n  resources: {gpu: {count: 2, share: {milli: 500}}}\n", 5, 38, "/groups/0/resources/gpu/share", "count of 1"},
	{"model without count", head + "- task: {command: [a]}\n  resources: {gpu: {count: 0, model: x}}\n", 5, 20, "/groups/0/resources/gpu/any", "needs a count"},
	{"any and model", head + "- task: {command: [a]}\n  resources: {gpu: {count: 1, model: x, any: [{model: y}]}}\n", 5, 41, "/groups/0/resources/gpu/any", "cannot stand beside"},
	{"duration", head + task + "lease_ttl: 1w\n", 5, 12, "/lease_ttl", "1h30m"},
	{"duration zero", head + task + "lease_ttl: 0s\n", 5, 12, "/lease_ttl", "above 0"},
	{"ttl too long", head + task + "lease_ttl: 2h\n", 5, 12, "/lease_ttl", "between 0s and 1h"},
	{"negative", head + "- count: -1\n  task: {command: [a]}\n", 4, 10, "/groups/0/count", "at least 1"},
	{"gang too big", head + "- {gang: true, count: 5000, task: {command: [a]}}\n", 4, 23, "/groups/0/count", "at most 4096"},
	{"array and gang", head + "- {gang: true, task: {command: [a]}}\narray: {size: 2}\n", 4, 10, "/groups/0/gang", "instead of array"},
	{"values", head + "- constraints: [{attribute: zone, op: \"=\", value: [a, b]}]\n  task: {command: [a]}\n", 4, 51, "/groups/0/constraints/0/value", "one value"},
	{"number value", head + "- constraints: [{attribute: label.x, op: \"<\", value: y}]\n  task: {command: [a]}\n", 4, 54, "/groups/0/constraints/0/value", "decimal integer"},
	{"attribute", head + "- constraints: [{attribute: colour, op: \"=\", value: y}]\n  task: {command: [a]}\n", 4, 29, "/groups/0/constraints/0/attribute", "label.<key>"},
	{"restart never", head + "- restart: {attempts: 0, on: [failure]}\n  task: {command: [a]}\n", 4, 23, "/groups/0/restart/attempts", "at least 1"},
	{"restart twice", head + "- restart: {on: [failure, failure]}\n  task: {command: [a]}\n", 4, 17, "/groups/0/restart/on", "twice"},
	{"same group", head + "- {name: x, task: {command: [a]}}\n- {name: x, task: {command: [a]}}\n", 5, 10, "/groups/1/name", "group 0"},
}

func TestProblems(t *testing.T) {
	for _, tc := range slices.Concat(unreadable, fieldProblems, valueProblems) {
		t.Run(tc.name, func(t *testing.T) { tc.check(t, "job.yaml") })
	}
}

func (tc problem) check(t *testing.T, name string) {
	t.Helper()
	got := problems(t, name, tc.src)
	if len(got) != 1 {
		t.Fatalf("%d problems, want 1: %+v", len(got), got)
	}
	p := got[0]
	if p.Line != tc.line || p.Column != tc.col || p.Pointer != tc.pointer || !strings.Contains(p.Detail, tc.has) {
		t.Errorf("got  %d:%d %s: %s\nwant %d:%d %s: …%s…", p.Line, p.Column, p.Pointer, p.Detail, tc.line, tc.col, tc.pointer, tc.has)
	}
}

func TestJSONProblems(t *testing.T) {
	for _, tc := range []problem{
		{"job.json", "{\n  \"name\": \"a\",\n  \"name\": \"b\",\n\t\"type\": \"batch\", \"groups\": [{\"task\": {\"script\": \"x\"}}]}", 3, 3, "/name", "given twice, first on line 2"},
		{"job.yaml", "{\n\t\"name\": \"a\", \"type\": \"batch\", \"groups\": [{\"tusk\": 1, \"task\": {\"script\": \"x\"}}]}", 2, 44, "/groups/0/tusk", "did you mean task?"},
		{"job.json", "name: a\n", 1, 2, "", "is not JSON"},
		{"job.json", "{\"name\": ", 1, 10, "", "ends too early"},
		{"job.json", "{} {}", 1, 4, "", "second value"},
		{"job.json", strings.Repeat("[", 100), 1, 34, "", "deeper than 32"},
		{"job.json", "{\"é\": 1, \"name\": \"a\", \"type\": \"batch\", \"groups\": [{\"task\": {\"script\": \"x\"}}]}", 1, 2, "/é", "not a known field"},
	} {
		t.Run(tc.src, func(t *testing.T) { tc.check(t, tc.name) })
	}
}

// TestBlockDepth checks the depth that only the tree shows.
func TestBlockDepth(t *testing.T) {
	got := problems(t, "job.yaml", head+"- "+strings.Repeat("- ", 40)+"a\n")
	if len(got) != 2 || !strings.Contains(got[1].Detail, "deeper than 32") {
		t.Errorf("got %+v", got)
	}
}

// TestAliasBomb checks that aliases cannot multiply without bound.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		p := string(rune('a'+i)) + ": &" + string(rune('a'+i)) + " ["
		prev := "a0"
		if i > 1 {
			prev = string(rune('a' + i - 1))
		}
		b.WriteString(p + strings.Repeat("*"+prev+" , ", 8) + "x]\n")
	}
	got := problems(t, "bomb.yaml", b.String())
	if len(got) != 1 || !strings.Contains(got[0].Detail, "values, aliases expanded") {
		t.Errorf("got %+v", got)
	}
}

// TestSameForms checks that the ways to write one job have one wire form.
func TestSameForms(t *testing.T) {
	forms := []string{
		"name: a\ntype: batch\ngroups:\n- resources: {gpu: {count: 1, memory: 24GiB}, cpu: 0.5}\n  task: {command: [a, b]}\n",
		"name: a\ntype: batch\ngroups:\n- resources: {gpu: {count: 1, memory: 24GiB..}, cpu: 0.500}\n  task: {command: [a, b]}\n",
		"name: a\ntype: batch\nclass: batch\ngroups:\n- resources: &r {gpu: {count: 1, any: [{memory: 24576MiB..}]}, cpu: 0.5, memory: 1GiB}\n  task: {command: [a, b]}\n",
		`{"name":"a","type":"batch","groups":[{"name":"main","count":1,"resources":{"gpu":{"count":1,"memory":"24GiB"},"cpu":5e-1},"task":{"command":["a","b"]}}]}`,
		"\ufeffname: a\r\ntype: batch\r\ngroups:\r\n- resources: {gpu: {count: 1, memory: 24GiB}, cpu: 0.5}\r\n  task:\r\n    command:\r\n    - a\r\n    - b\r\n",
	}
	var first []byte
	for _, f := range forms {
		spec, err := Parse("job", []byte(f))
		if err != nil {
			t.Fatalf("%q: %v", f, err)
		}
		if got := wire(t, spec); first == nil {
			first = got
		} else if string(got) != string(first) {
			t.Errorf("%q:\n%s\nwant\n%s", f, got, first)
		}
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]gpuai.Bytes{
		"1KiB": 1024, "1.5GiB": 3 << 29, "0.001GiB": 1073741, "1023TiB": 1023 << 40,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "GiB", "1", "1GB", "-1GiB", "1.GiB", ".5GiB", "1.2345GiB", "1024TiB", "1e3GiB", "9999999999999999TiB", "1 GiB", "1_0GiB"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
	for s, want := range map[string][2]gpuai.Bytes{
		"24GiB": {24 << 30, 0}, "24GiB..": {24 << 30, 0}, "40GiB..80GiB": {40 << 30, 80 << 30}, "..8GiB": {0, 8 << 30},
	} {
		if lo, hi, err := parseRange(s); err != nil || lo != want[0] || hi != want[1] {
			t.Errorf("%s: %d..%d, %v", s, lo, hi, err)
		}
	}
	for _, s := range []string{"", "..", "1GiB...2GiB", "2GiB..1GiB", "..0GiB", "a..b", "1GiB..2"} {
		if lo, hi, err := parseRange(s); err == nil {
			t.Errorf("%q was read as %d..%d", s, lo, hi)
		}
	}
	for s, want := range map[string]gpuai.MilliCPU{"1": 1000, "0.5": 500, "16.25": 16250, "0.001": 1} {
		if got, err := ParseCPU(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "0.0", "1.0001", "-1", "+1", ".5", "1.", "1e3"} {
		if got, err := ParseCPU(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
}

// TestSchemaKnowsSpec checks that the schema has a field for each of the wire
// form, so that nothing built cannot be written.
func TestSchemaKnowsSpec(t *testing.T) {
	src := Schema()
	src[0] = 'x'
	if Schema()[0] != '{' {
		t.Fatal("Schema shares its memory")
	}
	for _, tc := range []struct {
		at   string
		want string
	}{
		{"", "after array begin class groups lease_ttl limits name placement preemptible priority tenant together type"},
		{"/properties/limits", "queue_time run_time"},
		{"/properties/array", "max_parallel size"},
		{"/$defs/dependency", "job on"},
		{"/$defs/group", "constraints count gang name resources restart task"},
		{"/properties/placement", "near same"},
		{"/$defs/group/properties/count", "max min"},
		{"/$defs/resources", "cpu gpu memory network scratch shm"},
		{"/$defs/resources/properties/gpu", "any count memory model share vendor"},
		{"/$defs/alternative", "memory model vendor"},
		{"/$defs/constraint", "attribute op value"},
		{"/$defs/group/properties/restart", "attempts backoff on"},
		{"/$defs/task", "args checkpoint command cwd env image launcher runtime script secrets stop_grace"},
		{"/$defs/task/properties/secrets/items", "mode name path"},
		{"/$defs/task/properties/launcher", "kind max_restarts procs_per_node"},
		{"/$defs/task/properties/checkpoint", "grace keep signal"},
	} {
		if got := strings.Join(compile().fields("x#"+tc.at), " "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.at, got, tc.want)
		}
	}
}

// FuzzParse checks that any file is read without a crash, that an accepted one
// is valid and keeps its wire form, and that a problem has a place.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.*")
	for _, path := range files {
		if src, err := os.ReadFile(path); err == nil && filepath.Ext(path) != ".golden" {
			f.Add(filepath.Base(path), src)
		}
	}
	f.Add("a", []byte("a: &a [*a]\n"))
	f.Add("a", []byte("? {a: b}\n: - |+2\n   x\n"))
	f.Fuzz(func(t *testing.T, name string, src []byte) {
		if len(src) > 4096 {
			return // the limits have tests of their own
		}
		spec, err := Parse(name, src)
		if err != nil {
			var es *Errors
			if !errors.As(err, &es) || len(es.List) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			_ = err.Error()
			return
		}
		checkWire(t, spec)
	})
}
