// Package server is one member of a region: it composes the Raft node, the
// HTTP API, the agents' sessions, the watch hub and the duties of a leader.
//
// The nouns: a Server runs from Open to Close; a reign is what it does in one
// term that it leads, with the soft state of that term; a session is one
// agent's connection; the beat collector folds the beats of its sessions into
// one message per window; the lane carries agents' commands to the leader.
// Everything that is decided is decided by the machine of package fsm: this
// package feeds commands in and carries decisions out. DESIGN.md in this
// directory says why each piece is as it is.
package server
