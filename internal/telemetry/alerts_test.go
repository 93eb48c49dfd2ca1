package telemetry

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root  = "../.."
	rules = root + "/docs/prometheus"
)

func read(t *testing.T, path string) string {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(src)
}

var metricPattern = regexp.MustCompile(`\bgpuai_[a-z0-9_]+`)

// registered returns every literal in the code that is a metric's name.
func registered(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, dir := range []string{"server", "raft", "httpd", "agent", "internal/telemetry"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil && metricPattern.FindString(s) == s && s != "" {
						out[s] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestRulesNameMetricsThatExist(t *testing.T) {
	known := registered(t)
	if len(known) < 40 {
		t.Fatalf("only %d metrics found: %v", len(known), slices.Sorted(maps.Keys(known)))
	}
	for _, file := range []string{"alerts.yml", "alerts_test.yml", "README.md"} {
		names := metricPattern.FindAllString(read(t, filepath.Join(rules, file)), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range names {
			plain := name
			for _, of := range []string{"_bucket", "_sum", "_count"} {
				plain = strings.TrimSuffix(plain, of)
			}
			if !known[name] && !known[plain] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

var alertPattern = regexp.MustCompile(`(?m)^ *- alert: (\S+)$`)

func TestEveryAlertIsTested(t *testing.T) {
	tests := read(t, rules+"/alerts_test.yml")
	alerts := alertPattern.FindAllStringSubmatch(read(t, rules+"/alerts.yml"), -1)
	if len(alerts) < 20 {
		t.Fatalf("only %d alerts found", len(alerts))
	}
	for _, a := range alerts {
		if !regexp.MustCompile(`\b` + a[1] + `\b`).MatchString(tests) {
			t.Errorf("no test of alerts_test.yml raises %s", a[1])
		}
	}
}

// TestAlertsByPromtool has Prometheus' own tool check the rules and run their
// tests.
func TestAlertsByPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed (Debian: the package prometheus): the rules were not checked by it")
	}
	for _, args := range [][]string{
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
		{"check", "config", "prometheus.yml"},
	} {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir = rules
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
