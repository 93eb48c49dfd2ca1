package gpuai

// A Policy is the region's replicated settings. SetPolicy replaces it whole.
type Policy struct {
	// TTL is the lease time to live by class. At least MinTTL.
	TTLInference Duration `json:"lease_ttl_inference_ms"`
	TTLTraining  Duration `json:"lease_ttl_training_ms"`
	TTLFinetune  Duration `json:"lease_ttl_finetune_ms"`
	TTLBatch     Duration `json:"lease_ttl_batch_ms"`
	// Heartbeat is the Raft heartbeat that the floor of a TTL is counted from:
	// max(15 s, 10 s + 5 × heartbeat).
	Heartbeat Duration `json:"raft_heartbeat_ms"`
	// Grace is the wait after a TTL before a place is given away. At least 2 s;
	// for TTLs above 60 s at least 5 s and 5 % of the TTL are used.
	Grace Duration `json:"lease_grace_ms"`
	// BeatEvery is the period of an agent's beats, less 0-20 % jitter.
	BeatEvery Duration `json:"beat_every_ms"`
	// SuspectAfter is the silence after which a node takes no new leases.
	SuspectAfter Duration `json:"suspect_after_ms"`
	// KillBudget is the time the watchdog has to kill a task, Slack what it
	// may wake up late, RateBoundPPM the bound on a clock's rate error.
	KillBudget   Duration `json:"kill_budget_ms"`
	Slack        Duration `json:"slack_ms"`
	RateBoundPPM uint32   `json:"clock_rate_bound_ppm"`
	// ResultTTL is how long the answer to an idempotency key is remembered.
	ResultTTL Duration `json:"result_ttl_ms"`
	// BreakerMin and BreakerPPM: when more than max(BreakerMin, BreakerPPM of
	// all nodes) fall silent within BreakerWindow, expiry slows down to
	// BreakerRatePPM of the nodes a second, at least one.
	BreakerMin     uint32   `json:"breaker_min_nodes"`
	BreakerPPM     uint32   `json:"breaker_ppm"`
	BreakerWindow  Duration `json:"breaker_window_ms"`
	BreakerRatePPM uint32   `json:"breaker_rate_ppm"`
	// FlapLimit is how often a node may come back from silence within
	// FlapWindow before it is quarantined for FlapBackoff, doubling.
	FlapLimit   uint32   `json:"flap_limit"`
	FlapWindow  Duration `json:"flap_window_ms"`
	FlapBackoff Duration `json:"flap_backoff_ms"`
	// Priority of a job that names none, by class.
	PriorityInference Priority `json:"priority_inference"`
	PriorityTraining  Priority `json:"priority_training"`
	PriorityFinetune  Priority `json:"priority_finetune"`
	PriorityBatch     Priority `json:"priority_batch"`
	// AgingEvery raises a waiting job by one priority for each such time that
	// it has waited, up to MaxPriority; 0 never does.
	AgingEvery Duration `json:"aging_every_ms"`
	// Packing is how a node is chosen among those that fit: by best fit, or by
	// what the placement leaves to the demand that is expected (efw).
	Packing Packing `json:"packing"`
	// UsageHalfLife is in how much time what a tenant has had of the devices
	// counts half: the longer, the longer a tenant that waited is made up for it.
	// 0 stands for DefaultHalfLife.
	UsageHalfLife Duration `json:"usage_half_life_ms"`
	// PreemptionGap is by how much the priority of a job that finds no room must
	// exceed that of a running one to take its room; 0: nobody takes any. What a
	// job gains by waiting (AgingEvery) does not count.
	PreemptionGap uint32 `json:"preemption_gap"`
	// PreemptionProtect is how long from its grant on a lease is safe.
	PreemptionProtect Duration `json:"preemption_protect_ms"`
	// Whether a job gives room up that does not say so itself, by class. It is
	// fixed when the job is submitted.
	PreemptibleInference bool `json:"preemptible_inference"`
	PreemptibleTraining  bool `json:"preemptible_training"`
	PreemptibleFinetune  bool `json:"preemptible_finetune"`
	PreemptibleBatch     bool `json:"preemptible_batch"`
	// CheckpointMax bounds the time that a task asks for to save its work.
	CheckpointMax Duration `json:"checkpoint_grace_max_ms"`
	// GangReadyMax bounds how long the members of a gang that are ready to start
	// wait for the others, from the first on; 0: for ever.
	GangReadyMax Duration `json:"gang_ready_max_ms"`
	// Exec says whether commands may be run beside tasks, on nodes that allow it.
	Exec ExecRule `json:"exec"`
	// AskMin and AskMax bound what a contributor asks for a device of its nodes and
	// hour. 0 as AskMax: only MaxPrice does.
	AskMin Micros `json:"ask_min_micros_per_gpu_hour"`
	AskMax Micros `json:"ask_max_micros_per_gpu_hour"`
}

