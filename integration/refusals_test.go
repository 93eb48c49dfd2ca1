package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const sigTerm = syscall.SIGTERM

// The exit codes of the command that these tests meet.
const (
	exitOther    = 1
	exitUsage    = 2
	exitNotFound = 3
	exitNoServer = 9
)

// A refusal is a call of the command that must end with a code and one clear
// sentence.
type refusal struct {
	name string
	args []string
	code int
	want []string // all of these are said
}

// check runs the call and compares.
func (c *refusal) check(t *testing.T) {
	t.Helper()
	p := start(t, c.name, "gpuai", c.args...)
	code := p.exit(patience)
	said := errorOf(p.err.String())
	if code != c.code {
		t.Errorf("exit code %d, want %d", code, c.code)
	}
	if p.out.Len() > 0 {
		t.Errorf("an error on standard output: %s", &p.out)
	}
	for _, w := range c.want {
		if !strings.Contains(said, w) {
			t.Errorf("it does not say %q but %q", w, said)
		}
	}
	if !c.tells(said) || strings.Contains(said, "goroutine ") {
		t.Errorf("not one sentence of the command's: %q", said)
	}
	t.Logf("%s", strings.TrimSpace(said))
}

// tells reports whether one line, and only one, is an error: of the command, or
// of the job file that is its second argument.
func (c *refusal) tells(said string) bool {
	n := 0
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "gpuai: ") || strings.HasPrefix(line, c.args[min(1, len(c.args)-1)]+":") {
			n++
		}
	}
	return n == 1
}

// errorOf leaves what the command itself says on standard error: no log.
func errorOf(stderr string) string {
	var out []string
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "time=") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// TestRefusalsOfTheCommand calls the command with what cannot work.
func TestRefusalsOfTheCommand(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	addr := "http://" + r.servers[0].http
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	write := func(name, text string) string {
		path := filepath.Join(r.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s1 := r.servers[0]
	server := func(data, http string) []string {
		return []string{"server", "run", "--id", "s1", "--data", data, "--http", http, "--raft", freeAddr(t), "--bootstrap", "--insecure-plaintext"}
	}
	open := func(data string) []string {
		at := freeAddr(t)
		return []string{"server", "run", "--id", "s1", "--data", data, "--http", "0.0.0.0:0", "--raft", at, "--peers", "s1=" + at, "--bootstrap"}
	}
	agent := func(more ...string) []string {
		return append([]string{"agent", "run", "--id", "n1", "--data", filepath.Join(r.dir, "agent"), "--servers", addr}, more...)
	}
	for _, c := range []refusal{
		{"a second server on one data directory", server(s1.dir, freeAddr(t)), exitOther,
			[]string{s1.dir, "is already in use by process " + fmt.Sprint(s1.cmd.Process.Pid), "stop that process, or"}},
		{"a port in use", server(filepath.Join(r.dir, "new"), busy.Addr().String()), exitOther,
			[]string{busy.Addr().String(), "is in use by another process", "choose another port"}},
		{"another server's data directory", []string{"server", "run", "--id", "s9", "--data", r.stopped(), "--http", freeAddr(t), "--raft", freeAddr(t)}, exitOther,
			[]string{"belongs to server s3 and not to s9", "use this server's own directory"}},
		{"an address that others reach", open(filepath.Join(r.dir, "new")), exitUsage,
			[]string{"0.0.0.0:0", "--insecure-plaintext"}},
		{"a driver that is missing", agent("--driver", "sim=/nonexistent/driver"), exitUsage,
			[]string{"--driver sim", "there is no binary /nonexistent/driver", "make build"}},
		{"a driver that is no driver", agent("--driver", "sim=/bin/true", "--watchdog", program("gpuai-watchdog")), exitOther,
			[]string{"driver sim", "/bin/true"}},
		{"a watchdog that is missing", agent("--watchdog", "/nonexistent/watchdog"), exitUsage,
			[]string{"--watchdog", "there is no binary /nonexistent/watchdog"}},
		{"a job that is not there", []string{"job", "status", "nowhere", "--addr", addr}, exitNotFound,
			[]string{"not_found: ", "nowhere", "next: "}},
		{"a node that is not there", []string{"node", "drain", "nowhere", "--addr", addr}, exitNotFound, []string{"not_found: ", "nowhere"}},
		{"an unknown flag", []string{"server", "run", "--no-such-flag"}, exitUsage, []string{"unknown flag: --no-such-flag", "next: "}},
		{"an unknown command", []string{"sevrer"}, exitUsage, []string{`unknown command "sevrer"`}},
		{"no server", []string{"job", "list", "--addr", freeAddr(t), "--request-timeout", "500ms"}, exitNoServer, []string{"no server answers at", "next: "}},
		{"a job file that is no YAML", []string{"run", write("broken.yaml", "name: [x\ngroups"), "--addr", addr}, exitUsage, []string{"broken.yaml:2:", "is not YAML"}},
		{"a job file with an unknown field", []string{"run", write("field.yaml", "name: x\ntype: batch\nretries: 3\ngroups:\n  - task: {command: [echo]}\n"), "--addr", addr}, exitUsage,
			[]string{"field.yaml:3:", "retries"}},
	} {
		t.Run(c.name, func(t *testing.T) { c.check(t) })
	}
	for _, m := range r.servers {
		if m != r.servers[2] && !m.alive() {
			t.Errorf("server %s did not live through it", m.id)
		}
	}
}

// stopped stops the third server in order and returns its data directory.
func (r *region) stopped() string {
	r.t.Helper()
	m := r.servers[2]
	m.signal(sigTerm)
	if code := m.exit(patience); code != 0 {
		r.t.Errorf("server %s stopped with exit code %d", m.id, code)
	}
	return m.dir
}

// TestDataDirOfAnotherCluster starts a member of a region on a directory that
// a region of one has written under the same name.
func TestDataDirOfAnotherCluster(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	m := r.servers[2]
	m.kill()
	own := m.dir
	foreign := filepath.Join(r.dir, "foreign")
	alone := start(t, "region of one", "gpuai", "server", "run", "--id", m.id, "--data", foreign, "--http", m.http, "--raft", m.raft, "--bootstrap", "--insecure-plaintext")
	eventually(t, patience, "ready region of one", m.client.Ready)
	alone.signal(sigTerm)
	if code := alone.exit(patience); code != 0 {
		t.Fatalf("the region of one stopped with exit code %d: %s", code, alone.err)
	}

	m.dir = foreign
	r.start(m)
	if code := m.exit(patience); code != exitOther {
		t.Errorf("exit code %d, want %d", code, exitOther)
	}
	said := errorOf(m.err.String())
	for _, want := range []string{foreign, "belongs to cluster ", "but servers "} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q but %q", want, said)
		}
	}
	t.Logf("%s", said)
	m.dir = own
	r.start(m)
	r.awaitReady()
	r.equalDigests(r.submit(smallJob("afterwards")).Index)
}

// TestServerEndsInOrder stops the leader as planned: it hands over first, and
// the next leads at once.
func TestServerEndsInOrder(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	old := r.leader()
	old.signal(sigTerm)
	began := time.Now()
	if code := old.exit(patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if r.leader() == old {
		t.Errorf("server %s leads, and has ended", old.id)
	}
	t.Logf("it ended, and another led, within %s", time.Since(began))
}
