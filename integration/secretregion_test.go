package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/client"
)

// A guarded is a region with authentication, of one server process, and what all
// commands of the test have said.
type guarded struct {
	t        *testing.T
	dir, url string
	server   *proc
	said     strings.Builder
}

// as runs a command as who has a token; "" is the operator's context.
func (g *guarded) as(token, stdin string, args ...string) (out string, code int) {
	g.t.Helper()
	p := startWith(g.t, "gpuai "+strings.Join(args[:2], " "), "gpuai", func(c *exec.Cmd) {
		c.Stdin = strings.NewReader(stdin)
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "GPUAI_ADDR=" + g.url, "GPUAI_CACERT=" + filepath.Join(g.dir, "a", "ca.pem")}
		if token != "" {
			c.Env = append(c.Env, "GPUAI_TOKEN="+token)
		}
	}, args...)
	code = p.exit(patience)
	g.said.WriteString(p.out.String() + p.err.String())
	if code != 0 {
		return p.err.String(), code
	}
	return p.out.String(), 0
}

// must runs a command that works.
func (g *guarded) must(token, stdin string, args ...string) string {
	g.t.Helper()
	out, code := g.as(token, stdin, args...)
	if code != 0 {
		g.t.Fatalf("gpuai %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// startGuarded forms a region over TLS with tenants team and other.
func startGuarded(t *testing.T) (g *guarded, team, other string) {
	return startGuardedWith(t, func(*exec.Cmd) {})
}

// startGuardedWith is startGuarded of a server that set has given its environment, with
// further flags.
func startGuardedWith(t *testing.T, set func(*exec.Cmd), flags ...string) (g *guarded, team, other string) {
	g = &guarded{t: t, dir: scratch(t)}
	addr := freeAddr(t)
	g.url = "https://" + addr
	g.server = startWith(t, "server", "gpuai", set, append([]string{"server", "run", "--id", "a", "--data", filepath.Join(g.dir, "a"),
		"--key-file", filepath.Join(g.dir, "keyring"), "--http", addr, "--raft", freeAddr(t), "--bootstrap"}, flags...)...)
	eventually(t, patience, "CA of the region", func(context.Context) error {
		_, err := os.Stat(filepath.Join(g.dir, "a", "ca.pem"))
		return err
	})
	g.must("", "", "operator", "bootstrap", "--data", filepath.Join(g.dir, "a"), "--request-timeout", "20s")
	for _, tenant := range []string{"team", "other"} {
		g.must("", "", "tenant", "create", tenant)
	}
	token := func(tenant string) string {
		return strings.TrimSpace(g.must("", "", "token", "create", "--tenant", tenant, "--scope", "submit,read"))
	}
	return g, token("team"), token("other")
}

// joins starts an agent that joined with a token of its own.
func (g *guarded) joins(id string, flags ...string) *proc {
	g.t.Helper()
	token := strings.TrimSpace(g.must("", "", "token", "create", "--join", "node"))
	data := filepath.Join(g.dir, id)
	g.must("", "", "agent", "join", "--id", id, "--data", data, "--token", token, strings.TrimPrefix(g.url, "https://"))
	p := start(g.t, "agent "+id, "gpuai", append([]string{
		"agent", "run", "--id", id, "--data", data, "--servers", g.url, "--watchdog", program("gpuai-watchdog"), "--cpu", "2", "--memory", "1GiB",
	}, flags...)...)
	eventually(g.t, patience, "node "+id, func(context.Context) error {
		if out, code := g.as("", "", "node", "status", id, "-o", "json"); code != 0 || !strings.Contains(out, `"ready"`) {
			return fmt.Errorf("%d: %s", code, out)
		}
		return nil
	})
	return p
}

// watchProcesses looks again and again, until the test ends, for a text in the
// arguments of any process of this host.
func watchProcesses(t *testing.T, texts ...string) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		every := time.NewTicker(5 * time.Millisecond)
		defer every.Stop()
		for {
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, path := range all {
				b, err := os.ReadFile(path)
				for _, s := range texts {
					if err == nil && bytes.Contains(b, []byte(s)) {
						t.Errorf("the arguments of a process have a secret: %q", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
					}
				}
			}
			select {
			case <-every.C:
			case <-ctx.Done():
				return
			}
		}
	})
}

const guardedJob = `name: %s
type: batch
groups:
  - resources: {cpu: 0.25, memory: 64MiB}
    restart: {attempts: 0, on: []}
    task:
      image: %q
      args: %s
      env: {TOKEN: {secret: token}}
      secrets: [{name: key, path: app/key}]
`

// runs submits a job that has both secrets.
func (g *guarded) runs(token, name, image, args string) (string, int) {
	g.t.Helper()
	path := filepath.Join(g.dir, name+".yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, guardedJob, name, image, args), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return g.as(token, "", "run", path, "--wait", "--timeout", "20s")
}

// put gives the secrets values: one from stdin, one from a file that is gone then.
func (g *guarded) put(team, token, key string) {
	g.t.Helper()
	g.must(team, token+"\n", "secret", "put", "token")
	file := filepath.Join(g.dir, "value")
	if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.must(team, "", "secret", "put", "key", "--from-file", file)
	if err := os.Remove(file); err != nil {
		g.t.Fatal(err)
	}
}

// beside runs a command beside the job "stays" that digests what it was given.
func (g *guarded) beside(team, want string) {
	g.t.Helper()
	if out := g.must(team, "", "job", "exec", "stays", "--", "/probe", "digest", "TOKEN", "@/run/secrets/app/key"); out != want {
		g.t.Errorf("beside the task: %s, want %s", out, want)
	}
}

// prints waits until a job has printed something.
func (g *guarded) prints(team, job, want string) {
	g.t.Helper()
	eventually(g.t, patience, "what "+job+" was given", func(context.Context) error {
		if out, _ := g.as(team, "", "logs", job); out != want {
			return fmt.Errorf("it prints %q, want %q", out, want)
		}
		return nil
	})
}

// refused submits a job that is refused.
func (g *guarded) refused(token, job, image string, says ...string) {
	g.t.Helper()
	out, code := g.runs(token, job, image, digestBoth)
	for _, s := range says {
		if code == 0 || !strings.Contains(out, s) {
			g.t.Errorf("%s: %d, %s; want %q", job, code, out, s)
		}
	}
}

// digested is what gpuai-probe digest prints of the two.
func digested(token, key string) string {
	return fmt.Sprintf("TOKEN %x\n@/run/secrets/app/key %x\n", sha256.Sum256([]byte(token)), sha256.Sum256([]byte(key)))
}

const digestBoth = `[digest, TOKEN, "@/run/secrets/app/key"]`

// TestSecretsOfASecureRegion takes secrets the whole way over TLS, from a tenant's
// stdin and file into sandboxes and commands beside them, gives them other values
// while a task runs, and deletes them; and looks for them wherever they must not be.
func TestSecretsOfASecureRegion(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc: ", err)
	}
	t.Parallel()
	planted := []string{"hush-", "aHVzaC", "687573682d"} // plain, base64, hex
	watchProcesses(t, planted...)
	g, team, other := startGuarded(t)
	one := g.joins("n1", "--oci-runtime", "runc", "--local-registry")
	two := g.joins("n2", "--oci-runtime", "none", "--allow-process-runtime")
	image := pushProbe(t)
	g.put(team, "hush-token-1", "hush-key-1")
	for job, args := range map[string]string{"stays": "[sleep]", "first": digestBoth} {
		if out, code := g.runs(team, job, image, args); code != 0 {
			t.Fatalf("%s: %d, %s", job, code, out)
		}
	}
	old := digested("hush-token-1", "hush-key-1")
	g.prints(team, "first", old)
	g.beside(team, old)

	// Another tenant's names are unknown.
	g.refused(other, "foreign", image, "does not exist", "gpuai secret put")
	if out := g.must(other, "", "secret", "list", "-o", "name"); out != "" {
		t.Errorf("another tenant lists %q", out)
	}
	if out, code := g.as(other, "", "secret", "delete", "token"); code == 0 {
		t.Errorf("another tenant deleted a secret: %s", out)
	}

	// New values are for who starts now.
	g.put(team, "hush-token-2", "hush-key-2")
	if out, code := g.runs(team, "second", image, digestBoth); code != 0 {
		t.Fatalf("second: %d, %s", code, out)
	}
	g.prints(team, "second", digested("hush-token-2", "hush-key-2"))
	g.beside(team, old)
	if got := filesWith(t, "/run/gpuai", planted...); got != nil {
		t.Errorf("while a task runs a secret is in %v", got)
	}
	g.anotherAsks(two, "n2", "stays")
	g.must(team, "", "secret", "delete", "token")
	g.refused(team, "third", image, "does not exist", "gpuai secret put token")
	g.beside(team, old)
	g.nowhere(team, planted, one)
}

// anotherAsks asks, with the certificate of a node that runs it not, for the secrets
// of a job's task.
func (g *guarded) anotherAsks(p *proc, id, job string) {
	g.t.Helper()
	p.kill()
	source, err := agent.OpenIdentity(filepath.Join(g.dir, id))
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	c, err := client.New(client.Config{Addrs: []string{g.url}, TLS: source.ClientConfig()})
	if err != nil {
		g.t.Fatal(err)
	}
	var lease gpuai.Token
	if err := lease.UnmarshalText([]byte(strings.TrimSpace(g.must("", "", "lease", "list", "--job", job, "-o", "name")))); err != nil {
		g.t.Fatal(err)
	}
	hello := gpuai.Hello{Node: gpuai.NodeSpec{ID: gpuai.NodeID(id), CPU: 1000, Memory: 1 << 30, Labels: map[string]string{gpuai.LabelSecrets: gpuai.LabelYes}}, BootID: "another", Nonce: "life", Sent: 1}
	for {
		s, err := c.DialSession(ctx, g.url)
		if err != nil {
			g.t.Fatal(err)
		}
		defer s.Close()
		if err := s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameHello, Hello: &hello}); err != nil {
			g.t.Fatal(err)
		}
		f, err := s.Recv(ctx)
		for ; err == nil && f.Kind != gpuai.FrameSecrets && f.Kind != gpuai.FrameRefused; f, err = s.Recv(ctx) {
			if f.Kind == gpuai.FrameWelcome {
				err = s.Send(ctx, gpuai.Frame{Kind: gpuai.FrameSecretAsk, SecretAsk: &gpuai.SecretAsk{Lease: lease, Incarnation: f.Welcome.Incarnation}})
			}
			if err != nil {
				break
			}
		}
		switch {
		case err != nil:
			g.t.Fatal(err)
		case f.Kind == gpuai.FrameRefused && f.Refused.Incarnation != 0 && hello.Replaces == 0:
			hello.Replaces = f.Refused.Incarnation // it has the node's certificate, and so its place
			continue
		case f.Kind == gpuai.FrameRefused:
			g.t.Fatalf("refused: %+v", f.Refused)
		case f.Secrets.Code != gpuai.Conflict || f.Secrets.Values != nil:
			g.t.Errorf("a node that does not hold the lease was answered %v %s with %d values", f.Secrets.Code, f.Secrets.Detail, len(f.Secrets.Values))
		}
		return
	}
}