// DefaultPolicy is the policy of a new region. Its gap is what lies between the
// priorities of two classes: jobs of one class do not take room from each other
// unless somebody gave them priorities that far apart.
func DefaultPolicy() Policy {
	return Policy{
		TTLInference: 20 * Second, TTLTraining: 60 * Second,
		TTLFinetune: 60 * Second, TTLBatch: 20 * Second,
		Heartbeat: 500 * Millisecond,
		Grace:     5 * Second, BeatEvery: 4 * Second, SuspectAfter: 12 * Second,
		KillBudget: 3 * Second, Slack: Second, RateBoundPPM: 10_000,
		ResultTTL:  10 * Minute,
		BreakerMin: 50, BreakerPPM: 50_000, BreakerWindow: 30 * Second, BreakerRatePPM: 1_000,
		FlapLimit: 3, FlapWindow: 10 * Minute, FlapBackoff: Minute,
		PriorityInference: 80, PriorityTraining: 50, PriorityFinetune: 50, PriorityBatch: 20,
		PreemptionGap: 30, PreemptionProtect: 5 * Minute, CheckpointMax: 5 * Minute,
		GangReadyMax:        10 * Minute,
		PreemptibleTraining: true, PreemptibleFinetune: true, PreemptibleBatch: true,
	}
}

// PolicyUnsaid is what the document of a policy says that does not name the
// settings which older versions do not know: their defaults. All others are 0.
func PolicyUnsaid() Policy {
	d := DefaultPolicy()
	return Policy{
		PreemptionGap: d.PreemptionGap, PreemptionProtect: d.PreemptionProtect, CheckpointMax: d.CheckpointMax,
		PreemptibleInference: d.PreemptibleInference, PreemptibleTraining: d.PreemptibleTraining,
		PreemptibleFinetune: d.PreemptibleFinetune, PreemptibleBatch: d.PreemptibleBatch,
		GangReadyMax: d.GangReadyMax,
	}
}

// DefaultHalfLife is the half-life of usage under a policy that names none.
const DefaultHalfLife = Day

// AskBounds returns what a contributor may ask under p.
func (p *Policy) AskBounds() (low, high Micros) {
	if high = p.AskMax; high == 0 {
		high = MaxPrice
	}
	return p.AskMin, high
}

// HalfLife returns the half-life of usage under p.
func (p *Policy) HalfLife() Duration {
	if p.UsageHalfLife == 0 {
		return DefaultHalfLife
	}
	return p.UsageHalfLife
}

// MinTTL is the floor of every lease TTL under p.
func (p *Policy) MinTTL() Duration {
	return max(MinLeaseTTL, 10*Second+5*p.Heartbeat)
}

// TTL returns the time to live that p gives to a class.
func (p *Policy) TTL(c Class) Duration {
	switch c {
	case ClassInference:
		return p.TTLInference
	case ClassTraining:
		return p.TTLTraining
	case ClassFinetune:
		return p.TTLFinetune
	default:
		return p.TTLBatch
	}
}

// PriorityOf returns the priority that p gives to a class.
func (p *Policy) PriorityOf(c Class) Priority {
	switch c {
	case ClassInference:
		return p.PriorityInference
	case ClassTraining:
		return p.PriorityTraining
	case ClassFinetune:
		return p.PriorityFinetune
	default:
		return p.PriorityBatch
	}
}

// Preemptible reports whether p lets a class give its room up.
func (p *Policy) Preemptible(c Class) bool {
	switch c {
	case ClassInference:
		return p.PreemptibleInference
	case ClassTraining:
		return p.PreemptibleTraining
	case ClassFinetune:
		return p.PreemptibleFinetune
	default:
		return p.PreemptibleBatch
	}
}

// GraceFor returns the grace of a lease: G, and for a TTL above one minute at
// least 5 s and 5 % of it.
func (p *Policy) GraceFor(ttl Duration) Duration {
	if ttl > Minute {
		return max(p.Grace, 5*Second, ttl/20)
	}
	return p.Grace
}

