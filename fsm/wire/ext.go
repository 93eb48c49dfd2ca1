package wire

import "github.com/gpuai/gpuai"

// An extension field is one field of a spec that is not at its default and that
// feature level 3 brought: tag:u8 group:u8 value, the value with its length in
// front. They stand by group, the job's own first, then by tag, each once. A
// spec without any is of version 1, as builds write it that do not know them.
const (
	extBegin       = 1
	extPreemptible = 4
	extCheckpoint  = 5
)

// extJob stands for the job itself in place of a group.
const extJob = 0

// appendExtensions appends the extension fields that a spec has.
func appendExtensions(b []byte, s *gpuai.JobSpec) []byte {
	if s.Begin != 0 {
		b = appendI64(append(b, extBegin, extJob, 8), int64(s.Begin))
	}
	if s.Preemptible != nil {
		v := byte(0)
		if *s.Preemptible {
			v = 1
		}
		b = append(b, extPreemptible, extJob, 1, v)
	}
	for i := range s.Groups {
		if c := &s.Groups[i].Task.Checkpoint; *c != (gpuai.Checkpoint{}) {
			b = appendI64(append(b, extCheckpoint, byte(i)+1, 9, byte(c.Signal)), int64(c.Grace))
		}
	}
	return b
}

// extensions reads the extension fields of a spec.
func (r *Reader) extensions(v *JobView) {
	v.Begin, v.Preemptible = 0, 0
	for i := range v.Groups[:v.NumGroups] {
		v.Groups[i].Checkpoint = gpuai.Checkpoint{}
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
	default:
		r.Fail("a spec has a field that this version does not know")
	}
}

func (r *Reader) groupExtension(tag uint8, v *GroupView) {
	switch tag {
	case extCheckpoint:
		v.Checkpoint.Signal = gpuai.Signal(r.within(int64(r.U8()), 1, int64(gpuai.NumSignals)-1))
		v.Checkpoint.Grace = gpuai.Duration(r.within(r.I64(), 0, int64(gpuai.Hour)))
	default:
		r.Fail("a group has a field that this version does not know")
	}
}
