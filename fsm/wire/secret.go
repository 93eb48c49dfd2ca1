package wire

import "github.com/gpuai/gpuai"

// What a secret becomes.
const (
	secretEnv  = 0
	secretFile = 1
)

func appendSecrets(b []byte, list []gpuai.TaskSecret) []byte {
	b = appendCount8(b, len(list))
	for i := range list {
		s := &list[i]
		kind, text := byte(secretEnv), s.Env
		if s.Path != "" {
			kind, text = secretFile, s.Path
		}
		b = AppendStr(append(AppendStr(b, s.Name), kind), text)
		b = le.AppendUint16(b, uint16(s.Mode))
	}
	return b
}

// secrets checks a task's secrets and returns a view of them.
func (r *Reader) secrets() []byte {
	whole := r.b
	n := r.within(int64(r.U8()), 1, gpuai.MaxTaskSecrets)
	for range n {
		r.secret()
	}
	return whole
}

func (r *Reader) secret() (name []byte, kind uint8, text []byte, mode uint16) {
	name = r.name()
	kind = uint8(r.within(int64(r.U8()), secretEnv, secretFile))
	text = r.limited(gpuai.MaxTextLen)
	mode = uint16(r.within(int64(r.U16()), 0, 0o777))
	if r.err == nil && (len(text) == 0 || kind == secretEnv && mode != 0) {
		r.Fail("a secret is neither a variable nor a file")
	}
	return name, kind, text, mode
}

// ReadSecrets reads what a GroupView has of a task's secrets.
func ReadSecrets(b []byte) (out []gpuai.TaskSecret, err error) {
	if b == nil {
		return nil, nil
	}
	r := Reader{b: b}
	for range r.U8() {
		name, kind, text, mode := r.secret()
		s := gpuai.TaskSecret{Name: string(name), Mode: gpuai.FileMode(mode)}
		if kind == secretFile {
			s.Path = string(text)
		} else {
			s.Env = string(text)
		}
		out = append(out, s)
	}
	return out, r.Done()
}

// SecretNames calls f with the name of each secret of a view that a GroupView
// holds, in order, until it returns false.
func SecretNames(b []byte, f func(name []byte) bool) {
	r := Reader{b: b}
	for range r.U8() {
		name, _, _, _ := r.secret()
		if r.err != nil || !f(name) {
			return
		}
	}
}
