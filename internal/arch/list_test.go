package arch

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gpuai/gpuai"

// A pkg is what go list says of a package.
type pkg struct {
	Dir, ImportPath, Doc, Export       string
	GoFiles                            []string
	Imports, TestImports, XTestImports []string
	Standard                           bool
}

// name returns the package's path in the module as the policy writes it.
func (p *pkg) name() string { return shortName(p.ImportPath) }

// shortName returns an import path of the module as the policy writes it.
func shortName(path string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
	return cmp.Or(strings.TrimPrefix(rest, "internal/"), ".")
}

// ours reports whether an import path is of the module.
func ours(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// layer returns the first directory of a name.
func layer(name string) string {
	l, _, _ := strings.Cut(name, "/")
	return l
}

// within reports whether a path is root, or lies below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// goList decodes what go list prints, one value after the other.
func goList[T any](t *testing.T, args ...string) []T {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.String())
	}
	var all []T
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var v T
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
}

// list returns every package of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	return goList[pkg](t, "-json=Dir,ImportPath,Doc,GoFiles,Imports,TestImports,XTestImports", module+"/...")
}

// report fails the test with each finding, in order.
func report(t *testing.T, findings []string) {
	t.Helper()
	slices.Sort(findings)
	for _, f := range slices.Compact(findings) {
		t.Error(f)
	}
}
