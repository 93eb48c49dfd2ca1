package wire

import (
	"bytes"

	"github.com/gpuai/gpuai"
)

// maxCwd bounds a working directory.
const maxCwd = 4_096

// appendTask appends what a task runs.
//
//	stop_grace:i64 runtime args:u16 arg … script vars:u16, each: key value; cwd
func appendTask(b []byte, t *gpuai.TaskSpec) []byte {
	b = appendI64(b, int64(t.StopGrace))
	b = AppendStr(b, t.Runtime)
	b = appendCount16(b, len(t.Command))
	for _, a := range t.Command {
		b = AppendStr(b, a)
	}
	b = AppendStr(b, t.Script)
	b = appendCount16(b, len(t.Env))
	for _, k := range gpuai.EnvNames(t.Env) {
		b = AppendStr(AppendStr(b, k), t.Env[k])
	}
	return AppendStr(b, t.Cwd)
}

// checkTask says why ReadTask would not take b, without allocating, and returns
// the stop grace. What gpuai's Validate says of the texts is not repeated: the
// machine only keeps them.
func checkTask(b []byte) (stopGrace int64, err error) {
	r := Reader{b: b}
	stopGrace = r.within(r.I64(), 0, int64(gpuai.Hour))
	r.text()
	for range r.count16(gpuai.MaxCommand) {
		r.Blob()
	}
	r.Blob()
	var last []byte
	for i := range r.count16(gpuai.MaxEnv) {
		k := r.text()
		if i > 0 && bytes.Compare(last, k) >= 0 {
			r.Fail("the environment is out of order")
			break
		}
		last = k
		r.Blob()
	}
	r.limited(maxCwd)
	return stopGrace, r.Done()
}

// ReadTask reads what a task runs.
func ReadTask(b []byte) (gpuai.TaskSpec, error) {
	if _, err := checkTask(b); err != nil {
		return gpuai.TaskSpec{}, err
	}
	r := NewReader(b)
	t := gpuai.TaskSpec{StopGrace: gpuai.Duration(r.I64()), Runtime: r.Str()}
	for range r.U16() {
		t.Command = append(t.Command, r.Str())
	}
	t.Script = r.Str()
	if n := int(r.U16()); n > 0 {
		t.Env = make(map[string]string, n)
		for range n {
			k := r.Str()
			t.Env[k] = r.Str()
		}
	}
	t.Cwd = r.Str()
	return t, r.Done()
}
