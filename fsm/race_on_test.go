//go:build race

package fsm

// underRace: the detector makes walks ten times as slow, and there is little for
// it in a package without goroutines: the walks' other seeds run without it.
const underRace = true
