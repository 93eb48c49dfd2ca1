package gpuai

import "strconv"

// A DemandClass is how many tasks of one kind are expected beside others.
type DemandClass struct {
	Resources   Resources    `json:"resources"`
	Constraints []Constraint `json:"constraints,omitempty"`
	Tasks       uint64       `json:"tasks"` // 1 … MaxDemandTasks; only their proportions count
}

// A Demand is what the packing policy is told to expect, in place of what it has
// learnt. Without classes it forgets all.
type Demand struct {
	// Fixed says that what is submitted changes nothing of it. Otherwise it is
	// learnt on from there.
	Fixed   bool          `json:"fixed,omitzero"`
	Classes []DemandClass `json:"classes"`
}

// Defaults fills the fields of a demand that are absent and have a default, as
// those of a job.
func (d *Demand) Defaults() {
	for i := range d.Classes {
		d.Classes[i].Resources.defaults()
	}
}

// Validate says all that is wrong with d after Defaults, with JSON pointers; nil
// means nothing is.
func (d *Demand) Validate() []FieldError {
	var v fieldErrors
	v.check(len(d.Classes) <= MaxDemand, "/classes", "must be at most "+strconv.Itoa(MaxDemand)+": leave the rarest out")
	size := 0
	for i := range d.Classes[:min(len(d.Classes), MaxDemand)] {
		c, at := &d.Classes[i], "/classes/"+strconv.Itoa(i)
		v.check(c.Tasks >= 1 && c.Tasks <= MaxDemandTasks, at+"/tasks", "must be between 1 and "+strconv.FormatInt(MaxDemandTasks, 10))
		v.check(len(c.Constraints) <= MaxConstraints, at+"/constraints", "must be at most "+strconv.Itoa(MaxConstraints))
		for j := range c.Constraints[:min(len(c.Constraints), MaxConstraints)] {
			c.Constraints[j].validate(&v, at+"/constraints/"+strconv.Itoa(j))
		}
		c.Resources.validate(&v, at+"/resources")
		g := Group{Resources: c.Resources, Constraints: c.Constraints}
		size += demandBytes + g.needsSize()
	}
	v.check(size <= MaxSpecBytes, "/classes", "must be at most "+strconv.Itoa(MaxSpecBytes)+" bytes in all: leave the rarest out")
	return v
}

// demandBytes is what a class takes in the log beside its texts and lists.
const demandBytes = 40

// An ExpectedClass is a kind of tasks that the packing policy has counted or was
// told of.
type ExpectedClass struct {
	DemandClass
	// WeightPPM is its part of the frozen demand, in millionths; 0 when it is not
	// in it yet.
	WeightPPM uint32 `json:"weight_ppm,omitzero"`
}

// A DemandStatus is what the packing policy expects, and how it came to.
type DemandStatus struct {
	// Packing is the policy, Active the one by which tasks are placed now: best
	// fit until something is frozen and the index is built.
	Packing Packing `json:"packing"`
	Active  Packing `json:"active"`
	Fixed   bool    `json:"fixed"`
	// Epoch is how often the demand was frozen.
	Epoch uint32 `json:"epoch"`
	// Groups is how many groups were counted since the demand was last told or
	// forgotten, NextFreeze at how many it may be frozen next; 0: not by itself.
	Groups     uint64          `json:"groups_counted"`
	NextFreeze uint64          `json:"next_freeze_at,omitzero"`
	Classes    []ExpectedClass `json:"classes"` // the most tasks first
}
