package httpd

import (
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
)

// A planBody is the body of POST /v1/plan. Its policy holds settings that
// change; the others are the region's.
type planBody struct {
	Policy     jsontext.Value       `json:"policy,omitempty"`
	Quotas     []gpuai.TenantQuota  `json:"quotas"`
	Budgets    []gpuai.TenantBudget `json:"budgets"`
	Prices     *gpuai.Prices        `json:"prices"`
	NodePrices []gpuai.NodePrice    `json:"node_prices"`
	NodeAsks   []gpuai.NodePrice    `json:"node_asks"`
	Schedules  []gpuai.NodeSchedule `json:"node_schedules"`
	Add        []gpuai.PlanNodes    `json:"add,omitempty"`
	Undrain    []gpuai.NodeID       `json:"undrain,omitempty"`
	Drain      []gpuai.NodeID       `json:"drain,omitempty"`
	Lose       []gpuai.NodeID       `json:"lose,omitempty"`
	Submit     []gpuai.JobSpec      `json:"submit,omitempty"`
}

// suppose answers POST /v1/plan: what would follow from several things at once.
func (c *call) suppose() error {
	var b planBody
	if err := c.decode(&b); err != nil {
		return err
	}
	if err := c.readPoint(); err != nil {
		return err
	}
	r := gpuai.PlanRequest{
		Quotas: b.Quotas, Budgets: b.Budgets, Prices: b.Prices, NodePrices: b.NodePrices, NodeAsks: b.NodeAsks, Schedules: b.Schedules,
		Add: b.Add, Undrain: b.Undrain, Drain: b.Drain, Lose: b.Lose, Submit: b.Submit,
	}
	if len(b.Policy) > 0 {
		p := c.api.backend.Policy()
		if err := json.Unmarshal(b.Policy, &p, strict); err != nil {
			return under("/policy", explainJSON(err))
		}
		r.Policy = &p
	}
	terms := len(r.Quotas)+len(r.Budgets)+len(r.NodePrices)+len(r.NodeAsks)+len(r.Schedules) > 0 || r.Prices != nil
	if mine := c.tenant(); mine != "" && (terms || len(r.Add)+len(r.Undrain)+len(r.Drain)+len(r.Lose)+len(b.Policy) > 0) {
		return gpuai.NewError(gpuai.Forbidden, c.who.Actor+" may only plan what it would submit: nodes, policy, quotas and prices are for operators")
	}
	for i := range r.Submit {
		if err := c.own(&r.Submit[i], "/submit/"+strconv.Itoa(i)); err != nil {
			return err
		}
		r.Submit[i].Defaults()
	}
	if wrong := r.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong[:min(len(wrong), maxErrors)]}
	}
	plan, err := c.api.backend.Suppose(c.r.Context(), &r)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &plan)
}

// under puts a part's errors into their place in the whole.
func under(at string, err error) error {
	if e, ok := err.(*gpuai.Error); ok {
		for i := range e.Fields {
			e.Fields[i].Pointer = at + e.Fields[i].Pointer
		}
	}
	return err
}

// explain answers GET /v1/jobs/{job}/explain.
func (c *call) explain() error {
	ref, err := c.job()
	if err != nil {
		return err
	}
	index := uint64(0)
	if text := c.query.Get("index"); text != "" {
		if index, err = strconv.ParseUint(text, 10, 64); err != nil {
			return badQuery("index", "must be a log index")
		}
	}
	if err := c.readPoint(); err != nil {
		return err
	}
	why, err := c.api.backend.Explain(c.r.Context(), ref, index)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &why)
}
