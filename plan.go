package gpuai

import "strconv"

// Limits of a plan.
const (
	MaxPlanJobs     = 100    // submits
	MaxPlanNodes    = 1_000  // names of each of drain, undrain and lose
	MaxPlanAdd      = 10_000 // nodes that are added, of all kinds together
	MaxPlanChanges  = 1_000  // changes that an answer lists
	maxPlanAddKinds = 100
)

// A PlanRequest is what a plan supposes: all of it at once, in the order of the
// fields. Nothing of it is stored.
type PlanRequest struct {
	// Policy is the region's policy as it would be.
	Policy *Policy `json:"policy,omitempty"`
	// Quotas, Budgets, Prices, and what operators and contributors say of nodes, are
	// set as their commands would.
	Quotas     []TenantQuota  `json:"quotas,omitempty"`
	Budgets    []TenantBudget `json:"budgets,omitempty"`
	Prices     *Prices        `json:"prices,omitempty"`
	NodePrices []NodePrice    `json:"node_prices,omitempty"`
	NodeAsks   []NodePrice    `json:"node_asks,omitempty"`
	Schedules  []NodeSchedule `json:"node_schedules,omitempty"`
	// Add registers new nodes.
	Add []PlanNodes `json:"add,omitempty"`
	// Undrain takes drained nodes back into use.
	Undrain []NodeID `json:"undrain,omitempty"`
	// Drain drains nodes.
	Drain []NodeID `json:"drain,omitempty"`
	// Lose has nodes fall silent for good: their leases expire.
	Lose []NodeID `json:"lose,omitempty"`
	// Submit submits jobs, in their order.
	Submit []JobSpec `json:"submit,omitempty"`
}

// A NodeSchedule is when a node may be used; without windows always.
type NodeSchedule struct {
	Node     NodeID   `json:"node"`
	Schedule Schedule `json:"schedule"`
}

// PlanNodes are equal nodes that a plan adds.
type PlanNodes struct {
	Count uint32 `json:"count"`
	Like  NodeID `json:"like"` // a registered node, whose description they share
}

// Validate says what is wrong with a request, but for what only a state can
// tell; nil means nothing. Defaults of the specs must have been filled in.
func (r *PlanRequest) Validate() []FieldError {
	var v fieldErrors
	if r.Policy != nil {
		v.within("/policy", r.Policy.Validate())
	}
	v.check(len(r.Submit) <= MaxPlanJobs, "/submit", "has at most "+strconv.Itoa(MaxPlanJobs)+" jobs")
	for i := range r.Submit {
		v.within("/submit/"+strconv.Itoa(i), r.Submit[i].Validate())
	}
	for _, l := range [...]struct {
		at    string
		nodes []NodeID
	}{{"/drain", r.Drain}, {"/undrain", r.Undrain}, {"/lose", r.Lose}} {
		v.check(len(l.nodes) <= MaxPlanNodes, l.at, "has at most "+strconv.Itoa(MaxPlanNodes)+" nodes")
	}
	total := uint64(0)
	for i := range r.Add {
		v.check(r.Add[i].Count > 0, "/add/"+strconv.Itoa(i)+"/count", "must be at least 1")
		total += uint64(r.Add[i].Count)
	}
	v.check(len(r.Add) <= maxPlanAddKinds, "/add", "has at most "+strconv.Itoa(maxPlanAddKinds)+" kinds of nodes")
	v.check(total <= MaxPlanAdd, "/add", "adds at most "+strconv.Itoa(MaxPlanAdd)+" nodes, not "+strconv.FormatUint(total, 10))
	for i := range r.Quotas {
		v.within("/quotas/"+strconv.Itoa(i)+"/quota", r.Quotas[i].Quota.Validate())
	}
	for i := range r.Budgets {
		v.within("/budgets/"+strconv.Itoa(i)+"/budget", r.Budgets[i].Budget.Validate())
	}
	if r.Prices != nil {
		v.within("/prices", r.Prices.Validate())
	}
	for i := range r.NodeAsks {
		v.check(r.NodeAsks[i].Price <= MaxPrice, "/node_asks/"+strconv.Itoa(i)+"/price_micros_per_gpu_hour", "must be at most "+MaxPrice.String())
	}
	for i := range r.Schedules {
		v.within("/node_schedules/"+strconv.Itoa(i)+"/schedule", r.Schedules[i].Schedule.Validate())
	}
	terms := len(r.Quotas) + len(r.Budgets) + len(r.NodePrices) + len(r.NodeAsks) + len(r.Schedules)
	v.check(terms <= MaxPlanJobs, "", "has at most "+strconv.Itoa(MaxPlanJobs)+" quotas, budgets, and prices and schedules of nodes together")
	empty := r.Policy == nil && r.Prices == nil && terms == 0 && len(r.Add)+len(r.Undrain)+len(r.Submit)+len(r.Drain)+len(r.Lose) == 0
	v.check(!empty, "", "supposes nothing: give at least one of policy, quotas, budgets, prices, node_prices, node_asks, node_schedules, add, undrain, submit, drain and lose")
	return v
}

// within adds what is wrong with a part of the document.
func (v *fieldErrors) within(at string, wrong []FieldError) {
	for _, w := range wrong {
		v.add(at+w.Pointer, w.Detail)
	}
}

