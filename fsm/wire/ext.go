package wire

import "github.com/gpuai/gpuai"

// An extension field is one field of a spec that is not at its default and that
// feature level 3 brought: tag:u8 group:u8 value, the value with its length in
// front. They stand by group, the job's own first, then by tag, each once. A
// spec without any is of version 1, as builds write it that do not know them.
const (
	extBegin       = 1
	extAfter       = 2
	extMaxParallel = 3
	extPreemptible = 4
	extCheckpoint  = 5  // of a group: signal:u8 grace:i64
	extMinCount    = 6  // of a group: u32
	extPlacement   = 7  // same:u8 near:u8
	extTogether    = 8  // 1:u8
	extImage       = 9  // of a group: image args:u16 arg …
	extNetwork     = 10 // of a group: u8
	extDisk        = 11 // of a group: scratch shm:i64
	extLauncher    = 12 // of a group: kind:u8 procs:u32 restarts:u32
	extKeep        = 15 // of a group: checkpoints to keep:u8

	// Of feature level 4.
	extSecrets = 16 // of a group: count:u8, each: name kind:u8 env-or-path mode:u16
)

// extJob stands for the job itself in place of a group.
const extJob = 0

// appendExtensions appends the extension fields that a spec has.
func appendExtensions(b []byte, s *gpuai.JobSpec) []byte {
	if s.Begin != 0 {
		b = appendI64(append(b, extBegin, extJob, 8), int64(s.Begin))
	}
	if len(s.After) > 0 {
		buf := appendCount8(nil, len(s.After))
		for i := range s.After {
			buf = append(append(buf, s.After[i].Job[:]...), uint8(s.After[i].On))
		}
		b = AppendBytes(append(b, extAfter, extJob), buf)
	}
	if s.Array.MaxParallel != 0 {
		b = le.AppendUint32(append(b, extMaxParallel, extJob, 4), s.Array.MaxParallel)
	}
	if s.Preemptible != nil {
		v := byte(0)
		if *s.Preemptible {
			v = 1
		}
		b = append(b, extPreemptible, extJob, 1, v)
	}
	if s.Placement != (gpuai.Placement{}) {
		b = append(b, extPlacement, extJob, 2, uint8(s.Placement.Same), uint8(s.Placement.Near))
	}
	if s.Together {
		b = append(b, extTogether, extJob, 1, 1)
	}
	for i := range s.Groups {
		b = appendGroupExtensions(b, uint8(i)+1, &s.Groups[i])
	}
	return b
}

func appendGroupExtensions(b []byte, group uint8, g *gpuai.Group) []byte {
	if c := &g.Task.Checkpoint; c.Signal != 0 || c.Grace != 0 {
		b = appendI64(append(b, extCheckpoint, group, 9, byte(c.Signal)), int64(c.Grace))
	}
	if g.MinCount != 0 {
		b = le.AppendUint32(append(b, extMinCount, group, 4), g.MinCount)
	}
	if t := &g.Task; t.Image != "" || len(t.Args) > 0 {
		var buf [512]byte
		b = AppendBytes(append(b, extImage, group), appendImage(buf[:0], t))
	}
	if n := g.Resources.Network; n != gpuai.NetworkNone {
		b = append(b, extNetwork, group, 1, uint8(n))
	}
	if r := &g.Resources; r.Scratch != 0 || r.Shm != 0 {
		b = appendI64(appendI64(append(b, extDisk, group, 16), int64(r.Scratch)), int64(r.Shm))
	}
	if l := &g.Task.Launcher; *l != (gpuai.Launcher{}) {
		b = le.AppendUint32(append(b, extLauncher, group, 9, byte(l.Kind)), l.ProcsPerNode)
		b = le.AppendUint32(b, l.MaxRestarts)
	}
	if k := g.Task.Checkpoint.Keep; k != 0 {
		b = append(b, extKeep, group, 1, byte(min(k, 255)))
	}
	if s := g.Task.Secrets; len(s) > 0 {
		b = AppendBytes(append(b, extSecrets, group), appendSecrets(nil, s))
	}
	return b
}

func appendImage(b []byte, t *gpuai.TaskSpec) []byte {
	b = appendCount16(AppendStr(b, t.Image), len(t.Args))
	for _, a := range t.Args {
		b = AppendStr(b, a)
	}
	return b
}

// image checks an image and arguments, and returns a view of them.
func (r *Reader) image() []byte {
	whole := r.b
	image := r.limited(gpuai.MaxImageLen)
	n := r.count16(gpuai.MaxCommand)
	for range n {
		r.Blob()
	}
	if len(image) == 0 && n == 0 {
		r.Fail("neither an image nor arguments are said")
	}
	return whole
}

