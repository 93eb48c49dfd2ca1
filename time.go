package gpuai

import (
	"errors"
	"strconv"
)

// An Instant is a point of region time in milliseconds. Region time starts at 0
// when the region is bootstrapped, advances with the leader's monotonic clock
// and never goes back; it says nothing about the wall.
type Instant int64

// A Duration is a span in milliseconds.
type Duration int64

// Units of Duration.
const (
	Millisecond Duration = 1
	Second               = 1000 * Millisecond
	Minute               = 60 * Second
	Hour                 = 60 * Minute
	Day                  = 24 * Hour
)

// A WallTime is a Unix time in milliseconds, for display and invoices. One
// decision depends on it: JobSpec.Begin, which the submit turns into region time.
type WallTime int64

// Add returns t + d, clamped to the range of Instant.
func (t Instant) Add(d Duration) Instant {
	s := t + Instant(d)
	if d > 0 && s < t {
		return MaxInstant
	}
	return s
}

// MaxInstant is later than every instant that the machine reaches.
const MaxInstant Instant = 1<<63 - 1

// durationUnits are the units of a duration's text form, longest first.
var durationUnits = [...]struct {
	name string
	unit Duration
}{{"d", Day}, {"h", Hour}, {"m", Minute}, {"s", Second}, {"ms", Millisecond}}

// String returns d as in "1d2h30m", "1m30s", "500ms" or "0s".
func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	var out []byte
	left := uint64(d)
	if d < 0 {
		out, left = append(out, '-'), -left
	}
	for _, u := range durationUnits {
		if n := left / uint64(u.unit); n > 0 {
			out = append(strconv.AppendUint(out, n, 10), u.name...)
			left -= n * uint64(u.unit)
		}
	}
	return string(out)
}

// ErrDuration is returned when a text is no duration.
var ErrDuration = errors.New(`a duration is numbers with units d, h, m, s or ms, such as "1h30m"`)

// ParseDuration reads the text form of a non-negative duration: one or more
// whole numbers, each followed by its unit.
func ParseDuration(s string) (Duration, error) {
	if s == "" {
		return 0, ErrDuration
	}
	var total Duration
	for s != "" {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		j := i
		for j < len(s) && s[j] >= 'a' && s[j] <= 'z' {
			j++
		}
		n, err := strconv.ParseInt(s[:i], 10, 64)
		unit := durationUnit(s[i:j])
		if err != nil || unit == 0 || n > int64(MaxDuration/unit) {
			return 0, ErrDuration
		}
		if total += Duration(n) * unit; total > MaxDuration {
			return 0, ErrDuration
		}
		s = s[j:]
	}
	return total, nil
}

func durationUnit(name string) Duration {
	for _, u := range durationUnits {
		if u.name == name {
			return u.unit
		}
	}
	return 0
}
