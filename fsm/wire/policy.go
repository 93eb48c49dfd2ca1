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
