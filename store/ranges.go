package store

import "github.com/gpuai/gpuai"

// Sets of log indexes are sorted, disjoint ranges with a gap between each two.

// addRange returns the set with a range added; an empty one adds nothing.
func addRange(set []gpuai.IndexRange, r gpuai.IndexRange) []gpuai.IndexRange {
	if r.From > r.To {
		return set
	}
	out := make([]gpuai.IndexRange, 0, len(set)+1)
	for _, x := range set {
		switch {
		case x.To+1 < r.From:
			out = append(out, x)
		case r.To+1 < x.From:
			out = append(out, r)
			r = x
		default:
			r = gpuai.IndexRange{From: min(x.From, r.From), To: max(x.To, r.To)}
		}
	}
	return append(out, r)
}

// subtractRanges returns what is in a and not in b.
func subtractRanges(a, b []gpuai.IndexRange) (out []gpuai.IndexRange) {
	for _, r := range a {
		for _, x := range b {
			if x.To < r.From || x.From > r.To {
				continue
			}
			if x.From > r.From {
				out = append(out, gpuai.IndexRange{From: r.From, To: x.From - 1})
			}
			r.From = x.To + 1
			if r.From > r.To {
				break
			}
		}
		if r.From <= r.To {
			out = append(out, r)
		}
	}
	return out
}

// inRanges reports whether a set has an index.
func inRanges(set []gpuai.IndexRange, i uint64) bool {
	for _, r := range set {
		if r.From <= i && i <= r.To {
			return true
		}
	}
	return false
}
