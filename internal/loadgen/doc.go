// Package loadgen puts load on a running region and measures it from outside:
// agents that hold real sessions but run nothing, and submits at a fixed rate
// that do not wait for one another.
//
// A latency is the time from when a submit was due to the moment at which the
// lease's frame has been read from the agent's session; a submit is called when
// it is due, or later when too many are under way, which then counts. Both ends
// are stamped with CLOCK_MONOTONIC, which the processes of one host share:
// agents may live in several processes, since each costs a descriptor.
//
// The processes that it starts read a pipe and end when the pipe does. So they
// leave nothing behind, however the one that started them ends.
package loadgen
