package gpuai

import (
	"slices"
	"strconv"
	"strings"
)

// Bounds of secrets for jobs.
const (
	// MaxSecretBytes bounds a secret's value, which has at least one byte.
	MaxSecretBytes = 64 << 10
	// MaxTaskSecrets bounds the secrets of a task, each use counted.
	MaxTaskSecrets = 16
	// MaxSecretPath bounds the path of a file that a secret becomes.
	MaxSecretPath = 255
	// DefaultSecretMode is the mode of a secret's file that says none.
	DefaultSecretMode FileMode = 0o400
)

// EnvSecretsDir is where a task finds the files of its secrets whose path is
// relative.
const EnvSecretsDir = "GPUAI_SECRETS_DIR"

// SecretsDir is GPUAI_SECRETS_DIR in a sandbox.
const SecretsDir = "/run/secrets"

// LabelSecrets is the label, with the value LabelYes, of nodes whose agent asks for
// the secrets of a task: a constraint on it is part of every group that has some.
const LabelSecrets = "runtime.secrets"

// A TaskSecret gives a task one of its tenant's secrets, as a variable (Env) or
// as a file (Path). The spec holds the secret's name alone; its value goes from a
// server to the agent that holds the lease, when that starts the task.
type TaskSecret struct {
	Name string `json:"name"`
	// Env is the variable whose value the secret is. It is not replaced in
	// Command or Args, which others on the node can see.
	Env string `json:"env,omitzero"`
	// Path is the file that holds the secret: below GPUAI_SECRETS_DIR, or in a
	// sandbox anywhere if it is absolute. Without Env and Path it is Name.
	Path string `json:"path,omitzero"`
	// Mode is the mode of the file; 0 is DefaultSecretMode. The file is the
	// task's user's.
	Mode FileMode `json:"mode,omitzero"`
}

// A FileMode is the permission bits of a file. Its text is octal: "0400".
type FileMode uint16

// String returns four octal digits.
func (m FileMode) String() string {
	s := strconv.FormatUint(uint64(m), 8)
	return strings.Repeat("0", max(0, 4-len(s))) + s
}

// MarshalText writes what String returns.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads octal digits.
func (m *FileMode) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 8, 16)
	if err != nil || n > 0o777 {
		return NewError(InvalidSpec, "a file's mode is octal text such as \"0400\", at most \"0777\"")
	}
	*m = FileMode(n)
	return nil
}

func (t *TaskSpec) secretDefaults() {
	for i := range t.Secrets {
		s := &t.Secrets[i]
		if s.Env == "" && s.Path == "" {
			s.Path = s.Name
		}
		if s.Path != "" && s.Mode == 0 {
			s.Mode = DefaultSecretMode
		}
	}
}

func (t *TaskSpec) validateSecrets(v *fieldErrors, at string) {
	if len(t.Secrets) > MaxTaskSecrets {
		v.add(at+"/secrets", "must be at most "+strconv.Itoa(MaxTaskSecrets)+", variables and files together")
	}
	for i := range t.Secrets[:min(len(t.Secrets), MaxTaskSecrets)] {
		s, p := &t.Secrets[i], at+"/secrets/"+strconv.Itoa(i)
		v.name(p+"/name", s.Name)
		v.check(s.Env == "" || s.Path == "", p, "is a variable (env) or a file (path): list it twice for both")
		v.check(s.Env != "" || s.Path != "", p, "needs the variable (env) or the file (path) that it becomes")
		switch {
		case s.Env != "":
			t.validateSecretEnv(v, i, p+"/env")
			v.check(s.Mode == 0, p+"/mode", "is for files: a variable has none")
		case s.Path != "":
			v.check(validSecretPath(s.Path), p+"/path", "must be a plain path such as token or /etc/app/token, without . or .. or an empty part, "+
				"of at most "+strconv.Itoa(MaxSecretPath)+" bytes, and not in /proc, /sys, /dev or /.gpuai")
			v.check(s.Path[0] != '/' || t.Runtime == RuntimeOCI, p+"/path", "must be relative: a plain process has its secrets in $GPUAI_SECRETS_DIR, and no files of its own elsewhere")
			v.check(s.Mode <= 0o777, p+"/mode", "must be at most \"0777\"")
		}
		for j := range t.Secrets[:i] {
			o := &t.Secrets[j]
			v.check(s.Env == "" || s.Env != o.Env, p+"/env", "is the variable of /secrets/"+strconv.Itoa(j)+" too")
			v.check(s.Path == "" || !within(s.Path, o.Path) && !within(o.Path, s.Path), p+"/path", "is the path of secret "+strconv.Itoa(j)+", or below it")
		}
	}
}

