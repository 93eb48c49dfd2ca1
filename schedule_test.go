package gpuai

import "testing"

func TestWeekMinuteText(t *testing.T) {
	for m := range WeekMinute(weekMinutes) {
		if got, err := ParseWeekMinute(m.String()); err != nil || got != m {
			t.Fatalf("%d is written %q and read %d, %v", m, m, got, err)
		}
	}
	if m, err := ParseWeekMinute("sun 24:00"); err != nil || m != 0 {
		t.Errorf("the end of the week is %d, %v", m, err)
	}
	for _, s := range []string{"", "mon", "Mon 20:00", "mon 24:01", "mon 20:60", "mon 2:000", "mon  9:00", "mon +9:00", "mon 20:00 ", "xyz 20:00"} {
		if m, err := ParseWeekMinute(s); err == nil {
			t.Errorf("%q is read as %s", s, m)
		}
	}
	if s := WeekMinute(weekMinutes).String(); s != "unknown" {
		t.Errorf("no minute of the week is written %q", s)
	}
}

func window(t *testing.T, from, to string) Window {
	t.Helper()
	a, err := ParseWeekMinute(from)
	b, err2 := ParseWeekMinute(to)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return Window{a, b}
}

// monday is a Monday, 00:00 UTC: 2026-11-30.
const monday = WallTime(1_795_996_800_000)

// At says, at each minute of two weeks, what looking at every minute says.
func TestScheduleAgainstEachMinute(t *testing.T) {
	for name, s := range map[string]Schedule{
		"nights":         {Windows: []Window{window(t, "mon 20:00", "tue 08:00"), window(t, "fri 20:00", "sat 08:00")}},
		"ahead of UTC":   {UTCOffset: 330, Windows: []Window{window(t, "mon 00:00", "mon 06:00")}},
		"behind UTC":     {UTCOffset: -480, Windows: []Window{window(t, "sun 22:00", "mon 02:30")}},
		"weekend":        {Windows: []Window{window(t, "sat 00:00", "sun 00:00"), window(t, "sun 00:00", "sun 24:00")}},
		"over the end":   {Windows: []Window{window(t, "sun 12:00", "tue 00:00"), window(t, "mon 20:00", "wed 01:00")}},
		"every day":      {Windows: []Window{window(t, "mon 00:00", "thu 00:00"), window(t, "thu 00:00", "mon 00:00")}},
		"the whole week": {Windows: []Window{window(t, "wed 07:00", "wed 07:00")}},
		"all but a bit":  {Windows: []Window{window(t, "wed 07:01", "wed 07:00")}},
		"no windows":     {},
	} {
		if wrong := s.Validate(); wrong != nil {
			t.Fatalf("%s: %v", name, wrong)
		}
		var known [3 * weekMinutes]bool
		for i := range known {
			known[i] = len(s.Windows) == 0
		}
		for _, w := range s.Windows {
			for m := range w.length() {
				for i := (int64(w.From) + m - int64(s.UTCOffset) + weekMinutes) % weekMinutes; i < int64(len(known)); i += weekMinutes {
					known[i] = true
				}
			}
		}
		for i := range weekMinutes {
			at := monday + WallTime(i)*WallTime(Minute)
			got, until := s.At(at + WallTime(i%60)*1000 + 7)
			want := MaxWallTime
			for k := i + 1; k < i+weekMinutes; k++ {
				if known[k] != known[i] {
					want = monday + WallTime(k)*WallTime(Minute)
					break
				}
			}
			if got != known[i] || until != want {
				t.Fatalf("%s, minute %d: open %v until %d, want %v until %d", name, i, got, until, known[i], want)
			}
		}
	}
}

func TestScheduleValidate(t *testing.T) {
	for name, s := range map[string]Schedule{
		"an offset too far": {UTCOffset: MaxUTCOffset + 1},
		"too many":          {Windows: make([]Window, MaxWindows+1)},
		"no minute":         {Windows: []Window{{From: weekMinutes}}},
		"no end":            {Windows: []Window{{To: weekMinutes}}},
	} {
		if s.Validate() == nil {
			t.Errorf("%s is valid", name)
		}
	}
}
