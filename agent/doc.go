// Package agent runs a node of a region: it offers the node's devices, takes
// leases and runs their tasks, and ends each of them in time.
//
// One goroutine, the loop, owns everything that changes and is told of events
// by functions posted to it. What to do it asks the pure core in agent/decide;
// what lasts it writes to store's journal before it acts; tasks are run and
// fenced by the process of agent/watchdog. DESIGN.md in this directory draws
// the whole.
//
// Nouns: an Agent is one node's agent, a Session its stream to a server, a
// Driver the host of one vendor's devices.
package agent
