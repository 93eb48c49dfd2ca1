// Package fsm is the replicated state machine: it holds nodes, jobs, leases
// and the region's clock, and places jobs inside Apply.
//
// The log is the only input. Apply is a pure, total and bounded function of
// the state and one entry: no clock, no randomness, no I/O, no goroutine, no
// float, no map iteration; internal/arch checks it. Two machines that applied
// the same log are equal to the bit, and so are a machine and one restored
// from its snapshot. The package knows nothing of Raft, network or disk.
//
// A Machine belongs to one writer. Reads may run beside each other, never
// beside Apply: package raft owns the lock. A Fork is a machine of its own.
//
// DESIGN.md in this directory tells how it works, docs/adding-a-command.md
// which files a new command touches.
package fsm
