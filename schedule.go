package gpuai

import (
	"errors"
	"strconv"
)

// weekMinutes is the length of a week.
const weekMinutes = 7 * 24 * 60

// MaxWindows is how many windows a schedule has.
const MaxWindows = 32

// MaxUTCOffset bounds the offset of a schedule's clock from UTC, in minutes.
const MaxUTCOffset = 14 * 60

// A WeekMinute is a minute of the week; 0 is Monday, 00:00.
type WeekMinute uint16

var weekDays = [7]string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

// ErrWeekMinute is returned when a text is no minute of a week.
var ErrWeekMinute = errors.New(`a time of the week is a day and an hour, such as "mon 20:00"`)

// String returns the minute as "mon 20:00".
func (t WeekMinute) String() string {
	if t >= weekMinutes {
		return "unknown"
	}
	two := func(n WeekMinute) string { return string([]byte{'0' + byte(n/10), '0' + byte(n%10)}) }
	return weekDays[t/(24*60)] + " " + two(t/60%24) + ":" + two(t%60)
}

// MarshalText writes the minute's text.
func (t WeekMinute) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a minute's text. "sun 24:00" is "mon 00:00".
func (t *WeekMinute) UnmarshalText(b []byte) (err error) {
	*t, err = ParseWeekMinute(string(b))
	return err
}

// ParseWeekMinute reads the text of a minute; see UnmarshalText.
func ParseWeekMinute(s string) (WeekMinute, error) {
	if len(s) != len("mon 20:00") || s[3] != ' ' || s[6] != ':' {
		return 0, ErrWeekMinute
	}
	day := 0
	for day < len(weekDays) && weekDays[day] != s[:3] {
		day++
	}
	hour, err := strconv.ParseUint(s[4:6], 10, 8)
	minute, err2 := strconv.ParseUint(s[7:9], 10, 8)
	if day == len(weekDays) || err != nil || err2 != nil || minute > 59 || hour*60+minute > 24*60 {
		return 0, ErrWeekMinute
	}
	return WeekMinute((uint64(day)*24*60 + hour*60 + minute) % weekMinutes), nil
}

// A Window is a time of each week. One whose To is not behind its From goes on over
// the end of the week; From and To alike are the whole week.
type Window struct {
	From WeekMinute `json:"from"`
	To   WeekMinute `json:"to"`
}

// length is how many minutes a window has.
func (w Window) length() int64 {
	if n := (int64(w.To) - int64(w.From) + weekMinutes) % weekMinutes; n != 0 {
		return n
	}
	return weekMinutes
}

// A Schedule says when a node may be used. Without windows it always may.
type Schedule struct {
	// UTCOffset is what its clock is ahead of UTC, in minutes. It knows no summer
	// time.
	UTCOffset int16    `json:"utc_offset_minutes,omitzero"`
	Windows   []Window `json:"windows,omitempty"`
}

// Validate says what is wrong with a schedule; nil means nothing.
func (s *Schedule) Validate() []FieldError {
	var v fieldErrors
	v.check(s.UTCOffset >= -MaxUTCOffset && s.UTCOffset <= MaxUTCOffset, "/utc_offset_minutes", "must be between -840 and 840")
	v.check(len(s.Windows) <= MaxWindows, "/windows", "has at most "+strconv.Itoa(MaxWindows)+" windows")
	for i, w := range s.Windows[:min(len(s.Windows), MaxWindows)] {
		at := "/windows/" + strconv.Itoa(i)
		v.check(w.From < weekMinutes, at+"/from", "must be a time of the week")
		v.check(w.To < weekMinutes, at+"/to", "must be a time of the week")
	}
	return v
}

// At reports whether a valid schedule is open at a wall time, and until when that
// holds; MaxWallTime is for ever.
func (s *Schedule) At(now WallTime) (open bool, until WallTime) {
	if len(s.Windows) == 0 {
		return true, MaxWallTime
	}
	minute := int64(max(now, 0)) / int64(Minute)
	// 1970 began on a Thursday.
	week := (minute + int64(s.UTCOffset) + 3*24*60 + weekMinutes) % weekMinutes
	ahead := int64(0)
	for range len(s.Windows) + 1 { // each may go on where another ends, and the first again
		left := s.leftAt((week + ahead) % weekMinutes)
		if ahead += left; left == 0 {
			break
		}
	}
	switch {
	case ahead >= weekMinutes:
		return true, MaxWallTime
	case ahead > 0:
		return true, WallTime((minute + ahead) * int64(Minute))
	}
	wait := int64(weekMinutes)
	for _, w := range s.Windows {
		wait = min(wait, (int64(w.From)-week+weekMinutes)%weekMinutes)
	}
	return false, WallTime((minute + wait) * int64(Minute))
}

// leftAt is how long the longest window goes on from a minute of the week; 0 when
// none has it.
func (s *Schedule) leftAt(week int64) (left int64) {
	for _, w := range s.Windows {
		if in := (week - int64(w.From) + weekMinutes) % weekMinutes; in < w.length() {
			left = max(left, w.length()-in)
		}
	}
	return left
}

// A ContributorStatus is what a contributor has earned.
type ContributorStatus struct {
	Contributor ContributorID `json:"contributor"`
	// Day and Month are those of UTC, in which leases were billed. Fees are not
	// in it: they come on top of what the contributor is paid.
	Day   Micros `json:"earned_day_micros"`
	Month Micros `json:"earned_month_micros"`
	Total Micros `json:"earned_total_micros"`
}