// FenceAfter is how long after t_send of a counted beat a task of the given
// TTL must be dead on the agent's own clock, less the time to kill it:
// TTL × (1 − 2ρ) − K − S. It is never negative.
func (p *Policy) FenceAfter(ttl Duration) Duration {
	d := ttl - ttl/1_000_000*Duration(2*p.RateBoundPPM) -
		(ttl%1_000_000*Duration(2*p.RateBoundPPM)+999_999)/1_000_000
	return max(0, d-p.KillBudget-p.Slack)
}

// Validate says which settings are out of range; nil means none.
func (p *Policy) Validate() []FieldError {
	var v fieldErrors
	floor := p.MinTTL()
	for _, t := range [...]struct {
		name string
		d    Duration
	}{
		{"lease_ttl_inference_ms", p.TTLInference}, {"lease_ttl_training_ms", p.TTLTraining},
		{"lease_ttl_finetune_ms", p.TTLFinetune}, {"lease_ttl_batch_ms", p.TTLBatch},
	} {
		v.check(t.d >= floor && t.d <= MaxLeaseTTL, "/"+t.name,
			"must be between "+floor.String()+" and "+MaxLeaseTTL.String()+", not "+t.d.String())
	}
	v.span("/raft_heartbeat_ms", p.Heartbeat, 10*Millisecond, Minute)
	v.span("/lease_grace_ms", p.Grace, 2*Second, Hour)
	v.span("/beat_every_ms", p.BeatEvery, 100*Millisecond, floor/3)
	v.span("/suspect_after_ms", p.SuspectAfter, 2*p.BeatEvery, Hour)
	v.span("/kill_budget_ms", p.KillBudget, 100*Millisecond, floor/3)
	v.span("/slack_ms", p.Slack, 100*Millisecond, floor/3)
	v.span("/result_ttl_ms", p.ResultTTL, Second, Day)
	v.span("/breaker_window_ms", p.BreakerWindow, Second, Hour)
	v.span("/flap_window_ms", p.FlapWindow, Second, Day)
	v.span("/flap_backoff_ms", p.FlapBackoff, Second, Day)
	v.check(p.Packing <= PackingFGD, "/packing", "must be bestfit or efw")
	v.check(p.UsageHalfLife == 0 || p.UsageHalfLife >= Minute && p.UsageHalfLife <= 30*Day, "/usage_half_life_ms", "must be 0 or between 1m and 30d")
	v.check(p.AgingEvery == 0 || p.AgingEvery >= Second && p.AgingEvery <= MaxDuration, "/aging_every_ms", "must be 0 or between 1s and 3650d")
	v.check(p.PreemptionGap <= uint32(MaxPriority), "/preemption_gap", "must be 0 to 100")
	v.span("/preemption_protect_ms", p.PreemptionProtect, 0, MaxDuration)
	v.span("/checkpoint_grace_max_ms", p.CheckpointMax, 0, Hour)
	v.span("/gang_ready_max_ms", p.GangReadyMax, 0, Day)
	v.check(p.Exec <= ExecDeny, "/exec", "must be allow or deny")
	_, most := p.AskBounds()
	v.check(p.AskMin >= 0 && p.AskMin <= most, "/ask_min_micros_per_gpu_hour", "must be 0 to ask_max_micros_per_gpu_hour")
	v.check(most > 0 && most <= MaxPrice, "/ask_max_micros_per_gpu_hour", "must be 0 to "+MaxPrice.String())
	v.check(p.RateBoundPPM >= 100 && p.RateBoundPPM <= 100_000, "/clock_rate_bound_ppm", "must be between 100 and 100000")
	v.check(p.BreakerPPM <= 1_000_000, "/breaker_ppm", "must be at most 1000000")
	v.check(p.BreakerRatePPM <= 1_000_000, "/breaker_rate_ppm", "must be at most 1000000")
	v.check(p.FlapLimit >= 1, "/flap_limit", "must be at least 1")
	for _, t := range [...]struct {
		name string
		q    Priority
	}{
		{"priority_inference", p.PriorityInference}, {"priority_training", p.PriorityTraining},
		{"priority_finetune", p.PriorityFinetune}, {"priority_batch", p.PriorityBatch},
	} {
		v.check(t.q >= 1 && t.q <= MaxPriority, "/"+t.name, "must be between 1 and 100")
	}
	return v
}
