package gpuai

import (
	"errors"
	"strconv"
)

// Limits of published checkpoints.
const (
	// MaxCheckpointKeep is how many published checkpoints of a task are kept at
	// most, DefaultCheckpointKeep how many of one that does not say.
	MaxCheckpointKeep     = 16
	DefaultCheckpointKeep = 2
	// MaxCheckpointBytes bounds the size of one.
	MaxCheckpointBytes = Bytes(1 << 50)
)

// A PublishedCheckpoint is the state of a task that its region knows of: what it
// goes on from when it runs again. The region holds only this; the files are in
// the region's checkpoint store, below Key, and nobody changes them.
type PublishedCheckpoint struct {
	TaskRef
	// Seq counts the checkpoints of the task, over all its attempts, from 1 on.
	Seq uint64 `json:"seq"`
	// Digest is that of the manifest, which lists the files and their digests.
	Digest BlobDigest `json:"digest"`
	Bytes  Bytes      `json:"size_bytes"` // of all its files
	// Step is how far the task says that it was; 0 when it does not.
	Step        uint64  `json:"step,omitzero"`
	PublishedAt Instant `json:"published_at_ms"`
	// Lease is the one under which it was published.
	Lease Token `json:"lease"`
	// Key is where the manifest is in the checkpoint store.
	Key string `json:"key"`
}

// CheckpointPrefix returns the beginning of the keys of all that a job has in
// the checkpoint store.
func CheckpointPrefix(job JobID) string { return "checkpoints/" + job.String() + "/" }

// CheckpointTaskPrefix is CheckpointPrefix for one task of the job.
func CheckpointTaskPrefix(t TaskRef) string {
	return CheckpointPrefix(t.Job) + strconv.Itoa(int(t.Group)) + "-" + strconv.FormatUint(uint64(t.Task), 10) + "/"
}

// CheckpointLeasePrefix is CheckpointTaskPrefix for what one lease has stored:
// its agent alone writes there.
func CheckpointLeasePrefix(t TaskRef, lease Token) string {
	return CheckpointTaskPrefix(t) + lease.String() + "/"
}

// CheckpointKey returns where the manifest of a checkpoint is stored.
func CheckpointKey(t TaskRef, lease Token, d BlobDigest) string {
	return CheckpointLeasePrefix(t, lease) + "manifests/" + d.Hex()
}

// LogsPrefix returns the beginning of the keys of all output that the region's
// store has of a job.
func LogsPrefix(job JobID) string { return "logs/" + job.String() + "/" }

// LogPrefix is LogsPrefix for the output of one attempt: the agent of its lease
// alone writes there, once, when the attempt has ended.
func LogPrefix(t TaskRef, lease Token) string {
	return LogsPrefix(t.Job) + strconv.Itoa(int(t.Group)) + "-" + strconv.FormatUint(uint64(t.Task), 10) + "/" + lease.String() + "/"
}

// A BlobDigest is the SHA-256 of a blob, by which it is found and verified. Its
// text is "sha256:" and 64 hexadecimal digits.
type BlobDigest [32]byte

const digestAlgorithm = "sha256:"

// IsZero reports whether d names no blob.
func (d BlobDigest) IsZero() bool { return d == BlobDigest{} }

// Hex returns the 64 digits.
func (d BlobDigest) Hex() string {
	const hex = "0123456789abcdef"
	var out [64]byte
	for i, b := range d {
		out[2*i], out[2*i+1] = hex[b>>4], hex[b&15]
	}
	return string(out[:])
}

// String returns d's text.
func (d BlobDigest) String() string { return digestAlgorithm + d.Hex() }

// MarshalText writes d's text.
func (d BlobDigest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads d's text, with the digits in lower case.
func (d *BlobDigest) UnmarshalText(b []byte) error {
	const n = len(digestAlgorithm)
	if len(b) != n+64 || string(b[:n]) != digestAlgorithm {
		return errDigest
	}
	for i := range d {
		hi, lo := hexDigit(b[n+2*i]), hexDigit(b[n+2*i+1])
		if hi > 15 || lo > 15 {
			return errDigest
		}
		d[i] = hi<<4 | lo
	}
	return nil
}

var errDigest = errors.New("a digest is \"sha256:\" and 64 hexadecimal digits in lower case")

func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// A Publish asks that a checkpoint become its task's newest: the agent has
// stored its files and manifest. It is judged in the region against the task's
// live lease, so that of two runners of one task only the rightful one ever
// publishes. It may be repeated until it is answered.
type Publish struct {
	Lease       Token       `json:"lease"`
	Incarnation Incarnation `json:"incarnation"`
	Task        TaskRef     `json:"task"`
	// After is the Seq of the checkpoint that it follows; 0 for none. Another
	// newest one refuses it.
	After  uint64     `json:"after,omitzero"`
	Digest BlobDigest `json:"digest"`
	Bytes  Bytes      `json:"size_bytes"`
	Step   uint64     `json:"step,omitzero"`
	// Keep is how many of the task are kept with this one, 1 to
	// MaxCheckpointKeep.
	Keep uint32 `json:"keep"`
}

// Valid reports whether p is within its limits.
func (p *Publish) Valid() bool {
	return !p.Digest.IsZero() && p.Bytes >= 0 && p.Bytes <= MaxCheckpointBytes && p.Keep >= 1 && p.Keep <= MaxCheckpointKeep
}

// A Published answers a Publish. With code OK it is the task's newest
// checkpoint, with number After + 1. Any code is final.
type Published struct {
	Lease  Token      `json:"lease"`
	After  uint64     `json:"after,omitzero"`
	Digest BlobDigest `json:"digest"`
	Code   Code       `json:"code"`
	Detail string     `json:"detail,omitzero"`
	// Kept, with PreconditionFailed, are those of the task that the region keeps,
	// the newest first: an agent that does not know its own goes on from them.
	// Older servers leave it out.
	Kept []PublishedCheckpoint `json:"kept,omitempty"`
}
