package fsm

import (
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// An auditValue is a setting as it stands; "" is none.
type auditValue struct{ name, value string }

// maxAuditValue bounds a setting's text in a record, in bytes.
const maxAuditValue = 40

// auditBefore returns what a command is about to replace.
func (m *Machine) auditBefore(c *wire.Command) []auditValue {
	k := auditKinds[min(c.Type, numTypes-1)]
	if k.state != nil && (m.Level() >= LevelTenants || c.Type == typeSetFeatureLevel) { // which may begin the audit
		return k.state(m, c.Body)
	}
	return nil
}

// changes says which settings are others now: "gpus 8 -> 16, cohort none -> a".
// What there is no room for is counted.
func changes(said string, before, after []auditValue) string {
	out, left := said, 0
	for _, c := range differing(before, after) {
		if len(out) > 0 {
			c = ", " + c
		}
		if left == 0 && len(out)+len(c) <= gpuai.MaxAuditText-len(", 999 more") {
			out += c
		} else {
			left++
		}
	}
	if left > 0 {
		out += ", " + strconv.Itoa(left) + " more"
	}
	return out
}

func differing(before, after []auditValue) (out []string) {
	none := func(s string) string {
		if s == "" {
			return "none"
		}
		return cutText(s, maxAuditValue)
	}
	say := func(name, from, to string) {
		if from != to {
			out = append(out, cutText(name, maxAuditValue)+" "+none(from)+" -> "+none(to))
		}
	}
	for _, x := range after {
		from, _ := valueOf(before, x.name)
		say(x.name, from, x.value)
	}
	for _, x := range before {
		if _, still := valueOf(after, x.name); !still {
			say(x.name, x.value, "")
		}
	}
	return out
}

func valueOf(all []auditValue, name string) (string, bool) {
	for i := range all {
		if all[i].name == name {
			return all[i].value, true
		}
	}
	return "", false
}

func drainOf(m *Machine, body []byte) []auditValue {
	if n := m.nodeNamed(body); n != nil {
		return []auditValue{{"drained", strconv.FormatBool(n.drained)}}
	}
	return nil
}

func ownerOf(m *Machine, body []byte) []auditValue {
	if n := m.nodeNamed(body); n != nil {
		return []auditValue{{"contributor", m.text(n.owner)}}
	}
	return nil
}

func nodePriceOf(m *Machine, body []byte) []auditValue {
	if n := m.nodeNamed(body); n != nil && n.priced {
		return []auditValue{{"price_micros", n.price.String()}}
	}
	return nil
}

func nodeAskOf(m *Machine, body []byte) []auditValue {
	if n := m.nodeNamed(body); n != nil && n.asked {
		return []auditValue{{"ask_micros", n.ask.String()}}
	}
	return nil
}

// nodeNamed returns the node whose name a body begins with; nil when there is none.
func (m *Machine) nodeNamed(body []byte) *nodeRec {
	if slot, ok := m.nodeSlot(gpuai.NodeID(wire.NewReader(body).Str())); ok {
		return m.nodes.Get(slot)
	}
	return nil
}

func hoursOf(m *Machine, body []byte) []auditValue {
	node, ok := m.nodeSlot(gpuai.NodeID(wire.NewReader(body).Str()))
	if !ok {
		return nil
	}
	slot, ok := m.scheduleSlot(node)
	if !ok {
		return nil
	}
	s := m.owners.schedules.Get(slot).schedule()
	var windows []string
	for _, w := range s.Windows {
		windows = append(windows, w.From.String()+"-"+w.To.String())
	}
	return []auditValue{{"windows", strings.Join(windows, " ")}, {"utc_offset_minutes", strconv.Itoa(int(s.UTCOffset))}}
}

func addressOf(m *Machine, body []byte) []auditValue {
	id := wire.NewReader(body).Str()
	for s := range m.servers.Len() {
		if r := m.servers.Get(s); r.name != 0 && m.strs.Get(r.name) == id {
			return []auditValue{{"address", m.text(r.addr)}}
		}
	}
	return nil
}

func levelsOf(m *Machine, _ []byte) []auditValue {
	return []auditValue{{"feature_level", strconv.FormatUint(uint64(m.Level()), 10)}}
}

func weightOf(m *Machine, body []byte) []auditValue {
	weight := uint32(DefaultWeight)
	if name, ok := m.tenantNamed(body); ok && name < m.tenantOf.Len() {
		if at := *m.tenantOf.Get(name); at != 0 {
			weight = m.tenants.Get(at.slot()).weight
		}
	}
	return []auditValue{{"weight", strconv.FormatUint(uint64(weight), 10)}}
}

// tenantNamed returns the number of the name that a body begins with.
func (m *Machine) tenantNamed(body []byte) (uint32, bool) {
	return m.strs.FindBytes(wire.NewReader(body).Blob())
}

func quotaValues(m *Machine, body []byte) (out []auditValue) {
	name, _ := m.tenantNamed(body)
	slot, ok := m.quotaSlot(name)
	if !ok {
		return nil
	}
	r := m.quotas.Get(slot)
	q := m.quota(r)
	for _, x := range [...]struct {
		name  string
		value *uint32
	}{
		{"gpus", q.GPUs}, {"borrow_gpus", q.BorrowGPUs}, {"running_jobs", q.RunningJobs},
		{"pending_jobs", q.PendingJobs}, {"requests_per_second", q.RequestsPerSecond},
	} {
		out = append(out, auditValue{x.name, numberText(x.value)})
	}
	for _, x := range q.Models {
		out = append(out, auditValue{"model " + x.Model, strconv.FormatUint(uint64(x.GPUs), 10)})
	}
	if q.CPU != nil {
		out = append(out, auditValue{"cpu_milli", strconv.FormatInt(int64(*q.CPU), 10)})
	}
	if q.Memory != nil {
		out = append(out, auditValue{"memory_bytes", strconv.FormatInt(int64(*q.Memory), 10)})
	}
	return append(out, auditValue{"cohort", q.Cohort})
}

func numberText(n *uint32) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*n), 10)
}