// readImage reads what image has checked.
func readImage(b []byte, t *gpuai.TaskSpec) error {
	r := Reader{b: b}
	t.Image = r.Str()
	for range r.U16() {
		t.Args = append(t.Args, r.Str())
	}
	return r.Done()
}

// extensions reads the extension fields of a spec.
func (r *Reader) extensions(v *JobView) {
	v.Begin, v.NumAfter, v.MaxParallel, v.Same, v.Near, v.Together, v.Preemptible = 0, 0, 0, 0, 0, false, SaidNothing
	for i := range v.Groups[:v.NumGroups] {
		g := &v.Groups[i]
		g.MinCount, g.Checkpoint, g.Image, g.Launcher = 0, gpuai.Checkpoint{}, nil, gpuai.Launcher{}
		g.Network, g.Scratch, g.Shm, g.Secrets = gpuai.NetworkNone, 0, 0, nil
	}
	if !v.Extended {
		return
	}
	if len(r.b) == 0 {
		r.Fail("a spec of version 2 has no field of it")
	}
	for last := 0; len(r.b) > 0; {
		tag, group := r.U8(), r.U8()
		at := int(group)<<8 | int(tag)
		if at <= last || group > v.NumGroups {
			r.Fail("the extension fields of a spec are not in order")
			return
		}
		last = at
		value := Reader{b: r.Blob()}
		if group == extJob {
			value.jobExtension(tag, v)
		} else {
			value.groupExtension(tag, &v.Groups[group-1])
		}
		if r.err == nil {
			r.err = value.Done()
		}
		if r.err != nil {
			r.b = nil
		}
	}
}

func (r *Reader) jobExtension(tag uint8, v *JobView) {
	switch tag {
	case extBegin:
		v.Begin = r.within(r.I64(), 1, int64(gpuai.MaxWallTime))
	case extPreemptible:
		v.Preemptible = Said(1 + r.within(int64(r.U8()), 0, 1))
	case extPlacement:
		v.Same = uint8(r.within(int64(r.U8()), 0, int64(gpuai.TopologyZone)))
		v.Near = uint8(r.within(int64(r.U8()), 0, int64(gpuai.TopologyZone)))
		if v.Same|v.Near == 0 || v.Same != 0 && v.Near >= v.Same {
			r.Fail("a placement says nothing, or is contradictory")
		}
	case extTogether:
		v.Together = r.within(int64(r.U8()), 1, 1) == 1
	case extAfter:
		v.NumAfter = uint8(r.within(int64(r.U8()), 1, gpuai.MaxAfter))
		for i := range v.After[:v.NumAfter] {
			copy(v.After[i].Job[:], r.Bytes(len(gpuai.JobID{})))
			v.After[i].On = gpuai.Stage(r.within(int64(r.U8()), 0, int64(gpuai.NumStages)-1))
		}
	case extMaxParallel:
		v.MaxParallel = uint32(r.within(int64(r.U32()), 1, int64(max(v.ArraySize, 1))))
	default:
		r.Fail("a spec has a field that this version does not know")
	}
}

func (r *Reader) groupExtension(tag uint8, g *GroupView) {
	switch tag {
	case extMinCount:
		if g.MinCount = uint32(r.within(int64(r.U32()), 1, int64(g.Count))); !g.Gang {
			r.Fail("what is no gang has a least count")
		}
	case extImage:
		g.Image = r.image()
	case extNetwork:
		g.Network = gpuai.Network(r.within(int64(r.U8()), 1, int64(gpuai.NumNetworks)-1))
	case extDisk:
		g.Scratch = gpuai.Bytes(r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1))
		if g.Shm = gpuai.Bytes(r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)); g.Scratch|g.Shm == 0 {
			r.Fail("neither scratch space nor shared memory is said")
		}
	case extSecrets:
		g.Secrets = r.secrets()
	case extKeep:
		g.Checkpoint.Keep = uint32(r.within(int64(r.U8()), 1, gpuai.MaxCheckpointKeep))
	case extCheckpoint:
		g.Checkpoint.Signal = gpuai.Signal(r.within(int64(r.U8()), 1, int64(gpuai.NumSignals)-1))
		g.Checkpoint.Grace = gpuai.Duration(r.within(r.I64(), 0, int64(gpuai.Hour)))
	case extLauncher:
		g.Launcher.Kind = gpuai.LauncherKind(r.within(int64(r.U8()), 1, int64(gpuai.NumLauncherKinds)-1))
		g.Launcher.ProcsPerNode = uint32(r.within(int64(r.U32()), 0, gpuai.MaxProcs))
		g.Launcher.MaxRestarts = uint32(r.within(int64(r.U32()), 0, gpuai.MaxProcRestart))
	default:
		r.Fail("a group has a field that this version does not know")
	}
}
