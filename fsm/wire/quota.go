package wire

import "github.com/gpuai/gpuai"

// AppendQuota appends a quota: a byte of which numbers there are, these, the models,
// the cohort.
func AppendQuota(b []byte, q *gpuai.Quota) []byte {
	var mask uint8
	nums := quotaNumbers(q)
	for i, n := range nums {
		if *n != nil {
			mask |= 1 << i
		}
	}
	if q.CPU != nil {
		mask |= quotaCPU
	}
	if q.Memory != nil {
		mask |= quotaMemory
	}
	b = append(b, mask)
	for _, n := range nums {
		if *n != nil {
			b = le.AppendUint32(b, **n)
		}
	}
	if q.CPU != nil {
		b = appendI64(b, int64(*q.CPU))
	}
	if q.Memory != nil {
		b = appendI64(b, int64(*q.Memory))
	}
	b = append(b, uint8(min(len(q.Models), 255)))
	for i := range q.Models[:min(len(q.Models), 255)] {
		b = le.AppendUint32(AppendStr(b, q.Models[i].Model), q.Models[i].GPUs)
	}
	return AppendStr(b, q.Cohort)
}

// Bits of a quota's mask behind those of quotaNumbers.
const (
	quotaCPU    = 1 << 6
	quotaMemory = 1 << 7
)

func quotaNumbers(q *gpuai.Quota) [5]**uint32 {
	return [...]**uint32{&q.GPUs, &q.RunningJobs, &q.PendingJobs, &q.RequestsPerSecond, &q.BorrowGPUs}
}

// ReadQuota reads a quota. What its Validate says is not checked.
func ReadQuota(r *Reader) (q gpuai.Quota, err error) {
	mask := r.U8()
	if mask&(1<<5) != 0 {
		r.Fail("a quota has a number that is not known")
	}
	for i, n := range quotaNumbers(&q) {
		if mask>>i&1 != 0 {
			x := r.U32()
			*n = &x
		}
	}
	if mask&quotaCPU != 0 {
		x := gpuai.MilliCPU(r.I64())
		q.CPU = &x
	}
	if mask&quotaMemory != 0 {
		x := gpuai.Bytes(r.I64())
		q.Memory = &x
	}
	for range r.count8(gpuai.MaxQuotaModels) {
		q.Models = append(q.Models, gpuai.ModelQuota{Model: string(r.text()), GPUs: r.U32()})
	}
	q.Cohort = string(r.text())
	return q, r.err
}
