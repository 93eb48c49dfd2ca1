package fsm

import (
	"strconv"

	"github.com/gpuai/gpuai"
)

// supposeTerms sets quotas, budgets and prices.
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
	return nil
}
