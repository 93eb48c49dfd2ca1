package gpuai

import "strconv"

// Limits of prices.
const (
	// MaxPrices is how many models a price list names.
	MaxPrices = 64
	// MaxPrice is the highest price of a device and hour: a million dollars.
	MaxPrice Micros = 1_000_000_000_000
	// MaxFeeBps is the highest fee, in hundredths of a percent.
	MaxFeeBps = 10_000
	// maxBudgetHours and maxBudgetMoney bound a budget.
	maxBudgetHours        = 1_000_000_000
	maxBudgetMoney Micros = 1_000_000_000_000_000_000
)

// A Budget bounds what a tenant may spend. What is absent is not bounded. Days and
// months are those of UTC.
type Budget struct {
	Day   BudgetLimit `json:"day,omitzero"`
	Month BudgetLimit `json:"month,omitzero"`
	Total BudgetLimit `json:"total,omitzero"`
}

// A BudgetLimit bounds one period.
type BudgetLimit struct {
	GPUHours *uint32 `json:"gpu_hours,omitempty"`
	Money    *Micros `json:"money_micros,omitempty"`
}

// Validate says what is wrong with a budget; nil means nothing.
func (b *Budget) Validate() []FieldError {
	var v fieldErrors
	for _, x := range [...]struct {
		at string
		l  *BudgetLimit
	}{{"/day", &b.Day}, {"/month", &b.Month}, {"/total", &b.Total}} {
		v.check(x.l.GPUHours == nil || *x.l.GPUHours <= maxBudgetHours, x.at+"/gpu_hours", "must be at most "+strconv.Itoa(maxBudgetHours))
		v.check(x.l.Money == nil || *x.l.Money >= 0 && *x.l.Money <= maxBudgetMoney, x.at+"/money_micros", "must be 0 to "+maxBudgetMoney.String())
	}
	return v
}

// Prices is what a device and hour cost where its node has no price of its own.
type Prices struct {
	Models []ModelPrice `json:"models,omitempty"`
	// FeeBps is the fee on top of what is billed, in hundredths of a percent.
	FeeBps uint32 `json:"fee_bps,omitzero"`
}

// A ModelPrice is the price of a model.
type ModelPrice struct {
	Model string `json:"model"`
	Price Micros `json:"price_micros_per_gpu_hour"`
}

// Validate says what is wrong with a price list; nil means nothing.
func (p *Prices) Validate() []FieldError {
	var v fieldErrors
	v.check(len(p.Models) <= MaxPrices, "/models", "has at most "+strconv.Itoa(MaxPrices)+" models")
	v.check(p.FeeBps <= MaxFeeBps, "/fee_bps", "must be at most "+strconv.Itoa(MaxFeeBps))
	for i := range p.Models {
		at, m := "/models/"+strconv.Itoa(i), &p.Models[i]
		v.check(m.Model != "" && len(m.Model) <= MaxTextLen, at+"/model", "must be the name of a model")
		v.check(m.Price >= 0 && m.Price <= MaxPrice, at+"/price_micros_per_gpu_hour", "must be 0 to "+MaxPrice.String())
		for k := range i {
			v.check(p.Models[k].Model != m.Model, at+"/model", "is given twice")
		}
	}
	return v
}

// A PeriodUse is what was spent in a period: devices held, in thousandths of a
// device times hours, and money billed, fees included.
type PeriodUse struct {
	GPUMilliHours uint64 `json:"gpu_milli_hours"`
	Money         Micros `json:"money_micros"`
}

// A TenantUsage is what a tenant has spent, and what is held for its leases: each may
// yet cost that much.
type TenantUsage struct {
	Tenant TenantID  `json:"tenant"`
	Day    PeriodUse `json:"day"`
	Month  PeriodUse `json:"month"`
	Total  PeriodUse `json:"total"` // since the region has feature level 4
	// HeldGPUMilliHours and HeldMoney count against each period of the budget,
	// beside what was billed in it.
	HeldGPUMilliHours uint64 `json:"held_gpu_milli_hours"`
	HeldMoney         Micros `json:"held_money_micros"`
	// Billed is what counts against the budget's periods: as Day, Month and Total
	// say, but only what was billed.
	Billed BilledUse `json:"billed"`
	Budget Budget    `json:"budget,omitzero"`
}

// A BilledUse is what was billed by period.
type BilledUse struct {
	Day   PeriodUse `json:"day"`
	Month PeriodUse `json:"month"`
	Total PeriodUse `json:"total"`
}

// A JobCost is what a job has cost and may yet cost.
type JobCost struct {
	// GPUMilliHours is what its leases held, those that run up to now.
	GPUMilliHours uint64 `json:"gpu_milli_hours"`
	Billed        Micros `json:"billed_micros,omitzero"`
	// Held is what its leases may yet cost, and Hourly what they cost in an hour.
	Held   Micros `json:"held_micros,omitzero"`
	Hourly Micros `json:"hourly_micros,omitzero"`
}

// A PlannedCost is what a job would cost, at the prices of now and with the fee.
type PlannedCost struct {
	// Hourly is for an hour of all its tasks.
	Hourly Micros `json:"hourly_micros"`
	// Held is what is held for all of them as they start: the price of HeldFor, which
	// is the run-time limit, or an hour at a time without one. No lease costs more
	// than is held for it.
	Held    Micros   `json:"held_micros"`
	HeldFor Duration `json:"held_for_ms"`
	// Waiting is how many tasks have no place yet: they are taken to cost the highest
	// price of the nodes that could take them, and of their models on the list. Then
	// Hourly and Held are what it costs at most.
	Waiting uint32 `json:"waiting,omitzero"`
	// HourlyLeast and HeldLeast are the same at the lowest price of those nodes.
	HourlyLeast Micros `json:"hourly_least_micros"`
	HeldLeast   Micros `json:"held_least_micros"`
}

// A TenantQuota, a TenantBudget and a NodePrice are what a plan supposes.
type (
	TenantQuota struct {
		Tenant TenantID `json:"tenant"`
		Quota  Quota    `json:"quota"`
	}
	TenantBudget struct {
		Tenant TenantID `json:"tenant"`
		Budget Budget   `json:"budget"`
	}
	// NodePrice is the price of a node; below 0 it has none of its own.
	NodePrice struct {
		Node  NodeID `json:"node"`
		Price Micros `json:"price_micros_per_gpu_hour"`
	}
)
