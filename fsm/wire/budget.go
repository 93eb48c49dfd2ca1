package wire

import "github.com/gpuai/gpuai"

// AppendBudget appends a budget: for each period a byte of which bounds there are,
// and these.
func AppendBudget(b []byte, x *gpuai.Budget) []byte {
	for _, l := range budgetLimits(x) {
		var mask uint8
		at := len(b)
		b = append(b, 0)
		if l.GPUHours != nil {
			mask, b = mask|1, le.AppendUint32(b, *l.GPUHours)
		}
		if l.Money != nil {
			mask, b = mask|2, appendI64(b, int64(*l.Money))
		}
		b[at] = mask
	}
	return b
}

func budgetLimits(x *gpuai.Budget) [3]*gpuai.BudgetLimit {
	return [...]*gpuai.BudgetLimit{&x.Day, &x.Month, &x.Total}
}

// ReadBudget reads a budget. What its Validate says is not checked.
func ReadBudget(r *Reader) (x gpuai.Budget, err error) {
	for _, l := range budgetLimits(&x) {
		mask := r.U8()
		if mask > 3 {
			r.Fail("a budget has a bound that is not known")
		}
		if mask&1 != 0 {
			n := r.U32()
			l.GPUHours = &n
		}
		if mask&2 != 0 {
			n := gpuai.Micros(r.I64())
			l.Money = &n
		}
	}
	return x, r.err
}

// AppendPrices appends a price list.
func AppendPrices(b []byte, p *gpuai.Prices) []byte {
	b = append(le.AppendUint32(b, p.FeeBps), uint8(min(len(p.Models), 255)))
	for i := range p.Models[:min(len(p.Models), 255)] {
		b = appendI64(AppendStr(b, p.Models[i].Model), int64(p.Models[i].Price))
	}
	return b
}

// ReadPrices reads a price list. What its Validate says is not checked.
func ReadPrices(r *Reader) (p gpuai.Prices, err error) {
	p.FeeBps = r.U32()
	for range r.count8(gpuai.MaxPrices) {
		p.Models = append(p.Models, gpuai.ModelPrice{Model: string(r.text()), Price: gpuai.Micros(r.I64())})
	}
	return p, r.err
}
