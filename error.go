package gpuai

// A Code says what kind of answer a command or request got. Its text is the
// "code" of the HTTP API and stable.
type Code uint8

// The codes. Only OK is a success.
const (
	OK Code = iota
	InvalidSpec
	NotFound
	Conflict
	PreconditionFailed
	Unauthenticated
	Forbidden
	QuotaExceeded
	BudgetExceeded
	Unschedulable
	IdempotencyMismatch
	RateLimited
	NoLeader
	OutcomeUnknown
	TooLarge
	Internal
	DiskLow
	numCodes
)

var codeNames = [numCodes]string{
	"ok", "invalid_spec", "not_found", "conflict", "precondition_failed",
	"unauthenticated", "forbidden", "quota_exceeded", "budget_exceeded",
	"unschedulable", "idempotency_mismatch", "rate_limited", "no_leader",
	"outcome_unknown", "too_large", "internal", "disk_low",
}

// String returns the code's stable text.
func (c Code) String() string { return enumName(codeNames[:], uint8(c)) }

// MarshalText writes the code's stable text.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a code's text.
func (c *Code) UnmarshalText(b []byte) error {
	return enumParse(codeNames[:], "code", b, (*uint8)(c))
}

// A FieldError says what is wrong at one place of a document.
type FieldError struct {
	Pointer string `json:"pointer"` // RFC 6901 JSON pointer, "" for the whole
	Line    int32  `json:"line,omitzero"`
	Column  int32  `json:"column,omitzero"`
	Detail  string `json:"detail"`
}

// An Error is an answer other than success, with what to do next. It is the
// one error type that crosses package borders with a code.
type Error struct {
	Code    Code
	Detail  string // one sentence: what, where, what to do next
	Fields  []FieldError
	Reasons []Reason
	Index   uint64 // of the state that it was judged at; 0 when not known
	// RetryAfter is when a retry is worth it; 0 when it is not.
	RetryAfter Duration
	// RequestID names the request that was answered so in the servers' logs;
	// "" where there was none.
	RequestID string
}

// Error returns the code and the detail.
func (e *Error) Error() string {
	if e.Detail == "" && len(e.Fields) > 0 {
		f := e.Fields[0]
		return e.Code.String() + ": " + f.Pointer + ": " + f.Detail
	}
	return e.Code.String() + ": " + e.Detail
}

// Is makes errors.Is match on the code alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Detail == ""
}

// Errorf-like formatting is left to the caller: NewError only pairs the two.
func NewError(c Code, detail string) *Error { return &Error{Code: c, Detail: detail} }
