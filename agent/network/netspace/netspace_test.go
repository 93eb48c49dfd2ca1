package netspace

import (
	"os"
	"testing"
)

// The main thread cannot end, and what it is in is what /proc/net and
// /proc/self/ns show of the process.
func TestNewLeavesTheMainThreadWhereItIs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network is made by root")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		s, err := New()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != before {
			t.Fatalf("the process was in %s and is in %s, %v", before, now, err)
		}
	}
}
