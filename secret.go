package gpuai

import "fmt"

// Redacted is what a Secret is printed as.
const Redacted = "[redacted]"

// A Secret is a text that nothing prints by accident: a token, a key, a
// password. Whatever formats, logs or encodes it writes Redacted, in whatever
// it is held; Reveal alone gives the text. The zero value is no secret.
//
// The text is behind a pointer, because fmt calls no methods of fields that are
// not exported: it prints those as they are in memory. Two secrets of the same
// text are not ==.
type Secret struct{ text *string }

// NewSecret returns a secret; that of "" is none.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text, for whoever has to send it. It must not be logged,
// nor become part of an error.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// String returns Redacted; "" for no secret.
func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return Redacted
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// Format is String, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) } // a writer of fmt's does not fail

// MarshalText writes what String returns.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON writes what String returns, as JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// UnmarshalText reads a secret.
func (s *Secret) UnmarshalText(b []byte) error {
	*s = NewSecret(string(b))
	return nil
}

// Set reads a secret, for flags.
func (s *Secret) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type says what a flag takes.
func (s *Secret) Type() string { return "secret" }
