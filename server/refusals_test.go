package server

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// Whoever connects without a good certificate cannot fill the log.
func TestRefusalsAreLoggedWithinBounds(t *testing.T) {
	var b bytes.Buffer
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	r := refusals{log: slog.New(slog.NewTextHandler(&b, nil)), now: func() time.Time { return now }}
	for range 1000 {
		r.refused(&net.TCPAddr{}, errors.New(strings.Repeat("x", 1<<16)))
	}
	if n := strings.Count(b.String(), "\n"); n != refusalsPerSecond || b.Len() > refusalsPerSecond*(maxRefusal+200) {
		t.Errorf("%d lines, %d bytes", n, b.Len())
	}
	now = now.Add(time.Second)
	r.refused(&net.TCPAddr{}, errors.New("again"))
	if text := b.String(); !strings.Contains(text, "reason=again others_unlogged=995") {
		t.Errorf("what was not logged is not counted: %s", text[max(0, len(text)-200):])
	}
}