// nowhere looks for texts in what the region says, keeps and leaves behind.
func (g *guarded) nowhere(team string, texts []string, agent *proc) {
	g.t.Helper()
	for _, args := range [][]string{
		{"job", "status", "stays", "-o", "json"}, {"job", "list", "-o", "json"}, {"job", "history", "second", "-o", "json"}, {"secret", "list", "-o", "json"},
	} {
		g.must(team, "", args...)
	}
	bundle := filepath.Join(g.dir, "fault.tgz")
	for _, args := range [][]string{
		{"lease", "list", "-o", "json"}, {"node", "list", "-o", "json"}, {"operator", "audit", "export", "-o", "json"},
		{"events", "--from", "1", "--limit", "20", "-o", "json"},
		{"operator", "snapshot", "save", filepath.Join(g.dir, "region.snap")}, {"operator", "bundle", "--out", bundle},
	} {
		g.must("", "", args...)
	}
	held := map[string]string{"a command": g.said.String()}
	for name, data := range bundleOf(g.t, bundle) {
		held["the bundle's "+name] = string(data)
	}
	g.server.signal(syscall.SIGTERM)
	if code := g.server.exit(patience); code != 0 {
		g.t.Errorf("the server ended with %d", code)
	}
	agent.kill()
	held["the server's log"], held["the agent's log"] = g.server.err.String(), agent.err.String()
	for _, s := range texts {
		for what, text := range held {
			if strings.Contains(text, s) {
				g.t.Errorf("%s has a secret, as %s", what, s)
			}
		}
	}
	shown := fmt.Sprintf("%x", sha256.Sum256([]byte("hush-token-1")))
	if filesWith(g.t, filepath.Join(g.dir, "n1"), shown) == nil {
		g.t.Error("the search does not find what a task printed")
	}
	// The log, snapshots, the archive, the journals and caches of agents, the backup.
	if got := filesWith(g.t, g.dir, texts...); got != nil {
		g.t.Errorf("a secret is in %v", got)
	}
}
