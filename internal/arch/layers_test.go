package arch

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestLayers(t *testing.T) {
	var found []string
	for _, p := range list(t) {
		found = append(found, badImports(&p)...)
	}
	report(t, found)
}

// badImports says which imports of p the policy forbids.
func badImports(p *pkg) (found []string) {
	from := p.name()
	if _, ok := layers[layer(from)]; !ok && !slices.Contains(anything, layer(from)) {
		return []string{p.ImportPath + " is in no row of the layers table"}
	}
	for _, i := range p.Imports {
		switch {
		case ours(i) && !mayImport(from, shortName(i)):
			found = append(found, fmt.Sprintf("%s may not import %s", p.ImportPath, i))
		case !ours(i):
			found = append(found, badModule(p, i, false)...)
		}
	}
	for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
		switch {
		case ours(i) && slices.Contains(anything, layer(shortName(i))) && layer(from) != layer(shortName(i)):
			found = append(found, fmt.Sprintf("%s: its tests may not import %s", p.ImportPath, i))
		case !ours(i):
			found = append(found, badModule(p, i, true)...)
		}
	}
	return found
}

// mayImport reports whether the package from may import the package to.
func mayImport(from, to string) bool {
	if slices.Contains(anything, layer(to)) {
		return layer(from) == layer(to)
	}
	if slices.Contains(anything, layer(from)) {
		return true
	}
	row, own := layers[from]
	if !own {
		row = layers[layer(from)]
	}
	if slices.Contains(strings.Fields(row), to) {
		return true
	}
	closed := own && strings.Contains(from, "/")
	return !closed && layer(from) == layer(to)
}

// badModule says why p may not import a path of the standard library or of a
// third-party module, if so.
func badModule(p *pkg, path string, test bool) []string {
	dep := moduleOf(path)
	if first, _, _ := strings.Cut(path, "/"); dep == "" && strings.Contains(first, ".") {
		return []string{fmt.Sprintf("%s imports %s, which is of no module in the owners table", p.ImportPath, path)}
	}
	who := strings.Fields(owners[dep])
	name := p.name()
	allowed, isConfined := confined[name]
	switch {
	case dep == "" || test && len(who) == 0 || slices.Contains(anything, layer(name)):
		return nil
	case isConfined && !test && !slices.Contains(strings.Fields(allowed), dep):
		return []string{fmt.Sprintf("%s may not import %s: it must stay small", p.ImportPath, path)}
	case !slices.ContainsFunc(who, func(w string) bool { return within(name, w) }):
		return []string{fmt.Sprintf("%s may not import %s: it belongs to %s", p.ImportPath, path, orTests(who))}
	}
	return nil
}

func orTests(who []string) string {
	if len(who) == 0 {
		return "tests"
	}
	return strings.Join(who, ", ")
}

// moduleOf returns the module of the owners table that a path is of, or "".
func moduleOf(path string) (dep string) {
	for m := range owners {
		if within(path, m) && len(m) > len(dep) {
			dep = m
		}
	}
	return dep
}

func TestOwners(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatalf("reading go.mod: %v", err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	var direct []string
	for _, r := range mod.Require {
		if !r.Indirect {
			direct = append(direct, r.Path)
		}
	}
	report(t, badOwners(direct))
}

// badOwners compares the direct requirements of go.mod with the owners table.
func badOwners(direct []string) (found []string) {
	for _, d := range direct {
		if _, ok := owners[d]; !ok {
			found = append(found, d+" is required by go.mod and has no owner")
		}
	}
	for _, m := range slices.Sorted(maps.Keys(owners)) {
		if !slices.Contains(direct, m) {
			found = append(found, m+" has an owner and is not required by go.mod")
		}
		for _, w := range strings.Fields(owners[m]) {
			if _, ok := layers[w]; !ok && !slices.Contains(anything, w) {
				found = append(found, fmt.Sprintf("%s is owned by %s, which is in no row of the layers table", m, w))
			}
		}
	}
	return found
}

var seededImports = []struct {
	from, imports string
	test, ok      bool
}{
	{from: "fsm", imports: module, ok: true},
	{from: "fsm", imports: module + "/fsm/wire", ok: true},
	{from: "fsm", imports: module + "/internal/mem", ok: true},
	{from: "fsm", imports: module + "/store"},
	{from: "fsm/wire", imports: module, ok: true},
	{from: "fsm/wire", imports: module + "/fsm"},
	{from: "fsm/wire", imports: module + "/internal/mem"},
	{from: "store", imports: module + "/fsm/wire"},
	{from: "raft", imports: module + "/fsm/wire"},
	{from: "server/hub", imports: module + "/server/liveness", ok: true},
	{from: "server/hub", imports: module + "/agent"},
	{from: "agent", imports: module + "/plugins/sim"},
	{from: "agent", imports: module + "/agent/watchdog", ok: true},
	{from: "agent/watchdog", imports: module + "/agent"},
	{from: "agent/watchdog", imports: module, ok: true},
	{from: "agent/watchdog", imports: "golang.org/x/sys/unix", ok: true},
	{from: "agent/watchdog", imports: "github.com/containerd/cgroups/v3"},
	{from: "cmd/gpuai-watchdog", imports: module + "/agent/watchdog", ok: true},
	{from: "cmd/gpuai-watchdog", imports: "github.com/spf13/cobra"},
	{from: "cmd/gpuai", imports: "github.com/spf13/cobra", ok: true},
	{from: "cmd/gpuai", imports: module + "/raft"},
	{from: "plugins/sim", imports: module + "/plugins", ok: true},
	{from: "plugins/proto", imports: module + "/plugins"},
	{from: "plugins/proto", imports: "google.golang.org/protobuf/proto", ok: true},
	{from: "httpd", imports: "google.golang.org/grpc"},
	{from: "httpd", imports: "github.com/getkin/kin-openapi/openapi3"},
	{from: "httpd", imports: "github.com/getkin/kin-openapi/openapi3", test: true, ok: true},
	{from: "httpd", imports: "go.etcd.io/bbolt", test: true},
	{from: "server", imports: "github.com/hashicorp/raft"},
	{from: "raft", imports: "github.com/hashicorp/raft-boltdb/v2"},
	{from: "raft", imports: "github.com/hashicorp/raft", ok: true},
	{from: "raft", imports: "example.com/new/module"},
	{from: "raft", imports: "example.com/new/module", test: true},
	{from: "raft", imports: "net/http", ok: true},
	{from: "novel", imports: module},
	{from: "server", imports: module + "/integration/demo"},
	{from: "server", imports: module + "/integration", test: true},
	{from: "integration/demo", imports: module + "/integration", ok: true},
	{from: "integration", imports: module + "/fsm/wire", ok: true},
	{from: "integration", imports: "github.com/hashicorp/raft", ok: true},
}

func TestLayersFindsSeededViolations(t *testing.T) {
	for _, c := range seededImports {
		p := &pkg{ImportPath: module + "/" + c.from, Imports: []string{c.imports}}
		if c.test {
			p.Imports, p.TestImports = nil, p.Imports
		}
		if found := badImports(p); (len(found) == 0) != c.ok {
			t.Errorf("%s imports %s, test %v: %v", c.from, c.imports, c.test, found)
		}
	}
	direct := slices.Sorted(maps.Keys(owners))
	if found := badOwners(direct); found != nil {
		t.Errorf("the owners table itself: %v", found)
	}
	if found := badOwners(append(direct[1:], "example.com/new")); len(found) != 2 {
		t.Errorf("one module new and one gone: %v", found)
	}
}
