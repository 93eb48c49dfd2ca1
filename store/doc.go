// Package store owns the files of a server and of an agent.
//
// A server's data directory holds
//
//	LOCK        locked while a process uses the directory; names that process
//	FORMAT      the version of this layout
//	identity    who this server is and how far it has applied, see Identity
//	raft.db     the Raft log and Raft's few stable keys, see Log
//	snapshots/  the newest three snapshots, see OpenSnapshots
//	archive.db  jobs that have left the machine, and all events, see Archive
//	credential.pem, keyring, ca.pem, join
//	            of a region with authentication, see CredentialFile
//	RESTORING   only while a backup is being restored into it, see Install
//
// Everything that Raft acknowledges is on disk before the call returns. What
// bbolt does not notice by itself is noticed here: an empty or older log put
// in place of the real one, a damaged entry, a directory of another cluster.
// Each ends in one sentence that says what to do; nothing is repaired
// silently.
package store
