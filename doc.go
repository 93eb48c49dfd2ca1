// Package gpuai is the vocabulary of the system: the nouns that the API, the
// client, the command, the agent and the state machine share.
//
// The nouns, each in a file of its own:
//
//   - a region is one Raft group of servers; a server is a member of it;
//   - a node is a host that runs an agent, a device one accelerator of it;
//   - a tenant submits a job; a job has groups; a group has count equal tasks;
//   - a lease is the right of one task to use given devices of one node until
//     it ends; its ID is the fencing token;
//   - region time is the machine's own clock, see Instant;
//   - an event is what Apply tells the world.
//
// The types here are those of the edges. The state machine (package fsm) keeps
// pointer-free records of its own and converts at its border, in one file per
// noun. The package is pure: it imports neither time nor an encoder, reads no
// clock, and iterates over no map. Field tags name the canonical JSON form.
package gpuai
