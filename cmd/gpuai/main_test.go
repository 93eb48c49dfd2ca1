package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts compare with anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gpuai": func() { os.Exit(realMain()) }})
}

// TestScripts runs the command against a server that answers with the files of
// the script: METHOD_path.json, or METHOD_path.STATUS.json for an error; with
// the parameter server, METHOD_path_server_ID.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *rewrite, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			c := &canned{dir: e.WorkDir}
			srv := httptest.NewServer(c)
			e.Defer(srv.Close)
			e.Setenv("GPUAI_ADDR", srv.URL)
			golden, err := filepath.Abs("../../fsm/testdata/level-1.snap")
			e.Setenv("SNAPSHOT", golden)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits CODE ARGS... runs gpuai and checks its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	err := ts.Exec("gpuai", args[1:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("gpuai %s exits with %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// A canned server answers from files and writes down what it is asked.
type canned struct {
	dir string
	mu  sync.Mutex // guards the file "requests" and served
	n   map[string]int
}

func (c *canned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	name := r.Method + strings.ReplaceAll(r.URL.Path, "/", "_")
	if id := r.URL.Query().Get("server"); id != "" {
		name += "_server_" + id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(fmt.Sprintf("%s %s %s\n", r.Method, r.URL.RequestURI(), body))
	status, src := c.find(name)
	if src == nil {
		http.Error(w, "no file "+name, http.StatusTeapot)
		return
	}
	kind := "application/json"
	if status >= 400 {
		kind = "application/problem+json"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	w.Write(ages.ReplaceAllFunc(src, wall))
}

// find returns the answer of a name: the n-th one asked for is name.n where
// there is such a file.
func (c *canned) find(name string) (int, []byte) {
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
	for _, stem := range []string{name + "#" + strconv.Itoa(c.n[name]), name} {
		if src, err := os.ReadFile(filepath.Join(c.dir, stem+".json")); err == nil {
			return http.StatusOK, src
		}
		errors, _ := filepath.Glob(filepath.Join(c.dir, stem+".[0-9][0-9][0-9].json"))
		for _, path := range errors {
			src, err := os.ReadFile(path)
			status, _ := strconv.Atoi(strings.TrimSuffix(path, ".json")[len(strings.TrimSuffix(path, ".json"))-3:])
			if err == nil {
				return status, src
			}
		}
	}
	return 0, nil
}

func (c *canned) note(s string) {
	f, err := os.OpenFile(filepath.Join(c.dir, "requests"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(s)
		f.Close()
	}
	if err != nil {
		panic(err)
	}
}

// ages are wall times of the form "@5m": so long ago.
var ages = regexp.MustCompile(`"@[0-9a-z]+"`)

func wall(m []byte) []byte {
	d, err := time.ParseDuration(strings.Trim(string(m), `"@`))
	if err != nil {
		panic(err)
	}
	return []byte(strconv.FormatInt(time.Now().Add(-d).UnixMilli(), 10))
}
