package gpuai

import (
	"errors"
	"strconv"
)

// A NodeID names a node. It is chosen by the node's operator and matches
// ValidName.
type NodeID string

// A DeviceID names a device within its node: the vendor's UUID where there is
// one, stable across reboots.
type DeviceID string

// A TenantID names a tenant: who submits jobs, and pays for them.
type TenantID string

// A RegionID names a region, a ServerID one member of it, a ClusterID the Raft
// group itself, minted when the group is bootstrapped.
type (
	RegionID  string
	ServerID  string
	ClusterID string
)

// DefaultTenant is the tenant of every job that names none.
const DefaultTenant TenantID = "default"

// DefaultRegion is the region of a server that is told no other.
const DefaultRegion RegionID = "local"

// A Token identifies a lease and fences its effects: of two leases of one task
// the later has the greater token. It is made of epoch:8 | index:40 |
// ordinal:16 and written as a decimal string in JSON, since it exceeds 2^53.
type Token uint64

// Limits of a token's parts.
const (
	MaxTokenIndex   = 1<<40 - 1
	MaxTokenOrdinal = 1<<16 - 1
)

// MakeToken returns the token of the ordinal-th lease granted at a log index.
// Bits of index above MaxTokenIndex are dropped.
func MakeToken(epoch uint8, index uint64, ordinal uint16) Token {
	return Token(uint64(epoch)<<56 | index&MaxTokenIndex<<16 | uint64(ordinal))
}

// Epoch returns the restore epoch that t was granted in.
func (t Token) Epoch() uint8 { return uint8(t >> 56) }

// Index returns the log index that t was granted at.
func (t Token) Index() uint64 { return uint64(t) >> 16 & MaxTokenIndex }

// Ordinal returns the place of t among the leases of its index.
func (t Token) Ordinal() uint16 { return uint16(t) }

// String returns t in decimal.
func (t Token) String() string { return strconv.FormatUint(uint64(t), 10) }

// MarshalText writes t in decimal.
func (t Token) MarshalText() ([]byte, error) {
	return strconv.AppendUint(nil, uint64(t), 10), nil
}

// UnmarshalText reads a decimal token.
func (t *Token) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return errors.New("a token is a decimal number below 2^64")
	}
	*t = Token(v)
	return nil
}

// An Incarnation counts a node's lives: +1 for each new (boot ID, start nonce),
// below the region's restore epoch in the top 8 bits. A decimal string in JSON.
type Incarnation uint64

// MakeIncarnation returns the n-th incarnation of an epoch.
func MakeIncarnation(epoch uint8, n uint64) Incarnation {
	return Incarnation(uint64(epoch)<<56 | n&(1<<56-1))
}

// Epoch returns the restore epoch that i was minted in.
func (i Incarnation) Epoch() uint8 { return uint8(i >> 56) }

// Counter returns i without its epoch.
func (i Incarnation) Counter() uint64 { return uint64(i) & (1<<56 - 1) }

// String returns i in decimal.
func (i Incarnation) String() string { return strconv.FormatUint(uint64(i), 10) }

// MarshalText writes i in decimal.
func (i Incarnation) MarshalText() ([]byte, error) {
	return strconv.AppendUint(nil, uint64(i), 10), nil
}

// UnmarshalText reads a decimal incarnation.
func (i *Incarnation) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return errors.New("an incarnation is a decimal number below 2^64")
	}
	*i = Incarnation(v)
	return nil
}

// A JobID is a ULID, minted by the server that takes the submit, before the
// command is proposed. The zero ID means none.
type JobID [16]byte

// crockford is the alphabet of a ULID's text form (github.com/ulid/spec).
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// JobIDLen is the length of a job ID's text form.
const JobIDLen = 26

// String returns the 26 characters of id in Crockford's base 32.
func (id JobID) String() string {
	var out [JobIDLen]byte
	// 128 bits, most significant first, padded with two zero bits in front.
	var acc uint32
	bits, o := uint(2), 0
	for _, b := range id {
		acc = acc<<8 | uint32(b)
		for bits += 8; bits >= 5; o++ {
			bits -= 5
			out[o] = crockford[acc>>bits&31]
		}
	}
	return string(out[:])
}

// IsZero reports whether id is the zero ID.
func (id JobID) IsZero() bool { return id == JobID{} }

// Compare orders IDs by their bytes, which is the order of their text.
func (id JobID) Compare(o JobID) int {
	for i := range id {
		if id[i] != o[i] {
			return int(id[i]) - int(o[i])
		}
	}
	return 0
}

// ParseJobID reads the text form of a job ID, in either case.
func ParseJobID(s string) (JobID, error) {
	var id JobID
	if len(s) != JobIDLen || s[0] > '7' {
		return id, errors.New("a job ID has 26 characters of 0-9 and A-Z without I, L, O and U")
	}
	var acc uint32
	bits, o := uint(0), 0
	for i := range len(s) {
		v := crockfordValue(s[i])
		if v > 31 {
			return JobID{}, errors.New("a job ID has 26 characters of 0-9 and A-Z without I, L, O and U")
		}
		acc = acc<<5 | uint32(v)
		bits += 5
		if i == 0 {
			bits = 3 // the two padding bits
		}
		if bits >= 8 {
			bits -= 8
			id[o] = byte(acc >> bits)
			o++
		}
	}
	return id, nil
}

func crockfordValue(c byte) byte {
	if c >= 'a' && c <= 'z' {
		c -= 'a' - 'A'
	}
	for i := range len(crockford) {
		if crockford[i] == c {
			return byte(i)
		}
	}
	return 255
}

// MarshalText writes the text form of id.
func (id JobID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the text form of a job ID.
func (id *JobID) UnmarshalText(b []byte) error {
	v, err := ParseJobID(string(b))
	*id = v
	return err
}

// A TaskRef names one task of a job.
type TaskRef struct {
	Job   JobID  `json:"job"`
	Group uint16 `json:"group"`
	Task  uint32 `json:"task"` // 0 … count-1 within the group
}

// ValidName reports whether s can name a node, job, group, zone or tenant:
// 1 to 63 characters of a-z, 0-9 and '-', neither first nor last a '-'
// (RFC 1123 label).
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxNameLen || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
