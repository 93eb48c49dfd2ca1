package gpuai

import "errors"

// An AuditHash is a link of the audit's chain: the SHA-256 of an entry with the
// hash of the entry before it.
type AuditHash [32]byte

// String returns the hash in 64 hexadecimal digits.
func (h AuditHash) String() string { return string(h.hex()) }

func (h AuditHash) hex() []byte {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 2*len(h))
	for _, b := range h {
		out = append(out, digits[b>>4], digits[b&15])
	}
	return out
}

// MarshalText writes what String returns.
func (h AuditHash) MarshalText() ([]byte, error) { return h.hex(), nil }

var errAuditHash = errors.New("a hash of the audit has 64 hexadecimal digits")

// UnmarshalText reads what String returns.
func (h *AuditHash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return errAuditHash
	}
	for i, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return errAuditHash
		}
		h[i/2] = h[i/2]<<4 | c
	}
	return nil
}

// An AuditEntry is what the audit keeps of one log entry.
type AuditEntry struct {
	Index uint64   `json:"index"`
	At    Instant  `json:"at_ms"`
	Wall  WallTime `json:"wall_time_unix_ms"` // for display: nothing vouches for clocks
	// First is the number of the first record; the region's first is 1.
	First uint64 `json:"first"`
	// Prev is the hash of the entry before; zeros before the first.
	Prev    AuditHash     `json:"prev"`
	Records []AuditRecord `json:"records"`
}

// An AuditRecord says who did what, and with what result.
type AuditRecord struct {
	// Actor is who asked, and from where, behind an @: token/ID@10.0.0.7.
	Actor string `json:"actor,omitzero"`
	// Command is the kind of what was asked for, such as submit_job, or
	// audit_note for what did not become a command: see Request.
	Command string   `json:"command"`
	Tenant  TenantID `json:"tenant,omitzero"`
	Job     JobID    `json:"job,omitzero"`
	// Subject is what it is about: the name of a node, tenant, server or secret, a
	// token's ID, an identity, the hash of an authority; "region" is all of it.
	Subject string `json:"subject,omitzero"`
	// Change says in short what it makes of its subject: of settings the old and the
	// new value of those that are others now ("weight 100 -> 300").
	Change string `json:"change,omitzero"`
	Code   Code   `json:"code"`
	// Repeated records were answered from what was remembered under their key.
	Repeated bool `json:"repeated,omitzero"`
	// Request and Count are of notes: the route that was refused, or exec, and
	// how often.
	Request string `json:"request,omitzero"`
	Count   uint32 `json:"count,omitzero"`
}

// Bounds of the audit.
const (
	// MaxAuditText bounds each text of a record, in bytes.
	MaxAuditText = 128
	// MaxAuditNotes is how many notes one command takes.
	MaxAuditNotes = 256
)

// An AuditNote is a record of what does not become a command by itself: a
// request that was refused, or a command beside a task.
type AuditNote struct {
	Actor   string
	Tenant  TenantID
	Job     JobID
	Subject string
	Request string
	Code    Code
	Count   uint32 // at least 1
}

// An AuditHead is the end of the chain, as the replicated state has it.
type AuditHead struct {
	Hash AuditHash `json:"hash"`
	// Records is how many there have been, Index the log index of the newest.
	Records uint64 `json:"records"`
	Index   uint64 `json:"index"`
}

// An AuditLine is one line of an export of the audit: a begin, entries by
// index, and, when it is whole, a head.
type AuditLine struct {
	Begin *AuditBegin `json:"begin,omitempty"`
	Entry *AuditEntry `json:"entry,omitempty"`
	Head  *AuditHead  `json:"head,omitempty"`
}

// An AuditBegin says what an export of the audit can have.
type AuditBegin struct {
	Server ServerID `json:"server"`
	Region RegionID `json:"region"`
	// Since is the index that was asked for: entries behind it follow.
	Since uint64 `json:"since,omitzero"`
	// Dropped is the index up to which entries may have made way for newer.
	Dropped uint64 `json:"dropped_index,omitzero"`
	// Missing are indexes that this server's archive does not have.
	Missing []IndexRange `json:"missing,omitempty"`
}
