package gpuai

import "strconv"

// Limits of quotas.
const (
	// MaxQuotaModels is how many models a quota may bound.
	MaxQuotaModels = 8
	// MaxCohortMembers is how many tenants may share what they leave idle.
	MaxCohortMembers = 64
	// MaxQuotaGPUs is the highest bound on devices.
	MaxQuotaGPUs = 1 << 24
	// MaxQuotaCPU and MaxQuotaMemory are the highest bounds on CPU and memory: what
	// all members of a cohort may have has a sum.
	MaxQuotaCPU    MilliCPU = 1 << 48
	MaxQuotaMemory Bytes    = 1 << 56
	// MaxQuotaJobs is the highest bound on jobs, and on requests by the second.
	MaxQuotaJobs = 1 << 24
)

// A Quota bounds what a tenant may have at a time. What is absent is not bounded.
// Devices of leases that are being revoked count until they have ended.
type Quota struct {
	// GPUs bounds the devices of all models; of a share its part counts.
	GPUs *uint32 `json:"gpus,omitempty"`
	// Models bounds the devices of single models.
	Models []ModelQuota `json:"models,omitempty"`
	CPU    *MilliCPU    `json:"cpu_milli,omitempty"`
	Memory *Bytes       `json:"memory_bytes,omitempty"`
	// RunningJobs bounds the jobs that hold a lease, PendingJobs those that have
	// not ended and hold none: at it, submits are refused.
	RunningJobs *uint32 `json:"running_jobs,omitempty"`
	PendingJobs *uint32 `json:"pending_jobs,omitempty"`
	// RequestsPerSecond bounds the requests to the API of each server; 0 as 1. It
	// stands before what a server was told (--tenant-rate).
	RequestsPerSecond *uint32 `json:"requests_per_second,omitempty"`
	// Cohort names the tenants that lend each other what they leave idle of the
	// devices, CPU and memory in their quotas; "" is none. What is lent is taken
	// back, by preemption, when its owner has work for it.
	Cohort string `json:"cohort,omitzero"`
	// BorrowGPUs bounds the devices beyond GPUs that the tenant may borrow.
	BorrowGPUs *uint32 `json:"borrow_gpus,omitempty"`
}

// A ModelQuota bounds the devices of one model.
type ModelQuota struct {
	Model string `json:"model"`
	GPUs  uint32 `json:"gpus"`
}

// Validate says what is wrong with a quota; nil means nothing.
func (q *Quota) Validate() []FieldError {
	var v fieldErrors
	upTo := func(at string, n *uint32, most uint32) {
		v.check(n == nil || *n <= most, at, "must be at most "+strconv.FormatUint(uint64(most), 10))
	}
	upTo("/gpus", q.GPUs, MaxQuotaGPUs)
	upTo("/borrow_gpus", q.BorrowGPUs, MaxQuotaGPUs)
	upTo("/running_jobs", q.RunningJobs, MaxQuotaJobs)
	upTo("/pending_jobs", q.PendingJobs, MaxQuotaJobs)
	upTo("/requests_per_second", q.RequestsPerSecond, MaxQuotaJobs)
	v.check(q.CPU == nil || *q.CPU >= 0 && *q.CPU <= MaxQuotaCPU, "/cpu_milli", "must be 0 to "+strconv.FormatInt(int64(MaxQuotaCPU), 10))
	v.check(q.Memory == nil || *q.Memory >= 0 && *q.Memory <= MaxQuotaMemory, "/memory_bytes", "must be 0 to "+strconv.FormatInt(int64(MaxQuotaMemory), 10))
	v.check(len(q.Models) <= MaxQuotaModels, "/models", "bounds at most "+strconv.Itoa(MaxQuotaModels)+" models")
	for i := range q.Models {
		at := "/models/" + strconv.Itoa(i)
		m := &q.Models[i]
		v.check(m.Model != "" && len(m.Model) <= MaxTextLen, at+"/model", "must be the name of a model")
		upTo(at+"/gpus", &m.GPUs, MaxQuotaGPUs)
		for k := range i {
			v.check(q.Models[k].Model != m.Model, at+"/model", "is given twice")
		}
	}
	if q.Cohort != "" {
		v.name("/cohort", q.Cohort)
	}
	v.check(q.BorrowGPUs == nil || q.Cohort != "" && q.GPUs != nil, "/borrow_gpus", "needs a cohort to borrow from, and gpus beyond which it borrows")
	return v
}

// A QuotaUse is what counts against a quota now.
type QuotaUse struct {
	GPUMilli    uint64     `json:"gpu_milli"`
	Models      []ModelUse `json:"models,omitempty"` // those that the quota bounds
	CPU         MilliCPU   `json:"cpu_milli"`
	Memory      Bytes      `json:"memory_bytes"`
	RunningJobs uint32     `json:"running_jobs"`
	PendingJobs uint32     `json:"pending_jobs"`
}

// A ModelUse is what counts against the bound on one model.
type ModelUse struct {
	Model    string `json:"model"`
	GPUMilli uint64 `json:"gpu_milli"`
}

// A QuotaStatus is a tenant's quota and what it uses of it.
type QuotaStatus struct {
	Tenant TenantID `json:"tenant"`
	Quota  Quota    `json:"quota"`
	Use    QuotaUse `json:"use"`
	// Waiting is how many groups of jobs wait for the quota or the budget alone:
	// nobody has looked for room for them.
	Waiting uint32 `json:"waiting"`
}
