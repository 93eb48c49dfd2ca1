package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// setRules gives the machine the settings of a policy, and the demand to expect:
// that of jobs, or of nothing, which is learnt from what arrives then. Best fit
// expects nothing.
func (w *world) setRules(p Policy, jobs []TraceJob) error {
	set := w.m.Policy()
	set.Packing = p.packing
	if p.keeps {
		set.PreemptionGap = 0
	}
	if set == w.m.Policy() {
		return nil
	}
	cmds := []fsm.Command{&fsm.SetPolicy{Policy: set}}
	if len(jobs) > 0 && p.packing != gpuai.PackingBestFit {
		cmds = append(cmds, &fsm.SetDemand{Demand: demandOf(jobs), Fixed: true})
	}
	for _, c := range cmds {
		res, err := w.apply(c)
		if err != nil {
			return err
		}
		if res.Code != gpuai.OK {
			return fmt.Errorf("policy %s: %s: %s", p.Name, res.Code, res.Detail)
		}
	}
	return nil
}

// demandOf is DemandOf without what was submitted to a region: its policy learns
// from what arrives.
func demandOf(jobs []TraceJob) []gpuai.DemandClass {
	return DemandOf(slices.DeleteFunc(slices.Clone(jobs), func(j TraceJob) bool { return j.Whole != nil }))
}

// DemandOf counts the kinds of tasks of a trace, the most frequent first: at most
// gpuai.MaxDemand.
func DemandOf(jobs []TraceJob) []gpuai.DemandClass {
	type kind struct {
		cpu, memory int64
		gpus        int
		milli       int64
		spec        string
		needs       string // of a job as it was submitted to a region, alone
	}
	at := map[kind]int{}
	var out []gpuai.DemandClass
	count := func(k kind, g *gpuai.Group) {
		if _, ok := at[k]; !ok {
			at[k] = len(out)
			out = append(out, gpuai.DemandClass{Resources: g.Resources, Constraints: g.Constraints})
		}
		out[at[k]].Tasks += uint64(g.Count)
	}
	for i := range jobs {
		j := &jobs[i]
		s := spec(j)
		for g := range s.Groups {
			k := kind{cpu: j.CPU, memory: j.Memory, gpus: j.GPUs, milli: j.GPUMilli, spec: j.Spec}
			if j.GPUs == 0 {
				k.milli, k.spec = 0, "" // it asks for no device
			}
			if j.Whole != nil {
				k = kind{needs: fmt.Sprint(s.Groups[g].Resources, s.Groups[g].Constraints)}
			}
			count(k, &s.Groups[g])
		}
	}
	slices.SortStableFunc(out, func(a, b gpuai.DemandClass) int { return cmp.Compare(b.Tasks, a.Tasks) })
	return out[:min(len(out), gpuai.MaxDemand)]
}

// A PackingConfig says how a run packs.
type PackingConfig struct {
	// Demand is what a policy that expects a demand is told; nil means Jobs.
	Demand []TraceJob
	// Audit replays the log of the run and judges each decision.
	Audit bool
}

// A PackingReport is what runs find that drop what does not fit.
type PackingReport struct {
	// Rejected counts the jobs that did not fit, by what they asked for:
	// "cpu", "share", or so many devices ("8"), with "+model" behind it where
	// they asked for a model.
	Rejected map[string]int `json:"rejected,omitempty"`
	// DecisionMicros is the machine's time for a submit and its placement, or
	// its being dropped, or an end, in µs of wall-clock time.
	DecisionMicros float64      `json:"decision_us,omitempty"`
	Audit          *AuditReport `json:"audit,omitempty"`
	Churn          *ChurnReport `json:"churn,omitempty"`
}

// reject counts a job that did not fit.
func (r *PackingReport) reject(j *TraceJob) {
	kind := "cpu"
	switch {
	case j.GPUs == 1 && j.GPUMilli < 1000:
		kind = "share"
	case j.GPUs > 0:
		kind = strconv.Itoa(j.GPUs)
	}
	if j.GPUs > 0 && j.Spec != "" {
		kind += "+model"
	}
	if r.Rejected == nil {
		r.Rejected = map[string]int{}
	}
	r.Rejected[kind]++
}

// finish completes a report of so many decisions, and checks machine and log.
func (w *world) finish(c *Config, r *Report, decisions int) error {
	r.Decisions = float64(decisions) / w.spent.Seconds()
	r.DecisionMicros = 1e6 * w.spent.Seconds() / float64(max(decisions, 1))
	r.Digest = w.m.Digest().String()
	if err := w.m.Check(); err != nil || !c.Audit {
		return err
	}
	audit, err := w.audit()
	r.Audit = &audit
	return err
}
