//go:build race

package fsm

// underRace: the detector makes walks ten times as slow, and there is little for
// it in a package without goroutines: their other seeds run without it, for 386.
const underRace = true