func budgetOf(m *Machine, body []byte) (out []auditValue) {
	name, _ := m.tenantNamed(body)
	slot, ok := m.purseSlot(name)
	if !ok {
		return nil
	}
	b := m.purses.Get(slot).budget()
	for _, x := range [...]struct {
		name  string
		limit *gpuai.BudgetLimit
	}{{"day", &b.Day}, {"month", &b.Month}, {"total", &b.Total}} {
		out = append(out, auditValue{x.name + ".gpu_hours", numberText(x.limit.GPUHours)})
		if x.limit.Money != nil {
			out = append(out, auditValue{x.name + ".money_micros", x.limit.Money.String()})
		}
	}
	return out
}

func pricesOf(m *Machine, _ []byte) []auditValue {
	p := m.Prices()
	out := []auditValue{{"fee_bps", strconv.FormatUint(uint64(p.FeeBps), 10)}}
	for _, x := range p.Models {
		out = append(out, auditValue{"model " + x.Model, x.Price.String()})
	}
	return out
}

func roleScopes(m *Machine, body []byte) []auditValue {
	c, ok := readSetRole(wire.NewReader(body))
	if !ok {
		return nil
	}
	x := &c.Mapping
	slot, ok := m.findRole(roleTexts(x.Claim, x.Value), string(x.Tenant), string(x.Contributor))
	if !ok {
		return nil
	}
	return []auditValue{{"scopes", scopesText(m.roles.Get(slot).scopes)}}
}

// policyOf returns the policy's settings under their names in the API.
func policyOf(m *Machine, _ []byte) (out []auditValue) {
	p := m.Policy()
	for _, x := range policyDurations(&p) {
		out = append(out, auditValue{x.name, strconv.FormatInt(int64(x.value), 10)})
	}
	for _, x := range policyNumbers(&p) {
		out = append(out, auditValue{x.name, strconv.FormatUint(uint64(x.value), 10)})
	}
	return append(out,
		auditValue{"packing", p.Packing.String()}, auditValue{"exec", p.Exec.String()},
		auditValue{"ask_min_micros_per_gpu_hour", p.AskMin.String()}, auditValue{"ask_max_micros_per_gpu_hour", p.AskMax.String()},
		auditValue{"preemptible_inference", strconv.FormatBool(p.PreemptibleInference)},
		auditValue{"preemptible_training", strconv.FormatBool(p.PreemptibleTraining)},
		auditValue{"preemptible_finetune", strconv.FormatBool(p.PreemptibleFinetune)},
		auditValue{"preemptible_batch", strconv.FormatBool(p.PreemptibleBatch)})
}

// A policySetting is a setting of the policy under its name in the API.
type policySetting[V any] struct {
	name  string
	value V
}

func policyDurations(p *gpuai.Policy) []policySetting[gpuai.Duration] {
	return []policySetting[gpuai.Duration]{
		{"lease_ttl_inference_ms", p.TTLInference}, {"lease_ttl_training_ms", p.TTLTraining},
		{"lease_ttl_finetune_ms", p.TTLFinetune}, {"lease_ttl_batch_ms", p.TTLBatch},
		{"raft_heartbeat_ms", p.Heartbeat}, {"lease_grace_ms", p.Grace}, {"beat_every_ms", p.BeatEvery},
		{"suspect_after_ms", p.SuspectAfter}, {"kill_budget_ms", p.KillBudget}, {"slack_ms", p.Slack},
		{"result_ttl_ms", p.ResultTTL}, {"breaker_window_ms", p.BreakerWindow}, {"flap_window_ms", p.FlapWindow},
		{"flap_backoff_ms", p.FlapBackoff}, {"aging_every_ms", p.AgingEvery}, {"usage_half_life_ms", p.UsageHalfLife},
		{"preemption_protect_ms", p.PreemptionProtect}, {"checkpoint_grace_max_ms", p.CheckpointMax},
		{"gang_ready_max_ms", p.GangReadyMax},
	}
}

func policyNumbers(p *gpuai.Policy) []policySetting[uint32] {
	return []policySetting[uint32]{
		{"clock_rate_bound_ppm", p.RateBoundPPM}, {"breaker_min_nodes", p.BreakerMin}, {"breaker_ppm", p.BreakerPPM},
		{"breaker_rate_ppm", p.BreakerRatePPM}, {"flap_limit", p.FlapLimit}, {"preemption_gap", p.PreemptionGap},
		{"priority_inference", uint32(p.PriorityInference)}, {"priority_training", uint32(p.PriorityTraining)},
		{"priority_finetune", uint32(p.PriorityFinetune)}, {"priority_batch", uint32(p.PriorityBatch)},
	}
}
