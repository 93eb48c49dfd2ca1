package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReliabilityTable looks for every test that docs/reliability.md names, and
// for every case of this package in that document.
func TestReliabilityTable(t *testing.T) {
	doc, err := os.ReadFile("../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z]+)\\.(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(doc), -1)
	if len(named) < 20 {
		t.Errorf("the table names %d tests only", len(named))
	}
	for _, n := range named {
		if !strings.Contains(testsOf(t, n[1]), "\nfunc "+n[2]+"(t *testing.T)") {
			t.Errorf("there is no test %s.%s", n[1], n[2])
		}
	}
	for _, m := range regexp.MustCompile(`\nfunc (TestCase[A-Za-z0-9]+)\(`).FindAllStringSubmatch(testsOf(t, "integration"), -1) {
		if !strings.Contains(string(doc), "`integration."+m[1]+"`") {
			t.Errorf("%s is in no row of the table", m[1])
		}
	}
}

// testsOf returns the tests' source of a package.
func testsOf(t *testing.T, pkg string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("\n")
		all.Write(src)
	}
	return all.String()
}
