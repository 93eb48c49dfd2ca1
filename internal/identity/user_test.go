package identity

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// What a user may write into their own account maps to no role, and does not name
// them in the audit as somebody else.
func TestClaimsThatProveNothing(t *testing.T) {
	user := func(sub, name string, verified any) *User {
		return &User{issuer: "https://id.example", Subject: sub, Name: name, claims: map[string]any{"email": "ann@example.com", "email_verified": verified, "groups": []any{"ml"}}}
	}
	for verified, want := range map[any]bool{true: true, "true": true, false: false, "false": false, nil: false, 1.0: false} {
		u := user("1", "ann", verified)
		if u.Has("email", "ann@example.com") != want || !u.Has("groups", "ml") {
			t.Errorf("verified %v: the address counts: %v", verified, !want)
		}
	}
	ann, mallory := user("1", "ann@example.com", true).Actor(), user("2", "ann@example.com", false).Actor()
	if ann == mallory || !strings.HasPrefix(ann, "ann@example.com#") || ann != user("1", "ann@example.com", nil).Actor() {
		t.Errorf("%s and %s", ann, mallory)
	}
	other := user("1", "ann@example.com", true)
	other.issuer = "https://other.example"
	if other.Actor() == ann {
		t.Error("subjects of two providers are one")
	}
	if a := user("1", strings.Repeat("é", 100)+"\n\xff", true).Actor(); len(a) > 63 || !utf8.ValidString(a) {
		t.Errorf("%q", a)
	}
}
