package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	named    = regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9]*)`")
	linked   = regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)[A-Z][A-Za-z0-9]*)\(`)
)

// texts calls f with each file of the module that ends so.
func texts(t *testing.T, suffix string, f func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, suffix) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			f(path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Pages name tests that there are, and link files that there are.
func TestDocsNameWhatExists(t *testing.T) {
	tests := map[string]bool{}
	texts(t, "_test.go", func(_ string, text []byte) {
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			tests[string(m[1])] = true
		}
	})
	names, links := 0, 0
	texts(t, ".md", func(path string, text []byte) {
		for _, m := range named.FindAllSubmatch(text, -1) {
			if names++; !tests[string(m[1])] {
				t.Errorf("%s names %s, which is no test", path, m[1])
			}
		}
		for _, m := range linked.FindAllSubmatch(text, -1) {
			to := string(m[1])
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			if links++; !exists(filepath.Join(filepath.Dir(path), to)) {
				t.Errorf("%s links %s, which is not there", path, to)
			}
		}
	})
	if names < 50 || links < 30 {
		t.Errorf("%d names of tests and %d links were found: this tests nothing", names, links)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
