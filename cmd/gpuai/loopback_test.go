package main

import "testing"

func TestLoopbackHosts(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"127.evil.example": false, "127.0.0.1.example": false, "10.0.0.1": false, "": false,
	} {
		if isLoopbackHost(host) != want {
			t.Errorf("%q is loopback: %v", host, !want)
		}
	}
}
