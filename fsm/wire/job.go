package wire

import "github.com/gpuai/gpuai"

// The layout of a job spec:
//
//	version type class priority groups:u8 queue_time run_time lease_ttl:i64
//	array:u32 name tenant, then each group:
//	count:u32 gang on:u8 attempts:u32 backoff:i64 name shape task
//
// where name, tenant, shape and task have their length in front. Shape is what
// AppendShape writes and task what appendTask writes. A spec that uses fields
// of a later feature level is of version 2 and has them behind its groups, see
// ext.go.
const (
	specVersion    = 1
	specVersionExt = 2
)

// maxOn is the set of all causes of a restart.
const maxOn = gpuai.OnFailure | gpuai.OnNodeLost | gpuai.OnGPUError

// A JobView is what the machine needs of a job spec: numbers within the limits
// of package gpuai, and views of the spec's bytes. Groups from NumGroups on are
// left as they were.
type JobView struct {
	Type, Class, Priority uint8
	NumGroups             uint8
	ArraySize             uint32
	QueueTime, RunTime    int64 // ms; 0: no bound
	LeaseTTL              int64 // ms; 0: the class's
	Name, Tenant          []byte
	Groups                [gpuai.MaxGroups]GroupView
	// Extended: it has fields that feature level 3 brought.
	Extended bool
	Begin    int64 // wall time, ms; 0: at once
	// Preemptible: whether it says that it gives room up.
	Preemptible Said
	// Same and Near are gpuai.Topology.
	Same, Near uint8
	Together   bool
	NumAfter   uint8
	After      [gpuai.MaxAfter]gpuai.JobDependency // from NumAfter on left as they were
	// MaxParallel bounds the leases of an array at a time; 0: no bound.
	MaxParallel uint32
}

// Said is a yes or no that may be left out.
type Said uint8

// What may be said.
const (
	SaidNothing Said = iota
	SaidNo
	SaidYes
)

// A GroupView is what the machine needs of a group.
type GroupView struct {
	Count     uint32
	MinCount  uint32 // 0: not elastic
	Attempts  uint32
	Gang      bool
	On        uint8 // gpuai.RestartOn
	Backoff   int64 // ms
	StopGrace int64 // ms; the task's
	Name      []byte
	Shape     []byte // for ReadShape; equal needs have equal bytes
	Task      []byte // for ReadTask
	// Checkpoint is the task's.
	Checkpoint gpuai.Checkpoint
	// Image is the task's image and arguments, for ReadTask; nil without.
	Image []byte
	// Scratch and Shm are as in gpuai.Resources.
	Scratch, Shm gpuai.Bytes
	// Network is what a task with an image may reach.
	Network gpuai.Network
	// Launcher is the task's.
	Launcher gpuai.Launcher
	// Secrets are the task's, for ReadSecrets; nil without.
	Secrets []byte
}

// AppendJobSpec appends a spec, which must be valid after Defaults. Of what has
// no order (constraints, values of in and not_in, causes of a restart) the order
// is not kept.
func AppendJobSpec(b []byte, s *gpuai.JobSpec) []byte {
	at := len(b)
	b = append(b, specVersion, uint8(s.Type), uint8(s.Class), uint8(s.Priority))
	b = appendCount8(b, len(s.Groups))
	b = appendI64(b, int64(s.Limits.QueueTime))
	b = appendI64(b, int64(s.Limits.RunTime))
	b = appendI64(b, int64(s.LeaseTTL))
	b = le.AppendUint32(b, s.Array.Size)
	b = AppendStr(b, s.Name)
	b = AppendStr(b, string(s.Tenant))
	for i := range s.Groups {
		b = appendGroup(b, &s.Groups[i])
	}
	n := len(b)
	if b = appendExtensions(b, s); len(b) > n {
		b[at] = specVersionExt
	}
	return b
}

func appendGroup(b []byte, g *gpuai.Group) []byte {
	b = le.AppendUint32(b, g.Count)
	b = appendBool(b, g.Gang)
	b = append(b, uint8(g.Restart.Set()))
	b = le.AppendUint32(b, g.Restart.Attempts)
	b = appendI64(b, int64(g.Restart.Backoff))
	b = AppendStr(b, g.Name)
	var buf [512]byte
	b = AppendBytes(b, AppendShape(buf[:0], &g.Resources, g.Constraints))
	return AppendBytes(b, appendTask(buf[:0], &g.Task))
}

