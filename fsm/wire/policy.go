package wire

import "github.com/gpuai/gpuai"

// AppendPolicy appends a policy: its durations, its numbers, its priorities.
func AppendPolicy(b []byte, p *gpuai.Policy) []byte {
	for _, d := range durationsOf(p) {
		b = appendI64(b, int64(*d))
	}
	for _, n := range numbersOf(p) {
		b = le.AppendUint32(b, *n)
	}
	for _, q := range prioritiesOf(p) {
		b = append(b, uint8(*q))
	}
	return b
}

// ReadPolicyFrom reads a policy. What its Validate says is not checked.
func ReadPolicyFrom(r *Reader) (gpuai.Policy, error) {
	var p gpuai.Policy
	for _, d := range durationsOf(&p) {
		*d = gpuai.Duration(r.I64())
	}
	for _, n := range numbersOf(&p) {
		*n = r.U32()
	}
	for _, q := range prioritiesOf(&p) {
		*q = gpuai.Priority(r.U8())
	}
	return p, r.err
}

func durationsOf(p *gpuai.Policy) [14]*gpuai.Duration {
	return [...]*gpuai.Duration{
		&p.TTLInference, &p.TTLTraining, &p.TTLFinetune, &p.TTLBatch, &p.Heartbeat, &p.Grace,
		&p.BeatEvery, &p.SuspectAfter, &p.KillBudget, &p.Slack, &p.ResultTTL, &p.BreakerWindow,
		&p.FlapWindow, &p.FlapBackoff,
	}
}

func numbersOf(p *gpuai.Policy) [5]*uint32 {
	return [...]*uint32{&p.RateBoundPPM, &p.BreakerMin, &p.BreakerPPM, &p.BreakerRatePPM, &p.FlapLimit}
}

func prioritiesOf(p *gpuai.Policy) [4]*gpuai.Priority {
	return [...]*gpuai.Priority{&p.PriorityInference, &p.PriorityTraining, &p.PriorityFinetune, &p.PriorityBatch}
}

// A setting is one setting of a policy as a number.
type setting struct {
	duration *gpuai.Duration
	number   *uint32
	flag     *bool
	enum     *uint8
}

func (s setting) get() int64 {
	switch {
	case s.duration != nil:
		return int64(*s.duration)
	case s.number != nil:
		return int64(*s.number)
	case s.enum != nil:
		return int64(*s.enum)
	case *s.flag:
		return 1
	default:
		return 0
	}
}

func (s setting) set(v int64) (ok bool) {
	switch {
	case s.duration != nil:
		*s.duration = gpuai.Duration(v)
	case s.number != nil:
		*s.number, ok = uint32(v), v == int64(uint32(v))
		return ok
	case s.enum != nil:
		*s.enum, ok = uint8(v), v == int64(uint8(v))
		return ok
	default:
		*s.flag = v == 1
		return v == 0 || v == 1
	}
	return true
}

// settingsOf returns the settings that feature level 3 brought. New ones go to
// the end.
func settingsOf(p *gpuai.Policy) []setting {
	return []setting{
		{duration: &p.AgingEvery},
		{enum: (*uint8)(&p.Packing)},
		{duration: &p.UsageHalfLife},
		{number: &p.PreemptionGap}, {duration: &p.PreemptionProtect},
		{flag: &p.PreemptibleInference}, {flag: &p.PreemptibleTraining},
		{flag: &p.PreemptibleFinetune}, {flag: &p.PreemptibleBatch},
		{duration: &p.CheckpointMax},
		{duration: &p.GangReadyMax},
		{enum: (*uint8)(&p.Exec)},
		{duration: (*gpuai.Duration)(&p.AskMin)}, {duration: (*gpuai.Duration)(&p.AskMax)},
	}
}

// allOrNone is how many of them are written whenever any is. What came later is
// written up to the last that is off its default.
const allOrNone = 11

// AppendSettings appends the settings that feature level 3 brought, each as
// eight bytes, of a policy that has any of them off its default; else nothing,
// so that it is the policy as older builds write it.
func AppendSettings(b []byte, p *gpuai.Policy) []byte {
	d := gpuai.DefaultPolicy()
	of, defaults, n := settingsOf(p), settingsOf(&d), 0
	for i := range of {
		if of[i].get() != defaults[i].get() {
			n = max(allOrNone, i+1)
		}
	}
	for _, s := range of[:n] {
		b = appendI64(b, s.get())
	}
	return b
}

// ReadSettings reads what AppendSettings wrote into p: defaults where nothing
// is left to read.
func ReadSettings(r *Reader, p *gpuai.Policy) (extended bool, err error) {
	d := gpuai.DefaultPolicy()
	defaults, of := settingsOf(&d), settingsOf(p)
	extended = len(r.b) > 0
	n := min(len(r.b)/8, len(of))
	if extended {
		n = max(n, allOrNone)
	}
	other := !extended
	for i, s := range of {
		v := defaults[i].get()
		if i < n {
			v = r.I64()
		}
		if !s.set(v) {
			r.Fail("a setting of the policy is out of range")
		}
		if i < allOrNone {
			other = other || v != defaults[i].get()
		} else if i == n-1 { // the last must be there for a reason
			other = v != defaults[i].get()
		}
	}
	if !other {
		r.Fail("a policy has settings that it need not have")
	}
	return extended, r.err
}