// A Plan is what a PlanRequest would lead to, judged at one index of the log.
// What is revoked is taken to be reported as ended at once by its agent: the
// plan goes on until nothing more follows.
type Plan struct {
	Index  uint64       `json:"index"`
	Jobs   []PlannedJob `json:"jobs"` // of Submit, in its order
	Blast  PlanBlast    `json:"blast"`
	Before Capacity     `json:"before"`
	After  Capacity     `json:"after"`
	// Changes are what happens to other jobs' tasks, by job, group and task: at
	// most MaxPlanChanges; Blast counts all.
	Changes []PlanChange `json:"changes"`
	// Unfinished says that the plan was cut short by its bounds: more follows.
	Unfinished bool `json:"unfinished,omitzero"`
}

// A PlannedJob is what a submit of the plan would come to.
type PlannedJob struct {
	Code   Code    `json:"code"` // ok, or why it would be refused
	Detail string  `json:"detail,omitzero"`
	Job    Job     `json:"job"`    // its ID is made up
	Leases []Lease `json:"leases"` // at most MaxSubmitLeases
	// Now is how many tasks start at once, Later how many more start once what
	// the plan revokes has ended.
	Now           uint32         `json:"now"`
	Later         uint32         `json:"later,omitzero"`
	Reasons       []Reason       `json:"reasons,omitempty"`
	QueuePosition uint32         `json:"queue_position,omitzero"`
	Estimate      *StartEstimate `json:"start_estimate,omitempty"` // when a task waits
	// Cost is what the tasks that start may cost; absent before feature level 4.
	Cost *JobCost `json:"cost,omitempty"`
}

// PlanBlast counts what a plan does to the tasks of other jobs.
type PlanBlast struct {
	Jobs    uint32      `json:"jobs"`         // that it touches
	Starts  uint32      `json:"starts"`       // tasks that waited and start
	Moves   uint32      `json:"moves"`        // that lose their place and get another
	Waits   uint32      `json:"waits"`        // that lose their place and wait
	Ends    uint32      `json:"ends"`         // that lose their place for good
	GPUs    uint32      `json:"gpus_revoked"` // devices, or parts of one, of the places lost
	Revoked []PlanCause `json:"revoked,omitempty"`
}

// A PlanCause counts the places lost by one cause.
type PlanCause struct {
	Cause LeaseCause `json:"cause"`
	Tasks uint32     `json:"tasks"`
}

// PlanKind is what a plan does to a task.
type PlanKind uint8

// The kinds.
const (
	PlanStarts PlanKind = iota // it waited and gets a place
	PlanMoves                  // it loses its place and gets another
	PlanWaits                  // it loses its place and waits for another
	PlanEnds                   // it loses its place and is not placed again
	numPlanKinds
)

var planKindNames = [numPlanKinds]string{"starts", "moves", "waits", "ends"}

// String returns the kind's text.
func (k PlanKind) String() string { return enumName(planKindNames[:], uint8(k)) }

// MarshalText writes the kind's text.
func (k PlanKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's text.
func (k *PlanKind) UnmarshalText(b []byte) error {
	return enumParse(planKindNames[:], "kind of change", b, (*uint8)(k))
}

// A PlanChange is what a plan does to one task of a job that is there.
type PlanChange struct {
	TaskRef
	Name   string     `json:"name"` // of the job
	Change PlanKind   `json:"change"`
	Cause  LeaseCause `json:"cause,omitzero"` // of the lost place
	From   NodeID     `json:"from,omitzero"`
	To     NodeID     `json:"to,omitzero"`
	GPUs   uint32     `json:"gpus"`
}

// Capacity is what a region has and what of it is in use.
type Capacity struct {
	Nodes     uint32 `json:"nodes"`      // registered
	NodesOpen uint32 `json:"nodes_open"` // that take leases
	GPUs      uint32 `json:"gpus"`       // of open nodes
	FreeGPUs  uint32 `json:"free_gpus"`  // whole, healthy ones of open nodes
	// GPUMilliUsed is what live leases hold, in thousandths of a device.
	GPUMilliUsed uint64 `json:"gpu_milli_used"`
	TasksPending uint64 `json:"tasks_pending"`
	QueueGPUs    uint64 `json:"queue_gpus"` // that waiting tasks ask for
}

// A StartEstimate is when a job's tasks would start if no job came and each ran
// up to its run-time limit: found by running the region's machine forward.
type StartEstimate struct {
	// Known is false when the limits that there are do not lead so far.
	Known bool `json:"known"`
	// In is from the region time of the index until the first task starts, and
	// AllIn until the last one does; 0 where that is not known.
	In    Duration `json:"in_ms,omitzero"`
	AllIn Duration `json:"all_in_ms,omitzero"`
	// Behind is the job whose end lets the first task start.
	Behind *TaskRef `json:"behind,omitempty"`
	Name   string   `json:"behind_name,omitzero"`
	// Why says why it is not known.
	Why string `json:"why,omitzero"`
	// Calibration is how far past estimates were off; absent without history.
	Calibration *Calibration `json:"calibration,omitempty"`
}

// A Calibration compares estimates with the starts that followed.
type Calibration struct {
	Starts uint32 `json:"starts"` // that an estimate had been given for
	// Error is the median of |start - estimate|, and Bias that of start -
	// estimate: above 0 when jobs start later than was said.
	Error Duration `json:"median_error_ms"`
	Bias  Duration `json:"median_bias_ms"`
}
