package wire

import (
	"bytes"
	"slices"

	"github.com/gpuai/gpuai"
)

// The layout of a job spec:
//
//	version:u8 type class priority:u8 groups:u8 queue_time run_time lease_ttl:i64
//	array:u32 name tenant, then each group:
//	count:u32 gang:u8 on:u8 attempts:u32 backoff stop_grace:i64 name shape task
//
// where name, tenant, shape and task have their length in front. The shape is
// canonical: equal needs have equal bytes, and the scheduler knows them by that.
const specVersion = 1

// A JobView is what the machine needs of a job spec: numbers, and views of the
// spec's bytes.
type JobView struct {
	Type, Class, Priority uint8
	NumGroups             uint8
	ArraySize             uint32
	QueueTime, RunTime    int64
	LeaseTTL              int64
	Name, Tenant          []byte
	Groups                [gpuai.MaxGroups]GroupView
}

// A GroupView is what the machine needs of a group.
type GroupView struct {
	Count     uint32
	Attempts  uint32
	Gang      bool
	On        uint8 // gpuai.RestartOn
	Backoff   int64
	StopGrace int64
	Name      []byte
	Shape     []byte
	Task      []byte
}

// AppendJobSpec appends a spec, which must be valid after Defaults.
func AppendJobSpec(b []byte, s *gpuai.JobSpec) []byte {
	b = append(b, specVersion, uint8(s.Type), uint8(s.Class), uint8(s.Priority), uint8(len(s.Groups)))
	b = appendI64(b, int64(s.Limits.QueueTime))
	b = appendI64(b, int64(s.Limits.RunTime))
	b = appendI64(b, int64(s.LeaseTTL))
	b = le.AppendUint32(b, s.Array.Size)
	b = AppendStr(b, s.Name)
	b = AppendStr(b, string(s.Tenant))
	for i := range s.Groups {
		b = appendGroup(b, &s.Groups[i])
	}
	return b
}

func appendGroup(b []byte, g *gpuai.Group) []byte {
	b = le.AppendUint32(b, g.Count)
	b = appendBool(b, g.Gang)
	b = append(b, uint8(g.Restart.Set()))
	b = le.AppendUint32(b, g.Restart.Attempts)
	b = appendI64(b, int64(g.Restart.Backoff))
	b = appendI64(b, int64(g.Task.StopGrace))
	b = AppendStr(b, g.Name)
	var buf [512]byte
	b = AppendBytes(b, AppendShape(buf[:0], &g.Resources, g.Constraints))
	return AppendBytes(b, appendTask(buf[:0], &g.Task))
}

// ReadJobView reads the spec in b into v, as views of b. It checks every limit
// that the machine relies on.
func ReadJobView(b []byte, v *JobView) error {
	r := Reader{b: b}
	if r.U8() != specVersion {
		return ErrMalformed
	}
	v.Type, v.Class, v.Priority, v.NumGroups = r.U8(), r.U8(), r.U8(), r.U8()
	v.QueueTime = r.within(r.I64(), 0, int64(gpuai.MaxDuration))
	v.RunTime = r.within(r.I64(), 0, int64(gpuai.MaxDuration))
	v.LeaseTTL = r.within(r.I64(), 0, int64(gpuai.MaxLeaseTTL))
	v.ArraySize = uint32(r.within(int64(r.U32()), 0, gpuai.MaxTasks))
	v.Name, v.Tenant = r.Blob(), r.Blob()
	if r.err != nil {
		return r.err
	}
	if v.Type > uint8(gpuai.Train) || v.Class == 0 || int(v.Class) >= gpuai.NumClasses ||
		v.Priority > uint8(gpuai.MaxPriority) || v.NumGroups == 0 || v.NumGroups > gpuai.MaxGroups ||
		!validName(v.Name) || !validName(v.Tenant) || v.ArraySize > 0 && v.NumGroups > 1 {
		return ErrMalformed
	}
	for i := range v.Groups[:v.NumGroups] {
		if err := readGroup(&r, &v.Groups[i]); err != nil {
			return err
		}
	}
	return r.Done()
}

