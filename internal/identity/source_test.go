package identity

import (
	"strings"
	"testing"
)

// When a certificate is renewed follows the wall clock, by which it is judged, also
// when that is put back or forward: a time with a reading of the monotonic clock would
// not see it.
func TestRenewalFollowsTheWallClock(t *testing.T) {
	r := newRealm(t, "c1")
	s := NewSource(SourceConfig{}) // the system's clock has such readings
	s.Set(r.credential(nodeN1, 7))
	if at := s.now.Load().renewAt.String(); strings.Contains(at, "m=") {
		t.Errorf("it is renewed at %s", at)
	}
}
