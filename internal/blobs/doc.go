// Package blobs keeps immutable files in an object store: checkpoints, and
// whatever else must outlive the node that made it.
//
// The nouns: a Store is a bucket, or a directory of a file system; a blob is
// bytes under a key; a tree is a directory that was stored as chunks, each
// under its own digest, and a manifest that lists them. The manifest's digest
// says what the tree is: whatever is read by it is verified, to the byte. A chunk
// that is there is not sent again, so an upload that was cut off goes on where it
// was when it is made again. A Log is the output of an attempt, in packed pieces
// that can be read from any offset, time or line.
//
// The package knows no leases. Who may write below which prefix, and which
// manifest counts, its callers say.
package blobs
