// Package simulate runs traces through the production machine: the commands
// that servers propose, applied by package fsm, without Raft, network or
// agents. Nothing is modelled but the clock and the ends of tasks.
//
// Fill offers a load that only grows and measures how well it is packed; Timed
// replays arrivals and durations and measures waits and allocation over time.
// One seed gives one digest, on every machine.
package simulate
