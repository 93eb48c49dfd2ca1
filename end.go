package gpuai

// EndCode names what ended a task, where its agent knows it. Its text is stable.
type EndCode uint8

// The codes. EndOther stands for what has no code of its own: its reason is text.
const (
	EndOther EndCode = iota
	// EndImagePull: the image does not exist, was denied or refused, or does not
	// fit on the node's disk.
	EndImagePull
	// EndOutOfMemory: it used more than its memory limit.
	EndOutOfMemory
	// EndProcessLimit: it reached its limit of processes and threads.
	EndProcessLimit
	// EndScratchFull: it filled its scratch space.
	EndScratchFull
	// EndSandbox: its sandbox could not be made.
	EndSandbox
	// EndDevice: its devices could not be had, or failed under it.
	EndDevice
	// EndDeadline: it was killed since its lease was not renewed in time.
	EndDeadline
	numEndCodes
)

// NumEndCodes bounds EndCode.
const NumEndCodes = int(numEndCodes)

var endCodeNames = [numEndCodes]string{
	"", "ImagePull", "OutOfMemory", "ProcessLimit", "ScratchFull", "Sandbox", "Device", "Deadline",
}

// String returns the code's text.
func (c EndCode) String() string { return enumName(endCodeNames[:], uint8(c)) }

// MarshalText writes the code's text.
func (c EndCode) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a code's text.
func (c *EndCode) UnmarshalText(b []byte) error {
	return enumParse(endCodeNames[:], "end code", b, (*uint8)(c))
}

// A TaskEnd is how a task last ended, as its agent told it. It stays while the
// task is placed again, until another end of it or its success.
type TaskEnd struct {
	Lease    Token      `json:"lease"`
	Node     NodeID     `json:"node"`
	Cause    LeaseCause `json:"cause"`
	Code     EndCode    `json:"end_code,omitzero"`
	ExitCode int32      `json:"exit_code,omitzero"` // 128+n for signal n
	// Reason is valid UTF-8 of at most MaxReasonLen bytes.
	Reason string  `json:"reason"`
	At     Instant `json:"at_ms"`
}

// digestPrefix begins the digests of images.
const digestPrefix = "sha256:"

// ValidDigest reports whether s is the digest of an image: sha256: and 64 hex
// digits, in lower case.
func ValidDigest(s string) bool {
	if len(s) != len(digestPrefix)+64 || s[:len(digestPrefix)] != digestPrefix {
		return false
	}
	for _, c := range []byte(s[len(digestPrefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A GroupImage is the digest that the name of a group's image was resolved to,
// by the first of its tasks. Every task that starts later runs that one.
type GroupImage struct {
	Group  uint16 `json:"group"`
	Digest string `json:"digest"`
}
