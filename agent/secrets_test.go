package agent

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// secretCanary is the value of every secret of these tests: it must be nowhere
// but in the task.
const secretCanary = "hush-0815-canary"

// wanting gives a task three secrets, two of them files.
func wanting(inner func(*gpuai.Assignment), paths ...string) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) {
		inner(a)
		a.Task.Secrets = []gpuai.TaskSecret{{Name: "token", Env: "TOKEN"}}
		for _, p := range paths {
			a.Task.Secrets = append(a.Task.Secrets, gpuai.TaskSecret{Name: "key", Path: p, Mode: 0o440})
		}
	}
}

// giveSecrets answers an ask as a server does. mu is held.
func (r *region) giveSecrets(w *wire, n *fakeNode, ask *gpuai.SecretAsk) {
	r.asks++
	if r.unasked {
		return
	}
	d := gpuai.SecretDelivery{Lease: ask.Lease}
	if d.Code, d.Detail = r.noSecrets, "the secret token does not exist"; d.Code == gpuai.OK {
		d.Detail = ""
		for range n.leases[ask.Lease].Task.Secrets {
			d.Values = append(d.Values, []byte(secretCanary))
		}
	}
	w.Send(context.Background(), gpuai.Frame{Kind: gpuai.FrameSecrets, Secrets: &d})
}

// leaks returns the files below the directories that hold the canary.
func leaks(t *testing.T, dirs ...string) (out []string) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil // it is gone meanwhile
			}
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(secretCanary)) {
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A plain process has its secrets in its environment and in files, which go with
// it; what the agent keeps has none of it.
func TestSecretsOfAProcess(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, wanting(script(`[ "$TOKEN" = "$(cat "$GPUAI_SECRETS_DIR/a/key")" ] || exit 3
echo ${#TOKEN} $(stat -c %a $GPUAI_SECRETS_DIR/a/key)
exec sleep 600`), "a/key"))
	f.running(lease)
	eventually(t, "the task's word", func() bool {
		return f.printed(lease, "stdout") == "16 440\n"
	})
	if got := leaks(t, f.dir); len(got) != 1 || !strings.HasSuffix(got[0], "/secrets/a/key") {
		t.Errorf("the secret is in %v", got)
	}
	f.revoke(testNode, lease)
	if r := f.last(lease); r.State != gpuai.ReportStopped {
		t.Errorf("reported %+v", r)
	}
	if got := leaks(t, f.dir); got != nil {
		t.Errorf("the secret is still in %v", got)
	}
}

// The argument list, which others on the node can see, is not expanded from
// secrets.
func TestSecretsAreNotReplacedInCommands(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	lease := f.grant(testNode, wanting(func(a *gpuai.Assignment) { a.Task.Command = []string{"echo", "$TOKEN"} }))
	if r := f.last(lease); r.State != gpuai.ReportDone {
		t.Fatalf("reported %+v", r)
	}
	if got := f.printed(lease, "stdout"); got != "$TOKEN\n" {
		t.Errorf("printed %q", got)
	}
}

// A sandbox has its secrets in memory, and no file of the node has them meanwhile.
func TestSecretsOfASandbox(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	f := newFixture(t)
	a := f.run(boxed(t, dir))
	lease := f.grant(testNode, wanting(inImage(image, "@/run/secrets/key", "@/etc/app/key", "$TOKEN"), "key", "/etc/app/key"))
	r := f.last(lease)
	out := f.printed(lease, "stdout")
	for _, want := range []string{
		"env TOKEN=" + secretCanary, "env GPUAI_SECRETS_DIR=/run/secrets", `"$TOKEN"]`,
		"file /run/secrets/key -r--r----- 7:8 " + secretCanary, "file /etc/app/key -r--r----- 7:8 " + secretCanary,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if r.State != gpuai.ReportDone {
		t.Errorf("reported %+v\n%s", r, f.printed(lease, "stderr"))
	}
	checkClosed(t, a.Agent, lease)
	quiet := f.grant(testNode, wanting(func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Task.Command = []string{"gpuai-probe", "listen", "127.0.0.1:4000"}
	}, "key"))
	f.running(quiet)
	p, code, err := a.runBeside(t, quiet, gpuai.ExecStart{Command: []string{"gpuai-probe", "say", "@/run/secrets/key", "$TOKEN"}}, "")
	beside := p.out[gpuai.ExecStdout].String()
	for _, want := range []string{"env TOKEN=" + secretCanary, "file /run/secrets/key -r--r----- 7:8 " + secretCanary, "user 7:8", `"$TOKEN"]`} {
		if code != 0 || err != nil || !strings.Contains(beside, want) {
			t.Errorf("beside the task: %d, %v: %q is not in\n%s%s", code, err, want, beside, p.out[gpuai.ExecStderr].String())
		}
	}
	p, code, err = a.runBeside(t, quiet, gpuai.ExecStart{Command: []string{"none"}}, "")
	if said := p.out[gpuai.ExecStderr].String(); code != 127 || err != nil || !strings.Contains(said, "none is not in PATH (/bin)") {
		t.Errorf("a program that is missing: %d, %v, %q", code, err, said)
	}
	for _, got := range leaks(t, f.dir, "/run/gpuai") {
		if !strings.Contains(got, lease.String()) { // what the first task printed
			t.Errorf("the secret is in %s", got)
		}
	}
}

// A task whose secret is not there fails, and says which. One that nobody
// answers asks again in the next session.
func TestSecretsThatAreNotGiven(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	f.set(func(r *region) { r.noSecrets = gpuai.NotFound })
	lease := f.grant(testNode, wanting(script("true")))
	if r := f.last(lease); r.State != gpuai.ReportFailed || !strings.Contains(r.Reason, "the secret token does not exist") {
		t.Errorf("reported %+v", r)
	}
	f.set(func(r *region) { r.noSecrets, r.unasked = gpuai.OK, true })
	lease = f.grant(testNode, wanting(script("exit 4")))
	eventually(t, "the second ask", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.asks == 2
	})
	f.set(func(r *region) {
		r.unasked = false
		r.node[testNode].session.Close()
	})
	if r := f.last(lease); r.ExitCode != 4 {
		t.Errorf("reported %+v", r)
	}
}
