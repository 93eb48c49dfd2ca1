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
	// set changes the region's policy; nil leaves it as it is.
	set func(*gpuai.Policy)
	// strict hands a job to the machine only once the one before it has
	// started, so that none passes another, and places by first fit.
	strict bool
}

// policies are all that there are, in the order in which they are listed.
var policies = []Policy{
	{Name: "fifo", About: "strict order of arrival, the first node that fits; none passes another", strict: true},
	{Name: "bestfit", About: "the tightest place; what fits passes what does not"},
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

// setPolicy brings a new machine to the newest feature level and gives it the
// policy of a run.
func (w *world) setPolicy(p Policy) error {
	if _, err := w.apply(&fsm.SetFeatureLevel{Level: fsm.MaxLevel}); err != nil {
		return err
	}
	if p.set == nil {
		return nil
	}
	set := w.m.Policy()
	p.set(&set)
	res, err := w.apply(&fsm.SetPolicy{Policy: set})
	if err == nil && res.Code != gpuai.OK {
		err = fmt.Errorf("policy %s: %s: %s", p.Name, res.Code, res.Detail)
	}
	return err
}
