// Package raft runs one member of a region's Raft group: it orders commands,
// makes them durable on a majority, and applies them to the replicated
// machine of package fsm.
//
// A Node has a proposer (packs waiting commands into log entries), a replica
// (the machine behind its lock), a leadership watch (barrier, region time,
// Term), a barrier gate for linearizable reads, and one TCP port shared by
// Raft and the HTTP between servers. It owns hashicorp/raft, imported as
// hraft; none of its types appear in the exported API. DESIGN.md in this
// directory says why each piece is as it is.
package raft
