package simulate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A Policy is a way to order and to pack jobs: a setting of the region's
// replicated policy, and for the baseline fifo a way to hand jobs in.
type Policy struct {
	Name  string
	About string // one line for a person
	// packing is the region's packing policy; learn says that it is told of no
	// demand, and learns it from what arrives.
	packing gpuai.Packing
	learn   bool
	// strict hands a job to the machine only once the one before it has
	// started, so that none passes another, and places by first fit.
	strict bool
	// keeps says that nobody has to make room for another.
	keeps bool
	// saves says that whoever has to make room saves its work, as the signal
	// before asks it to, and goes on from there.
	saves bool
}

// policies are all that there are, in the order in which they are listed.
var policies = []Policy{
	{Name: "fifo", About: "strict order of arrival, the first node that fits; none passes another", strict: true, keeps: true},
	{Name: "bestfit", About: "the tightest place; what fits passes what does not"},
	{Name: "bestfit-keep", About: "the same, and nobody makes room for a higher priority", keeps: true},
	{Name: "bestfit-save", About: "as bestfit, and what has to make room saves its work first", saves: true},
	{Name: "fgd", About: "fragmentation gradient descent, a reference", packing: gpuai.PackingFGD},
	{Name: "efw", About: "by what a placement leaves to the demand of the trace", packing: gpuai.PackingEFW},
	{Name: "efw-learnt", About: "the same, with the demand learnt from what arrives", packing: gpuai.PackingEFW, learn: true},
}

// PolicyNames lists the policies.
func PolicyNames() []string {
	var out []string
	for i := range policies {
		out = append(out, policies[i].Name)
	}
	return out
}

// ParsePolicies reads names joined by commas, without repetition.
func ParsePolicies(names string) ([]Policy, error) {
	var out []Policy
	for name := range strings.SplitSeq(names, ",") {
		name = strings.TrimSpace(name)
		i := slices.IndexFunc(policies, func(p Policy) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no policy %q; there are %s", name, strings.Join(PolicyNames(), ", "))
		}
		if !slices.ContainsFunc(out, func(p Policy) bool { return p.Name == name }) {
			out = append(out, policies[i])
		}
	}
	return out, nil
}

// Learning returns the policy that learns the demand it expects, and is told of
// none. One that expects nothing is its own.
func (p Policy) Learning() Policy {
	if p.packing != gpuai.PackingBestFit && !p.learn {
		p.Name, p.learn = p.Name+"-learnt", true
	}
	return p
}

// setPolicy brings a new machine to the newest feature level and gives it the
// policy of a run.
func (w *world) setPolicy(c *Config) error {
	if _, err := w.apply(&fsm.SetFeatureLevel{Level: fsm.MaxLevel}); err != nil {
		return err
	}
	demand := c.Demand
	if demand == nil {
		demand = c.Jobs
	}
	if c.Policy.learn {
		demand = nil
	}
	return w.setRules(c.Policy, demand)
}
