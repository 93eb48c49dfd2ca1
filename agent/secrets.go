package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// secretsDir is where a plain process has the files of its secrets, below its
// directory.
const secretsDir = "secrets"

// boxEnvFile is where the first process of a sandbox reads variables that the
// sandbox's specification, a file, must not hold.
const boxEnvFile = "/.gpuai/env"

// An asking is a start that waits for its task's secrets. Nothing of them is
// written to the journal: an agent that begins another life has not started the
// task, and asks anew if it is to.
type asking struct {
	ask    gpuai.SecretAsk
	answer chan gpuai.SecretDelivery // takes one
}

// offerSecrets labels the node as one that asks for tasks' secrets.
func (a *Agent) offerSecrets() {
	labels := map[string]string{gpuai.LabelSecrets: gpuai.LabelYes}
	maps.Copy(labels, a.cfg.Labels)
	a.cfg.Labels = labels
}

// askSecrets asks the region, again in each session until there is an answer.
func (a *Agent) askSecrets(x asking) {
	a.asking[x.ask.Lease] = x
	a.sendAsk(x)
}

func (a *Agent) askAgain() {
	for _, x := range a.asking {
		a.sendAsk(x)
	}
}

func (a *Agent) sendAsk(x asking) {
	if a.line != nil && a.core.Connected() {
		ask := x.ask
		a.send(a.line.id, gpuai.Frame{Kind: gpuai.FrameSecretAsk, SecretAsk: &ask})
	}
}

// gaveSecrets hands an answer to the start that waits for it.
func (a *Agent) gaveSecrets(d *gpuai.SecretDelivery) {
	if x, ok := a.asking[d.Lease]; ok {
		delete(a.asking, d.Lease)
		x.answer <- *d
	}
}

// A givenSecret is one of a task's secrets with its value.
type givenSecret struct {
	gpuai.TaskSecret
	value []byte
}

// secrets asks the region for the task's secrets, and waits until it has them or
// the task is to end.
func (w *worker) secrets(no *decide.TaskNotStarted) ([]givenSecret, error) {
	uses := w.assign.Task.Secrets
	if len(uses) == 0 {
		return nil, nil
	}
	x := asking{gpuai.SecretAsk{Lease: w.lease.ID, Incarnation: w.lease.Incarnation}, make(chan gpuai.SecretDelivery, 1)}
	w.a.post(func() { w.a.askSecrets(x) })
	var d gpuai.SecretDelivery
	select {
	case d = <-x.answer:
	case <-w.ctx.Done():
		w.a.post(func() { delete(w.a.asking, w.lease.ID) })
		return nil, errors.New(errNotStarted)
	case <-w.a.ended:
		return nil, errors.New(errNotStarted)
	}
	no.State = gpuai.ReportFailed
	switch {
	case d.Code == gpuai.Conflict, d.Code == gpuai.Internal, d.Code == gpuai.RateLimited:
		no.State = gpuai.ReportLost // another place, or time, may have them
		fallthrough
	case d.Code != gpuai.OK:
		return nil, fmt.Errorf("its secrets were not given: %s", d.Detail)
	case len(d.Values) != len(uses):
		return nil, fmt.Errorf("its secrets were not given: %d came for %d", len(d.Values), len(uses))
	}
	out := make([]givenSecret, len(uses))
	for i, u := range uses {
		out[i] = givenSecret{u, d.Values[i]}
		if u.Env != "" && bytes.IndexByte(out[i].value, 0) >= 0 {
			return nil, fmt.Errorf("the secret %s has a NUL byte, which no variable can have: give it to the task as a file, with path in place of env", u.Name)
		}
	}
	return out, nil
}

// secretEnv adds the variables that are secrets to env.
func secretEnv(env map[string]string, given []givenSecret) {
	for i := range given {
		if g := &given[i]; g.Env != "" {
			env[g.Env] = string(g.value)
		}
	}
}

// sayWhere tells a task where the files of its secrets are.
func sayWhere(env map[string]string, given []givenSecret, dir string) {
	for i := range given {
		if given[i].Path != "" {
			env[gpuai.EnvSecretsDir] = dir
		}
	}
}

// writeSecrets writes the files of a plain process's secrets below dir.
func writeSecrets(dir string, given []givenSecret) error {
	for i := range given {
		g := &given[i]
		if g.Path == "" {
			continue
		}
		at := filepath.Join(dir, filepath.FromSlash(g.Path))
		err := os.MkdirAll(filepath.Dir(at), 0o700)
		if err == nil {
			err = writeSecret(at, g)
		}
		if err != nil {
			return fmt.Errorf("write the task's secret %s: %w", g.Name, err)
		}
	}
	return nil
}

func writeSecret(at string, g *givenSecret) error {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(g.value)
	return errors.Join(err, f.Chmod(os.FileMode(g.Mode)), f.Close())
}

// forgetSecrets removes what a plain process had of its secrets.
func (w *worker) forgetSecrets() {
	if len(w.assign.Task.Secrets) == 0 {
		return
	}
	if err := os.RemoveAll(filepath.Join(w.a.taskDir(w.lease.ID), secretsDir)); err != nil {
		w.a.log.Error("a task's secrets stay on this node's disk", "lease", w.lease.ID, "error", err)
	}
}

// boxSecrets gives a sandbox its secrets: files that its runtime finds in memory,
// and for variables a file that its first process reads.
func (w *worker) boxSecrets(t *sandbox.Task, given []givenSecret) (files []watchdog.Secret, err error) {
	var env []byte
	add := func(at string, value []byte, mode gpuai.FileMode) error {
		if _, taken := t.Files[at]; taken {
			return fmt.Errorf("the path %s of a secret is the sandbox's own: choose another", at)
		}
		t.Files[at] = filepath.Join(w.a.boxes.path(boxDir), watchdog.SecretPath(len(files)))
		files = append(files, watchdog.Secret{Value: value, Mode: uint32(mode), User: t.IDs.First + t.User, Group: t.IDs.First + t.Group})
		return nil
	}
	for i := range given {
		g := &given[i]
		if g.Env != "" {
			env = append(append(append(env, g.Env...), '='), g.value...)
			env = append(env, 0)
			continue
		}
		at := g.Path
		if !path.IsAbs(at) {
			at = path.Join(gpuai.SecretsDir, at)
		}
		if err := add(at, g.value, g.Mode); err != nil {
			return nil, err
		}
	}
	if env != nil {
		t.InitArgs = append(t.InitArgs, watchdog.EnvArg, boxEnvFile)
		err = add(boxEnvFile, env, gpuai.DefaultSecretMode)
	}
	return files, err
}

// besideSecrets has a command beside a task in a sandbox see the variables that are
// secrets: the runtime knows only those of the sandbox's specification.
func (w *worker) besideSecrets(command []string) []string {
	for i := range w.assign.Task.Secrets {
		if w.assign.Task.Secrets[i].Env != "" {
			return append([]string{sandbox.InitPath, watchdog.EnvArg, boxEnvFile}, command...)
		}
	}
	return command
}
