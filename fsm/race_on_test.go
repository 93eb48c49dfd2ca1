//go:build race

package fsm

// underRace: the detector makes walks ten times as slow, and there is little for
// it in a package without goroutines. A plain go test takes all their seeds.
const underRace = true
