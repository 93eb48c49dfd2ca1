// Package liveness is what a leader knows of its nodes' beats, and the
// decisions that follow from it: who is suspect, who is ready again, whose
// leases have outlived their time.
//
// The nouns: a Tracker belongs to one term and dies with it; a mark is the
// last beat of a node in that term; a superseded life is an older incarnation
// of a node that still holds leases; the breaker slows expiry down when so
// many nodes fall silent that the servers must suspect themselves; a Decision
// is what one window proposes.
//
// The package has no clock and starts no goroutine: every call is given the
// time. The order of its commands is part of the protocol, see Decision. What
// is decided here is judged again by the machine: an expiry ends only leases
// whose own TTL and grace have passed.
package liveness