// ReadJobView reads the spec in b into v, as views of b. It checks every limit
// that the machine relies on, and that ReadShape and ReadTask will take the
// groups' shapes and tasks. It allocates nothing but an error.
func ReadJobView(b []byte, v *JobView) error {
	r := Reader{b: b}
	version := r.U8()
	if len(b) > gpuai.MaxSpecBytes || version != specVersion && version != specVersionExt {
		return ErrMalformed
	}
	v.Extended = version == specVersionExt
	v.Type = uint8(r.within(int64(r.U8()), 0, int64(gpuai.Train)))
	v.Class = uint8(r.within(int64(r.U8()), 1, int64(gpuai.NumClasses)-1))
	v.Priority = uint8(r.within(int64(r.U8()), 0, int64(gpuai.MaxPriority)))
	v.NumGroups = uint8(r.within(int64(r.U8()), 1, gpuai.MaxGroups))
	v.QueueTime = r.within(r.I64(), 0, int64(gpuai.MaxDuration))
	v.RunTime = r.within(r.I64(), 0, int64(gpuai.MaxDuration))
	v.LeaseTTL = r.within(r.I64(), 0, int64(gpuai.MaxLeaseTTL))
	v.ArraySize = uint32(r.within(int64(r.U32()), 0, gpuai.MaxTasks))
	v.Name, v.Tenant = r.name(), r.name()
	most := gpuai.MaxConstraints
	if !v.Extended { // what it has no sandbox for, and builds below the level do not take
		most = gpuai.MaxOwnConstraints
	}
	var tasks uint64
	for i := range v.Groups[:v.NumGroups] {
		r.group(&v.Groups[i], most)
		tasks += uint64(v.Groups[i].Count)
	}
	r.extensions(v)
	if tasks > gpuai.MaxTasks {
		r.Fail("the job has too many tasks")
	}
	if v.MaxParallel > v.ArraySize {
		r.Fail("only an array has a bound of parallel elements, of at most its size")
	}
	if g := &v.Groups[0]; v.ArraySize > 0 && (v.NumGroups > 1 || g.Gang || g.Count != v.ArraySize) {
		r.Fail("an array has one group, of its size, that is no gang")
	}
	if v.Together && (v.ArraySize > 0 || tasks > gpuai.MaxGangTasks) {
		r.Fail("groups that start together are an array, or too many tasks")
	}
	return r.Done()
}

// group reads a group with at most so many constraints.
func (r *Reader) group(g *GroupView, constraints int) {
	g.Count = uint32(r.within(int64(r.U32()), 1, gpuai.MaxTasks))
	if g.Gang = r.bool(); g.Gang && g.Count > gpuai.MaxGangTasks {
		r.Fail("a gang is too large")
	}
	g.On = uint8(r.within(int64(r.U8()), 0, int64(maxOn)))
	g.Attempts = uint32(r.within(int64(r.U32()), 0, gpuai.MaxAttempts))
	g.Backoff = r.within(r.I64(), 0, int64(gpuai.MaxBackoff))
	g.Name, g.Shape, g.Task = r.name(), r.Blob(), r.Blob()
	if r.err == nil {
		r.err = checkShape(g.Shape, constraints)
	}
	if r.err == nil {
		g.StopGrace, r.err = checkTask(g.Task)
	}
}

// name reads a view of a text that must be a gpuai.ValidName.
func (r *Reader) name() []byte {
	b := r.limited(gpuai.MaxNameLen)
	if r.err == nil && !validName(b) {
		r.Fail("a name is malformed")
	}
	return b
}

// validName is gpuai.ValidName of bytes: a conversion would allocate.
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
		Array:    gpuai.Array{Size: v.ArraySize, MaxParallel: v.MaxParallel},
		LeaseTTL: gpuai.Duration(v.LeaseTTL),
		Begin:    gpuai.WallTime(v.Begin), Together: v.Together, Preemptible: v.Preemptible.edge(),
		Placement: gpuai.Placement{Same: gpuai.Topology(v.Same), Near: gpuai.Topology(v.Near)},
		Groups:    make([]gpuai.Group, 0, v.NumGroups),
	}
	if v.NumAfter > 0 {
		s.After = append(s.After, v.After[:v.NumAfter]...)
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

// edge is how a spec says it.
func (s Said) edge() *bool {
	if s == SaidNothing {
		return nil
	}
	yes := s == SaidYes
	return &yes
}

func (v *GroupView) spec() (gpuai.Group, error) {
	g := gpuai.Group{
		Name: string(v.Name), Count: v.Count, MinCount: v.MinCount, Gang: v.Gang,
		// An empty list is not an absent one: it means no restart at all.
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
	g.Resources.Scratch, g.Resources.Shm = v.Scratch, v.Shm
	g.Resources.Network = v.Network
	g.Task, err = v.ReadTask()
	return g, err
}

// ReadTask reads what the group's tasks run.
func (v *GroupView) ReadTask() (gpuai.TaskSpec, error) {
	t, err := ReadTask(v.Task)
	t.Checkpoint, t.Launcher = v.Checkpoint, v.Launcher
	if err == nil && v.Image != nil {
		err = readImage(v.Image, &t)
	}
	if err == nil {
		t.Secrets, err = ReadSecrets(v.Secrets)
	}
	return t, err
}
