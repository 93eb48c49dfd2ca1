package telemetry

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

func TestRingKeepsTheNewestLines(t *testing.T) {
	var out bytes.Buffer
	r := NewRing()
	log := r.Tee(NewLogger(&out, FormatJSON, slog.LevelInfo)).With("server", "a").WithGroup("g")
	log.Debug("unwanted")
	for i := range ringLines + 10 {
		log.Info("line", "n", i)
	}
	log.Error(strings.Repeat("x", 3*ringLine))
	var kept bytes.Buffer
	if _, err := r.WriteTo(&kept); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(kept.String(), "\n"), "\n")
	if len(lines) != ringLines {
		t.Fatalf("%d lines are kept", len(lines))
	}
	if want := "server=a g.n=11"; !strings.HasSuffix(lines[0], want) {
		t.Errorf("the oldest is %q, not one of %q", lines[0], want)
	}
	if last := lines[len(lines)-1]; len(last) != ringLine-1 || !strings.Contains(last, "level=ERROR") {
		t.Errorf("the long line has %d bytes: %.60q", len(last), last)
	}
	if n := strings.Count(out.String(), "\n"); n != ringLines+11 || strings.Contains(kept.String()+out.String(), "unwanted") {
		t.Errorf("%d lines were written as before", n)
	}
}

func TestRingKeepsWhatAQuietLogDoesNotWrite(t *testing.T) {
	var out, kept bytes.Buffer
	r := NewRing()
	log := r.Tee(NewLogger(&out, FormatText, slog.LevelError))
	log.Info("quiet")
	log.Debug("nothing")
	if _, err := r.WriteTo(&kept); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 || !strings.Contains(kept.String(), "msg=quiet\n") || strings.Contains(kept.String(), "nothing") {
		t.Errorf("written %q, kept %q", out.String(), kept.String())
	}
}

func TestRingIsSafeForConcurrentUse(t *testing.T) {
	r := NewRing()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 500 {
				fmt.Fprintf(r, "%d %d\n", i, k)
				if k%100 == 0 {
					_, _ = r.WriteTo(&bytes.Buffer{})
				}
			}
		})
	}
	wg.Wait()
	if lines := r.copy(); len(lines) != ringLines {
		t.Errorf("%d lines", len(lines))
	}
}
