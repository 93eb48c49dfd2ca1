// Package frames says what a server tells an agent of its leases: which sets,
// and which acks, at one index of the machine.
//
// The nouns: a Due is what a session's sender has to send; a View is what the
// machine says of the session's node at one index; a Teller remembers what one
// session has told its agent, and turns the two into frames.
//
// The package has no clock, no connection and starts no goroutine. Events only
// say where to look: a set tells what is true at its index, never what an event
// said.
package frames