func (t *TaskSpec) validateSecretEnv(v *fieldErrors, i int, at string) {
	name := t.Secrets[i].Env
	v.check(validEnv(name), at, "a variable's name has letters, digits and '_', not "+strconv.Quote(clip(name)))
	v.check(!strings.HasPrefix(name, "GPUAI_"), at, "names that start with GPUAI_ are the region's own")
	_, twice := t.Env[name]
	v.check(!twice, at, "is a variable of env too: say it once")
}

// within reports whether a is b or below it. Both name the same place when one
// is below SecretsDir in full and the other in short.
func within(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	a, b = secretPath(a), secretPath(b)
	return a == b || strings.HasPrefix(a, b+"/")
}

func secretPath(p string) string {
	if p[0] != '/' {
		return SecretsDir + "/" + p
	}
	return p
}

// validSecretPath reports whether p can be the path of a secret's file.
func validSecretPath(p string) bool {
	if len(p) > MaxSecretPath || strings.IndexByte(p, 0) >= 0 || p == SecretsDir {
		return false
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/.gpuai"} {
		if within(p, dir) {
			return false
		}
	}
	return !slices.ContainsFunc(strings.Split(strings.TrimPrefix(p, "/"), "/"), func(part string) bool {
		return part == "" || part == "." || part == ".."
	})
}

// A SecretRequest is the body of PUT /v1/secrets/{name}.
type SecretRequest struct {
	// Value is the secret, in base64.
	Value  []byte   `json:"value"`
	Tenant TenantID `json:"tenant,omitzero"` // absent is the asker's own
}

// A SecretInfo is all that is told of a secret: never its value.
type SecretInfo struct {
	Name   string   `json:"name"`
	Tenant TenantID `json:"tenant"`
	// Version counts the values that it has had under this name.
	Version uint32   `json:"version"`
	Bytes   uint32   `json:"bytes"`
	Set     WallTime `json:"set_unix_ms"` // when it had its first value, or its newest
	// Key names the region key under which it is sealed.
	Key         string `json:"key"`
	ModifyIndex uint64 `json:"modify_index"`
}

// A SecretSet answers a SecretRequest, and a secret's deletion.
type SecretSet struct {
	Name    string   `json:"name"`
	Tenant  TenantID `json:"tenant"`
	Version uint32   `json:"version,omitzero"` // 0: it is deleted
	Index   uint64   `json:"index"`
}

// A SecretAsk asks, in an agent's session, for the secrets of a lease's task.
// The agent asks again in its next session while it has no answer.
type SecretAsk struct {
	Lease       Token       `json:"lease"`
	Incarnation Incarnation `json:"incarnation"`
}

// A SecretDelivery answers it: the values in the order of the task's Secrets, or
// why there are none. It is kept in memory only, by all who see it.
type SecretDelivery struct {
	Lease  Token    `json:"lease"`
	Code   Code     `json:"code"`
	Detail string   `json:"detail,omitzero"`
	Values [][]byte `json:"values,omitempty"`
}

// String keeps the values out of what is printed.
func (d SecretDelivery) String() string {
	return "secrets of lease " + d.Lease.String() + ": " + d.Code.String() + ", " + strconv.Itoa(len(d.Values)) + " values " + Redacted
}

// GoString is String, for %#v.
func (d SecretDelivery) GoString() string { return d.String() }

// A LeaseSecret says which version of a secret a lease's task was given.
type LeaseSecret struct {
	Name    string `json:"name"`
	Version uint32 `json:"version"`
}