func readGroup(r *Reader, g *GroupView) error {
	g.Count = uint32(r.within(int64(r.U32()), 1, gpuai.MaxTasks))
	g.Gang = r.bool()
	g.On = uint8(r.within(int64(r.U8()), 0, int64(gpuai.OnFailure|gpuai.OnNodeLost|gpuai.OnGPUError)))
	g.Attempts = uint32(r.within(int64(r.U32()), 0, gpuai.MaxAttempts))
	g.Backoff = r.within(r.I64(), 0, int64(gpuai.MaxBackoff))
	g.StopGrace = r.within(r.I64(), 0, int64(gpuai.Hour))
	g.Name, g.Shape, g.Task = r.Blob(), r.Blob(), r.Blob()
	if r.err != nil {
		return r.err
	}
	if !validName(g.Name) || g.Gang && g.Count > gpuai.MaxGangTasks {
		return ErrMalformed
	}
	return checkShape(g.Shape)
}

// validName is gpuai.ValidName of bytes.
func validName(b []byte) bool {
	if len(b) == 0 || len(b) > gpuai.MaxNameLen || b[0] == '-' || b[len(b)-1] == '-' {
		return false
	}
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// ReadJobSpec reads a spec in its edge form.
func ReadJobSpec(b []byte) (gpuai.JobSpec, error) {
	var v JobView
	if err := ReadJobView(b, &v); err != nil {
		return gpuai.JobSpec{}, err
	}
	s := gpuai.JobSpec{
		Name: string(v.Name), Tenant: gpuai.TenantID(v.Tenant), Type: gpuai.JobType(v.Type),
		Class: gpuai.Class(v.Class), Priority: gpuai.Priority(v.Priority),
		Limits:   gpuai.Limits{QueueTime: gpuai.Duration(v.QueueTime), RunTime: gpuai.Duration(v.RunTime)},
		Array:    gpuai.Array{Size: v.ArraySize},
		LeaseTTL: gpuai.Duration(v.LeaseTTL),
	}
	for i := range v.Groups[:v.NumGroups] {
		g, err := v.Groups[i].spec()
		if err != nil {
			return gpuai.JobSpec{}, err
		}
		s.Groups = append(s.Groups, g)
	}
	return s, nil
}

func (v *GroupView) spec() (gpuai.Group, error) {
	g := gpuai.Group{
		Name: string(v.Name), Count: v.Count, Gang: v.Gang,
		Restart: gpuai.Restart{Attempts: v.Attempts, Backoff: gpuai.Duration(v.Backoff), On: []gpuai.RestartCause{}},
	}
	for c := gpuai.CauseFailure; c <= gpuai.CauseGPUError; c++ {
		if v.On>>c&1 != 0 {
			g.Restart.On = append(g.Restart.On, c)
		}
	}
	var err error
	if g.Resources, g.Constraints, err = ReadShape(v.Shape); err != nil {
		return g, err
	}
	if g.Task, err = ReadTask(v.Task); err != nil {
		return g, err
	}
	g.Task.StopGrace = gpuai.Duration(v.StopGrace)
	return g, nil
}

// AppendShape appends the canonical form of what a task needs: constraints
// sorted and each once, the values of in and not_in too.
func AppendShape(b []byte, r *gpuai.Resources, cs []gpuai.Constraint) []byte {
	b = appendI64(b, int64(r.CPU))
	b = appendI64(b, int64(r.Memory))
	b = append(b, uint8(r.GPU.Count), uint8(len(r.GPU.Any)))
	b = le.AppendUint16(b, uint16(r.GPU.Share.Milli))
	for i := range r.GPU.Any {
		a := &r.GPU.Any[i]
		b = AppendStr(AppendStr(b, a.Vendor), a.Model)
		b = appendI64(appendI64(b, int64(a.MemoryMin)), int64(a.MemoryMax))
	}
	if len(cs) == 0 {
		return append(b, 0)
	}
	encoded := make([][]byte, 0, len(cs))
	for i := range cs {
		encoded = append(encoded, appendConstraint(nil, &cs[i]))
	}
	slices.SortFunc(encoded, bytes.Compare)
	encoded = slices.CompactFunc(encoded, bytes.Equal)
	b = append(b, uint8(len(encoded)))
	for _, e := range encoded {
		b = append(b, e...)
	}
	return b
}

func appendConstraint(b []byte, c *gpuai.Constraint) []byte {
	b = append(AppendStr(b, c.Attribute), uint8(c.Op))
	values := c.Values
	if c.Op == gpuai.In || c.Op == gpuai.NotIn {
		values = slices.Clone(values)
		slices.Sort(values)
		values = slices.Compact(values)
	}
	b = append(b, uint8(len(values)))
	for _, v := range values {
		b = AppendStr(b, v)
	}
	return b
}

// checkShape reports whether ReadShape would take b, without allocating.
func checkShape(b []byte) error {
	r := Reader{b: b}
	r.within(r.I64(), 0, int64(gpuai.MaxCPU)-1)
	r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)
	count := r.within(int64(r.U8()), 0, gpuai.MaxGPUs)
	alts := r.within(int64(r.U8()), 0, gpuai.MaxAlternatives)
	share := r.within(int64(r.U16()), 0, int64(gpuai.WholeDevice)-1)
	if r.err != nil || share > 0 && count != 1 || alts > 0 && count == 0 {
		return ErrMalformed
	}
	for range alts {
		r.text(r.Blob())
		r.text(r.Blob())
		r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)
		r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)
	}
	for range r.within(int64(r.U8()), 0, gpuai.MaxConstraints) {
		r.text(r.Blob())
		r.within(int64(r.U8()), 0, int64(gpuai.AtLeast))
		for range r.within(int64(r.U8()), 1, gpuai.MaxValues) {
			r.text(r.Blob())
		}
		if r.err != nil {
			return r.err
		}
	}
	return r.Done()
}

