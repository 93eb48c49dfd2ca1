// Package integration tests the real programs against each other: regions of
// three server processes, agents and their tasks on loopback, and what happens
// to them when processes are killed, stopped or cut off. It has nothing but
// tests; docs/reliability.md says which fault each of them shows. Below it are
// the programs demo and chaos, and what they share with the tests: processes
// (nursery), cables that can be cut (cable), and the judgement of tasks from
// outside (oracle).
package integration
