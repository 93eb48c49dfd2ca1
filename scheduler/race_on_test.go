//go:build race

package scheduler

// seeds: the detector makes walks ten times as slow, and there is little for it
// in a package without goroutines: most of their seeds run without it, for 386.
func seeds(all uint64) uint64 { return (all + 3) / 4 }
