package server

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
)

// Whoever connects does not fill the log with what they like.
func TestRefusedConnectionsAreLoggedBriefly(t *testing.T) {
	var out bytes.Buffer
	r := &refusals{log: slog.New(slog.NewTextHandler(&out, nil))}
	for range 100 {
		r.say(&net.TCPAddr{}, errors.New(strings.Repeat("ä", 10_000)))
	}
	if n := strings.Count(out.String(), "\n"); n < 1 || n > 20 || out.Len() > n*1000 {
		t.Errorf("%d lines of %d bytes", n, out.Len())
	}
}
