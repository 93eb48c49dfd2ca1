package gpuai_test

import (
	"math"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestDurationText(t *testing.T) {
	for d, text := range map[gpuai.Duration]string{
		0: "0s", 1: "1ms", 999: "999ms", gpuai.Second: "1s", 1_500: "1s500ms", 90 * gpuai.Second: "1m30s",
		gpuai.Hour: "1h", gpuai.Day + 2*gpuai.Hour + 30*gpuai.Minute: "1d2h30m", gpuai.MaxDuration: "3650d",
	} {
		if d.String() != text {
			t.Errorf("%d is written %q, want %q", int64(d), d, text)
		}
		if back, err := gpuai.ParseDuration(text); err != nil || back != d {
			t.Errorf("%q is read as %d, %v", text, int64(back), err)
		}
	}
	for d, text := range map[gpuai.Duration]string{
		-1: "-1ms", -90 * gpuai.Second: "-1m30s", math.MinInt64: "-106751991167d7h12m55s808ms", math.MaxInt64: "106751991167d7h12m55s807ms",
	} {
		if d.String() != text {
			t.Errorf("%d is written %q, want %q", int64(d), d, text)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]gpuai.Duration{
		"0s": 0, "0ms": 0, "007s": 7_000, "1h30m": 90 * gpuai.Minute, "30m1h": 90 * gpuai.Minute, "1m1m": 2 * gpuai.Minute,
		"3650d": gpuai.MaxDuration, "100ms": 100, "3649d24h": gpuai.MaxDuration,
	} {
		if d, err := gpuai.ParseDuration(s); err != nil || d != want {
			t.Errorf("%q is read as %d, %v", s, int64(d), err)
		}
	}
	for _, s := range []string{
		"", "0", "1", "s", "1 s", " 1s", "1s ", "-1s", "+1s", "1.5h", "1S", "1us", "1w", "1sm", "1s2", "3651d", "3650d1ms",
		"9223372036854775807d", "9223372036854775808ms", "99999999999999999999s", "1s\x00", "１s", "1_0s", "ms1",
	} {
		if d, err := gpuai.ParseDuration(s); err == nil || d != 0 {
			t.Errorf("%q is read as %d", s, int64(d))
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1d2h30m", "500ms", "3650d", "1m1m", "0s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := gpuai.ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 || d > gpuai.MaxDuration {
			t.Errorf("%q is read as %d", s, int64(d))
		}
		if back, err := gpuai.ParseDuration(d.String()); err != nil || back != d {
			t.Errorf("%q is written again as %q", s, d)
		}
	})
}

func TestInstantAdd(t *testing.T) {
	for _, c := range []struct {
		at   gpuai.Instant
		d    gpuai.Duration
		want gpuai.Instant
	}{
		{0, 0, 0},
		{5, 7, 12},
		{5, -7, -2},
		{gpuai.MaxInstant, 0, gpuai.MaxInstant},
		{gpuai.MaxInstant, 1, gpuai.MaxInstant},
		{1, math.MaxInt64, gpuai.MaxInstant},
		{gpuai.MaxInstant - 5, gpuai.MaxDuration, gpuai.MaxInstant},
		{gpuai.MaxInstant, -1, gpuai.MaxInstant - 1},
	} {
		if got := c.at.Add(c.d); got != c.want {
			t.Errorf("%d + %d = %d, want %d", c.at, int64(c.d), got, c.want)
		}
	}
}
