package fsm

import (
	"strconv"

	"github.com/gpuai/gpuai"
)

// supposeTerms sets quotas, budgets, prices, and the hours of nodes.
func (p *planner) supposeTerms(r *gpuai.PlanRequest) error {
	for i := range r.Quotas {
		if err := p.must(&SetQuota{r.Quotas[i].Tenant, r.Quotas[i].Quota}, "/quotas/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	for i := range r.Budgets {
		if err := p.must(&SetBudget{r.Budgets[i].Tenant, r.Budgets[i].Budget}, "/budgets/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	if r.Prices != nil {
		if err := p.must(&SetPrices{*r.Prices}, "/prices"); err != nil {
			return err
		}
	}
	for i := range r.NodePrices {
		if err := p.must(&SetNodePrice{r.NodePrices[i].Node, r.NodePrices[i].Price}, "/node_prices/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	for i := range r.NodeAsks {
		if err := p.must(&SetNodeAsk{r.NodeAsks[i].Node, r.NodeAsks[i].Price}, "/node_asks/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	for i := range r.Schedules {
		if err := p.must(&SetNodeSchedule{r.Schedules[i].Node, r.Schedules[i].Schedule}, "/node_schedules/"+strconv.Itoa(i)); err != nil {
			return err
		}
		p.count.touch(p.m, r.Schedules[i].Node) // no event tells that it opened or closed
	}
	return nil
}