// text checks the length of a text.
func (r *Reader) text(b []byte) {
	if len(b) > gpuai.MaxTextLen {
		r.Fail("a text is too long")
	}
}

// ReadShape reads what a task needs.
func ReadShape(b []byte) (gpuai.Resources, []gpuai.Constraint, error) {
	if err := checkShape(b); err != nil {
		return gpuai.Resources{}, nil, err
	}
	r := NewReader(b)
	out := gpuai.Resources{CPU: gpuai.MilliCPU(r.I64()), Memory: gpuai.Bytes(r.I64())}
	out.GPU.Count = uint32(r.U8())
	alts := r.U8()
	out.GPU.Share.Milli = gpuai.Milli(r.U16())
	for range alts {
		out.GPU.Any = append(out.GPU.Any, gpuai.GPUAlternative{
			Vendor: r.Str(), Model: r.Str(), MemoryMin: gpuai.Bytes(r.I64()), MemoryMax: gpuai.Bytes(r.I64()),
		})
	}
	var cs []gpuai.Constraint
	for range r.U8() {
		c := gpuai.Constraint{Attribute: r.Str(), Op: gpuai.Op(r.U8())}
		for range r.U8() {
			c.Values = append(c.Values, r.Str())
		}
		cs = append(cs, c)
	}
	return out, cs, r.Done()
}

func appendTask(b []byte, t *gpuai.TaskSpec) []byte {
	b = AppendStr(b, t.Runtime)
	b = le.AppendUint16(b, uint16(len(t.Command)))
	for _, a := range t.Command {
		b = AppendStr(b, a)
	}
	b = AppendStr(b, t.Script)
	b = le.AppendUint16(b, uint16(len(t.Env)))
	for _, k := range gpuai.EnvNames(t.Env) {
		b = AppendStr(AppendStr(b, k), t.Env[k])
	}
	return AppendStr(b, t.Cwd)
}

// ReadTask reads what a task runs. Its stop grace is the group's.
func ReadTask(b []byte) (gpuai.TaskSpec, error) {
	r := NewReader(b)
	t := gpuai.TaskSpec{Runtime: r.Str()}
	for range r.within(int64(r.U16()), 0, gpuai.MaxCommand) {
		t.Command = append(t.Command, r.Str())
		if r.err != nil {
			return t, r.err
		}
	}
	t.Script = r.Str()
	if n := r.within(int64(r.U16()), 0, gpuai.MaxEnv); n > 0 && r.err == nil {
		t.Env = make(map[string]string, n)
		last := ""
		for i := range n {
			k := r.Str()
			if i > 0 && k <= last {
				r.Fail("the environment is out of order")
			}
			t.Env[k], last = r.Str(), k
			if r.err != nil {
				return t, r.err
			}
		}
	}
	t.Cwd = r.Str()
	return t, r.Done()
}
